"""The tree of a state as text: a line for each container, tensor and value, with what it counts beside it.

Knows no terminal and no colour: what fits into the width it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from safepoint.anatomy import Node
from safepoint.cli import output
from safepoint.cli.columns import cells, folded, padded
from safepoint.errors import in_line, shortened

HEADINGS = ("dtype", "shape", "elements", "size", "digest")
_RIGHT = (False, False, True, True, False)
_CHOICES = ((0, 1, 2, 3, 4), (0, 1, 2, 3), (0, 1, 3), (1, 3))
"""Which columns there are, the more the better."""
_GAP = "  "
_NARROWEST = 20
_SHORT_DIGEST = 8
_FURTHER = "  "
_TOGETHER = "\N{NO-BREAK SPACE}"


class Guides(NamedTuple):
    """What leads to something in a container, past it, to the last, and past that."""

    to: str
    past: str
    to_last: str
    past_last: str


DRAWN = Guides("├ ", "│ ", "└ ", "  ")
PLAIN = Guides("  ", "  ", "  ", "  ")
_NONE = Guides("", "", "", "")


@dataclass(frozen=True, slots=True)
class Row:
    """A line before it is laid out: what leads to it and to what follows of it, its title, and what stands beside."""

    lead: str
    next_lead: str
    title: str
    beside: tuple[str, ...] = ()
    is_heading: bool = False


def rows(root: Node, *, depth: int | None = None, most: int | None = None, guides: Guides = DRAWN) -> list[Row]:
    """Return the rows of what is in ``root``.

    ``depth``: how many levels are told, 1 or more; ``most``: how much of what is in one of them is told.
    """
    found = _Rows(most, guides)
    found.add(root, "", depth, _NONE)
    return found.rows


def lines(found: Sequence[Row], width: int) -> Iterator[tuple[str, Row]]:
    """Yield the heading and the rows, each line with what it is of: none longer than ``width`` where that can be.

    Columns are left out, then titles are folded; where that is not enough, what stands beside a title goes below it.
    """
    headed = (Row("", "", "", HEADINGS, is_heading=True), *found)
    counted = [row for row in headed if row.beside]
    natural = [max(map(cells, column)) for column in zip(*(row.beside for row in counted), strict=True)]
    titles = max(cells(row.lead) + cells(row.title) for row in counted)
    for shown in _CHOICES if len(counted) > 1 else ():
        room = width - sum(len(_GAP) + natural[index] for index in shown)
        if room >= min(titles, _NARROWEST):
            widths = {index: natural[index] for index in shown}
            for row in headed:
                yield from ((line, row) for line in _beside(row, min(titles, room), widths, width))
            return
    for row in found:
        yield from ((line, row) for line in _below(row, width))


def quantity(count: int) -> str:
    """Return how many there are in a few digits and a letter."""
    for letter, unit in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= unit:
            return f"{count / unit:.1f} {letter}"
    return str(count)


class _Rows:
    """The rows of a tree, of containers that hold more than ``most`` only so many."""

    def __init__(self, most: int | None, guides: Guides) -> None:
        self.rows: list[Row] = []
        self._most = most
        self._guides = guides

    def add(self, node: Node, lead: str, depth: int | None, guides: Guides) -> None:
        """Add what is in ``node`` and lies below ``lead``, ``depth`` levels of it."""
        if depth is not None and depth <= 0:
            return
        count = len(node.children)
        for index, child in enumerate(islice(node.children.values(), self._most)):
            is_last = index == count - 1
            below = lead + (guides.past_last if is_last else guides.past)
            self.rows.append(_row(child, lead + (guides.to_last if is_last else guides.to), below))
            self.add(child, below, None if depth is None else depth - 1, self._guides)
        if self._most is not None and count > self._most:
            title = f"... and {count - self._most} more: --full shows them"
            self.rows.append(Row(lead + guides.to_last, lead + guides.past_last, title))


def _row(node: Node, lead: str, next_lead: str) -> Row:
    title = in_line(shortened(node.name))
    if node.copies > 1:
        title += f" ({node.copies} {'the same' if node.is_same else 'alike'})"
    if node.tensor is None and not node.children:
        return Row(lead, next_lead, f"{title}: {in_line(node.value)}")
    if node.note:
        title += f" ({in_line(node.note)})"
    if not node.tensors:
        return Row(lead, next_lead, title, is_heading=not lead)
    beside = (in_line(node.dtype), _shape(node), quantity(node.elements), output.size(node.size_bytes), _digest(node))
    return Row(lead, next_lead, title, beside, is_heading=not lead and bool(node.children))


def _shape(node: Node) -> str:
    if node.children or node.shape is None:
        return f"{node.tensors} tensor{'s' if node.tensors > 1 else ''}"
    shape = f"[{', '.join(map(str, node.shape))}]"
    return f"{node.tensors} x {shape}" if node.tensors > 1 else shape


def _digest(node: Node) -> str:
    if node.tensor is None or node.tensors > 1 or len(node.tensor.parts) != 1:
        return ""
    storage = node.tensor.parts[0].storage
    if storage.digest:
        return storage.digest[:_SHORT_DIGEST]
    return "" if storage.crc is None else f"crc {storage.crc:08x}"


def _beside(row: Row, title_width: int, widths: dict[int, int], width: int) -> Iterator[str]:
    """Yield the lines of ``row``, its title folded, with what stands beside it in the first of them."""
    titles = list(_titles(row, title_width if row.beside else width))
    if row.beside:
        beside = (padded(row.beside[index], wide, right=_RIGHT[index]) for index, wide in widths.items())
        titles[0] = _GAP.join((padded(titles[0], title_width, right=False), *beside)).rstrip()
    yield from titles


def _below(row: Row, width: int) -> Iterator[str]:
    """Yield the lines of ``row``, what stands beside its title folded below it."""
    yield from _titles(row, width)
    if row.beside:
        lead = _lead(row.next_lead, width) + _FURTHER
        told = _TOGETHER.join(", ".join(filter(None, row.beside)).split(" ")).replace(f",{_TOGETHER}", ", ")
        yield from (lead + part.replace(_TOGETHER, " ") for part in folded(told, width - cells(lead)))


def _titles(row: Row, width: int) -> Iterator[str]:
    if cells(row.lead) + cells(row.title) <= width:
        yield row.lead + row.title
        return
    lead, next_lead = _lead(row.lead, width), _lead(row.next_lead, width)
    first, *rest = folded(row.title, width - cells(lead) - len(_FURTHER))
    yield lead + first
    yield from (next_lead + _FURTHER + part for part in rest)


def _lead(lead: str, width: int) -> str:
    """Return ``lead``; of what is nested deep, only as much as leaves room for a title."""
    return lead[-(width // 2) :] if len(lead) > width // 2 else lead
