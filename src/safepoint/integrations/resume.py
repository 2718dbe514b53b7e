"""Go on with what is there: find the checkpoint to resume from, refuse a damaged one, rebuild what a run held."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from safepoint import archive, reader
from safepoint.archive import ForeignFileError
from safepoint.catalog import Catalog
from safepoint.claim import told_of_the_living
from safepoint.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError, RestoreError
from safepoint.ledger import Ledger
from safepoint.manifest import Summary
from safepoint.records import Record
from safepoint.restore import told_of_flaw, told_of_none
from safepoint.run import Run


def local_path(path: Any) -> Path | None:
    """Return a local path, resolved; ``None`` for nothing and for another kind of address."""
    if not path or "://" in str(path):
        return None
    return Path(os.path.realpath(os.path.expanduser(path)))


def is_checkpoint(path: Path) -> bool:
    """Tell whether ``path`` is Safepoint's; what another program wrote is left to the framework.

    Raises:
        DamagedCheckpointError: nobody can tell, as it is damaged, cut off or of a newer format: nothing is to load it.

    """
    if not path.is_file():
        return False
    try:
        reader.read_summary(path)
    except ForeignFileError:
        return False
    except NotACheckpointError as error:
        if _may_be_a_zip(path):
            raise DamagedCheckpointError(f"{path} cannot be used: {error}.") from None
        return False
    return True


def _may_be_a_zip(path: Path) -> bool:
    """Tell whether ``path`` begins or ends like a zip, or has lost its beginning: other kinds of checkpoints do not.

    So it is where the beginning has come to lie in the last block, or the end in the first.
    """
    with _opened(path) as file:
        first = file.read(_BLOCK_BYTES)
        file.seek(max(file.seek(0, os.SEEK_END) - _BLOCK_BYTES, 0))
        last = file.read(_BLOCK_BYTES)
        is_misplaced = b"PK\x03\x04" in last or b"PK\x05\x06" in first
        return b"PK\x03\x04".startswith(first[:4]) or not any(first[:4]) or is_misplaced or zipfile.is_zipfile(file)


_BLOCK_BYTES = 4096


def instead_of(path: Path) -> str:
    """Return a sentence that names what to load in place of ``path``, which is damaged: the newest that is sound."""
    for other in _others_beside(path):
        if _problem(other) is None:
            return f"The newest sound checkpoint beside it is {other}."
    return "No checkpoint beside it is sound."


def _others_beside(path: Path) -> Iterator[Path]:
    """Yield the checkpoints in the directory of ``path``, newest first; of its own run, if it tells which that is."""
    found: dict[Path, Summary] = {}
    for file in path.parent.glob(f"*{path.suffix}"):
        with contextlib.suppress(CheckpointError, OSError):
            found[file] = reader.read_summary(file)
    own = found.pop(path, None)
    for file in sorted(found, key=lambda file: found[file].time, reverse=True):
        if (own is None or found[file].run == own.run) and not found[file].flaw:
            yield file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file; what is none is never waited for."""
    with os.fdopen(archive.open_regular(path), "rb") as file:
        yield file


def _is_zip(path: Path) -> bool:
    """Tell whether ``path`` is a file, and looks like a whole zip archive."""
    try:
        with _opened(path) as file:
            return zipfile.is_zipfile(file)
    except (CheckpointError, OSError):
        return False


def _changed_at(path: Path) -> float:
    """Return when ``path`` was changed, long ago for what is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def newest_last(directory: Path, name: str, extension: str, warn: Callable[[str], None]) -> Path | None:
    """Return the newest sound checkpoint called ``name``, ``name-v1``, ...; else the newest sound one of any name.

    One with a flaw is passed over like one that is damaged. ``None`` if nothing is called so.

    Raises:
        RestoreError: something is called so, and no checkpoint is sound that has no flaw.

    """
    catalog = Catalog.of(directory, extension)
    pattern = re.compile(rf"{re.escape(name)}(-v?\d+)?{re.escape(extension)}")
    newest_first = list(reversed(catalog.records))
    named = [record for record in newest_first if pattern.fullmatch(record.path.name)]
    unreadable = [path for path in catalog.unreadable if pattern.fullmatch(path.name)]
    if not named and not unreadable:
        return None
    skipped: dict[Path, str] = {}
    flawed: dict[Path, str] = {}
    for record in named:
        if _sound(record, skipped, flawed, warn):
            return record.path
    for path in sorted(unreadable, key=_changed_at, reverse=True):
        if path in catalog.foreign and (path.is_dir() or _is_zip(path)):
            return path
        skipped[path] = catalog.unreadable[path]
        warn(f"{path} was skipped: {skipped[path]}")
    for record in newest_first:
        if record not in named and _sound(record, skipped, flawed, warn):
            return record.path
    raise RestoreError(told_of_none(directory, skipped, flawed, another="ckpt_path="))


def within(path: Path, directory: Path) -> Path:
    """Return the resolved ``path`` as one below ``directory``, if it is that; both may be given by way of links."""
    real = os.path.realpath(directory)
    return directory / path.relative_to(real) if path.is_relative_to(real) else path


def claim(run: Run, path: Path, extension: str) -> None:
    """Make sure that the run which saved ``path``, if that lies in the directory of ``run``, is nobody else's.

    Raises:
        RunAliveError: it is alive in another process.

    """
    there = within(path, run.directory)
    run.claimed(lambda catalog: next((found for found in catalog.records if found.path == there), None), extension)


def living(directory: Path, extension: str) -> str | None:
    """Say that another process saves into ``directory``, if one does."""
    return told_of_the_living(Catalog.of(directory, extension))


def believed(state: dict[str, Any], directory: Path, extension: str, resumed_from: Path | None) -> dict[str, Any]:
    """Return a callback's ``state`` without the paths in ``directory`` that its run cannot be seen to have saved.

    What the callback holds it may remove and replace, a checkpoint can name anything, and what is damaged is left where
    it is. What lies elsewhere is only shown.

    Raises:
        CheckpointError: it is no state of a callback.

    """
    held = state.get("best_k_models", {})
    if not isinstance(held, dict) or not all(
        isinstance(score, Tensor) and score.numel() == 1 for score in held.values()
    ):
        raise CheckpointError("the checkpoint's best_k_models are none: it was not saved by a ModelCheckpoint.")
    inside = Path(os.path.realpath(directory))
    run = None if resumed_from is None else _run_of(resumed_from)

    def is_its(name: object) -> bool:
        path = Path(name) if isinstance(name, str) else Path()
        if ".." in path.parts or "\0" in str(path):
            return False
        if not path.is_relative_to(directory) or not path.exists():
            return True
        is_there = path.name.endswith(extension) and Path(os.path.realpath(path.parent)).is_relative_to(inside)
        found = _run_of(path)
        return is_there and (found is not None if run is None else found in ("", run))

    paths = {key: state[key] if is_its(state[key]) else "" for key in _PATHS if key in state}
    return {**state, **paths, "best_k_models": {name: score for name, score in held.items() if is_its(name)}}


_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def _run_of(path: Path) -> str | None:
    """Return the run that saved ``path``, "" if another program did, ``None`` if nobody can tell."""
    try:
        return reader.read_summary(path).run if is_checkpoint(path) else ""
    except (CheckpointError, OSError):
        return None


def absolute(state: dict[str, Any], dirpath: str, directory: Path) -> dict[str, Any]:
    """Return a callback's ``state`` with absolute paths, if its own ``dirpath`` is a relative one.

    Its absolute names tell where that was; if it has none, ``dirpath`` is taken to be ``directory``.
    """
    told, held = state.get("dirpath"), state.get("best_k_models", {})
    if not isinstance(told, str) or os.path.isabs(told) or not isinstance(held, dict):
        return state
    names = [Path(name) for name in (*held, *(state.get(key) for key in _PATHS)) if isinstance(name, str)]
    parents = (parent for name in names if name.is_absolute() for parent in name.parents)
    tail = Path(told).parts
    default = directory if told == dirpath else Path(os.path.abspath(told))
    old = next((parent for parent in parents if parent.parts[-len(tail) :] == tail), default)

    def made(name: Any) -> Any:
        path = Path(name) if isinstance(name, str) and name else Path("/")
        if path.is_absolute() or ".." in path.parts:
            return name
        return str(old / path.relative_to(told)) if path.is_relative_to(told) else os.path.abspath(path)

    paths = {key: made(state[key]) for key in _PATHS if key in state}
    return {**state, **paths, "best_k_models": {made(name): score for name, score in held.items()}, "dirpath": str(old)}


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
    paths = {key: moved(state.get(key, "")) for key in _PATHS}
    if not held and not any(paths.values()):
        return state
    return {**state, **paths, "best_k_models": held, "dirpath": str(directory)}


def ledger(
    directory: Path, extension: str, held: Mapping[str, Any], monitor: str | None, resumed_from: Path | None
) -> tuple[str | None, Ledger]:
    """Return the run's identity, if known, and the ledger of a run that held the paths and scores in ``held``.

    Files that are gone or known to be damaged are left out: they hold no place that a sound one could have. Those
    without a manifest (Lightning wrote them) count by their scores.
    """
    catalog = Catalog.of(directory, extension)
    known = {record.path: record for record in catalog.records}
    damaged = catalog.unreadable.keys() - catalog.foreign
    records: list[Record] = []
    for order, (name, score) in enumerate(held.items()):
        path = Path(name)
        if not path.exists() or path in damaged:
            continue
        metrics = {} if monitor is None or score is None else {monitor: float(score)}
        found = known.get(path) or Record(path, 0, 0, {}, float(order), path.stat().st_size, ())
        records.append(replace(found, metrics={**found.metrics, **metrics}))
    manifest = None if resumed_from is None else catalog.manifests.get(within(resumed_from, directory))
    if manifest is None:
        return None, Ledger(records=tuple(records))
    return manifest.run, Ledger(records=tuple(records), removed=catalog.gone(manifest.run))


def _sound(record: Record, skipped: dict[Path, str], flawed: dict[Path, str], warn: Callable[[str], None]) -> bool:
    """Tell whether the checkpoint of ``record`` verifies and has no flaw; if not, warn, and note why."""
    path = record.path
    if record.flaw:
        flawed[path] = problem = told_of_flaw(record)
    elif (found := _problem(path)) is not None:
        skipped[path] = problem = found
    else:
        return True
    warn(f"{path} was skipped: {problem}")
    return False


def _problem(path: Path) -> str | None:
    """Return what is wrong with the checkpoint at ``path``, ``None`` if it verifies."""
    try:
        return "; ".join(reader.verify(path)) or None
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
