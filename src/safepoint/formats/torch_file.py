"""What ``torch.save`` writes, Lightning's checkpoints among it: a zip archive of a pickle and storages.

The pickle is walked through and never executed; the storages are only located.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safepoint.archive import Source
from safepoint.contents import Contents, Format, Outline, Storage, Tensor
from safepoint.errors import CheckpointError, NotACheckpointError
from safepoint.formats import foreign, lightning, tree, walk
from safepoint.formats.files import opened
from safepoint.formats.scalars import number
from safepoint.formats.zips import Archive
from safepoint.keys import RefusedError
from safepoint.records import Metrics

PICKLE = "data.pkl"
_DATA = "data/"
_BYTEORDER = "byteorder"
STEPS = ("global_step", "step", "iteration", "iter")
EPOCHS = ("epoch",)
_HYPERPARAMETERS = ("hyper_parameters", "hparams", "config", "args")
METRICS = "metrics"
_MOST_METRICS = 100
"""More numbers at the top of a state than that are a table of something, and no metrics."""


class State(NamedTuple):
    """What a file of torch's holds: the state, and the tensors in it."""

    tree: Any
    tensors: tuple[Tensor, ...]


def outline(path: Path) -> Outline:
    """Return what a list shows of the checkpoint at ``path``.

    Raises:
        NotACheckpointError: it is none of torch's, or cut off.
        DamagedCheckpointError: its pickle does not match its CRC-32.
        CheckpointError: its pickle cannot be read, or is none that anybody should read.
        OSError: it cannot be read.

    """
    return _outline(path, state_of(path).tree)


def contents(path: Path) -> Contents:
    """Return all that the checkpoint at ``path`` tells; raises what ``outline`` raises."""
    state = state_of(path)
    told = _outline(path, state.tree)
    if told.format is Format.LIGHTNING:
        parameters, producer = lightning.hyperparameters(state.tree), lightning.producer(state.tree)
    else:
        parameters, producer = hyperparameters(state.tree), {}
    return Contents(told, state.tensors, state.tree, parameters, producer)


def state_of(path: Path, below: str = "") -> State:
    """Return what the file at ``path`` holds; raises what ``outline`` raises.

    ``below``: what the paths of the tensors begin with, if it is only a part of a checkpoint.
    """
    return tree_of(made_of(path), below)


def made_of(path: Path) -> Any:
    """Return what a walk through the pickle of the file at ``path`` makes of it."""
    with opened(path) as descriptor:
        head = os.pread(descriptor, foreign.HEAD_BYTES, 0)
        if not head.startswith(foreign.ZIP):
            raise NotACheckpointError(foreign.told(head))
        archive = Archive(Source(descriptor))
        storages = storages_of(archive, path)
        return walked(archive.read(PICKLE, walk.LIMIT_BYTES), storages)


def storages_of(archive: Archive, path: Path) -> dict[str, Storage]:
    """Return the storages in ``archive``, which lies in the file at ``path``, by the keys that its pickle has."""
    check_kind(archive)
    is_little = _BYTEORDER not in archive.records or archive.read(_BYTEORDER, 64) != b"big"
    has_crcs = archive.has_crcs
    found: dict[str, Storage] = {}
    for name, record in archive.records.items():
        key = name.removeprefix(_DATA)
        if key != name:
            offset, size_bytes = archive.place(name)
            crc = record.crc if has_crcs else None
            found[key] = Storage(path, offset, size_bytes, crc=crc, is_little=is_little)
    return found


def check_kind(archive: Archive) -> None:
    """Refuse what is a zip archive and no checkpoint, by the name of what it is."""
    names = archive.records.keys()
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        raise NotACheckpointError(
            "a TorchScript archive, which is a program: where you trust it, save "
            "torch.jit.load(...).state_dict() with torch.save, and look at that"
        )
    if "archive_format" in names or "serialized_exported_program.json" in names:
        raise NotACheckpointError(
            "an exported program (torch.export), not a checkpoint: where you trust it, save "
            "torch.export.load(...).state_dict with torch.save, and look at that"
        )
    if PICKLE not in names:
        raise NotACheckpointError("a zip archive without data.pkl: not written by torch.save")


def walked(data: bytes, storages: Mapping[str, Storage]) -> Any:
    """Return what a walk through a pickle makes of it.

    Raises:
        CheckpointError: it cannot be read, or is built to exhaust whoever reads it.

    """
    try:
        return walk.walked(data, storages)
    except RefusedError as error:
        raise _unreadable(error) from None


def tree_of(made: Any, below: str = "") -> State:
    """Return the state that a walk has ``made``.

    Raises:
        CheckpointError: it is absurdly deep or large.

    """
    try:
        return State(*tree.told(made, below))
    except RefusedError as error:
        raise _unreadable(error) from None


def _unreadable(error: RefusedError) -> CheckpointError:
    return CheckpointError(f"the structure of its state (data.pkl) cannot be read: {error}")


def _outline(path: Path, state: Any) -> Outline:
    status = os.stat(path)
    is_lightning = lightning.is_lightning(state)
    told = state if isinstance(state, dict) else {}
    return Outline(
        path,
        Format.LIGHTNING if is_lightning else Format.TORCH,
        status.st_size,
        status.st_mtime,
        count(told, STEPS),
        count(told, EPOCHS),
        lightning.metrics(told, path) if is_lightning else metrics(told),
    )


def count(state: Mapping[Any, Any], names: tuple[str, ...] = STEPS) -> int | None:
    """Return the first of ``names`` that is a plain count at the top of a state."""
    return next((state[name] for name in names if type(state.get(name)) is int and state[name] >= 0), None)


def metrics(state: Mapping[Any, Any]) -> Metrics:
    """Return the numbers at the top of a state that are no counts, and those below ``metrics``."""
    below = state.get(METRICS)
    found = {name: value for name, value in state.items() if _is_measure(value)}
    found |= below if isinstance(below, dict) else {}
    told = {name: number(value) for name, value in found.items() if type(name) is str}
    measured = {name: value for name, value in told.items() if value is not None}
    return measured if len(measured) <= _MOST_METRICS else {}


def _is_measure(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.shape == () and "float" in value.dtype
    return type(value) is float


def hyperparameters(state: Any) -> Mapping[str, Any]:
    """Return the first dictionary at the top of a state that is called like one of hyperparameters."""
    for name in _HYPERPARAMETERS if isinstance(state, dict) else ():
        told = state.get(name)
        if isinstance(told, dict) and told and all(type(key) is str for key in told):
            return told
    return {}
