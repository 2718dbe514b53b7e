"""What stands for a value of a pickle while it is walked through: nothing here does anything.

Containers and plain values stand for themselves. Everything else is told by the name of what it was made with, and by
what that was given. All are compared by identity, so that a dictionary may have them for keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safepoint import contents
from safepoint.calls import Global

__all__ = ["FROZEN_SET", "Array", "Global", "Object", "Stored", "attributes"]

FROZEN_SET = "builtins.frozenset"
"""Stays an object, as it may be a key."""


@dataclass(slots=True, eq=False)
class Stored:
    """A reference to a storage: of ``count`` elements of ``dtype``."""

    storage: contents.Storage
    dtype: str
    count: int

    def array(self) -> Array:
        """Return the tensor that lies on all of it."""
        part = contents.Part((0,), (self.count,), self.storage, 0, (1,))
        return Array(self.dtype, (self.count,), part, "a storage")


@dataclass(slots=True, eq=False)
class Array:
    """A tensor: a place on a storage, or none and why. ``inner`` holds what it is made of, by name."""

    dtype: str
    shape: tuple[int, ...]
    part: contents.Part | None
    note: str = ""
    inner: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Object:
    """What the class or function ``name`` would make: its arguments, and the state that it would be given.

    ``items`` and ``elements`` are what it would be filled with as a dictionary, and as a list or a set.
    """

    name: str
    arguments: Any = ()
    state: Any = None
    items: dict[Any, Any] | None = None
    elements: list[Any] = field(default_factory=list)


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes that an object would have, as its state tells them."""
    state = value.state if type(value) is Object else None
    found: dict[str, Any] = {}
    for part in state if type(state) is tuple else (state,):
        if type(part) is dict:
            found.update((name, inner) for name, inner in part.items() if type(name) is str)
    return found
