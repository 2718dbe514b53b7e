"""How a checkpoint fits what is live: what matched, what did not, and the table that says so.

Pure: what is compared is told by whoever knows tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from safepoint.errors import in_line, shortened

_SHOWN = 30
"""How many lines a group of differences has at most."""
_WIDEST = 60
_ABSENT = "-"
_HEADINGS = ("entry", "key", "here", "in the checkpoint")


class Difference(NamedTuple):
    """One thing that does not fit: a key of an entry of ``state=`` (``""``: all of it), and what it is on either side.

    ``here`` and ``there`` are shapes or kinds; ``""`` where there is nothing.
    """

    entry: str
    key: str
    here: str
    there: str


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What ``restore()`` has found; ``str()`` of it is a table.

    ``directory`` is where the run saves. ``restored`` are the entries of ``state=`` that were restored, in whole or in
    part, ``left`` those that are as they were. ``matched`` counts what fits: each key of a module, and every other
    entry as one. ``missing`` is live but not in the checkpoint, ``unexpected`` in the checkpoint but not live,
    ``reshaped`` on both sides with another shape or of another kind. ``inexact`` are the parts from which the run does
    not go on exactly as it would have, each with why.
    """

    directory: Path | None = None
    restored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    matched: int = 0
    missing: tuple[Difference, ...] = ()
    unexpected: tuple[Difference, ...] = ()
    reshaped: tuple[Difference, ...] = ()
    inexact: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_whole(self) -> bool:
        """Whether everything has its counterpart on the other side, of the same shape."""
        return not (self.missing or self.unexpected or self.reshaped)

    @property
    def restored_whole(self) -> bool:
        """Whether nothing differs of what was restored."""
        differences = (*self.missing, *self.unexpected, *self.reshaped)
        return not {found.entry for found in differences} & set(self.restored)

    @property
    def is_exact(self) -> bool:
        """Whether, besides, the run goes on exactly where it was."""
        return self.is_whole and not self.inexact

    def __str__(self) -> str:
        """Tell it as a table: of each kind of difference the first 30."""
        counts = f"{self.matched:,} matched, {len(self.missing):,} missing, {len(self.unexpected):,} unexpected, "
        lines = [f"{counts}{len(self.reshaped):,} of another shape or kind"]
        if not self.is_whole:
            lines += self._table()
        if self.inexact:
            lines += ["not exactly as it was:", *told_of_inexact(self.inexact)]
        return "\n".join(lines)

    def _table(self) -> Iterator[str]:
        groups = (
            ("missing in the checkpoint", self.missing),
            ("in the checkpoint only", self.unexpected),
            ("of another shape or kind", self.reshaped),
        )
        shown = {title: [_cells(found) for found in group[:_SHOWN]] for title, group in groups}
        rows = [_HEADINGS, *(row for rows in shown.values() for row in rows)]
        widths = [min(max(len(row[column]) for row in rows), _WIDEST) for column in range(3)]
        yield _line(_HEADINGS, widths)
        for title, group in groups:
            if group:
                yield f"{title}:"
            yield from (_line(row, widths) for row in shown[title])
            if len(group) > _SHOWN:
                yield f"  and {len(group) - _SHOWN:,} more"


NO_REPORT = RestoreReport()


def told_of_inexact(inexact: Mapping[str, str]) -> list[str]:
    """Return a line for each part that is not exactly as it was, but for those beyond the first 30."""
    shown = [
        f"  {in_line(shortened(name))}: {in_line(shortened(why))}" for name, why in islice(inexact.items(), _SHOWN)
    ]
    more = len(inexact) - len(shown)
    return [*shown, f"  and {more:,} more"] if more else shown


def told_of_dtypes(found: Sequence[tuple[str, str, str]]) -> str:
    """Say of tensors, each given by its key, its dtype here and that in the checkpoint, that these are others."""
    key, here, there = found[0][0], *(name.removeprefix("torch.") for name in found[0][1:])
    count = "1 tensor is" if len(found) == 1 else f"{len(found):,} tensors are"
    return f"{count} of another dtype here: {there} in the checkpoint, {here} here, first: {in_line(shortened(key))}"


def _cells(found: Difference) -> tuple[str, ...]:
    cells = (found.entry, found.key or "(all)", found.here or _ABSENT, found.there or _ABSENT)
    return tuple(in_line(shortened(cell)) for cell in cells)


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    *first, last = cells
    return f"  {'  '.join(cell.ljust(width) for cell, width in zip(first, widths, strict=True))}  {last}"
