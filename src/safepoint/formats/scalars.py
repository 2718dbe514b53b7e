"""Single numbers out of tensors: what a list shows of a checkpoint. Knows dtypes by torch's names; imports no numpy."""

from __future__ import annotations

import os
import struct

from safepoint.contents import Tensor
from safepoint.formats.files import opened

_LAYOUTS = {
    "float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i", "int16": "h", "int8": "b", "uint8": "B",
}  # fmt: skip


def number(value: object) -> float | None:
    """Return ``value`` as a number if it is one, or a tensor of one element; ``None`` for anything else.

    Raises:
        OSError: the file of the tensor cannot be read.

    """
    if isinstance(value, Tensor):
        return _element(value) if value.count == 1 and len(value.parts) == 1 else None
    if type(value) not in (int, float):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None


def _element(tensor: Tensor) -> float | None:
    (part,) = tensor.parts
    wide = tensor.dtype == "bfloat16"  # the upper half of a float32
    layout = "H" if wide else _LAYOUTS.get(tensor.dtype)
    if layout is None:
        return None
    size = struct.calcsize(f"={layout}")
    with opened(part.storage.path) as descriptor:
        data = os.pread(descriptor, size, part.storage.offset + part.offset * size)
    if len(data) != size:
        return None
    order = "<" if part.storage.is_little else ">"
    (found,) = struct.unpack(order + layout, data)
    return struct.unpack("<f", struct.pack("<I", found << 16))[0] if wide else float(found)
