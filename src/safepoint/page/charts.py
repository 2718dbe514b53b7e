"""The charts over checkpoints: metrics, the course of the saves, their sizes and their times, as plotly is told them.

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

NOT_FINITE = "not-finite"
_SYMBOLS = {Kind.KEPT: "circle", Kind.REMOVED: "x-thin-open", Kind.EMERGENCY: "diamond"}
_SAID = {
    Kind.KEPT: "kept",
    Kind.REMOVED: "removed",
    Kind.EMERGENCY: "left by an exception",
    NOT_FINITE: "NaN or infinite",
}
_RUN_COLOURS = 7
_DASHES = ("solid", "dash", "dot", "dashdot")
_HOVER_WIDTH = 44
_HOVER_LINES = 4
_HOVER_METRICS = 8
_HEIGHT_PX = 240
_SPREAD_FOR_LOG = 1000
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
    told += [f"{safe(name)} {words.number(value)}" for name, value in islice(checkpoint.metrics.items(), _HOVER_METRICS)]
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
    finite = [point.y for point in points if math.isfinite(point.y)]
    is_log = bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _SPREAD_FOR_LOG
    drawn = layout(x="step", y="log" if is_log else "")
    drawn["yaxis"] |= {"type": "log", "dtick": 1} if is_log else {}
    drawn["yaxis2"] = {"overlaying": "y", "range": [0, 1], "fixedrange": True, "visible": False}
    traces = (*_curves(points), *_markers(points, lambda point: _value(metric_name, point)), *_beyond(points))
    return Chart(name, words.text(metric_name), _about(points, finite), _legend(points), traces, drawn)


def timeline(name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of when the checkpoints were saved: the step against the time of day."""
    points = [
        Point(number, checkpoint, when, checkpoint.step or 0)
        for number, checkpoint in enumerate(checkpoints)
        if (when := words.moment(checkpoint.time))
    ]
    drawn = layout(y="step")
    drawn["xaxis"] |= {"type": "date"}
    traces = (*_curves(points), *_markers(points, lambda point: f"saved {point.x}"))
    span = f", from {points[0].x} to {points[-1].x}" if points else ""
    about = f"The step of {len(points)} checkpoints against the time of their save{span}."
    return Chart(name, "When they were saved", about, _legend(points), traces, drawn)


def sizes(name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of how large each checkpoint is, and how much of it had to be written."""
    told = [(number, found) for number, found in enumerate(checkpoints) if found.size_bytes]
    divisor, unit = _unit(max((found.size_bytes for _, found in told), default=0))
    saves, numbers = [position + 1 for position in range(len(told))], [number for number, _ in told]
    written = [found.stats.written_bytes if found.stats else None for _, found in told]
    size_text = [f"{words.size(found.size_bytes)} in all" for _, found in told]
    written_text = [f"{words.size(count)} written" if count is not None else "" for count in written]
    whole = [found.size_bytes / divisor for _, found in told]
    parts = [None if count is None else count / divisor for count in written]
    traces = (
        _bars(saves, whole, numbers, size_text, "--bar-back"),
        _bars(saves, parts, numbers, written_text, "--run-1") | {"width": 0.5},
    )
    drawn = layout(x="checkpoint, in the order of saving", y=unit) | {"barmode": "overlay", "bargap": 0.15}
    legend = (Key("square", "--bar-back", "size"), Key("square", "--run-1", "bytes written"))
    about = f"Size and bytes written of {len(told)} checkpoints; the rest of a size is shared with an earlier file."
    return Chart(name, "Sizes", about, legend, traces, drawn)


def times(name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of what each save took: until staged, written and durable, and how long training waited."""
    told = [(number, found.stats) for number, found in enumerate(checkpoints) if found.stats is not None]
    saves, numbers = [position + 1 for position in range(len(told))], [number for number, _ in told]
    every = [stats for _, stats in told]
    phases = (
        ("staged", "--run-1", [stats.staged_s for stats in every]),
        ("written", "--run-2", [max(stats.written_s - stats.staged_s, 0) for stats in every]),
        ("made durable", "--run-3", [max(stats.committed_s - stats.written_s, 0) for stats in every]),
    )
    scale, unit = (1, "s") if max((stats.committed_s for stats in every), default=0) >= 1 else (1000, "ms")
    bars = [
        _bars(saves, [value * scale for value in values], numbers, [f"{said} in {words.seconds(v)}" for v in values], colour)
        for said, colour, values in phases
    ]
    stalls = [stats.stalled_s for stats in every]
    stalled = {
        "type": "scatter",
        "mode": "markers",
        "x": saves,
        "y": [value * scale for value in stalls],
        "marker": {"symbol": "line-ew-open", "size": 10, "color": "--text", "line": {"width": 2.5}},
    }
    hover = _hover(numbers, [f"training stalled for {words.seconds(value)}" for value in stalls])
    drawn = layout(x="checkpoint, in the order of saving", y=unit) | {"barmode": "stack", "bargap": 0.15}
    legend = (Key("dash", "--text", "training stalled"), *(Key("square", colour, said) for said, colour, _ in phases))
    about = f"What {len(told)} saves took until they were staged, written and durable, and for how long training stalled."
    return Chart(name, "Stall and write times", about, legend, (*bars, stalled | hover), drawn)


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


def _about(points: Sequence[Point], finite: Sequence[float]) -> str:
    if not finite:
        return f"{len(points)} values, none of them a finite number."
    beyond = len(points) - len(finite)
    told = f"{len(points)} values over the steps, from {words.number(min(finite))} to {words.number(max(finite))}"
    return f"{told}; {beyond} NaN or infinite." if beyond else f"{told}."


def _curves(points: Sequence[Point]) -> Iterator[Plotly]:
    """Yield a line for each run; it has a gap where a value is no finite number."""
    for position, run in enumerate(dict.fromkeys(point.checkpoint.run for point in points)):
        own = [point for point in points if point.checkpoint.run == run]
        yield {
            "type": "scatter",
            "mode": "lines",
            "x": [point.x for point in own],
            "y": [_finite(point.y) for point in own],
            "line": {"color": _run_colour(position), "width": 1.5, "dash": _DASHES[position // _RUN_COLOURS % 4]},
            "opacity": 0.55,
            "hoverinfo": "skip",
        }


def _markers(points: Sequence[Point], said: Callable[[Point], str]) -> Iterator[Plotly]:
    """Yield a trace for each kind of checkpoint, those that are kept on top."""
    runs = {run: _run_colour(at) for at, run in enumerate(dict.fromkeys(point.checkpoint.run for point in points))}
    for kind in (Kind.REMOVED, Kind.KEPT, Kind.EMERGENCY):
        own = [point for point in points if point.checkpoint.kind is kind and math.isfinite(point.y)]
        if not own:
            continue
        colours = {Kind.REMOVED: "--removed", Kind.EMERGENCY: "--warn"}
        marker: Plotly = {
            "symbol": _SYMBOLS[kind],
            "size": 7 if kind is Kind.REMOVED else 9,
            "color": colours.get(kind) or [runs[point.checkpoint.run] for point in own],
            "line": {"width": 1.5, "color": colours[kind]} if kind is Kind.REMOVED else {"width": 1, "color": "--ground"},
        }
        yield _scatter(own, [point.y for point in own], marker, said) | {"name": kind.value}


def _beyond(points: Sequence[Point]) -> Iterator[Plotly]:
    """Yield a trace of what is NaN (at the bottom) or infinite (at the end towards which it is)."""
    own = [point for point in points if not math.isfinite(point.y)]
    if own:
        is_up = [point.y > 0 for point in own]
        marker = {
            "symbol": ["triangle-up-open" if up else "triangle-down-open" for up in is_up],
            "size": 9,
            "color": "--warn",
            "line": {"width": 1.5, "color": "--warn"},
        }
        trace = _scatter(own, [0.97 if up else 0.03 for up in is_up], marker, lambda p: f"<b>{words.number(p.y)}</b>")
        yield trace | {"yaxis": "y2", "name": NOT_FINITE}


def _scatter(points: Sequence[Point], y: Sequence[float], marker: Plotly, said: Callable[[Point], str]) -> Plotly:
    drawn = {"type": "scatter", "mode": "markers", "x": [point.x for point in points], "y": list(y), "marker": marker}
    return drawn | _hover([point.number for point in points], [said(point) for point in points])


def _bars(x: Sequence[int], y: Sequence[float | None], numbers: Sequence[int], text: Sequence[str], colour: str) -> Plotly:
    drawn: Plotly = {"type": "bar", "x": list(x), "y": list(y), "marker": {"color": colour, "line": {"width": 0}}}
    return drawn | _hover(numbers, text)


def _hover(numbers: Sequence[int], text: Sequence[str]) -> Plotly:
    """Return what is said where one points: a text of its own, and the note of the checkpoint with that number."""
    return {"customdata": list(numbers), "said": list(text), "hoverinfo": "text"}


def _legend(points: Iterable[Point]) -> tuple[Key, ...]:
    points = list(points)
    kinds = {point.checkpoint.kind for point in points if math.isfinite(point.y)}
    colours = {Kind.KEPT: "--run-1", Kind.REMOVED: "--removed", Kind.EMERGENCY: "--warn"}
    keys = [Key(_SYMBOLS[kind], colour, _SAID[kind]) for kind, colour in colours.items() if kind in kinds]
    if any(not math.isfinite(point.y) for point in points):
        keys.append(Key("triangle", "--warn", _SAID[NOT_FINITE]))
    runs = list(dict.fromkeys(point.checkpoint.run for point in points))
    if len(runs) > 1:
        keys += [Key("line", _run_colour(at), words.text(run)) for at, run in enumerate(runs[:_RUN_COLOURS])]
    return tuple(keys)


def layout(*, x: str = "", y: str = "") -> Plotly:
    """Return what all charts have in common, with the titles of the axes."""
    axis = {"gridcolor": "--line", "linecolor": "--line", "zeroline": False, "automargin": True, "ticks": ""}
    return {
        "margin": {"l": 44, "r": 8, "t": 8, "b": 36},
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unit(size_bytes: int) -> tuple[int, str]:
    steps = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
    return next(((count, unit) for count, unit in steps if size_bytes >= count), (1, "bytes"))
