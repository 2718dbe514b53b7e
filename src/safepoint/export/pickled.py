"""A pickle of tensors and plain values, byte by byte what ``torch.save`` could have written: made without torch.

Of protocol 2, and of the opcodes that torch's restricted unpickler knows (``pickletools`` documents them), so that
``torch.load`` takes it with ``weights_only=True``. Knows opcodes, and how torch refers to storages; knows no file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pickle import encode_long
from typing import Any, NamedTuple

from safepoint.contents import Tensor
from safepoint.export import tree
from safepoint.formats.dtypes import STORAGES

TYPED = {
    dtype: kind.removeprefix("torch.")
    for kind, dtype in STORAGES.items()
    if kind.startswith("torch.") and kind.count(".") == 1 and not dtype.startswith("q")
}
"""The class in torch that names a dtype in its files; quantised tensors need more than their elements."""
UNTYPED = frozenset(
    {"uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
     "float8_e8m0fnu", "float4_e2m1fn_x2", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"}
)  # fmt: skip
"""The newer dtypes, which have none: their storages are mere bytes, and the tensor tells the dtype."""

_LONGEST_INT = 1 << (255 * 8 - 1)
_BATCH = 1000
_CONTAINERS = (dict, list, tuple)


class Place(NamedTuple):
    """Where the elements of a tensor lie: on which storage, of how many elements (bytes, if it is untyped)."""

    key: int
    length: int
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def refused(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of what ``pickled`` cannot write of ``value``: objects of other classes, as entries or keys."""
    for key, entry in tree.entries(value):
        inner = tree.below(path, key)
        if _is_plain(key):
            yield from refused(entry, inner)
        else:
            yield inner
    if type(value) not in _CONTAINERS and not _is_plain(value):
        yield path


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in (tuple, set):
        return all(map(_is_plain, value))
    if kind is int:
        return bool(-_LONGEST_INT <= value < _LONGEST_INT)
    return kind in _WRITERS


def pickled(value: Any, place: Callable[[Tensor], Place]) -> bytes:
    """Return ``value`` as a pickle; ``place`` tells where a tensor in it lies."""
    writer = _Writer(place)
    writer.write(value)
    return bytes(writer.out + b".")


class _Writer:
    def __init__(self, place: Callable[[Tensor], Place]) -> None:
        self.out = bytearray(b"\x80\x02")
        self._place = place
        self._memo: dict[tuple[str, ...], int] = {}

    def write(self, value: Any) -> None:
        _WRITERS[type(value)](self, value)

    def constant(self, value: bool | None) -> None:  # noqa: FBT001 - it is what is written
        self.out += b"N" if value is None else b"\x88" if value else b"\x89"

    def integer(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out += struct.pack("<cB", b"K", value)
        elif 0 <= value < 1 << 16:
            self.out += struct.pack("<cH", b"M", value)
        elif -(1 << 31) <= value < 1 << 31:
            self.out += struct.pack("<ci", b"J", value)
        else:
            data = encode_long(value)
            self.out += struct.pack("<cB", b"\x8a", len(data)) + data

    def real(self, value: float) -> None:
        self.out += struct.pack(">cd", b"G", value)

    def text(self, value: str) -> None:
        if self._known((value,)):
            return
        data = value.encode("utf-8", "surrogatepass")
        self.out += struct.pack("<cI", b"X", len(data)) + data
        self._remember((value,))

    def named(self, module: str, name: str) -> None:
        """Write a class or function by its name."""
        if self._known((module, name)):
            return
        self.out += f"c{module}\n{name}\n".encode()
        self._remember((module, name))

    def _known(self, what: tuple[str, ...]) -> bool:
        """Write ``what`` once more, if it was written before; return whether it was."""
        number = self._memo.get(what)
        if number is not None:
            self.out += struct.pack("<cB", b"h", number) if number < 1 << 8 else struct.pack("<cI", b"j", number)
        return number is not None

    def _remember(self, what: tuple[str, ...]) -> None:
        number = self._memo[what] = len(self._memo)
        self.out += struct.pack("<cB", b"q", number) if number < 1 << 8 else struct.pack("<cI", b"r", number)

    def binary(self, value: bytes) -> None:
        """Write bytes as protocol 2 does, which has none of its own: as text, to be encoded."""
        self.named("_codecs", "encode")
        self.out += b"("
        self.text(value.decode("latin1"))
        self.text("latin1")
        self.out += b"tR"

    def mutable_binary(self, value: bytearray) -> None:
        self.named("__builtin__", "bytearray")
        self.out += b"("
        self.binary(bytes(value))
        self.out += b"tR"

    def complex_number(self, value: complex) -> None:
        self.named("__builtin__", "complex")
        self.out += b"("
        self.real(value.real)
        self.real(value.imag)
        self.out += b"tR"

    def several(self, value: tuple[Any, ...]) -> None:
        self.out += b"("
        for entry in value:
            self.write(entry)
        self.out += b"t"

    def listed(self, value: list[Any]) -> None:
        self.out += b"]"
        for first in range(0, len(value), _BATCH):
            self.out += b"("
            for entry in value[first : first + _BATCH]:
                self.write(entry)
            self.out += b"e"

    def any_of(self, value: set[Any]) -> None:
        self.named("__builtin__", "set")
        self.out += b"("
        self.listed(list(value))
        self.out += b"tR"

    def mapped(self, value: dict[Any, Any]) -> None:
        self.out += b"}"
        entries = list(value.items())
        for first in range(0, len(entries), _BATCH):
            self.out += b"("
            for key, entry in entries[first : first + _BATCH]:
                self.write(key)
                self.write(entry)
            self.out += b"u"

    def tensor(self, value: Tensor) -> None:
        """Write a call of what puts a tensor on its storage, and a reference to that."""
        place = self._place(value)
        kind = TYPED.get(place.dtype)
        self.named("torch._utils", "_rebuild_tensor_v3" if kind is None else "_rebuild_tensor_v2")
        self.out += b"(("
        self.text("storage")
        self.named(*(("torch.storage", "UntypedStorage") if kind is None else ("torch", kind)))
        self.text(str(place.key))
        self.text("cpu")
        self.integer(place.length)
        self.out += b"tQ"
        self.integer(place.offset)
        self.several(place.shape)
        self.several(place.strides)
        self.constant(False)  # noqa: FBT003 - needs no gradient
        self.named("collections", "OrderedDict")  # of hooks
        self.out += b")R"
        if kind is None:
            self.named("torch", place.dtype)
        self.out += b"tR"


_WRITERS: dict[type, Callable[[_Writer, Any], None]] = {
    type(None): _Writer.constant,
    bool: _Writer.constant,
    int: _Writer.integer,
    float: _Writer.real,
    complex: _Writer.complex_number,
    str: _Writer.text,
    bytes: _Writer.binary,
    bytearray: _Writer.mutable_binary,
    tuple: _Writer.several,
    list: _Writer.listed,
    set: _Writer.any_of,
    dict: _Writer.mapped,
    Tensor: _Writer.tensor,
}
