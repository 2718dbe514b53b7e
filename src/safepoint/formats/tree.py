"""From what a walk through a pickle tells to the tree of a checkpoint, and the tensors in it with their paths.

The tree can be walked by anybody: it contains itself nowhere, and is neither absurdly deep nor, written out, absurdly
large. Paths are those of Safepoint's own manifests: keys joined by dots, each container visited where it is first met.
Tensors inside an object of a class that is not known are listed by the names of its attributes; the tree has its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from safepoint import contents
from safepoint.formats.inert import FROZEN_SET, Array, Global, Object, Stored, attributes
from safepoint.keys import RefusedError

_DEEPEST = 200
_MOST_VALUES = 10_000_000
_LONGEST_PATHS = 64 << 20
_LONGEST_ARGUMENTS = 60
_ITSELF = contents.Opaque("a reference to itself")
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, complex})
_NAMESPACES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})


def told(made: Any, below: str = "") -> tuple[Any, tuple[contents.Tensor, ...]]:
    """Return the tree of what a walk has ``made``, and the tensors in it, in their order.

    ``below``: what their paths begin with, if it is only a part of a checkpoint.

    Raises:
        RefusedError: it is absurdly deep or large.

    """
    planting = _Planting([below] if below else [])
    tree = planting.tree(made)
    return tree, tuple(planting.tensors)


class _Planting:
    """Makes one tree; ``done`` keeps what was met, what stands for it, and how many values are in it."""

    def __init__(self, path: list[Any]) -> None:
        self.tensors: list[contents.Tensor] = []
        self.path = path
        self.open: set[int] = set()
        self.done: dict[int, tuple[Any, Any, int]] = {}
        self.count = 0
        self.paths_length = 0

    def tree(self, made: Any) -> Any:
        """Return what stands for ``made``, which is found at the present path."""
        kind = type(made)
        self.add(1)
        if kind in _PLAIN:
            return made
        if kind is Global:
            return contents.Opaque(str(made))
        if kind is Stored:
            made = made.array()
        if id(made) in self.open:
            return _ITSELF
        if kind is Array or kind is Stored:
            return self.tensor(made)
        if id(made) in self.done:
            self.add(self.done[id(made)][2])
            return self.done[id(made)][1]
        before = self.count
        self.enter(made)
        planted = _PLANTERS[kind](self, made)
        self.open.remove(id(made))
        self.done[id(made)] = made, planted, self.count - before
        return planted

    def enter(self, made: Any) -> None:
        """Note that what is found from now on is inside of ``made``."""
        self.open.add(id(made))
        if len(self.open) > _DEEPEST:
            raise RefusedError(f"it is nested more than {_DEEPEST} deep")

    def add(self, count: int) -> None:
        """Count values, those that are met again each time."""
        self.count += count
        if self.count > _MOST_VALUES:
            raise RefusedError("it is absurdly large")

    # Containers.

    def mapping(self, made: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return a dictionary of what stands for keys and values."""
        planted: dict[Any, Any] = {}
        numbers: Counter[str] = Counter()
        for key, value in made.items():
            spelled = _key(key, numbers)
            self.path.append(spelled)
            planted[spelled] = self.tree(value)
            self.path.pop()
        return planted

    def sequence(self, made: Any) -> list[Any]:
        """Return a list of what stands for the items."""
        planted: list[Any] = []
        for index, value in enumerate(made):
            self.path.append(index)
            planted.append(self.tree(value))
            self.path.pop()
        return planted

    def object(self, made: Object) -> Any:
        """Return a container if it is one of some class, or its name; in both cases, the tensors in it are listed."""
        if made.items is not None:
            return self.mapping(made.items)
        if made.elements:
            return self.sequence(made.elements)
        if made.name in _NAMESPACES:
            return self.mapping(attributes(made))
        if made.name == FROZEN_SET and made.arguments and type(made.arguments[0]) is list:
            return _set(made.arguments[0])
        arguments = self.sequence(made.arguments if type(made.arguments) is tuple else (made.arguments,))
        inner = {**dict(enumerate(arguments)), **self.mapping(attributes(made)), **self.mapping(_rest(made.state))}
        return contents.Opaque(_label(made.name, arguments), inner)

    # Tensors.

    def tensor(self, made: Array) -> contents.Tensor:
        """Return a tensor, listed; what it is made of is listed when it is first met."""
        parts = () if made.part is None else (made.part,)
        tensor = contents.Tensor(self.spelled(), made.dtype, made.shape, parts, made.note)
        self.tensors.append(tensor)
        if made.inner and id(made) not in self.done:
            self.done[id(made)] = made, tensor, 0
            self.enter(made)
            self.mapping(made.inner)
            self.open.remove(id(made))
        return tensor

    def spelled(self) -> str:
        """Return the present path."""
        self.paths_length += sum(map(_length, self.path))
        if self.paths_length > _LONGEST_PATHS:
            raise RefusedError("its keys are absurdly long")
        path = ".".join(key.name if type(key) is contents.Opaque else f"{key}" for key in self.path)
        return path if path.isprintable() else path.encode("utf-8", "backslashreplace").decode()


_PLANTERS: dict[type, Any] = {
    dict: _Planting.mapping,
    list: _Planting.sequence,
    tuple: lambda planting, made: tuple(planting.sequence(made)),
    set: lambda _, made: _set(made),
    Object: _Planting.object,
}


def _rest(state: Any) -> dict[str, Any]:
    """Return what the state of an object tells besides attributes, by the places where it does."""
    parts = state if type(state) is tuple else () if state is None else (state,)
    return {f"state {index}": part for index, part in enumerate(parts) if type(part) is not dict}


def _set(items: Any) -> set[Any]:
    numbers: Counter[str] = Counter()
    return {_key(item, numbers) for item in items}


def _key(key: Any, numbers: Counter[str]) -> Any:
    """Return what stands for a key: objects of one class are numbered, as their names are the same."""
    if type(key) in _PLAIN or (type(key) is tuple and all(type(leaf) in _PLAIN for leaf in _leaves(key))):
        return key
    name = str(key) if type(key) is Global else key.name if type(key) is Object else type(key).__name__.lower()
    numbers[name] += 1
    return contents.Opaque(name if numbers[name] == 1 else f"{name} #{numbers[name]}")


def _leaves(key: Any) -> list[Any]:
    """Return what is in a key, tuples within tuples: the walk has seen to it that there is not too much."""
    leaves: list[Any] = []
    pending = [key]
    while pending:
        item = pending.pop()
        if type(item) is tuple:
            pending += item
        else:
            leaves.append(item)
    return leaves


def _length(key: Any) -> int:
    """Return how long a key is when it is spelled, more or less."""
    if type(key) is contents.Opaque:
        return len(key.name)
    return sum(len(leaf) + 4 if isinstance(leaf, str | bytes) else 20 for leaf in _leaves(key))


def _label(name: str, arguments: list[Any]) -> str:
    """Return the name of an object, with what it would be made of where that is short and plain."""
    plain = (str, int, float, bool, type(None))
    if not arguments or any(type(argument) not in plain for argument in arguments):
        return name
    if any(type(argument) is str and len(argument) > _LONGEST_ARGUMENTS for argument in arguments):
        return name
    told = ", ".join(map(repr, arguments[:_LONGEST_ARGUMENTS]))
    return f"{name}({told})" if len(told) <= _LONGEST_ARGUMENTS else name
