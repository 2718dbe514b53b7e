"""The heat map of the drift: layers over pairs of checkpoints, as plotly is told it. Pure, like ``charts``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile

from safepoint.page import words
from safepoint.page.charts import Chart, Key, Plotly, layout, safe
from safepoint.page.data import Checkpoint
from safepoint.page.drift import Drifts

_ROW_PX = 20
_AROUND_PX = 130
_LONGEST_LABEL = 22
_LEAST, _MOST = -8, 4
"""The decades that are told apart: a change beyond looks like the last of them."""


def heat_map(name: str, drift: Drifts, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the heat map of ``drift``, whose pairs are places in ``checkpoints``; a row a layer, a column a pair."""
    logs = [[_log(share) for share in row] for row in drift.shares]
    finite = [value for row in logs for value in row if value is not None]
    low, high = _decades(finite)
    heat: Plotly = {
        "type": "heatmap",
        "z": logs,
        "zmin": low,
        "zmax": high,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0, "--heat-1"], [0.5, "--heat-2"], [1, "--heat-3"]],
        "colorbar": _colour_bar(low, high),
        "hovertext": [
            [_said(layer, share, pair, checkpoints) for share, pair in zip(row, drift.pairs, strict=True)]
            for layer, row in zip(drift.layers, drift.shares, strict=True)
        ],
        "hoverinfo": "text",
    }
    drawn = layout()
    later = [checkpoints[after] for _, after in drift.pairs]
    drawn["xaxis"] |= _labelled(_steps(later))
    drawn["shapes"] = [
        _between(column) for column in range(1, len(later)) if later[column - 1].run != later[column].run
    ]
    drawn["yaxis"] |= _labelled(_short(drift.layers)) | {"autorange": "reversed", "showgrid": False}
    drawn["yaxis"]["automargin"] = True
    about = f"Relative change of {len(drift.layers)} layers between {len(drift.pairs)} pairs of successive checkpoints."
    legend = tuple(_legend(drift))
    height_px = _ROW_PX * len(drift.layers) + _AROUND_PX
    return Chart(name, "Drift", about, legend, (heat, *_marks(drift)), drawn, height_px)


def _log(share: float | None) -> float | None:
    if share is None or not share or not math.isfinite(share):
        return None
    return min(max(math.log10(share), _LEAST), _MOST)


def _decades(logs: Sequence[float]) -> tuple[int, int]:
    """Return the decades between which the colours are spread, at least one apart."""
    low, high = math.floor(min(logs, default=-2)), math.ceil(max(logs, default=0))
    return low, max(high, low + 1)


def _colour_bar(low: int, high: int) -> Plotly:
    decades = list(range(low, high + 1))
    return {
        "orientation": "h",
        "thickness": 8,
        "len": 0.6,
        "x": 0.97,
        "xanchor": "right",
        "y": 1,
        "yanchor": "bottom",
        "ypad": 12,
        "outlinewidth": 0,
        "ticklabeloverflow": "allow",
        "tickvals": decades,
        "ticktext": [words.percent(10.0**decade) for decade in decades],
    }


def _marks(drift: Drifts) -> Iterator[Plotly]:
    """Yield the signs on the cells that have no colour, though their layer is in both checkpoints."""
    marked = [
        (column, row, _mark(share))
        for row, shares in enumerate(drift.shares)
        for column, share in enumerate(shares)
        if _mark(share)
    ]
    if marked:
        yield {
            "type": "scatter",
            "mode": "text",
            "x": [column for column, _, _ in marked],
            "y": [row for _, row, _ in marked],
            "text": [sign for _, _, sign in marked],
            "textfont": {"size": 11, "color": "--muted"},
            "hoverinfo": "skip",
        }


def _mark(share: float | None) -> str:
    if share is None or (share and math.isfinite(share)):
        return ""
    if math.isnan(share):
        return "NaN"
    return "0→" if share else "="


def _legend(drift: Drifts) -> Iterator[Key]:
    marks = {_mark(share) for row in drift.shares for share in row}
    meanings = {"=": "unchanged", "0→": "was zero before", "NaN": "holds NaN or infinity"}
    yield from (Key(mark, "--muted", meaning) for mark, meaning in meanings.items() if mark in marks)


def _said(layer: str, share: float | None, pair: tuple[int, int], checkpoints: Sequence[Checkpoint]) -> str:
    before, after = (safe(checkpoints[place].name) for place in pair)
    if share is None:
        told = "not in both"
    elif math.isfinite(share):
        told = f"changed by {words.percent(share)}" if share else "unchanged"
    else:
        told = "holds NaN or infinity" if math.isnan(share) else "was zero before"
    return f"<b>{safe(layer)}</b><br>{told}<br>from {before}<br>to {after}"


def _labelled(labels: Sequence[str]) -> Plotly:
    return {"type": "linear", "tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": list(labels)}


def _steps(later: Sequence[Checkpoint]) -> list[str]:
    """Return what is written below the columns: the step, and below the first of each run that is one of several it."""
    runs: set[str] = set()
    labels = []
    for checkpoint in later:
        step = "" if checkpoint.step is None else str(checkpoint.step)
        labels.append(step if checkpoint.run in runs | {""} else f"{step}<br>{safe(checkpoint.run[-_LONGEST_LABEL:])}")
        runs.add(checkpoint.run)
    return labels


def _between(column: int) -> Plotly:
    """Return a line in front of a column, where another run begins."""
    ends = {"x0": column - 0.5, "x1": column - 0.5, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "line": {"color": "--ground", "width": 8}, **ends}


def _short(layers: Sequence[str]) -> list[str]:
    """Return the names of the layers, of long ones without what all begin with, and of very long ones the end."""
    begin = _common(layers) if max(map(len, layers), default=0) > _LONGEST_LABEL else 0
    ends = (layer[begin:] for layer in layers)
    return [safe(end if len(end) <= _LONGEST_LABEL else f"…{end[1 - _LONGEST_LABEL :]}") for end in ends]


def _common(layers: Sequence[str]) -> int:
    """Return how many characters the names have in common, whole parts and the dots behind them."""
    parts = [layer.split(".")[:-1] for layer in layers]
    same = takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False))
    return sum(len(each[0]) + 1 for each in same)
