"""A pickle taken apart into its opcodes and their arguments, each read as the unpickler itself reads it.

``pickletools`` has the table of the opcodes. Its own reader differs in what it takes for a number or a name (escapes,
hexadecimal, letters beyond ASCII), so that a forged pickle could end for it and go on for the unpickler. Knows bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_NAMING = frozenset({"GLOBAL", "INST", "STACK_GLOBAL"})
_PUTTING = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETTING = frozenset({"GET", "BINGET", "LONG_BINGET"})
_CALLING = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_TWO = 2

Reader = Callable[[bytes, int], tuple[Any, int]]


class CutOffError(ValueError):
    """Say that a pickle goes on where its bytes end."""


def glance(data: bytes, at: int, most: int) -> tuple[set[str], bool]:
    """Return the names that are written out up to where no opcode is known, and whether something is called by then.

    Whatever is on the stack: so it holds also where a walk does not come any further, and the unpickler might. A name
    that is put together on the stack is taken for the last two texts that were pushed.
    """
    names: set[str] = set()
    texts: list[Any] = []
    memo: dict[int, Any] = {}
    is_calling = False
    with contextlib.suppress(ValueError):
        for name, argument, *_ in itertools.islice(opcodes(data, at), most):
            if type(argument) is tuple:
                texts = list(argument)
            elif type(argument) is str:
                texts = [*texts[-1:], argument]
            elif name in _PUTTING:
                memo[len(memo) if argument is None else argument] = texts[-1] if texts else None
            elif name in _GETTING:
                texts = [*texts[-1:], memo.get(argument)]
            if name in _NAMING and len(texts) == _TWO and all(map(_is_name, texts)):
                names.add(".".join(texts))
            is_calling = is_calling or bool(names and name in _CALLING)
    return names, is_calling


def _is_name(text: Any) -> bool:
    return type(text) is str and _NAME.fullmatch(text) is not None


def opcodes(data: bytes, at: int = 0) -> Iterator[tuple[str, Any, int, int]]:
    """Yield the name of each opcode, its argument, where it begins and where it ends, up to the first STOP.

    Raises:
        CutOffError: the bytes end before that.
        ValueError: there is none that is known, or its argument is none.

    """
    while True:
        if at >= len(data):
            raise CutOffError
        name, reader = _TABLE.get(data[at], ("", None))
        if not name:
            raise ValueError("unknown opcode")
        start, at = at, at + 1
        argument = None
        if reader is not None:
            argument, at = reader(data, at)
        yield name, argument, start, at
        if name == "STOP":
            return


def _taken(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    end = at + size
    if size < 0 or end > len(data):
        raise CutOffError
    return data[at:end], end


def _fixed(layout: str) -> Reader:
    form = struct.Struct(layout)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        taken, end = _taken(data, at, form.size)
        return form.unpack(taken)[0], end

    return read


def _counted(layout: str, made: Callable[[bytes], Any]) -> Reader:
    count = _fixed(layout)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        size, at = count(data, at)
        taken, end = _taken(data, at, size)
        return made(taken), end

    return read


def _line(made: Callable[[bytes], Any]) -> Reader:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        end = data.find(b"\n", at)
        if end < 0:
            raise CutOffError
        return made(data[at:end]), end + 1

    return read


def _two_lines(data: bytes, at: int) -> tuple[tuple[str, str], int]:
    first, at = _line(bytes.decode)(data, at)
    second, at = _line(bytes.decode)(data, at)
    return (first, second), at


def _integer(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(line, 0)


def _long(line: bytes) -> int:
    return int(line.removesuffix(b"L"), 0)


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _unquoted(line: bytes) -> str:
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b'"', b"'"):  # noqa: PLR2004 - its quotes
        raise ValueError("no quotes")
    unescaped: bytes = codecs.escape_decode(line[1:-1])[0]
    return unescaped.decode("latin-1")


def _latin(data: bytes) -> str:
    return data.decode("latin-1")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_READERS: dict[str, Reader] = {
    "uint1": _fixed("<B"), "uint2": _fixed("<H"), "int4": _fixed("<i"), "uint4": _fixed("<I"), "uint8": _fixed("<Q"),
    "float8": _fixed(">d"), "long1": _counted("<B", _little), "long4": _counted("<i", _little),
    "string1": _counted("<B", _latin), "string4": _counted("<i", _latin),
    "bytes1": _counted("<B", bytes), "bytes4": _counted("<I", bytes), "bytes8": _counted("<Q", bytes),
    "bytearray8": _counted("<Q", bytes), "unicodestring1": _counted("<B", _text),
    "unicodestring4": _counted("<I", _text), "unicodestring8": _counted("<Q", _text),
    "decimalnl_short": _line(int), "decimalnl_long": _line(_long), "floatnl": _line(float),
    "stringnl": _line(_unquoted), "stringnl_noescape": _line(_latin), "stringnl_noescape_pair": _two_lines,
    "unicodestringnl": _line(lambda line: line.decode("raw-unicode-escape")),
}  # fmt: skip
"""How an argument is read, by the name that ``pickletools`` has for its kind."""

_TABLE: dict[int, tuple[str, Reader | None]] = {
    ord(opcode.code): (opcode.name, _READERS[opcode.arg.name] if opcode.arg else None) for opcode in pickletools.opcodes
}
_TABLE[ord("I")] = "INT", _line(_integer)
