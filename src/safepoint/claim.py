"""Go on with a run only if nobody else does: wait for a process that is about to end, refuse where one is alive.

A living run holds its newest checkpoint, or the one that it went on from (``stores.lease``). Reads manifests and asks
for locks; changes nothing, in the directory or in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from safepoint.catalog import Catalog, found_in
from safepoint.errors import RunAliveError
from safepoint.naming import EXTENSION
from safepoint.records import Record
from safepoint.stores.lease import holder, is_held_elsewhere

WAIT_S = 6.0
"""How long the end of another process is waited for.

It may be writing its last checkpoint; and a data loader's worker looks every five seconds whether its parent lives.
"""
_LOOK_EVERY_S = 0.2

Choose = Callable[[Catalog], Record | None]
Hold = Callable[[Path], bool]
"""Holds a checkpoint, unless another process does; tells whether it is held."""


def claimed(directory: Path, choose: Choose, hold: Hold, extension: str = EXTENSION, *, below: bool = True) -> Catalog:
    """Return what is in ``directory``, and ``below``, once the run of what ``choose`` picks is nobody else's.

    That checkpoint is held by then. While another process has one of the run's, waits, and looks anew each time.

    Raises:
        RunAliveError: it still has it after ``WAIT_S``.

    """
    ends_s = time.monotonic() + WAIT_S
    while True:
        catalog = Catalog.of(directory, extension, below=below)
        chosen = choose(catalog)
        if chosen is None:
            return catalog
        theirs = held_elsewhere(catalog, chosen.run) if hold(chosen.path) else chosen.path
        if theirs is None and _is_all_there_is(catalog, extension, below=below):
            return catalog
        if time.monotonic() > ends_s:
            raise RunAliveError(_told(theirs or chosen.path, directory))
        time.sleep(_LOOK_EVERY_S)


def held_elsewhere(catalog: Catalog, run: str | None = None) -> Path | None:
    """Return the newest checkpoint of ``run``, or of any, that another living process holds."""
    newest_first = (record for record in reversed(catalog.records) if run in (None, record.run))
    return next((record.path for record in newest_first if is_held_elsewhere(record.path)), None)


def told_of_the_living(catalog: Catalog) -> str | None:
    """Say that another process saves here, too, if one does."""
    path = held_elsewhere(catalog)
    return None if path is None else f"That run is alive: {path.name} is held by {whose(path)}, which saves here too."


def whose(path: Path) -> str:
    """Return who holds the checkpoint at ``path``, as far as can be told."""
    pid = holder(path)
    return "another process, perhaps on another host or in another container" if pid is None else f"process {pid}"


def _is_all_there_is(catalog: Catalog, extension: str, *, below: bool) -> bool:
    """Tell whether nothing has come since: a living run holds its newest before it lets go of the one before."""
    return {*found_in(catalog.directory, extension, below=below)} <= {*catalog.manifests, *catalog.unreadable}


def _told(path: Path, directory: Path) -> str:
    return (
        f"{path} is held by {whose(path)}: the run that saved it is still alive in {directory}, and two processes "
        f"cannot go on as one run. End that process and start again, or give another directory.{_told_of_links(path)}"
    )


def _told_of_links(path: Path) -> str:
    """Say what else may be the case where the file has other names: a copy made of links (``cp -al``) is none."""
    try:
        count = path.stat().st_nlink
    except OSError:
        return ""
    if count == 1:
        return ""
    return (
        f" The file has {count} names: if that run is alive in another directory, and these are hard links to its "
        "files, wait for its end, or copy the files themselves (cp -a)."
    )
