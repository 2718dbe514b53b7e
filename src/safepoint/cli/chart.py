"""How far layers went, as bars on the terminal with the figures beside them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from safepoint.cli import output
from safepoint.cli.columns import Column, cells, lines
from safepoint.drift import OPTIMIZERS, Drift, by_layer, joined
from safepoint.errors import in_line, shortened

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_WIDEST, _NARROWEST = 40, 8
_GAP = 2
Row = tuple[str, Drift]
_FIGURES = ("of A", "norm", "max", "changed")
_LEAST_WANTED = (2, 1, 3)
"""Which of the figures a narrow terminal has no place for, the first first."""


def show(paths: Sequence[str], drifts: Sequence[Drift], *, every: bool, by_change: bool) -> None:
    """Print a bar and the figures for each layer, or for each tensor if ``every``; most changed first if asked for.

    What optimizers keep changes by other measures than weights do: it has a table of its own.
    """
    tables: dict[str, list[Row]] = {}
    if every:
        tables["tensor"] = list(zip(paths, drifts, strict=True))
    else:
        for name, those in by_layer(paths, drifts).items():
            heading = "optimizer's state" if OPTIMIZERS in f".{name}" else "layer"
            tables.setdefault(heading, []).append((name, joined(those)))
    for heading, rows in tables.items():
        if by_change:
            rows.sort(key=lambda row: -1.0 if row[1].relative is None else row[1].relative, reverse=True)
        _show_table(heading, rows)


def _show_table(heading: str, rows: Sequence[Row]) -> None:
    most = max((share for _, drift in rows if (share := drift.relative) and math.isfinite(share)), default=0.0)
    names = [in_line(shortened(name)) for name, _ in rows]
    figures = [_figures(drift) for _, drift in rows]
    kept, cells_of_bar = _layout([heading, *names], figures)
    columns = (Column(heading, folds=True), Column("relative change"[:cells_of_bar]))
    figured = (Column(_FIGURES[at], right=True) for at in kept)
    table = [
        (name, bar(_share(drift.relative, most), cells_of_bar), *(own[at] for at in kept))
        for name, (_, drift), own in zip(names, rows, figures, strict=True)
    ]
    head, *texts = lines((*columns, *figured), table, output.width())
    output.line(head, bold=True)
    for text in texts:
        output.line(text)
    for name, (_, drift) in zip(names, rows, strict=True):
        if drift.not_finite:
            output.line(f"{name}: {drift.not_finite:,} NaN or infinite in B", "red")


def bar(share: float, cells_of_bar: int) -> str:
    """Return a bar as long as ``share`` of so many cells; of number signs where the encoding has no blocks."""
    if _has_blocks():
        whole, eighths = divmod(round(share * cells_of_bar * 8), 8)
        return "█" * whole + (_EIGHTHS[eighths] if eighths else "")
    return "#" * round(share * cells_of_bar)


def _has_blocks() -> bool:
    try:
        _EIGHTHS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _share(relative: float | None, most: float) -> float:
    if not relative:
        return 0.0
    return 1.0 if math.isinf(relative) else relative / most


def _layout(names: Sequence[str], figures: Sequence[Sequence[str]]) -> tuple[list[int], int]:
    """Return which figures fit beside names and bars, and how many cells the bars get."""
    widths = [_GAP + max(map(cells, column)) for column in zip(_FIGURES, *figures, strict=True)]
    longest, width = max(map(cells, names)), output.width()
    kept = list(range(len(_FIGURES)))
    for at in _LEAST_WANTED:
        if min(longest, width // 3) + _GAP + _NARROWEST + sum(widths[at] for at in kept) > width:
            kept.remove(at)
    room = width - longest - _GAP - sum(widths[at] for at in kept)
    return kept, min(_WIDEST, max(_NARROWEST, room))


def _figures(drift: Drift) -> tuple[str, ...]:
    """Return the figures beside a bar as text, in the order of ``_FIGURES``."""
    is_all = drift.changed == drift.elements
    changed = "all" if is_all else f"{drift.changed:,} of {drift.elements:,}"
    if drift.norm is None:
        return "", "", "", changed
    return _relative(drift.relative), f"{drift.norm:.3g}", f"{drift.most:.3g}", changed


def _relative(share: float | None) -> str:
    if share is None:
        return ""
    return "from 0" if math.isinf(share) else f"{share * 100:.3g}%"
