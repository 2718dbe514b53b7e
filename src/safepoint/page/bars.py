"""The charts with a bar for each save: sizes, how long training was held up, and how long until it was durable.

Pure, like ``charts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from safepoint.page import words
from safepoint.page.charts import VAST, Chart, Key, Plotly, hover, layout
from safepoint.page.data import Checkpoint
from safepoint.records import SaveStats

Part = tuple[str, str, Sequence[float]]
"""A part of the bars of a chart: what it is called, its colour, and its height in each."""


def sizes(name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of how large each checkpoint is, and how much of it had to be written."""
    told = [(number, found) for number, found in enumerate(checkpoints) if found.size_bytes]
    divisor, unit = _unit(max((found.size_bytes for _, found in told), default=0))
    rows = [_Sized.of(found) for _, found in told]
    parts = (
        ("written", "--phase-1", [row.written for row in rows]),
        ("shared with an earlier file", "--phase-3", [row.shared for row in rows]),
        ("not told how much was written", "--bar-back", [row.untold for row in rows]),
    )
    stack = _Stack([number for number, _ in told], [f"{words.size(found.size_bytes)} in all" for _, found in told])
    drawn = [part for part in parts if any(part[2])]
    traces = tuple(stack.bars(said, colour, values, divisor, words.size) for said, colour, values in drawn)
    about = f"Size of {len(told)} checkpoints, and how much of it had to be written."
    return Chart(name, "Sizes", about, _keys(drawn), traces, _stacked(unit))


def stalls(name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of how long training was held up by each save."""
    numbers, stats = _told_stats(checkpoints)
    parts = [
        ("copying the state", "--phase-1", [each.stalled_s - each.waited_s for each in stats]),
        ("waiting for a free image", "--warn", [each.waited_s for each in stats]),
    ]
    divisor, unit = _time_unit(max((each.stalled_s for each in stats), default=0))
    stack = _Stack(numbers, [f"training held up for {words.seconds(each.stalled_s)}" for each in stats])
    drawn = [part for part in parts if any(value * 1000 >= 1 for value in part[2])] or parts[:1]
    traces = tuple(stack.bars(said, colour, values, divisor, words.seconds) for said, colour, values in drawn)
    about = f"For how long training was held up by each of {len(stats)} saves."
    return Chart(name, "Training held up", about, _keys(drawn), traces, _stacked(unit))


def times(name: str, checkpoints: Sequence[Checkpoint]) -> Chart:
    """Return the chart of what each save took until it was staged, written, and durable."""
    numbers, stats = _told_stats(checkpoints)
    parts = [
        ("staged", "--phase-1", [each.staged_s for each in stats]),
        ("written", "--phase-2", [each.written_s - each.staged_s for each in stats]),
        ("made durable", "--phase-3", [each.committed_s - each.written_s for each in stats]),
    ]
    divisor, unit = _time_unit(max((each.committed_s for each in stats), default=0))
    stack = _Stack(numbers, [f"durable after {words.seconds(each.committed_s)}" for each in stats])
    traces = tuple(stack.bars(said, colour, values, divisor, words.seconds) for said, colour, values in parts)
    about = f"What {len(stats)} saves took until they were staged, written and durable."
    return Chart(name, "Until durable", about, _keys(parts), traces, _stacked(unit))


class _Sized(NamedTuple):
    """The size of a checkpoint, in parts."""

    written: int
    shared: int
    untold: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Sized:
        if checkpoint.stats is None:
            return cls(0, 0, checkpoint.size_bytes)
        written = min(checkpoint.stats.written_bytes, checkpoint.size_bytes)
        return cls(written, checkpoint.size_bytes - written, 0)


class _Stack(NamedTuple):
    """Bars in the order of saving: the numbers of their checkpoints on the page, and what is said of each whole."""

    numbers: Sequence[int]
    said: Sequence[str]

    def bars(
        self, said: str, colour: str, values: Sequence[float], divisor: float, told: Callable[[Any], str]
    ) -> Plotly:
        """Return one part of the bars."""
        text = [f"<b>{whole}</b><br>{said}: {told(value)}" for whole, value in zip(self.said, values, strict=True)]
        return {
            "type": "bar",
            "name": said,
            "x": list(range(1, len(values) + 1)),
            "y": [min(max(value, 0), VAST) / divisor for value in values],
            "marker": {"color": colour, "line": {"width": 0}},
            **hover(self.numbers, text),
        }


def _told_stats(checkpoints: Sequence[Checkpoint]) -> tuple[list[int], list[SaveStats]]:
    told = [(number, found.stats) for number, found in enumerate(checkpoints) if found.stats is not None]
    return [number for number, _ in told], [stats for _, stats in told]


def _keys(parts: Iterable[Part]) -> tuple[Key, ...]:
    return tuple(Key("square", colour, said) for said, colour, _ in parts)


def _stacked(unit: str) -> Plotly:
    return layout(x="saves, in order", y=unit) | {"barmode": "stack", "bargap": 0.2}


def _time_unit(longest_s: float) -> tuple[float, str]:
    return (1, "s") if longest_s >= 1 else (1e-3, "ms")


def _unit(size_bytes: int) -> tuple[int, str]:
    steps = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
    return next(((count, unit) for count, unit in steps if size_bytes >= count), (1, "bytes"))
