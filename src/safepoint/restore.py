"""Put a checkpoint back into live objects: the newest that is sound, and only what fits.

Whether the state fits is found out before the first live byte is changed. Then the file is read once, straight into the
live tensors where they are as they were saved, and ``load_state_dict`` does the rest.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from safepoint import loading, reader
from safepoint.catalog import Catalog
from safepoint.entries import BEGUN, put_back
from safepoint.errors import (
    CheckpointError,
    NotACheckpointError,
    RestoreError,
    RunAliveError,
    StateMismatchError,
    cause,
    plain,
    warn,
)
from safepoint.excluded import compare
from safepoint.in_place import live_storages
from safepoint.loading import KeyOf, Trust
from safepoint.matching import Fit, fit
from safepoint.ranks import rank
from safepoint.reader import Opened
from safepoint.records import Progress, Record
from safepoint.report import told_of_inexact
from safepoint.transfer import tensors_in
from safepoint.wanted import Wanted

logger = logging.getLogger("safepoint")

Claim = Callable[[Record], object]
"""Makes sure that the run of a checkpoint is nobody else's; raises a RunAliveError if it is."""

_TORN = (
    "Tensors of the objects in state= may hold parts of a damaged checkpoint by now: build these objects anew before "
    "you use them."
)
_SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Candidates:
    """The checkpoints to restore from, in the order in which they are tried.

    ``unreadable`` is what has no record, each with why; ``ageless`` the part of it that may be a newer checkpoint.
    """

    directory: Path
    records: tuple[Record, ...]
    unreadable: Mapping[Path, str]
    ageless: Mapping[Path, str]

    @classmethod
    def newest_first(cls, catalog: Catalog) -> Candidates:
        """Return all that is in ``catalog``."""
        return cls.of(catalog, tuple(reversed(catalog.records)))

    @classmethod
    def of(cls, catalog: Catalog, records: tuple[Record, ...]) -> Candidates:
        """Return ``records`` of ``catalog``, beside what in it has no record."""
        ageless = {path: problem for path, problem in catalog.unreadable.items() if path not in catalog.foreign}
        return cls(catalog.directory, records, catalog.unreadable, ageless)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: from which checkpoint, where to go on, and what Safepoint itself had put into it.

    ``skipped`` are the newer ones that did not verify, with what is wrong with them.
    """

    record: Record
    progress: Progress
    own: Mapping[str, Any]
    skipped: Mapping[Path, str]


def restore_first(
    objects: Mapping[str, object],
    candidates: Candidates,
    wanted: Wanted,
    claim: Claim | None = None,
    trust: Trust = (),
) -> Restored | None:
    """Restore what is ``wanted`` of ``objects`` from the first candidate that verifies; ``None`` if there is none.

    What Safepoint itself had put into the state is handed back instead. ``claim`` is asked before another run's
    checkpoint than the first one's is read. ``trust`` is that of ``loading.load``.

    Raises:
        RunAliveError: ``claim`` has raised it.
        ConfigurationError: ``trust`` is no list of classes and functions.
        RestoreError: there are checkpoints, and none verifies that has no flaw; says what was tried.
        StateMismatchError: the first sound one is of another model or optimizer; says which keys differ.
        CheckpointError: it holds what cannot be loaded safely.

    """
    skipped: dict[Path, str] = {}
    flawed: dict[Path, str] = {}
    is_torn = False
    trusted = loading.checked_trust(trust)
    for record in candidates.records:
        if record.flaw:
            flawed[record.path] = told_of_flaw(record)
            continue
        try:
            if claim is not None and record.run != candidates.records[0].run:
                claim(record)
            with torch.serialization.safe_globals(trusted):
                found = _read(objects, record.path, wanted)
        except _UnsoundError as error:
            skipped[record.path] = str(error)
            is_torn = is_torn or error.is_torn
            continue
        except (StateMismatchError, CheckpointError, RunAliveError) as error:
            _warn_of(skipped, flawed, candidates.ageless)
            if is_torn:
                raise type(error)(f"{error} {_TORN}") from error
            raise
        _warn_of(skipped, flawed, candidates.ageless)
        _tell(found, objects, record.path, strict=wanted.strict)
        report = found.fit.report
        for name in report.restored:
            put_back(name, objects[name], found.state[name], record.path)
        progress = replace(found.progress if wanted.whole else Progress(path=record.path), report=report)
        return Restored(record, progress, found.own, skipped)
    skipped |= candidates.unreadable
    if skipped or flawed:
        none = told_of_none(candidates.directory, skipped, flawed)
        raise RestoreError(f"{none}{f' {_TORN}' if is_torn else ''}")
    return None


def told_of_flaw(record: Record) -> str:
    """Say why the sound checkpoint of ``record`` is not gone on from."""
    return f"it was saved at an exception ({record.emergency}), and {record.flaw}"


def told_of_none(
    directory: Path, skipped: Mapping[Path, str], flawed: Mapping[Path, str], *, another: str = "directory"
) -> str:
    """Say that no checkpoint in ``directory`` can be gone on from: those ``skipped`` as damaged, and the ``flawed``."""
    tried = "\n".join(f"  {path}: {problem}" for path, problem in {**skipped, **flawed}.items())
    none = "can be gone on from" if flawed else "verifies"
    anyway = " safepoint.load() reads those that were saved at an exception." if flawed else ""
    remedy = f"Give another {another}, or move these files away to start afresh."
    return f"no checkpoint in {directory} {none}; tried:\n{tried}\n{remedy}{anyway}"


class _UnsoundError(Exception):
    """Say why a checkpoint is skipped, and whether live tensors may hold parts of it by now."""

    def __init__(self, problem: str, *, is_torn: bool = False) -> None:
        super().__init__(problem)
        self.is_torn = is_torn


@dataclass(frozen=True, slots=True)
class _Found:
    """What was read: where to go on, the entries to load, what Safepoint had put into the state, and how it fits."""

    progress: Progress
    state: dict[str, Any]
    own: Mapping[str, Any]
    fit: Fit


def _read(objects: Mapping[str, object], path: Path, wanted: Wanted) -> _Found:
    """Return the state at ``path``, on the storages of ``objects`` as far as they are as they were saved."""
    try:
        with reader.opened(path) as checkpoint:
            everything, key_of = _structure(checkpoint, path)
            progress = _progress(checkpoint, wanted, path)
            saved = _entries(checkpoint, everything, wanted)
            fit = _fitting(checkpoint, objects, saved, wanted, path)
            keys = _keys(everything, key_of)
            own = saved.get(wanted.own) if wanted.whole else None
            fit.make_fit(objects, saved)
            spared = keys - _keys([own, saved], key_of)
            sizes = [blob.size_bytes for blob in checkpoint.manifest.storages]
            restored = {name: objects[name] for name in saved}
            live = live_storages(restored, saved, key_of, sizes)
            new = {key: size for key, size in enumerate(sizes) if key not in live and key not in spared}
            loading.check_room(sum(new.values()), path)
            storages = [loading.fresh(size) if key in new else live.get(key) for key, size in enumerate(sizes)]
            _fill(checkpoint, storages, may_tear=bool(live))
            state = _entries(checkpoint, _built(checkpoint, storages, path), wanted)
            own = state.get(wanted.own)
            fit.make_fit(objects, state)
            return _Found(progress, state, own if isinstance(own, dict) else {}, fit)
    except (NotACheckpointError, OSError) as error:
        raise _UnsoundError(str(error)) from error


def _keys(value: object, key_of: KeyOf) -> set[int | None]:
    """Return which storages of the file the tensors in ``value`` lie on."""
    return {key_of(tensor.untyped_storage()) for tensor in tensors_in(value)} - {None}


def _progress(checkpoint: Opened, wanted: Wanted, path: Path) -> Progress:
    """Return where to go on; a checkpoint of a framework's tells that to the framework only."""
    progress = checkpoint.manifest.progress(path)
    if progress is not None:
        return progress
    if _takes_weights(checkpoint, wanted):
        return Progress(path=path)
    _check(checkpoint)  # as in _structure
    raise StateMismatchError(
        f"{path} was saved by the Lightning drop-in: resume it with trainer.fit(ckpt_path=...), take its weights alone "
        "with restore(only=[...]) of one module, or read it with safepoint.load()."
    )


def _takes_weights(checkpoint: Opened, wanted: Wanted) -> bool:
    """Tell whether the weights in a framework's checkpoint are all that is wanted."""
    return checkpoint.manifest.position is None and not wanted.whole and len(wanted.entries) == 1


def _entries(checkpoint: Opened, state: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Return the state by the names of ``state=``."""
    if _takes_weights(checkpoint, wanted) and "state_dict" in state:
        return {wanted.entries[0]: state["state_dict"]}
    return state


def _fitting(
    checkpoint: Opened, objects: Mapping[str, object], saved: Mapping[str, Any], wanted: Wanted, path: Path
) -> Fit:
    """Return how the checkpoint fits; raises a StateMismatchError if nothing may be restored from it."""
    found = fit(objects, saved, checkpoint.manifest, wanted)
    if found.problem:
        _check(checkpoint)  # as in _structure
        raise StateMismatchError(f"{path} {found.problem}")
    return found


def _tell(found: _Found, objects: Mapping[str, object], path: Path, *, strict: bool | None) -> None:
    """Say what does not fit, and what does not go on exactly: once, of several ranks on the first."""
    report = found.fit.report
    for name in report.restored:
        excluded, target = found.fit.excluded(name), objects[name]
        if excluded and isinstance(target, torch.nn.Module):
            told = compare(target.state_dict(), excluded)
            if told.is_whole:
                logger.info("%s", plain(f"{path}: of state[{name!r}], {told}"))
            else:
                warn(f"{path}: of state[{name!r}], {told}.", stacklevel=5)
    if found.fit.has_wrappers:
        logger.info("%s", plain(f"{path}: keys that differ by the names of wrappers only are taken for the same"))
    lines = []
    if strict is False and not report.is_whole:
        lines.append(f"{path} was restored in part: {report}")
    else:
        if report.unexpected:
            unused = ", ".join(sorted(found.entry for found in report.unexpected))
            lines.append(f"{path} also holds {unused}, which state= does not name: not restored")
        if report.inexact:
            lines += [f"{path}: the run does not go on exactly where it was:", *told_of_inexact(report.inexact)]
    if lines:
        told_once = "\n".join(lines)
        if rank() == 0:
            warn(told_once, stacklevel=5)
        else:
            logger.info("%s", plain(told_once))


def _fill(checkpoint: Opened, storages: Sequence[torch.UntypedStorage | None], *, may_tear: bool) -> None:
    try:
        problems = loading.fill(checkpoint, storages)
    except OSError as error:
        problems = [str(error)]
    if problems:
        raise _UnsoundError("; ".join(problems), is_torn=may_tear)


def _structure(checkpoint: Opened, path: Path) -> tuple[dict[str, Any], KeyOf]:
    """Return the state without its data, built from a pickle that has been verified."""
    pickled = checkpoint.sound_pickle()
    if pickled is None or not checkpoint.has_sound_index():
        _check(checkpoint)
    try:
        loading.check_pickle(checkpoint, pickled)
        state, key_of = loading.structure(checkpoint)
    except Exception as error:  # noqa: BLE001 - torch raises what it likes, here and below
        _check(checkpoint)  # what is damaged is skipped, whatever it holds
        if isinstance(error, pickle.UnpicklingError):
            raise loading.refusal(path, error) from cause(error)
        raise CheckpointError(f"{path} is sound, and its state cannot be built: {error}.") from cause(error)
    if not isinstance(state, dict):
        _check(checkpoint)
        raise StateMismatchError(f"{path} holds no entries, but a {type(state).__name__}: safepoint.load() reads it.")
    return state, key_of


def _built(checkpoint: Opened, storages: Sequence[torch.UntypedStorage | None], path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = loading.build(checkpoint, storages, "cpu")
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(f"{path} is sound, and its state cannot be built: {error}. {BEGUN}") from cause(error)
    return state


def _check(checkpoint: Opened) -> None:
    """Raise an _UnsoundError if the checkpoint does not verify."""
    if problems := list(reader.problems(checkpoint)):
        raise _UnsoundError("; ".join(problems))


def _warn_of(skipped: Mapping[Path, str], flawed: Mapping[Path, str], ageless: Mapping[Path, str]) -> None:
    """Warn of what may be newer than what is restored: did not verify, has a flaw, or does not even tell its age."""
    for path, problem in flawed.items():
        warn(f"{path} is not gone on from: {problem}. safepoint.load() reads it.", stacklevel=4)
    for path, problem in {**skipped, **ageless}.items():
        warn(f"{path} was skipped and left alone: {problem}", stacklevel=4)
