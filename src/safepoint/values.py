"""The elements of a tensor, read from where they lie, as bytes or as numpy arrays: in bounded memory, and no torch.

What a file says of its tensors is compared with its size before anything is read; every byte is asked for by ``pread``,
so that a file that becomes shorter is an error. Knows dtypes by torch's names; knows no format.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from xxhash import xxh3_128

from safepoint.archive import open_regular
from safepoint.contents import Part, Tensor, in_order
from safepoint.errors import CheckpointError, NotACheckpointError, shortened

BLOCK_BYTES = 8 << 20

_CACHED_BYTES = 512 << 10
"""Two pieces of this size and what is made of them stay in the processor's cache while they are looked at."""
_STRIDED_BYTES = 64 << 20
"""How much of a tensor that is not in order is gathered at once: each time, runs of it are read from all over it."""
_GAP_BYTES = 32 << 10
"""What lies between two runs of elements is read over up to here: it takes less time than a further call."""
_ABSURD_BYTES = 1 << 40
"""An expanded tensor may have more elements than its storage; one with so many of them, nobody could have made."""
_MOST_DIMENSIONS = 64

_PLAIN = {
    **{name: name for name in ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")},
    **{name: name for name in ("float16", "float32", "float64", "complex64", "complex128")},
}
_EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
# Of these the bytes can be copied and compared, but one alone is no number: they are packed, or lack their scale.
_OPAQUE = {
    **dict.fromkeys(("quint8", "qint8", "quint4x2", "quint2x4", "float4_e2m1fn_x2"), 1),
    **dict.fromkeys(("bits8", "bits4x2", "bits2x4", "bits1x8"), 1),
    **dict.fromkeys((f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)), 1),
    "bits16": 2,
    "qint32": 4,
}
_HALVES = "complex32"
"""Two float16 as one element, which numpy does not have: told as complex64."""

_INCOMPLETE = "its parts are not the whole of it"
_CARRIERS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}

Dtype = np.dtype[Any]
Array = NDArray[Any]
Bytes = NDArray[np.uint8]


def numpy_dtype(tensor: Tensor) -> Dtype:
    """Return the dtype in which ``blocks`` gives the elements of ``tensor``.

    Raises:
        CheckpointError: they are no numbers that can be read: quantised, packed, or of a dtype that nobody knows.

    """
    name = tensor.dtype
    if name in _PLAIN:
        return np.dtype(_PLAIN[name])
    if name == _HALVES:
        return np.dtype("complex64")
    if name in _EXTENDED:
        import ml_dtypes

        extended: Dtype = np.dtype(getattr(ml_dtypes, name))
        return extended
    why = "quantised, or several elements in a byte" if name in _OPAQUE else "a dtype unknown here"
    raise _unreadable(tensor, f"its elements are {shortened(name)} ({why}), which cannot be told as numbers")


def are_numbers(tensor: Tensor) -> bool:
    """Tell whether ``blocks`` can give the elements of ``tensor``."""
    return tensor.dtype in {*_PLAIN, *_EXTENDED, _HALVES}


def item_bytes(tensor: Tensor) -> int:
    """Return the size of an element; raises a CheckpointError for a dtype that nobody knows."""
    if tensor.dtype in _OPAQUE:
        return _OPAQUE[tensor.dtype]
    return 4 if tensor.dtype == _HALVES else numpy_dtype(tensor).itemsize


def pieces(tensor: Tensor, most_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """Yield the bytes of the elements in row-major order, little-endian, at most ``most_bytes`` (or one element) each.

    A piece is valid until the next is asked for. Works for every dtype whose elements have whole bytes.

    Raises:
        CheckpointError: it has no data, what the file says of it does not hold, or the file is shorter than that.
        OSError: a file cannot be read.

    """
    size = check(tensor)
    shape, parts = _flattened(tensor)
    per_piece = max(most_bytes // size, 1)
    per_box = per_piece if len(shape) == 1 else max(per_piece, _STRIDED_BYTES // size)
    buffer = np.empty(min(per_box, tensor.count), _CARRIERS[size])
    for box in _boxes(shape, per_box):
        taken = buffer[: box.count]
        _fill(taken.reshape(box.shape), box, parts, tensor)
        if not tensor.parts[0].storage.is_little:
            taken.view(f"u{_number_bytes(tensor, size)}").byteswap(inplace=True)
        for first in range(0, box.count, per_piece):
            yield taken[first : first + per_piece].view(np.uint8).data


def blocks(tensor: Tensor, most_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
    """Yield the elements in row-major order, as flat arrays of ``numpy_dtype(tensor)`` of ``most_bytes`` at most.

    A block is valid until the next is asked for, and belongs to the caller until then.

    Raises:
        CheckpointError: as ``pieces`` and ``numpy_dtype`` do.
        OSError: a file cannot be read.

    """
    dtype = numpy_dtype(tensor)
    for piece in pieces(tensor, most_bytes if tensor.dtype != _HALVES else most_bytes // 2):
        found = np.frombuffer(piece, np.uint8)
        if tensor.dtype == _HALVES:
            yield found.view(np.float16).astype(np.float32).view(dtype)
        else:
            yield found.view(dtype)


def bits(tensor: Tensor, most_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
    """Yield the elements as ``blocks`` does, whatever they are: of a dtype of their size that means nothing."""
    carrier = _CARRIERS[item_bytes(tensor)]
    return (np.frombuffer(piece, carrier) for piece in pieces(tensor, most_bytes))


def side_by_side(a: Iterator[Array], b: Iterator[Array]) -> Iterator[tuple[Array, Array]]:
    """Yield arrays of equal lengths, in order, of two that are equally long in all, however each of them is parted."""
    right = np.empty(0)
    for block in a:
        left = block
        while left.size:
            right = right if right.size else next(b)
            size = min(left.size, right.size)
            yield left[:size], right[:size]
            left, right = left[size:], right[size:]


def equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of one shape and dtype have the same bytes; raises what ``pieces`` raises."""
    pairs = side_by_side(
        *((np.frombuffer(piece, np.uint8) for piece in pieces(tensor, _CACHED_BYTES)) for tensor in (a, b))
    )
    return all(_is_same(left, right) for left, right in pairs)


def digest(tensor: Tensor) -> str:
    """Return the xxh3-128 digest of the bytes that ``pieces`` yields; raises what it raises.

    Where a tensor is the whole of its storage, in order, that is the storage's own digest.
    """
    sums = xxh3_128()
    for piece in pieces(tensor):
        sums.update(piece)
    return sums.hexdigest()


def _is_same(a: Array, b: Array) -> bool:
    whole = a.size // 8 * 8
    words = (a[:whole].view(np.uint64), b[:whole].view(np.uint64))  # an eighth of the work
    return np.array_equal(*words) and np.array_equal(a[whole:], b[whole:])


@dataclass(frozen=True, slots=True)
class _Box:
    """A box of a tensor: the index of its first element, and its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def check(tensor: Tensor) -> int:
    """Return the size of an element; refuse a tensor that has no data, or of which its file says what cannot be.

    Raises:
        CheckpointError: says which, and why. Nothing has been read.

    """
    size = item_bytes(tensor)
    if not tensor.parts:
        raise _unreadable(tensor, tensor.note or "it has no data")
    if len(tensor.shape) > _MOST_DIMENSIONS or any(length < 0 for length in tensor.shape):
        raise _unreadable(tensor, "its shape is none that a tensor has")
    if len({part.storage.is_little for part in tensor.parts}) > 1:
        raise _unreadable(tensor, "its parts are in two byte orders")
    for part in tensor.parts:
        _check_part(tensor, part, size)
    if len(tensor.parts) == 1 and tensor.parts[0].shape != tensor.shape:
        raise _unreadable(tensor, _INCOMPLETE)
    stored = sum(storage.size_bytes for storage in {part.storage for part in tensor.parts})
    if tensor.count * size > max(stored, _ABSURD_BYTES):
        raise _unreadable(tensor, "it is absurdly large")
    return size


def _check_part(tensor: Tensor, part: Part, size: int) -> None:
    lengths = {len(tensor.shape), len(part.start), len(part.shape), len(part.strides)}
    places = zip(part.start, part.shape, tensor.shape, strict=False)
    if len(lengths) > 1 or any(start < 0 or own < 0 or start + own > whole for start, own, whole in places):
        raise _unreadable(tensor, "a part of it lies outside of it")
    if part.offset < 0 or min(part.strides, default=0) < 0:
        raise _unreadable(tensor, "its offset or a stride is negative")
    if math.prod(part.shape) and (part.offset + _span(part.shape, part.strides)) * size > part.storage.size_bytes:
        raise _unreadable(tensor, "it reaches beyond its storage")


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements there are from the first of a box on its storage to the last, both counted."""
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def _flattened(tensor: Tensor) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    """Return its shape and parts; of one that lies in one piece, as of a tensor of one dimension."""
    first = tensor.parts[0]
    if len(tensor.parts) == 1 and first.is_in_order:
        count = tensor.count
        return (count,), (Part((0,), (count,), first.storage, first.offset, (1,)),)
    return tensor.shape, tensor.parts


def _boxes(shape: tuple[int, ...], most: int) -> Iterator[_Box]:
    """Yield boxes of at most ``most`` elements that are a tensor of ``shape`` in row-major order."""
    axis = next(a for a in range(len(shape)) if math.prod(shape[a + 1 :]) <= most)
    inner = math.prod(shape[axis + 1 :])
    step = max(most // max(inner, 1), 1)
    if not inner:
        return
    for outer in np.ndindex(shape[:axis]):
        for first in range(0, shape[axis], step):
            rows = min(step, shape[axis] - first)
            yield _Box((*outer, first, *(0,) * (len(shape) - axis - 1)), (*(1,) * axis, rows, *shape[axis + 1 :]))


def _fill(target: Array, box: _Box, parts: tuple[Part, ...], tensor: Tensor) -> None:
    """Put into ``target`` what lies in ``box``."""
    is_there = np.zeros(box.shape if len(parts) > 1 else (), np.bool)
    for part in parts:
        low = tuple(map(max, box.start, part.start))
        high = tuple(min(a + b, c + d) for a, b, c, d in zip(box.start, box.shape, part.start, part.shape, strict=True))
        if any(end <= start for start, end in zip(low, high, strict=True)):
            continue
        inside = tuple(slice(lo - at, hi - at) for lo, hi, at in zip(low, high, box.start, strict=True))
        offset = part.offset + sum((lo - at) * s for lo, at, s in zip(low, part.start, part.strides, strict=True))
        _take(target[inside], part, offset, tensor)
        is_there[inside if is_there.ndim else ()] = True
    if not is_there.all():
        raise _unreadable(tensor, _INCOMPLETE)


def _take(target: Array, part: Part, offset: int, tensor: Tensor) -> None:
    """Put into ``target`` the elements of ``part`` from ``offset`` on, in its strides."""
    try:
        descriptor = open_regular(part.storage.path)
    except NotACheckpointError as error:
        raise _unreadable(tensor, str(error)) from None
    try:
        _gather(_Source(descriptor, part, tensor), target, offset, part.strides)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Source:
    """The open file on which a part lies."""

    descriptor: int
    part: Part
    tensor: Tensor

    def read(self, buffer: Bytes, offset: int) -> None:
        """Fill ``buffer`` with what begins so many bytes into the storage."""
        left, at = buffer.data, self.part.storage.offset + offset
        while left:
            count = os.preadv(self.descriptor, [left], at)
            if not count:
                raise _unreadable(self.tensor, "the file ends before it does: cut off while written or copied")
            left, at = left[count:], at + count


def _gather(source: _Source, target: Array, offset: int, strides: tuple[int, ...]) -> None:
    """Read what lies close together in one go; part what does not, along the dimension of the widest stride."""
    size = target.itemsize
    if target.flags.c_contiguous and in_order(target.shape, strides):
        source.read(target.reshape(-1).view(np.uint8), offset * size)
        return
    axis = max((a for a in range(target.ndim) if target.shape[a] > 1), key=lambda a: strides[a])
    below = _span(_without(target.shape, axis), _without(strides, axis))
    gap_bytes = (strides[axis] - below) * size
    step = 1
    if gap_bytes <= _GAP_BYTES and below * size <= BLOCK_BYTES:
        step = 1 + max(BLOCK_BYTES // size - below, 0) // max(strides[axis], 1)
    if step >= target.shape[axis]:
        _read_over(source, target, offset, strides)
        return
    for first in range(0, target.shape[axis], step):
        rows = (slice(None),) * axis + (slice(first, first + step),)
        _gather(source, target[rows], offset + first * strides[axis], strides)


def _read_over(source: _Source, target: Array, offset: int, strides: tuple[int, ...]) -> None:
    """Read from the first element to the last, and take those that are asked for."""
    size = target.itemsize
    read = np.empty(_span(target.shape, strides), target.dtype)
    source.read(read.view(np.uint8), offset * size)
    target[...] = as_strided(read, target.shape, [stride * size for stride in strides])


def _without(values: tuple[int, ...], index: int) -> tuple[int, ...]:
    return values[:index] + values[index + 1 :]


def _number_bytes(tensor: Tensor, size: int) -> int:
    """Return the size of what has an order of bytes: an element, or either half of a complex one."""
    return size // 2 if tensor.dtype.startswith("complex") else size


def _unreadable(tensor: Tensor, why: str) -> CheckpointError:
    where = f"{tensor.parts[0].storage.path}: " if tensor.parts else ""
    return CheckpointError(f"{where}tensor {shortened(tensor.path)!r} cannot be read: {why}.")
