"""A table as text: columns side by side, the wide ones folded to the width there is.

Lines are made one by one from plain strings, so that ten thousand rows are there at once. Knows no terminal, no colour
and no checkpoint.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

_GAP = "  "
_NARROWEST = 8
_NARROW = 12


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, whether it is aligned to the right, and whether its cells may be folded.

    One that ``folds_last`` does so when the others are narrow: a name is better read in one piece.
    """

    heading: str
    right: bool = False
    folds: bool = False
    folds_last: bool = False


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield the heading and the rows, in at most ``width`` cells where the columns that fold leave that choice."""
    for block in blocks(columns, rows, width):
        yield from block.split("\n")


def blocks(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield what ``lines`` does, the heading and each row in one: several lines, where it is folded."""
    headed = [[column.heading for column in columns], *rows]
    natural = [max(map(cells, column)) for column in zip(*headed, strict=True)]
    widths = _widths(columns, natural, width)
    for row in headed:
        if widths != natural and any(map(_exceeds, row, widths)):
            parts = zip_longest(*map(folded, row, widths), fillvalue="")
            yield "\n".join(_line(columns, part, widths) for part in parts)
        else:
            yield _line(columns, row, widths)


def cells(text: str) -> int:
    """Return how many cells of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _exceeds(text: str, width: int) -> bool:
    return cells(text) > width


def _widths(columns: Sequence[Column], natural: list[int], width: int) -> list[int]:
    """Return the width of each column: what it needs, the widest of those that fold cut until all fit."""
    widths = list(natural)
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    for narrowest, is_last in ((_NARROW, False), (_NARROWEST, True)):
        folding = [index for index, column in enumerate(columns) if column.folds and (is_last or not column.folds_last)]
        while excess > 0 and folding:
            widest = max(folding, key=lambda index: widths[index])
            if widths[widest] <= narrowest:
                break
            widths[widest] -= 1
            excess -= 1
    return widths


def folded(text: str, width: int) -> list[str]:
    """Return ``text`` in parts of at most ``width`` cells, parted at spaces where there are any."""
    parts: list[str] = []
    for word in text.split(" "):
        if parts and cells(parts[-1]) + 1 + cells(word) <= width:
            parts[-1] += f" {word}"
        else:
            parts += _chopped(word, width)
    return parts


def _chopped(word: str, width: int) -> list[str]:
    """Return ``word`` in parts of at most ``width`` cells."""
    parts = [""]
    for character in word:
        if cells(parts[-1]) + _cells_of(character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _line(columns: Sequence[Column], row: Iterable[str], widths: Sequence[int]) -> str:
    parts = (padded(text, width, right=column.right) for column, text, width in zip(columns, row, widths, strict=True))
    return _GAP.join(parts).rstrip()


def padded(text: str, width: int, *, right: bool) -> str:
    """Return ``text`` with spaces behind it, or in front, as many as ``width`` cells take."""
    if text.isascii():
        return text.rjust(width) if right else text.ljust(width)
    padding = " " * (width - cells(text))
    return padding + text if right else text + padding
