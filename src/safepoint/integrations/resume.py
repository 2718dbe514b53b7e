"""Go on with what is there: find the checkpoint to resume from, refuse a damaged one, rebuild what a run held."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safepoint import reader
from safepoint.catalog import Catalog
from safepoint.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError
from safepoint.ledger import Ledger
from safepoint.loading import check_sound
from safepoint.records import Record


def local_path(path: Any) -> Path | None:
    """Return a local path, resolved; ``None`` for nothing and for another kind of address."""
    if not path or "://" in str(path):
        return None
    return Path(os.path.realpath(os.path.expanduser(path)))


def is_checkpoint(path: Path) -> bool:
    """Tell whether ``path`` is Safepoint's; what another program wrote is left to the framework.

    Raises:
        DamagedCheckpointError: it is cut off, so that nobody can tell.

    """
    if not path.is_file():
        return False
    try:
        reader.read_manifest(path)
    except NotACheckpointError as error:
        if not zipfile.is_zipfile(path) and _begins_like_a_zip(path):
            raise DamagedCheckpointError(f"{path} is damaged: {error}. Load another checkpoint of the run.") from None
        return False
    return True


def _begins_like_a_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def newest_last(directory: Path, name: str, extension: str, warn: Callable[[str], None]) -> Path | None:
    """Return the newest sound checkpoint called ``name``, ``name-v1``, ...; else the newest sound one of any name."""
    catalog = Catalog.of(directory, extension)
    pattern = re.compile(rf"{re.escape(name)}(-v?\d+)?{re.escape(extension)}")
    newest_first = [record.path for record in reversed(catalog.records)]
    named = [path for path in newest_first if pattern.fullmatch(path.name)]
    foreign = [path for path in catalog.unreadable if pattern.fullmatch(path.name)]
    if not named and not foreign:
        return None
    for path in named:
        if _sound(path, warn):
            return path
    for path in sorted(foreign, key=lambda path: path.stat().st_mtime, reverse=True):
        if zipfile.is_zipfile(path):
            return path
        warn(f"{path} was skipped: {catalog.unreadable[path]}")
    return next((path for path in newest_first if path not in named and _sound(path, warn)), None)


def rebased(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a callback's ``state`` with its paths in ``directory``, if what it held was moved or copied there.

    Where none of its files is there, somebody has chosen another directory, and ``state`` stays what it is.
    """
    old = Path(state.get("dirpath") or directory)
    if old == directory:
        return state

    def moved(name: str) -> str:
        path = Path(name)
        there = directory / path.relative_to(old) if name and path.is_relative_to(old) else None
        return str(there) if there is not None and there.exists() else ""

    held = {moved(name): score for name, score in state.get("best_k_models", {}).items() if moved(name)}
    paths = {key: moved(state.get(key, "")) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
    if not held and not any(paths.values()):
        return state
    return {**state, **paths, "best_k_models": held, "dirpath": str(directory)}


def ledger(
    directory: Path, extension: str, held: Mapping[str, Any], monitor: str | None, resumed_from: Path | None
) -> tuple[str | None, Ledger]:
    """Return the run's identity, if known, and the ledger of a run that held the paths and scores in ``held``.

    Files that are gone are left out; those without a manifest (Lightning wrote them) count by their scores.
    """
    catalog = Catalog.of(directory, extension)
    known = {record.path: record for record in catalog.records}
    records: list[Record] = []
    for order, (name, score) in enumerate(held.items()):
        path = Path(name)
        if not path.exists():
            continue
        metrics = {} if monitor is None or score is None else {monitor: float(score)}
        found = known.get(path) or Record(path, 0, 0, {}, float(order), path.stat().st_size, ())
        records.append(replace(found, metrics={**found.metrics, **metrics}))
    manifest = None if resumed_from is None else catalog.manifests.get(resumed_from)
    if manifest is None:
        return None, Ledger(records=tuple(records))
    present = {record.path for record in catalog.records}
    removed = tuple(f for f in catalog.history(manifest.run) if not f.kept and f.record.path not in present)
    return manifest.run, Ledger(records=tuple(records), removed=removed)


def _sound(path: Path, warn: Callable[[str], None]) -> bool:
    try:
        check_sound(path)
    except (CheckpointError, OSError) as error:
        warn(f"{path} was skipped: {error}")
        return False
    return True
