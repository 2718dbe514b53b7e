"""How long the keys of a pickle take to hash and to tell apart, found out without putting them into a dictionary.

A key is what the walk knows of it: a number, text and tuples of these are hashed as Python would hash them; of anything
else, an object stands for an object. Knows Python's hashing; knows no opcode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

_DEEPEST = 500
_MOST_WITH_ONE_HASH = 1000
_FREE_WORK = 10_000_000
_WORK_PER_BYTE = 20


class RefusedError(Exception):
    """Say what is refused."""


class Keys:
    """Checks the keys of one pickle, which is of ``size_bytes``."""

    def __init__(self, size_bytes: int) -> None:
        self._may_work = _FREE_WORK + _WORK_PER_BYTE * size_bytes
        self._weighed: dict[int, tuple[tuple[Any, ...], int, int]] = {}

    def check(self, keys: Iterable[Any], hashes: Counter[int]) -> None:
        """Refuse keys that take long; ``hashes`` counts those that one dictionary has been given so far.

        A key that is given again is counted again: no honest pickle does that. Text is not counted: it is hashed with a
        secret of this process.
        """
        for key in keys:
            if type(key) is str:
                continue
            weight = self._weight(key) if type(key) is tuple else 1
            self._work(weight)
            found = hash(key)
            hashes[found] += 1
            if hashes[found] > 1:
                self._work(weight * (hashes[found] - 1))
                if hashes[found] > _MOST_WITH_ONE_HASH:
                    raise RefusedError("many keys have the same hash")

    def _work(self, steps: int) -> None:
        self._may_work -= steps
        if self._may_work < 0:
            raise RefusedError("its keys take absurdly long to tell apart")

    def _weight(self, key: tuple[Any, ...]) -> int:
        """Return how many parts are hashed for ``key``: one that stands in it several times, each time."""
        pending = [(key, False)]
        while pending:
            items, is_next = pending.pop()
            inner = [item for item in items if type(item) is tuple]
            if inner and not is_next:
                pending.append((items, True))
                pending += [(item, False) for item in inner if id(item) not in self._weighed]
                continue
            weights = [self._weighed[id(item)] for item in inner]
            weight = 1 + len(items) + sum(heavy for _, heavy, _ in weights)
            depth = 1 + max((deep for *_, deep in weights), default=0)
            if depth > _DEEPEST:
                raise RefusedError("a key is absurdly deep")
            self._weighed[id(items)] = items, weight, depth  # kept, so that no other tuple gets its number
        return self._weighed[id(key)][1]
