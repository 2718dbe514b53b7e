"""What a checkpoint holds, whoever wrote it: the values that the commands print, compare and export.

Tensors are told by where their elements lie in which file; nothing is read to make them. Knows no disk, no torch, and
no format: ``formats`` makes these values, and ``values`` reads the elements.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safepoint.records import Metrics


class Format(enum.StrEnum):
    """Name what wrote a checkpoint, as far as what it is can be told from the outside."""

    SAFEPOINT = "safepoint"
    LIGHTNING = "lightning"
    TORCH = "torch"
    SAFETENSORS = "safetensors"
    DCP = "dcp"
    HUGGING_FACE = "hugging-face"


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes in a file, on which one tensor or several lie; two of them are the same if they are equal.

    ``digest``: xxh3-128 of the bytes as the file tells it, ``crc``: their CRC-32 likewise; "" and ``None`` where it
    tells none. ``is_little``: the order of the bytes of an element.
    """

    path: Path
    offset: int
    size_bytes: int
    digest: str = ""
    crc: int | None = None
    is_little: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """A box of a tensor that lies on one storage: the whole tensor, but for sharded ones.

    ``start`` is the index in the tensor of its first element; ``offset`` and ``strides`` tell where on the storage its
    elements lie, counted in elements.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    storage: Storage
    offset: int
    strides: tuple[int, ...]

    @property
    def is_in_order(self) -> bool:
        """Whether its elements lie one behind the other on its storage, in row-major order."""
        return in_order(self.shape, self.strides)


def in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether elements lie one behind the other; the stride of a dimension of one tells nothing."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=False):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its path in the state (keys joined by dots), dtype as torch calls it (``float32``), shape, and parts.

    One without parts has no data (a meta tensor), or none that can be told from the outside; ``note`` says which.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    note: str = ""

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value of some class or function that is named in the file and was not made: nothing in a file is called.

    ``inner`` is what it would be made of, a tree as that of ``Contents``: by which two of one name are told apart.
    """

    name: str
    inner: Mapping[Any, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Outline:
    """What a list shows of a checkpoint. ``None`` and 0 are what the file does not tell; ``time`` is Unix seconds.

    ``path`` is a file, or the directory of a checkpoint that is one; ``size_bytes`` counts all its files; ``time`` is
    when its state was captured, or the file's modification where it does not tell.
    """

    path: Path
    format: Format
    size_bytes: int
    time: float
    step: int | None = None
    epoch: int | None = None
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that can be told of a checkpoint without reading its tensors.

    ``tensors`` are in the order of the state. ``tree`` is the state itself: dicts, lists, tuples, sets and plain
    values, with a ``Tensor`` or an ``Opaque`` where one is; where the file holds nothing but named tensors, a flat dict
    of them. ``hyperparameters`` and ``producer`` (versions, by name) are empty where the file tells none.
    """

    outline: Outline
    tensors: tuple[Tensor, ...]
    tree: Any
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor of ``shape`` that lies in one piece."""
    return tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
