"""Safepoint's own checkpoints: the manifest tells of the tensors, and of their digests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from safepoint import reader
from safepoint.contents import Contents, Format, Outline, Part, Storage, Tensor
from safepoint.manifest import Manifest, Summary
from safepoint.manifest import Tensor as Told
from safepoint.records import decoded_metrics


def outline(path: Path) -> Outline:
    """Return what a list shows of the checkpoint at ``path``.

    Raises:
        NotACheckpointError: the file is no whole Safepoint checkpoint.
        OSError: it cannot be read.

    """
    return _outline(path, path.stat().st_size, reader.read_summary(path))


def contents(path: Path) -> Contents:
    """Return all that the checkpoint at ``path`` tells; raises what ``outline`` raises."""
    with reader.opened(path) as checkpoint:
        manifest, layout = checkpoint.manifest, checkpoint.layout
        storages = [
            Storage(path, entry.data_offset, entry.size_bytes, blob.digest)
            for entry, blob in zip(layout.storages, manifest.storages, strict=True)
        ]
        tensors = tuple(_tensor(told, storages) for told in manifest.tensors)
        return Contents(
            _outline(path, checkpoint.size_bytes, manifest),
            tensors,
            tree={tensor.path: tensor for tensor in tensors},
            producer=manifest.producer,
        )


def _outline(path: Path, size_bytes: int, told: Summary | Manifest) -> Outline:
    metrics = decoded_metrics(told.metrics)
    return Outline(path, Format.SAFEPOINT, size_bytes, told.time, told.step, told.epoch, metrics)


def _tensor(told: Told, storages: Sequence[Storage]) -> Tensor:
    strides = contiguous(told.shape) if told.strides is None else told.strides
    part = Part((0,) * len(told.shape), told.shape, storages[told.storage], told.offset, strides)
    return Tensor(told.path, told.dtype, told.shape, (part,))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor of ``shape`` that lies in one piece."""
    return tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
