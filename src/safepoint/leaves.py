"""How the plain values of two states differ: numbers, texts and truth values in dicts and lists, and not tensors.

Trees come from files: each pair of containers is looked at once, however often and in whatever circle the file has it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

from safepoint.contents import Opaque, Tensor


class Missing:
    """What stands for a value that is on the other side only."""


MISSING = Missing()
_LISTS = (list, tuple)
_CONTAINERS = (Mapping, *_LISTS)


class Leaf(NamedTuple):
    """A value that is another one in the second state, or in one of the two only (``MISSING`` in the other)."""

    path: str
    a: Any
    b: Any


@dataclass(slots=True)
class Leaves:
    """Finds the leaves of several pairs of trees; what one pair has shown, a later one does not show again."""

    _seen: set[tuple[int, int]] = field(default_factory=set)
    _bare: set[int] = field(default_factory=set)

    def between(self, a: Any, b: Any) -> Iterator[Leaf]:
        """Yield how ``b`` differs from ``a``, in the order of the state.

        Lists and tuples are the same if what is in them is, and objects of one class if what they are made of is. A
        list of plain values is one leaf, and so is what is on one side only, however much is in it. NaN is itself; 1 is
        neither 1.0 nor true.
        """
        pending: list[Leaf] = [Leaf("", a, b)]
        while pending:
            leaf = pending.pop()
            inner = self._inside(leaf)
            if inner is not None:
                pending += reversed(inner)
            elif self._differs(leaf.a, leaf.b):
                yield leaf

    def has_any(self, tree: Any) -> bool:
        """Tell whether there is a plain value anywhere in ``tree``."""
        pending, looked_into = [tree], set[int]()
        while pending:
            value = pending.pop()
            if type(value) in {Tensor, Missing} or id(value) in self._bare or id(value) in looked_into:
                continue
            if not isinstance(value, _CONTAINERS):
                return True
            looked_into.add(id(value))
            pending += value.values() if isinstance(value, Mapping) else value
        self._bare |= looked_into
        return False

    def _inside(self, leaf: Leaf) -> list[Leaf] | None:
        """Return what is to be compared of the insides of both, ``None`` where they are compared as they are."""
        path, a, b = leaf
        pair = (id(a), id(b))
        if type(a) is Tensor and type(b) is Tensor:
            return []
        if type(a) is Opaque and type(b) is Opaque and a == b:
            a, b = a.inner, b.inner
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            keys = (*a, *(key for key in b if key not in a))
            inner = [Leaf(_below(path, key), a.get(key, MISSING), b.get(key, MISSING)) for key in keys]
        elif isinstance(a, _LISTS) and isinstance(b, _LISTS) and not (_is_plain(a) and _is_plain(b)):
            pairs = enumerate(zip_longest(a, b, fillvalue=MISSING))
            inner = [Leaf(_below(path, index), *both) for index, both in pairs]
        else:
            return None
        if pair in self._seen:
            return []
        self._seen.add(pair)
        return inner

    def _differs(self, a: Any, b: Any) -> bool:
        for one, other in ((a, b), (b, a)):
            if one is MISSING or type(one) is Tensor:
                return self.has_any(other)  # tensors are told of elsewhere
        if isinstance(a, _LISTS) and isinstance(b, _LISTS):
            return len(a) != len(b) or not all(map(_is_same, a, b))
        return not _is_same(a, b)


def plain_paths(tree: Any) -> Iterator[str]:
    """Yield the paths at which ``Leaves`` compares the plain values of ``tree``."""
    pending, seen = [("", tree)], set[int]()
    while pending:
        path, value = pending.pop()
        if type(value) is Tensor or id(value) in seen:
            continue
        if isinstance(value, Mapping):
            inner = [(_below(path, key), value[key]) for key in value]
        elif isinstance(value, _LISTS) and not _is_plain(value):
            inner = [(_below(path, index), each) for index, each in enumerate(value)]
        else:
            yield path
            continue
        seen.add(id(value))
        pending += reversed(inner)


def _is_same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b or (a != a and b != b))  # noqa: PLR0124 - NaN alone is not itself


def _is_plain(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, (*_CONTAINERS, Opaque)) or type(value) is Tensor for value in values)


def _below(path: str, key: Hashable) -> str:
    name = key.name if type(key) is Opaque else str(key)
    return f"{path}.{name}" if path else name
