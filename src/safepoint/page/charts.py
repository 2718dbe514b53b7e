"""The charts whose marks are checkpoints: metrics over steps, and steps over time, as plotly is told them.

A chart is plain data. Colours are names of the page's own (``--kept``), which the page resolves for light and dark.
What comes from files is escaped here, as plotly takes text for HTML. Pure: imports no plotly and knows no page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import Any, NamedTuple

from safepoint.page import words
from safepoint.page.data import Checkpoint, Kind

Plotly = dict[str, Any]

BEYOND = "beyond"
VAST = 1e100
"""What is larger is not drawn: plotly's axes end soon after."""
_SYMBOLS = {Kind.KEPT: "circle", Kind.REMOVED: "x-thin-open", Kind.EMERGENCY: "diamond"}
_SAID = {
    Kind.KEPT: "kept",
    Kind.REMOVED: "removed",
    Kind.EMERGENCY: "left by an exception",
    BEYOND: "NaN or too large to draw",
}
_RUN_COLOURS = 7
_DASHES = ("solid", "dash", "dot", "dashdot")
_HOVER_WIDTH = 44
_HOVER_LINES = 4
_HOVER_METRICS = 8
_HEIGHT_PX = 240
_MANY = 150
_DENSE_PX = 5
_DECADES_FOR_LOG = 3
_FEW_STEPS = 6
_CLEAR = "rgba(0,0,0,0)"


class Key(NamedTuple):
    """What a legend explains: a symbol, its colour, and what it stands for."""

    symbol: str
    colour: str
    means: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: its name on the page, heading, what it says in a sentence, legend, and what plotly draws."""

    name: str
    title: str
    about: str
    legend: tuple[Key, ...]
    traces: tuple[Plotly, ...]
    layout: Plotly
    height_px: int = _HEIGHT_PX


class Point(NamedTuple):
    """A checkpoint on a chart: its number on the page, itself, and where it is drawn."""

    number: int
    checkpoint: Checkpoint
    x: Any
    y: float


def safe(text: object) -> str:
    """Return text for plotly, which takes some HTML: everything in it is shown as it is."""
    return escape(words.text(text), quote=False)


def note(checkpoint: Checkpoint) -> str:
    """Return what a chart says of a checkpoint when it is pointed at."""
    told = [f"<b>{safe(checkpoint.name)}</b>", *map(safe, _where(checkpoint))]
    told += [
        f"{safe(name)} {words.number(value)}" for name, value in islice(checkpoint.metrics.items(), _HOVER_METRICS)
    ]
    told += _wrapped(f"{'kept' if checkpoint.kept else 'removed'}: {checkpoint.why}")
    if checkpoint.reasons:
        told += _wrapped(f"saved: {', '.join(checkpoint.reasons)}")
    return "<br>".join(told)


def metric(name: str, metric_name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of a metric over the steps, with every checkpoint that has it."""
    points = [
        Point(number, checkpoint, checkpoint.step, checkpoint.metrics[metric_name])
        for number, checkpoint in enumerate(checkpoints)
        if metric_name in checkpoint.metrics and checkpoint.step is not None
    ]
    finite = [point.y for point in points if _can_be_drawn(point.y)]
    drawn = layout(x="step")
    drawn["xaxis"] |= _over_all(checkpoints)
    drawn["yaxis"] |= _scale(finite)
    drawn["yaxis2"] = {"overlaying": "y", "range": [0, 1], "fixedrange": True, "visible": False}
    traces = (*_curves(points), *_markers(points, lambda point: _value(metric_name, point)), *_beyond(points))
    return Chart(name, words.text(metric_name), _about(points, finite), _legend(points), traces, drawn)


def timeline(name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of when the checkpoints were saved: the step against the time of day."""
    points = [
        Point(number, checkpoint, when, checkpoint.step or 0)
        for number, checkpoint in enumerate(checkpoints)
        if (when := words.moment(checkpoint.time, "milliseconds"))
    ]
    drawn = layout(y="step")
    drawn["xaxis"] |= {"type": "date", "nticks": 5, "tickangle": 0}
    traces = (*_curves(points), *_markers(points, _saved))
    span = f", from {points[0].x} to {points[-1].x}" if points else ""
    about = f"The step of {len(points)} checkpoints against the time of their save{span}."
    return Chart(name, "When they were saved", about, _legend(points), traces, drawn)


def _scale(values: Sequence[float]) -> Plotly:
    """Return what makes an axis logarithmic where values spread over several powers of ten."""
    if not values or min(values) <= 0:
        return {"showticklabels": bool(values)}
    decades = math.log10(max(values)) - math.log10(min(values))
    return {"type": "log", "dtick": math.ceil(decades / 5)} if decades > _DECADES_FOR_LOG else {}


def _over_all(checkpoints: Iterable[Checkpoint]) -> Plotly:
    """Return the range of the steps: the same on all charts, so that they can be compared."""
    steps = [checkpoint.step for checkpoint in checkpoints if checkpoint.step is not None]
    low, high = min(steps, default=0), max(steps, default=0)
    margin = max((high - low) * 0.03, 0.5)
    return {"range": [low - margin, high + margin]} | ({"dtick": 1} if high - low < _FEW_STEPS else {})


def _where(checkpoint: Checkpoint) -> Iterator[str]:
    told = [] if checkpoint.step is None else [f"step {checkpoint.step:,}"]
    told += [] if checkpoint.epoch is None else [f"epoch {checkpoint.epoch:,}"]
    if told:
        yield ", ".join(told)
    if checkpoint.run:
        yield f"run {checkpoint.run}"


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(words.text(text), _HOVER_WIDTH, max_lines=_HOVER_LINES, placeholder=" ...")
    return [escape(line, quote=False) for line in lines]


def _value(metric_name: str, point: Point) -> str:
    measured = point.checkpoint.measured_at.get(metric_name)
    where = "" if measured is None else f" (measured at step {measured:,})"
    return f"<b>{safe(metric_name)} {words.number(point.y)}</b>{where}"


def _saved(point: Point) -> str:
    metrics = islice(point.checkpoint.metrics.items(), _HOVER_METRICS)
    told = [f"{safe(name)} {words.number(value)}" for name, value in metrics]
    return "<br>".join([f"<b>{words.moment(point.checkpoint.time)}</b>", *told])


def _about(points: Sequence[Point], finite: Sequence[float]) -> str:
    if not finite:
        return f"{len(points)} values, none of them a finite number."
    beyond = len(points) - len(finite)
    told = f"{len(points)} values over the steps, from {words.number(min(finite))} to {words.number(max(finite))}"
    return f"{told}; {beyond} NaN or too large to draw." if beyond else f"{told}."


def _curves(points: Sequence[Point]) -> Iterator[Plotly]:
    """Yield a line for each run; it has a gap where a value is no finite number."""
    for position, run in enumerate(dict.fromkeys(point.checkpoint.run for point in points)):
        own = [point for point in points if point.checkpoint.run == run]
        yield {
            "type": "scatter",
            "mode": "lines",
            "x": [point.x for point in own],
            "y": [_drawable(point.y) for point in own],
            "line": {"color": _run_colour(position), "width": 1.5, "dash": _DASHES[position // _RUN_COLOURS % 4]},
            "opacity": 0.55,
            "hoverinfo": "skip",
        }


def _markers(points: Sequence[Point], said: Callable[[Point], str]) -> Iterator[Plotly]:
    """Yield a trace for each kind of checkpoint, those that are kept on top."""
    runs = {run: _run_colour(at) for at, run in enumerate(dict.fromkeys(point.checkpoint.run for point in points))}
    size_px = 9 if len(points) <= _MANY else _DENSE_PX
    for kind in (Kind.REMOVED, Kind.KEPT, Kind.EMERGENCY):
        own = [point for point in points if point.checkpoint.kind is kind and _can_be_drawn(point.y)]
        if not own:
            continue
        colours = {Kind.REMOVED: "--removed", Kind.EMERGENCY: "--warn"}
        marker: Plotly = {
            "symbol": _SYMBOLS[kind],
            "size": size_px - 2 if kind is Kind.REMOVED else size_px,
            "color": colours.get(kind) or [runs[point.checkpoint.run] for point in own],
        }
        if kind is Kind.REMOVED:
            marker["line"] = {"width": 1.5 if size_px > _DENSE_PX else 1, "color": colours[kind]}
        else:
            marker["line"] = {"width": 1 if size_px > _DENSE_PX else 0, "color": "--ground"}
        yield _scatter(own, [point.y for point in own], marker, said) | {"name": kind.value}


def _beyond(points: Sequence[Point]) -> Iterator[Plotly]:
    """Yield a trace of what is NaN (at the bottom) or infinite (at the end towards which it is)."""
    own = [point for point in points if not _can_be_drawn(point.y)]
    if own:
        is_up = [point.y > 0 for point in own]
        marker = {
            "symbol": ["triangle-up-open" if up else "triangle-down-open" for up in is_up],
            "size": 9,
            "color": "--warn",
            "line": {"width": 1.5, "color": "--warn"},
        }
        trace = _scatter(own, [0.97 if up else 0.03 for up in is_up], marker, lambda p: f"<b>{words.number(p.y)}</b>")
        yield trace | {"yaxis": "y2", "name": BEYOND}


def _scatter(points: Sequence[Point], y: Sequence[float], marker: Plotly, said: Callable[[Point], str]) -> Plotly:
    drawn = {"type": "scatter", "mode": "markers", "x": [point.x for point in points], "y": list(y), "marker": marker}
    return drawn | hover([point.number for point in points], [said(point) for point in points])


def hover(numbers: Sequence[int], text: Sequence[str]) -> Plotly:
    """Return what is said where one points: a text of its own, and the note of the checkpoint with that number."""
    return {"customdata": list(numbers), "said": list(text), "hoverinfo": "text"}


def _legend(points: Sequence[Point]) -> tuple[Key, ...]:
    kinds = {point.checkpoint.kind for point in points if _can_be_drawn(point.y)}
    runs = list(dict.fromkeys(point.checkpoint.run for point in points))
    kept = "--text" if len(runs) > 1 else _run_colour(0)
    colours = {Kind.KEPT: kept, Kind.REMOVED: "--removed", Kind.EMERGENCY: "--warn"}
    keys = [Key(_SYMBOLS[kind], colour, _SAID[kind]) for kind, colour in colours.items() if kind in kinds]
    if any(not _can_be_drawn(point.y) for point in points):
        keys.append(Key("triangle", "--warn", _SAID[BEYOND]))
    return (*keys, *_legend_of_runs(runs))


def _legend_of_runs(runs: Sequence[str]) -> Iterator[Key]:
    if len(runs) > 1:
        yield from (Key("line", _run_colour(at), words.text(run)) for at, run in enumerate(runs[:_RUN_COLOURS]))
    if len(runs) > _RUN_COLOURS:
        yield Key("", "--muted", f"and {len(runs) - _RUN_COLOURS:,} runs more")


def layout(*, x: str = "", y: str = "") -> Plotly:
    """Return what all charts have in common, with the titles of the axes."""
    axis = {"gridcolor": "--line", "linecolor": "--line", "zeroline": False, "ticks": ""}
    return {
        "margin": {"l": 52, "r": 8, "t": 8, "b": 40},
        "showlegend": False,
        "hovermode": "closest",
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--muted"},
        "hoverlabel": {
            "bgcolor": "--raised",
            "bordercolor": "--edge",
            "align": "left",
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--text"},
        },
        "xaxis": axis | {"title": {"text": x, "standoff": 8}, "showgrid": False},
        "yaxis": axis | {"title": {"text": y, "standoff": 8}},
    }


def _run_colour(position: int) -> str:
    return f"--run-{position % _RUN_COLOURS + 1}"


def _can_be_drawn(value: float) -> bool:
    return abs(value) < VAST  # NaN is not


def _drawable(value: float) -> float | None:
    return value if _can_be_drawn(value) else None
