"""Remove what a policy does not keep of runs that nobody goes on with: what would go, and what has gone.

Each run by itself, and of each only what it wrote itself under the names that there are; never its newest that is
sound, nor what is pinned. While something is removed, nobody else can go on with the run. Reads manifests, and all of
that newest; knows no command.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from safepoint import claim, reader, removal
from safepoint.catalog import Catalog
from safepoint.errors import MissingMetricError, RunAliveError
from safepoint.keep import Best, PreservationPolicy
from safepoint.ledger import plan_retention
from safepoint.records import ANOTHER_NAME, Record
from safepoint.removal import Left, Removal
from safepoint.stores.local import LocalStore

Verify = Callable[[Path], Sequence[str]]
"""Returns the problems of the checkpoint at a path; may raise an OSError."""

_LEFT = {Left.PINNED: "it was pinned meanwhile", Left.ANOTHERS: "another checkpoint has its name by now"}


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of a run, with all its names, its own first; ``reason`` is why it stays or goes."""

    record: Record
    names: tuple[Path, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a policy makes of the checkpoints in ``directory``: what stays and what would go, each oldest first.

    ``frees_bytes`` is what removing all of ``goes`` frees on the disk, as far as names tell. ``untouched`` is what lies
    there besides, with why it is left alone; ``living`` are the checkpoints that other processes hold, of runs of which
    something would go.
    """

    directory: Path
    stays: tuple[Saved, ...]
    goes: tuple[Saved, ...]
    frees_bytes: int
    untouched: Mapping[Path, str]
    damaged: frozenset[Path]
    living: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What has become of each that was to go: removed, left alone with why, or not removed for an error."""

    removed: tuple[Saved, ...]
    left: Mapping[Path, str]
    failed: Mapping[Path, str]
    freed_bytes: int


def plan(directory: Path, policy: PreservationPolicy, asked: str, verify: Verify = reader.verify) -> Pruning:
    """Return what ``policy``, as ``asked`` for in words, makes of what is in ``directory``.

    Where something would go, the newest of its run is read: if that is damaged, it counts for nothing.

    Raises:
        MissingMetricError: no checkpoint of a run has a metric that it ranks by; names those that there are.
        OSError: the directory cannot be read.

    """
    catalog = Catalog.of(directory)
    stays: list[Saved] = []
    goes: list[Saved] = []
    damaged: dict[Path, str] = {}
    living: list[Path] = []
    for run in catalog.runs():
        kept, gone = _plan_of(catalog, run, policy, asked)
        held = claim.held_elsewhere(catalog, run) if gone else None
        if held is not None:
            living.append(held)
        else:
            while gone and (unsound := _damage_of_newest(kept, verify)):
                damaged |= unsound
                kept, gone = _plan_of(catalog, run, policy, asked, damaged.keys())
        stays += kept
        goes += gone
    return Pruning(
        directory,
        tuple(sorted(stays, key=_age)),
        tuple(sorted(goes, key=_age)),
        _bytes_of(goes),
        dict(sorted({**_untouched(catalog, (*stays, *goes)), **damaged}.items())),
        frozenset(damaged),
        tuple(living),
    )


def carry_out(pruning: Pruning, policy: PreservationPolicy, asked: str) -> Pruned:
    """Remove what goes of ``pruning``, if it goes by a look at what there is now, too; durable when it returns.

    Raises:
        OSError: the directory cannot be read.

    """
    wanted: dict[str, list[Saved]] = {}
    for saved in pruning.goes:
        wanted.setdefault(saved.record.run, []).append(saved)
    done = [_pruned(pruning, run, own, policy, asked) for run, own in wanted.items()]
    removed = tuple(sorted((saved for each in done for saved in each.removed), key=_age))
    left = {path: why for each in done for path, why in each.left.items()}
    failed = {path: why for each in done for path, why in each.failed.items()}
    return Pruned(removed, left, failed, sum(each.freed_bytes for each in done))


def _age(saved: Saved) -> float:
    return saved.record.time


def _plan_of(
    catalog: Catalog, run: str, policy: PreservationPolicy, asked: str, without: Collection[Path] = ()
) -> tuple[tuple[Saved, ...], tuple[Saved, ...]]:
    """Return what stays and what goes of ``run``, as if what is to be ``without`` were not there."""
    saved = tuple(each for each in _saved_by(catalog, run) if each.record.path not in without)
    records = [each.record for each in saved]
    found = plan_retention(policy, records, protected=_linked_by_hand(catalog, saved))
    if found.remove:
        _check_metrics(policy, records, asked)
    stays = (replace(each, reason=reason) for each in saved if (reason := found.keep.get(each.record.path)) is not None)
    goes = (
        replace(each, reason=reason) for each in saved if (reason := found.remove.get(each.record.path)) is not None
    )
    return tuple(stays), tuple(goes)


def _damage_of_newest(kept: Sequence[Saved], verify: Verify) -> dict[Path, str]:
    """Return the names of the newest of ``kept`` that no exception left, each with what is wrong, if something is."""
    newest = next((saved for saved in reversed(kept) if not saved.record.emergency), None)
    if newest is None:
        return {}
    try:
        problem = next(iter(verify(newest.record.path)), "")
    except OSError as error:
        problem = error.strerror or str(error)
    return dict.fromkeys(newest.names, f"not sound, and counts for nothing: {problem}") if problem else {}


def _saved_by(catalog: Catalog, run: str) -> Iterator[Saved]:
    """Yield what ``run`` wrote itself, oldest first, each once, whatever names it has; pinned by any of them."""
    by_time: dict[float, list[Record]] = {}
    for record in catalog.written_by(run):
        by_time.setdefault(record.time, []).append(record)
    for own in by_time.values():
        own.sort(key=lambda record: (catalog.fates[record.path].reason.startswith(ANOTHER_NAME), record.path))
        pinned = any(record.pinned for record in own)
        yield Saved(replace(own[0], pinned=pinned), tuple(record.path for record in own), "")


def _linked_by_hand(catalog: Catalog, saved: Sequence[Saved]) -> dict[Path, str]:
    """Return what a symbolic link that somebody made shows, with that: it would lead to nothing."""
    names = {os.path.realpath(name): each.record.path for each in saved for name in each.names}
    links = (link for link in _links_in(catalog.directory) if link not in catalog.fates)
    shown = ((link, names.get(os.path.realpath(link))) for link in links)
    return {path: f"{link} is a link to it" for link, path in shown if path is not None}


def _links_in(directory: Path) -> Iterator[Path]:
    """Yield the symbolic links in ``directory`` and below, whatever they are called."""
    for place, _, names in os.walk(directory):
        yield from (path for name in names if (path := Path(place, name)).is_symlink())


def _check_metrics(policy: PreservationPolicy, records: Sequence[Record], asked: str) -> None:
    """Raise a MissingMetricError if a part of ``policy`` ranks none of ``records``: all would go for a slip."""
    ordinary = [record for record in records if not record.emergency]
    there = {name for record in ordinary for name in record.metrics if Best(name).ranked([record])}
    for metric in sorted(policy.metrics - there):
        known = any(metric in record.metrics for record in ordinary)
        why = "has it as a number that was measured at its own step" if known else "has it"
        whose = f"No checkpoint of the run that saved {records[-1].path} {why}, and nothing was removed."
        raise MissingMetricError(metric, f"--keep={asked!r}", there, whose)


def _untouched(catalog: Catalog, saved: Sequence[Saved]) -> dict[Path, str]:
    own = {name for each in saved for name in each.names}
    others = {record.path: _whose(catalog, record) for record in catalog.records if record.path not in own}
    unreadable = {
        path: "written by another program" if path in catalog.foreign else f"cannot be read: {problem}"
        for path, problem in catalog.unreadable.items()
    }
    return dict(sorted((others | unreadable).items()))


def _whose(catalog: Catalog, record: Record) -> str:
    if record.path.parent != catalog.directory:
        return f"below: not of a run in {catalog.directory}"
    return "copied, renamed or linked by hand, or saved beside the policy: no policy touches it"


def _bytes_of(goes: Sequence[Saved]) -> int:
    """Return what is free once all names of ``goes`` are gone: what has another name stays."""
    names = [name for saved in goes for name in saved.names]
    found = [status for name in names if (status := _status(name)) is not None]
    counts = Counter((status.st_dev, status.st_ino) for status in found)
    sizes = {(s.st_dev, s.st_ino): s.st_size for s in found if counts[s.st_dev, s.st_ino] == s.st_nlink}
    return sum(sizes.values())


def _status(name: Path) -> os.stat_result | None:
    try:
        return name.lstat()
    except OSError:
        return None


def _pruned(pruning: Pruning, run: str, wanted: Sequence[Saved], policy: PreservationPolicy, asked: str) -> Pruned:
    """Remove what is ``wanted`` of ``run``, which is held for that time, as far as it goes by now."""
    store = LocalStore(pruning.directory)
    shown = {(saved.record.path, saved.record.time) for saved in wanted}
    try:
        catalog = claim.claimed(pruning.directory, partial(_newest, run), partial(_holds, store))
        _, goes = _plan_of(catalog, run, policy, asked, pruning.damaged)
        still = {(saved.record.path, saved.record.time): saved for saved in goes}
        left = {path: "it stays, as things are by now" for path, time in shown if (path, time) not in still}
        return _removed(store, [saved for key, saved in still.items() if key in shown], left)
    except RunAliveError as error:
        return Pruned((), {}, {saved.record.path: str(error) for saved in wanted}, 0)
    finally:
        store.let_go()


def _newest(run: str, catalog: Catalog) -> Record | None:
    return next((record for record in reversed(catalog.records) if record.run == run), None)


def _holds(store: LocalStore, path: Path) -> bool:
    """Hold the checkpoint at ``path``, unless another process does; where nobody can tell, it is held."""
    try:
        return store.claim(path.relative_to(store.directory).as_posix())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _removed(store: LocalStore, goes: Sequence[Saved], left: dict[Path, str]) -> Pruned:
    removed: list[Saved] = []
    failed: dict[Path, str] = {}
    freed_bytes = 0
    for saved in goes:
        size_bytes = _bytes_of([saved])
        try:
            found = [_remove(store, saved, name) for name in reversed(saved.names)]
        except OSError as error:
            failed[saved.record.path] = error.strerror or str(error)
            continue
        if (stays := next((each for each in found if each is not Left.NOTHING), None)) is not None:
            left[saved.record.path] = _LEFT[stays]
            continue
        removed.append(saved)
        freed_bytes += size_bytes
    for name in {name.parent: name for saved in removed for name in saved.names}.values():
        try:
            store.sync(name.relative_to(store.directory).as_posix())
        except OSError as error:
            failed[name.parent] = f"what was removed may be back after a power cut: {error.strerror or error}"
    return Pruned(tuple(removed), left, failed, freed_bytes)


def _remove(store: LocalStore, saved: Saved, name: Path) -> Left:
    relative = name.relative_to(store.directory).as_posix()
    return removal.remove(store, Removal(relative, frozenset((saved.record.run,)), frozenset((saved.record.time,))))
