"""The tree of a checkpoint, cut to what a browser shows with ease: so many rows, the upper levels first.

Pure: knows no disk and no HTML.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from safepoint.anatomy import Node

MOST_ROWS = 1500
_MOST_CHILDREN = 200
_DEEPEST = 12


@dataclass(slots=True)
class Row:
    """A node that is shown, and what is shown in it; ``left_out`` is how many more there are in it."""

    node: Node
    rows: list[Row] = field(default_factory=list)
    left_out: int = 0


def rows_of(root: Node, most: int = MOST_ROWS) -> Row:
    """Return ``root`` with at most ``most`` rows in it: those of a level before those below it."""
    top = Row(root)
    waiting = deque([(top, 0)])
    while waiting:
        row, depth = waiting.popleft()
        children = list(row.node.children.values())
        shown = _shown(children, most) if depth < _DEEPEST else []
        row.rows, row.left_out = [Row(child) for child in shown], len(children) - len(shown)
        most -= len(shown)
        waiting += [(child, depth + 1) for child in row.rows]
    return top


def _shown(children: Sequence[Node], most: int) -> Sequence[Node]:
    return children[: min(most, _MOST_CHILDREN)]
