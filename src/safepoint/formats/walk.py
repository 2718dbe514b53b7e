"""A walk through a pickle, of any protocol, that imports nothing and calls nothing.

``opcodes`` takes it apart; here is what each opcode does to the stack and the memo, with the values of ``inert`` in
place of what would be made. Whatever a pickle says, the walk ends after as many steps as it has opcodes, and takes no
more memory than it is long, times a constant. Knows no file, no torch.
"""

from __future__ import annotations

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from safepoint import contents
from safepoint.formats.dtypes import BITS, STORAGES
from safepoint.formats.inert import FROZEN_SET, Global, Object, Stored
from safepoint.formats.made import Calls
from safepoint.formats.opcodes import CutOffError, opcodes
from safepoint.keys import RefusedError

LIMIT_BYTES = 256 << 20
"""How long a pickle is at most: no honest one is, as the data of tensors is none of it."""
MOST_OPCODES = 10_000_000
_LONGEST_NAME = 1 << 10
_LONGEST_NUMBER_BITS = 14_000
_MALFORMED = (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, struct.error)


def walked(data: bytes, storages: Mapping[str, contents.Storage]) -> Any:
    """Return what the pickle in ``data`` would make, inert; its tensors lie on ``storages``, by their keys.

    Raises:
        RefusedError: it is cut off or malformed, a tensor reaches beyond its storage, or it is built to exhaust
            whoever reads it; says at which byte.

    """
    walk = Walk(data, storages)
    problem = walk.run()
    if problem:
        raise RefusedError(f"at byte {walk.at}, {problem}")
    return walk.made


class Walk:
    """One walk, from ``start`` on.

    ``storages``: ``None`` if references to whatever are taken as they come. Afterwards, ``made`` is the value, ``end``
    where the pickle ends, ``names`` are the classes, functions and constants met, and whether each was called;
    ``opcodes`` are those met, by their names, and ``count`` is how many. Where it went wrong, they tell of what lies in
    front of that; ``is_cut_off``: the bytes have ended before it did.
    """

    def __init__(
        self,
        data: bytes,
        storages: Mapping[str, contents.Storage] | None = None,
        start: int = 0,
        most_opcodes: int = MOST_OPCODES,
    ) -> None:
        self.data = data
        self.storages = storages
        self.most_opcodes = most_opcodes
        self.start = self.at = self.end = start
        self.made: Any = None
        self.names: dict[str, bool] = {}
        self.opcodes: set[str] = set()
        self.is_cut_off = False
        self.count = 0
        self.calls = Calls(len(data))
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.seen: dict[int, tuple[Any, Counter[int]]] = {}

    def run(self) -> str:
        """Walk to the end; return what is wrong, or nothing."""
        try:
            self._run()
            self.made = self.stack.pop()
        except RefusedError as error:
            return str(error)
        except CutOffError:
            self.is_cut_off = True
            return "it is cut off"
        except _MALFORMED:
            return "it is malformed"
        return ""

    def _run(self) -> None:
        for name, argument, at, end in opcodes(self.data, self.start):
            self.at, self.end = at, end
            self.opcodes.add(name)
            self.count += 1
            if self.count > self.most_opcodes:
                raise RefusedError("it is absurdly long")
            _STEPS[name](self, argument)

    # The stack and the memo.

    def push(self, value: Any) -> None:
        """Put a value on the stack: on the one that is there when the value is known."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the last value."""
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """Take all that came after the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, _: Any) -> None:
        """Begin a group."""
        self.below.append(self.stack)
        self.stack = []

    def drop(self, _: Any) -> None:
        """Drop the last value, or the mark if nothing came after it."""
        if self.stack:
            self.stack.pop()
        else:
            self.drop_marked()

    def drop_marked(self) -> None:
        """Drop all that came after the last mark."""
        self.marked()

    def put(self, key: int) -> None:
        """Remember the last value."""
        self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        """Push what is remembered."""
        self.push(self.memo[key])

    def number(self, value: int) -> None:
        """Push a number: one so long that nobody could print it is refused."""
        if value.bit_length() > _LONGEST_NUMBER_BITS:
            raise RefusedError("a number is absurdly long")
        self.push(value)

    def tupled(self, count: int) -> None:
        """Make a tuple of the last values."""
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    # Names.

    def named(self, lines: tuple[str, str]) -> None:
        """Take a name from two lines."""
        self.name(*lines)

    def name(self, module: Any, name: Any) -> None:
        """Push a name, by what it is called today."""
        if type(module) is not str or type(name) is not str:
            raise RefusedError("a name is none")
        if max(len(module), len(name)) > _LONGEST_NAME:
            raise RefusedError("a name is absurdly long")
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        found = Global(f"{module}.{name}")
        self.names.setdefault(found, False)
        self.push(found)

    def stacked_name(self, _: Any) -> None:
        """Take a name from the stack."""
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def numbered_name(self, code: int) -> None:
        """Take a number that stands for a name, which the file does not tell."""
        self.name("copyreg", f"extension {code}")

    # Calls.

    def call(self, function: Any, arguments: Any) -> None:
        """Push what a call would make."""
        if type(function) is Global:
            self.names[function] = True
        self.push(self.calls.called(function, arguments))

    def reduce(self, _: Any) -> None:
        """Call a function; or make an object of a class and have it initialised by nothing, which is the same here."""
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    def new_with_keywords(self, _: Any) -> None:
        """Make an object of keyword arguments, too."""
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.call(function, (arguments, keywords))

    def instance(self, lines: tuple[str, str]) -> None:
        """Make an object of the class that two lines name, of what came after the mark."""
        arguments = tuple(self.marked())
        self.name(*lines)
        self.call(self.pop(), arguments)

    def object(self, _: Any) -> None:
        """Make an object of the class that came first after the mark, of what came behind it."""
        kind, *arguments = self.marked()
        self.call(kind, tuple(arguments))

    def build(self, _: Any) -> None:
        """Give an object its state; what a container or a tensor would get is not kept."""
        state = self.pop()
        if type(self.stack[-1]) is Object:
            self.stack[-1].state = state

    def reference(self, found: Any) -> None:
        """Push a storage: of what torch refers to, it is the only kind."""
        if self.storages is None:
            self.push(Object("a reference", (found,)))
            return
        if type(found) is not tuple or len(found) < 5 or _text(found[0]) != "storage":  # noqa: PLR2004 - torch's format
            raise RefusedError("a reference is none to a storage")
        _, kind, key, _, length = found[:5]
        dtype = STORAGES.get(kind, "") if type(kind) is Global else ""
        if not dtype or type(length) is not int or length < 0:
            raise RefusedError("a reference is none to a storage")
        storage = self.storages.get(_text(key))
        if storage is None:
            raise RefusedError(f"storage {_text(key)[:20]!r} is not there")
        if length * BITS[dtype] > storage.size_bytes * 8:
            raise RefusedError(
                f"storage {_text(key)} has {storage.size_bytes} bytes, and {length} elements are said to be in it"
            )
        self.push(Stored(storage, dtype, length))

    # Filling.

    def append(self, items: list[Any]) -> None:
        """Put items at the end of the last value."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is Object:
            target.elements.extend(items)
        else:
            raise TypeError

    def add(self, _: Any) -> None:
        """Put items into a set."""
        items = self.marked()
        target = self.stack[-1]
        if type(target) is Object:
            target.elements.extend(items)
        elif type(target) is set:
            self.check(target, items)
            target.update(items)
        else:
            raise TypeError

    def frozen_set(self, _: Any) -> None:
        """Make a set, which may be a key, of what came after the mark."""
        self.push(Object(FROZEN_SET, (self.marked(),)))

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into a dictionary."""
        target = self.stack[-1]
        if type(target) is Object:
            target.items = {} if target.items is None else target.items
            target = target.items
        if type(target) is not dict:
            raise TypeError
        self.check(target, items[::2])
        target.update(zip(items[::2], items[1::2], strict=True))

    def check(self, target: Any, keys: list[Any]) -> None:
        """Refuse keys that take long to hash or to tell apart; text never does."""
        odd = [key for key in keys if type(key) is not str]
        if odd:
            _, hashes = self.seen.setdefault(id(target), (target, Counter()))
            self.calls.keys.check(odd, hashes)


def _text(value: Any) -> str:
    return value.decode("latin-1") if type(value) is bytes else value if type(value) is str else ""


def _refuse(_: Walk, __: Any) -> None:
    raise RefusedError("it takes what is not in the file")


def _dictionary(walk: Walk, _: Any) -> None:
    items = walk.marked()
    walk.push({})
    walk.set_items(items)


Step = Callable[[Walk, Any], None]
_STEPS: dict[str, Step] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _, __: None),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), Walk.number),
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
         "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT"),
        Walk.push,
    ),
    "NONE": lambda walk, _: walk.push(None),
    "NEWTRUE": lambda walk, _: walk.push(True),  # noqa: FBT003 - a value, not an option
    "NEWFALSE": lambda walk, _: walk.push(False),  # noqa: FBT003
    "EMPTY_LIST": lambda walk, _: walk.push([]),
    "EMPTY_TUPLE": lambda walk, _: walk.push(()),
    "EMPTY_DICT": lambda walk, _: walk.push({}),
    "EMPTY_SET": lambda walk, _: walk.push(set()),
    "MARK": Walk.mark, "POP": Walk.drop, "POP_MARK": lambda walk, _: walk.drop_marked(),
    "DUP": lambda walk, _: walk.push(walk.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Walk.put),
    "MEMOIZE": lambda walk, _: walk.put(len(walk.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Walk.get),
    "LIST": lambda walk, _: walk.push(walk.marked()),
    "TUPLE": lambda walk, _: walk.push(tuple(walk.marked())),
    "DICT": _dictionary,
    "FROZENSET": Walk.frozen_set,
    "TUPLE1": lambda walk, _: walk.tupled(1),
    "TUPLE2": lambda walk, _: walk.tupled(2),
    "TUPLE3": lambda walk, _: walk.tupled(3),
    "APPEND": lambda walk, _: walk.append([walk.pop()]),
    "APPENDS": lambda walk, _: walk.append(walk.marked()),
    "SETITEM": lambda walk, _: walk.set_items([walk.pop(), walk.pop()][::-1]),
    "SETITEMS": lambda walk, _: walk.set_items(walk.marked()),
    "ADDITEMS": Walk.add,
    "GLOBAL": Walk.named, "STACK_GLOBAL": Walk.stacked_name,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), Walk.numbered_name),
    "REDUCE": Walk.reduce, "NEWOBJ": Walk.reduce, "NEWOBJ_EX": Walk.new_with_keywords,
    "INST": Walk.instance, "OBJ": Walk.object, "BUILD": Walk.build,
    "PERSID": Walk.reference, "BINPERSID": lambda walk, _: walk.reference(walk.pop()),
    "NEXT_BUFFER": _refuse, "READONLY_BUFFER": _refuse,
}  # fmt: skip
"""What each opcode does, by its name in ``pickletools``."""
