"""Safepoint's own checkpoints: the manifest tells of the tensors, and of their digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safepoint import reader
from safepoint.contents import Contents, Format, Outline, Part, Storage, Tensor, contiguous
from safepoint.errors import DamagedCheckpointError, NotACheckpointError
from safepoint.manifest import Manifest, Summary
from safepoint.manifest import Tensor as Told
from safepoint.records import decoded_metrics

if TYPE_CHECKING:
    from safepoint.formats.torch_file import State

_MOST_DIMENSIONS = 64


def outline(path: Path) -> Outline:
    """Return what a list shows of the checkpoint at ``path``.

    Raises:
        NotACheckpointError: the file is no whole Safepoint checkpoint.
        OSError: it cannot be read.

    """
    return _outline(path, path.stat().st_size, reader.read_summary(path))


def contents(path: Path) -> Contents:
    """Return all that the checkpoint at ``path`` tells.

    Raises:
        NotACheckpointError: as ``outline`` does.
        DamagedCheckpointError: the structure of its state does not match its digest.
        CheckpointError: its state is none that anybody could look at.
        OSError: it cannot be read.

    """
    from safepoint.formats import lightning

    with reader.opened(path) as checkpoint:
        manifest = checkpoint.manifest
        storages = [
            Storage(path, entry.data_offset, entry.size_bytes, blob.digest)
            for entry, blob in zip(checkpoint.layout.storages, manifest.storages, strict=True)
        ]
        told = [_tensor(tensor, storages) for tensor in manifest.tensors]
        state = _state(checkpoint, storages)
        return Contents(
            _outline(path, checkpoint.size_bytes, manifest),
            _tensors(told, state.tensors),
            state.tree,
            lightning.hyperparameters(state.tree),
            manifest.producer,
        )


def _state(checkpoint: reader.Opened, storages: Sequence[Storage]) -> State:
    from safepoint.formats import torch_file

    data = checkpoint.sound_pickle()
    if data is None:
        raise DamagedCheckpointError(
            "it is damaged: the structure of the state (data.pkl) does not match its digest. Take another checkpoint "
            "of the run"
        )
    made = torch_file.walked(data, {str(key): storage for key, storage in enumerate(storages)})
    return torch_file.tree_of(made)


def _tensors(told: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors that were ``found`` in the state, those as the manifest has ``told`` of them.

    It names every plain tensor. The others (sparse ones, or within an object) are found in the state alone; where a key
    has another spelling there, as that of an enumeration, or several are spelled alike, as "a.b" and "b" within "a", it
    is the place that is the same.
    """
    counts = Counter(tensor.path for tensor in (*told, *found))
    alike = {tensor.path: tensor for tensor in told if counts[tensor.path] == 2}  # noqa: PLR2004 - one on each side
    there = {(tensor.path, _place(tensor)): tensor for tensor in told}
    otherwise = {_place(tensor): tensor for tensor in told if counts[tensor.path] == 1}
    known = [
        alike.get(tensor.path) or there.get((tensor.path, _place(tensor))) or otherwise.get(_place(tensor), tensor)
        for tensor in found
    ]
    return tuple({id(tensor): tensor for tensor in (*known, *told)}.values())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    where = [(part.storage, part.offset) for part in tensor.parts]
    return tensor.dtype, tensor.shape, *where


def _outline(path: Path, size_bytes: int, told: Summary | Manifest) -> Outline:
    metrics = decoded_metrics(told.metrics)
    return Outline(path, Format.SAFEPOINT, size_bytes, told.time, told.step, told.epoch, metrics)


def _tensor(told: Told, storages: Sequence[Storage]) -> Tensor:
    if len(told.shape) > _MOST_DIMENSIONS:
        raise NotACheckpointError("its manifest is malformed: a tensor has absurdly many dimensions")
    strides = contiguous(told.shape) if told.strides is None else told.strides
    part = Part((0,) * len(told.shape), told.shape, storages[told.storage], told.offset, strides)
    return Tensor(told.path, told.dtype, told.shape, (part,))
