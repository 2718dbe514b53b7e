"""Which of the checkpoints that a survey found are asked for: filtered, in an order; the best; the newest.

Decides over what the survey knows, and reads nothing. Knows no command, and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from safepoint.catalog import best_of
from safepoint.errors import MissingMetricError
from safepoint.filters import NUMBERS, TEXTS, Filter, Known
from safepoint.records import Record
from safepoint.survey import Entry

if TYPE_CHECKING:
    from safepoint.contents import Outline
    from safepoint.keep import Mode

ORDERS = ("name", "step", "epoch", "time", "size")
"""What checkpoints are put in order by, besides metrics, which these names hide."""


def known_of(entry: Entry, now: float) -> Known:
    """Return what filters can ask of ``entry``; ``now`` is in Unix seconds."""
    names = (entry.name, str(entry.path))
    outline = entry.outline
    if outline is None:
        return {"name": names}
    told: dict[str, float | tuple[str, ...]] = {**outline.metrics}
    numbers = (outline.step, outline.epoch, outline.size_bytes, now - outline.time)
    for name, value in zip(NUMBERS, numbers, strict=True):
        told.pop(name, None)
        if value is not None:
            told[name] = value
    return told | dict(zip(TEXTS, (names, (outline.format.value,)), strict=True))


def filtered(entries: Sequence[Entry], filters: Sequence[Filter], now: float) -> list[Entry]:
    """Return those of ``entries`` of which all ``filters`` are true.

    Raises:
        MissingMetricError: a filter is about a metric that none of them has.

    """
    for each in filters:
        if each.metric is not None:
            _check_there(each.metric, entries, f"the filter {each.text!r}", (*NUMBERS, *TEXTS))
    if not filters:
        return list(entries)
    return [entry for entry in entries if all(each.holds(known_of(entry, now)) for each in filters)]


def ordered(entries: Sequence[Entry], by: str, *, is_reversed: bool = False) -> list[Entry]:
    """Return ``entries`` from the least to the greatest ``by`` one of ``ORDERS``, or by a metric.

    What tells none, or NaN, comes last in either order.

    Raises:
        MissingMetricError: it is a metric that none of them has.

    """
    if by == "name":
        return sorted(entries, key=lambda entry: str(entry.path), reverse=is_reversed)
    if by not in ORDERS:
        _check_there(by, entries, f"the order by {by!r}", ORDERS)
    values = [(entry, math.nan if entry.outline is None else _value(entry.outline, by)) for entry in entries]
    having = [each for each in values if not math.isnan(each[1])]
    having.sort(key=lambda each: each[1], reverse=is_reversed)
    return [entry for entry, _ in having] + [entry for entry, value in values if math.isnan(value)]


def best(entries: Iterable[Entry], metric: str, mode: Mode = "min") -> Entry | None:
    """Return the entry with the best ``metric``, the earlier of equals, as the catalog ranks them.

    NaN is never the best, nor is what was saved at an exception, nor, in Safepoint's own, what was measured at another
    step than was saved; ``None`` if nothing is left.

    Raises:
        MissingMetricError: none of them has the metric.
        ConfigurationError: ``mode`` is neither of the two.

    """
    by_path = {entry.path: entry for entry in entries}
    records = sorted(filter(None, map(_record, by_path.values())), key=lambda record: (record.time, record.step))
    found = best_of(tuple(records), metric, mode)
    if found is None:
        _check_there(metric, by_path.values(), "the best", ())
    return None if found is None else by_path[found.path]


def newest(entries: Iterable[Entry]) -> Entry | None:
    """Return the newest entry without a flaw, which ``restore()`` would go on from; with one if all have.

    Of several directories it is that in which the last was saved; ``entries`` are in the order of a survey.
    """
    readable = [entry for entry in entries if entry.outline is not None]
    unflawed = [entry for entry in readable if entry.record is None or not entry.record.flaw]
    last = {entry.directory: entry for entry in unflawed or readable}
    return max(last.values(), key=lambda entry: _time(entry.outline), default=None)


def metrics_of(entries: Iterable[Entry]) -> set[str]:
    """Return the metrics that any of ``entries`` has."""
    return {name for entry in entries if entry.outline is not None for name in entry.outline.metrics}


def _check_there(metric: str, entries: Iterable[Entry], asked_by: str, others: tuple[str, ...]) -> None:
    entries = list(entries)
    there = metrics_of(entries)
    if entries and metric not in there:
        remedy = f"Give one of them, or {', '.join(others)}." if others else "Give one of them."
        raise MissingMetricError(metric, asked_by, there, remedy)


def _record(entry: Entry) -> Record | None:
    """Return the record of a checkpoint, another program's likewise, so that all are ranked by one rule."""
    outline = entry.outline
    if entry.record is not None or outline is None:
        return entry.record
    step, epoch = outline.step or 0, outline.epoch or 0
    return Record(entry.path, step, epoch, outline.metrics, outline.time, outline.size_bytes, ())


def _time(outline: Outline | None) -> float:
    return -math.inf if outline is None else outline.time


def _value(outline: Outline, order: str) -> float:
    """Return what ``outline`` is put in order by, NaN if it tells none."""
    told = {"step": outline.step, "epoch": outline.epoch, "time": outline.time, "size": outline.size_bytes}
    value = told.get(order, outline.metrics.get(order))
    return math.nan if value is None else value
