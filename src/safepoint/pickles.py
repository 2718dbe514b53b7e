"""Read a pickle as PyTorch's restricted unpickler would, and call nothing: refuse what no honest state holds.

That unpickler runs no foreign code, but it does call a short list of functions with whatever the file says: it can be
told to make a terabyte, to put a tensor where no storage is, or to hash what overflows the stack. This file walks over
the same opcodes (``pickletools`` documents them), keeps of every value only what the checks need, and has each call
checked by ``calls``. An opcode that the unpickler does not know is left to it. Knows opcodes; knows no file, no torch.
"""

from __future__ import annotations

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from safepoint.calls import Calls, Dict, Global, Known, Long, Other, Storage, Trusted, made_by
from safepoint.errors import CheckpointError
from safepoint.keys import RefusedError

_LONGEST_NAME = 1 << 10


def check(data: bytes, storage_bytes: Sequence[int], known: Known) -> None:
    """Refuse a pickle that would exhaust memory, crash or hang the unpickler, or reach beyond its storages.

    Raises:
        CheckpointError: it would, or it is cut off or malformed; says at which byte.

    """
    walk = _Walk(data, storage_bytes, known)
    try:
        walk.run()
    except RefusedError as error:
        problem = str(error)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, struct.error):
        problem = "it is cut off or malformed"
    else:
        return
    raise CheckpointError(f"its structure (data.pkl) is none that PyTorch writes: at byte {walk.at}, {problem}")


class _Walk:
    def __init__(self, data: bytes, storage_bytes: Sequence[int], known: Known) -> None:
        self.at = 0
        self.data = data
        self.storage_bytes = storage_bytes
        self.known = known
        self.calls = Calls(len(data), sum(storage_bytes), known)
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> None:
        """Walk to the end, or to an opcode that the unpickler refuses."""
        data, steps = self.data, _STEPS
        while True:
            step = steps.get(data[self.at])
            self.at += 1
            if step is None:
                return
            step(self)

    # What is on the stack.

    def take(self, size_bytes: int) -> bytes:
        found = self.data[self.at : self.at + size_bytes]
        if len(found) != size_bytes:
            raise RefusedError("it is cut off")
        self.at += size_bytes
        return found

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        if end - self.at > _LONGEST_NAME:
            raise RefusedError("a name is absurdly long")
        return self.take(end + 1 - self.at)[:-1].decode()

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self) -> Any:
        return self.stack.pop()

    # Steps: values.

    def named(self) -> None:
        module, name = self.line(), self.line()
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        self.stack.append(Global(f"{module}.{name}"))

    def text(self) -> None:
        size = int.from_bytes(self.take(4), "little")
        if size <= _LONGEST_NAME:
            self.stack.append(self.take(size).decode("utf-8", "surrogatepass"))
        else:
            self.stack.append(Long(size, hash(self.take(size))))

    def short_bytes(self) -> None:
        self.stack.append(self.take(self.take(1)[0]))

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def put(self) -> None:
        self.memo[self.data[self.at]] = self.stack[-1]
        self.at += 1

    def long_put(self) -> None:
        self.memo[int.from_bytes(self.take(4), "little")] = self.stack[-1]

    def get(self) -> None:
        self.stack.append(self.memo[self.data[self.at]])
        self.at += 1

    def long_get(self) -> None:
        self.stack.append(self.memo[int.from_bytes(self.take(4), "little")])

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def as_tuple(self) -> None:
        items = tuple(self.marked())
        self.stack.append(items)

    def last_as_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def skip(self) -> None:
        self.at += 1

    # Steps: filling.

    def append(self) -> None:
        item = self.pop()
        if type(self.stack[-1]) is list:
            self.stack[-1].append(item)

    def appends(self) -> None:
        items = self.marked()
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_in(self.stack[-1], [key, value])

    def set_items(self) -> None:
        items = self.marked()
        self.set_in(self.stack[-1], items)

    def set_in(self, target: Any, items: list[Any]) -> None:
        if type(target) is Dict:
            if target.frozen:
                raise RefusedError("what a tensor was made with is changed afterwards")
            target.keys += items[::2]
        elif type(target) is not Trusted:
            return  # the unpickler refuses it
        keys = [key for key in items[::2] if type(key) is not str]
        if keys:
            target.hashes = Counter() if target.hashes is None else target.hashes
            self.calls.keys.check(keys, target.hashes)

    def reference(self) -> None:
        """Take a reference to a storage: what ``capture`` writes."""
        reference = self.pop()
        if type(reference) is not tuple or len(reference) != 5:  # noqa: PLR2004 - the format of torch
            raise RefusedError("a reference is none to a storage")
        word, kind, key, location, length = reference
        bits = self.known.bits.get(kind) if type(kind) is Global else None
        if _words(word) != "storage" or bits is None or type(location) not in (str, bytes) or type(length) is not int:
            raise RefusedError("a reference is none to a storage")
        name = _words(key)
        if not name.isdecimal() or str(int(name)) != name or int(name) >= len(self.storage_bytes):
            raise RefusedError(f"storage {name!r} is not there")
        size_bytes = self.storage_bytes[int(name)]
        width = max(bits, 8) // 8
        if not 0 <= length * width <= size_bytes:
            raise RefusedError(f"storage {name} has {size_bytes} bytes, and {length} elements are said to be in it")
        storage = self.storages.setdefault(name, Storage(size_bytes, bits))
        if storage.bits != bits:
            raise RefusedError(f"storage {name} is of two kinds")
        self.stack.append(storage)

    # Steps: calls.

    def reduce(self) -> None:
        arguments = self.pop()
        self.stack[-1] = self.calls.called(self.stack[-1], arguments)

    def new(self) -> None:
        self.pop()
        self.stack[-1] = made_by(self.stack[-1])

    def build(self) -> None:
        state, made = self.pop(), self.stack[-1]
        if type(made) is Dict:
            if type(state) is not Dict or any(hasattr(made.kind, str(key)) for key in state.keys):
                raise RefusedError("a dictionary is given attributes that no dictionary has")
        elif type(made) not in (Trusted, Global):
            raise RefusedError("what is whole already is given a state")


def _words(value: Any) -> str:
    return value.decode("ascii") if type(value) is bytes else value if type(value) is str else ""


def _constant(value: Any) -> Callable[[_Walk], None]:
    return lambda walk: walk.stack.append(value)


def _number(layout: str) -> Callable[[_Walk], None]:
    read = struct.Struct(layout)

    def step(walk: _Walk) -> None:
        walk.stack.append(read.unpack_from(walk.data, walk.at)[0])
        walk.at += read.size

    return step


_STEPS: dict[int, Callable[[_Walk], None]] = {
    ord(opcode): step
    for opcode, step in {
        "\x80": _Walk.skip, "c": _Walk.named, "X": _Walk.text, "U": _Walk.short_bytes, "\x8a": _Walk.long,
        "K": _number("<B"), "M": _number("<H"), "J": _number("<i"), "G": _number(">d"),
        "N": _constant(None), "\x88": _constant(1), "\x89": _constant(0), ")": _constant(()),
        "]": lambda walk: walk.stack.append([]), "}": lambda walk: walk.stack.append(Dict()),
        "\x8f": lambda walk: walk.stack.append(Other()),
        "q": _Walk.put, "r": _Walk.long_put, "h": _Walk.get, "j": _Walk.long_get,
        "(": _Walk.mark, "t": _Walk.as_tuple,
        "\x85": lambda walk: walk.last_as_tuple(1), "\x86": lambda walk: walk.last_as_tuple(2),
        "\x87": lambda walk: walk.last_as_tuple(3),
        "a": _Walk.append, "e": _Walk.appends, "s": _Walk.set_item, "u": _Walk.set_items,
        "Q": _Walk.reference, "R": _Walk.reduce, "\x81": _Walk.new, "b": _Walk.build,
    }.items()
}  # fmt: skip
"""What the unpickler knows, by opcode; at any other it stops, and says so."""
