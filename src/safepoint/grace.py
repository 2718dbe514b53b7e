"""What fits into the time that a signal leaves: which parts of a state are left out of its last save.

Pure: sizes, times and the speed measured so far come in; names go out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safepoint.records import SaveStats

_MARGIN = 0.2
_LEAST_MARGIN_S = 1.0
_SAVES_LOOKED_AT = 3


class Kind(enum.IntEnum):
    """What can be left out, in the order in which it is: what can be had again first, optimizers last.

    Never left out: models, the position, random state, data loaders, and every other entry of the state.
    """

    FROZEN = 0
    AVERAGED = 1
    OPTIMIZER = 2


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the state that can be left out: of which entry, and its size."""

    kind: Kind
    entry: str
    size_bytes: int


def seconds_left(came_at_s: float, grace_s: float, now_s: float) -> float:
    """Return how long a save may take from ``now_s`` on: a fifth of the grace, a second at least, is kept back."""
    return came_at_s + grace_s - now_s - max(_LEAST_MARGIN_S, _MARGIN * grace_s)


def seconds_per_byte(stats: Sequence[SaveStats]) -> float | None:
    """Return how long a byte takes from the state to the disk: the best of the last saves; ``None`` without any.

    The best, as a save may also have waited for the one before it.
    """
    measured = [each for each in stats[-_SAVES_LOOKED_AT:] if each.size_bytes]
    return min(((each.committed_s - each.waited_s) / each.size_bytes for each in measured), default=None)


def left_out(parts: Iterable[Part], total_bytes: int, left_s: float, byte_s: float | None) -> tuple[Part, ...]:
    """Return which of ``parts`` are left out so that the rest fits; all of them, if even that does not fit.

    ``total_bytes``: of the whole state, and of what is still being written before it. One after another goes, in the
    order of their kinds, of one kind the largest first. Where no speed is measured (``byte_s``), none goes.
    """
    going: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.kind, -part.size_bytes)):
        if byte_s is None or total_bytes * byte_s <= left_s:
            break
        going.append(part)
        total_bytes -= part.size_bytes
    return tuple(going)
