"""Files of safetensors: a header of JSON that tells of every tensor, and their elements behind it.

What the header says is held to the rules of the format: the tensors fill the file, without holes and without overlaps.
Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from safepoint.contents import Contents, Format, Outline, Part, Storage, Tensor, contiguous
from safepoint.errors import NotACheckpointError, shortened
from safepoint.formats.dtypes import BITS
from safepoint.formats.files import opened

_SIZE_BYTES = 8
HEADER_LIMIT_BYTES = 100_000_000
"""What the library's own reader takes."""
_METADATA = "__metadata__"
_FRAMEWORK = "format"
_STEPS = ("global_step", "step")
_EPOCHS = ("epoch",)
_LONGEST_COUNT = 15
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
}  # fmt: skip
"""The dtypes that the format knows, by its names for them."""
_PACKED = "F4"
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
_Shape = Annotated[tuple[_Count, ...], msgspec.Meta(max_length=64)]
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Told(msgspec.Struct, frozen=True):
    """A tensor as the header tells of it: where it begins and ends, counted from behind the header."""

    dtype: str
    shape: _Shape
    data_offsets: tuple[_Count, _Count]


class Header(NamedTuple):
    """What a file tells: its tensors by name, and what else its writer said."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]


def may_be_one(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` looks like one of safetensors."""
    size = int.from_bytes(head[:_SIZE_BYTES], "little")
    return head[_SIZE_BYTES : _SIZE_BYTES + 1] == b"{" and size <= HEADER_LIMIT_BYTES


def outline(path: Path) -> Outline:
    """Return what a list shows of the file at ``path``.

    Raises:
        NotACheckpointError: it is cut off, or none of safetensors.
        OSError: it cannot be read.

    """
    return _outline(path, read(path).metadata)


def contents(path: Path) -> Contents:
    """Return all that the file at ``path`` tells; raises what ``outline`` raises."""
    tensors, metadata = read(path)
    hyperparameters = {name: text for name, text in metadata.items() if name != _FRAMEWORK}
    producer = {_FRAMEWORK: metadata[_FRAMEWORK]} if _FRAMEWORK in metadata else {}
    return Contents(_outline(path, metadata), tuple(tensors.values()), tensors, hyperparameters, producer)


def read(path: Path, prefix: str = "") -> Header:
    """Return what the file at ``path`` tells, with ``prefix`` before the paths; raises what ``outline`` raises."""
    with opened(path) as descriptor:
        size_bytes = os.fstat(descriptor).st_size
        header_bytes = _header_bytes(os.pread(descriptor, _SIZE_BYTES, 0), size_bytes)
        header = os.pread(descriptor, header_bytes, _SIZE_BYTES)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop(_METADATA, b"{}"), type=dict[str, str])
        told = {name: msgspec.json.decode(found, type=_Told) for name, found in raw.items()}
    except _MALFORMED as error:
        raise NotACheckpointError(f"its header is none of safetensors: {error}") from None
    start = _SIZE_BYTES + header_bytes
    _check_filled(told, size_bytes - start)
    return _header(path, start, told, metadata, prefix)


def _header_bytes(size: bytes, size_bytes: int) -> int:
    header_bytes = int.from_bytes(size, "little")
    if len(size) == _SIZE_BYTES and header_bytes > HEADER_LIMIT_BYTES:
        raise NotACheckpointError("no file of safetensors: its header would be absurdly long")
    if len(size) < _SIZE_BYTES or _SIZE_BYTES + header_bytes > size_bytes:
        raise NotACheckpointError("cut off within its header: half-written, or a copy that broke off. Take another")
    return header_bytes


def _check_filled(told: Mapping[str, _Told], data_bytes: int) -> None:
    """Refuse tensors that overlap, leave holes, or do not end where the file does."""
    ends = sorted((found.data_offsets, name) for name, found in told.items())
    for ((_, end), _), ((start, _), name) in itertools.pairwise([((0, 0), ""), *ends]):
        if start != end:
            raise NotACheckpointError(
                f"its header is damaged, or forged: tensor {shortened(name)!r} begins at {start}, where the one before "
                f"it ends at {end}"
            )
    end = ends[-1][0][1] if ends else 0
    if end > data_bytes:
        raise NotACheckpointError(
            f"cut off: its header speaks of {end} bytes of data, and {data_bytes} are there: half-written, or a copy "
            "that broke off. Take another"
        )
    if end < data_bytes:
        raise NotACheckpointError(f"damaged: {data_bytes - end} bytes behind its last tensor are not accounted for")


def _header(path: Path, start: int, told: Mapping[str, _Told], metadata: Mapping[str, str], prefix: str) -> Header:
    tensors = {name: _tensor(path, start, name, found, prefix) for name, found in told.items()}
    tied = {name: of for name, of in metadata.items() if of in tensors and name not in tensors}
    for name, of in tied.items():  # save_model() of the library leaves out what is there by another name
        first = tensors[of]
        tensors[name] = Tensor(prefix + name, first.dtype, first.shape, first.parts, first.note)
    return Header(tensors, {name: text for name, text in metadata.items() if name not in tied})


def _tensor(path: Path, start: int, name: str, told: _Told, prefix: str) -> Tensor:
    dtype, shape = DTYPES.get(told.dtype), told.shape
    if dtype is None:
        return Tensor(prefix + name, told.dtype.lower(), shape, (), "of a dtype that is unknown here")
    if told.dtype == _PACKED and shape:
        shape = (*shape[:-1], -(-shape[-1] // 2))
    begin, end = told.data_offsets
    if math.prod(shape) * BITS[dtype] != (end - begin) * 8:
        raise NotACheckpointError(
            f"its header is damaged, or forged: tensor {shortened(name)!r} of {math.prod(shape)} elements of {dtype} "
            f"has {end - begin} bytes"
        )
    storage = Storage(path, start + begin, end - begin)
    return Tensor(prefix + name, dtype, shape, (Part((0,) * len(shape), shape, storage, 0, contiguous(shape)),))


def _outline(path: Path, metadata: Mapping[str, str]) -> Outline:
    status = os.stat(path)
    step, epoch = _count(metadata, _STEPS), _count(metadata, _EPOCHS)
    return Outline(path, Format.SAFETENSORS, status.st_size, status.st_mtime, step, epoch)


def _count(metadata: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    told = next((metadata[name] for name in names if name in metadata), "")
    return int(told) if told.isascii() and told.isdecimal() and len(told) <= _LONGEST_COUNT else None
