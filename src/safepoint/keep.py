"""Preservation policies: which checkpoints stay. Compose them with ``|``: what either keeps, stays.

Pure decisions over records: no policy sees a file name, a clock or a disk, and each answer carries its reason. The
records handed in are in the order in which they were saved.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal, get_args

from safepoint.errors import ConfigurationError
from safepoint.records import Record
from safepoint.when import in_seconds, one_unit, positive_count, positive_number

Mode = Literal["min", "max"]
Reasons = Mapping[Path, str]
A_PIN = "a pin ('safepoint pin')"
"""What lets any checkpoint stay."""


class PreservationPolicy(ABC):
    """Say which records stay."""

    @abstractmethod
    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the paths that stay, each with its reason; ``records`` come oldest first."""

    @abstractmethod
    def why_not(self, record: Record) -> str:
        """Return, as the end of a sentence, why ``record`` was not selected."""

    @abstractmethod
    def takes(self, record: Record, records: Sequence[Record]) -> str:
        """Return, as the end of a sentence, what it would take for ``record`` to be selected of ``records``."""

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that the policy ranks by."""
        return frozenset()

    @property
    def at_most(self) -> int | None:
        """How many checkpoints it keeps at most, ``None`` where no number bounds them."""
        return None

    def __or__(self, other: PreservationPolicy) -> PreservationPolicy:
        """Keep what either policy keeps."""
        if not isinstance(other, PreservationPolicy):
            return NotImplemented
        return Union((*_parts(self), *_parts(other)))


@dataclass(frozen=True, slots=True)
class Union(PreservationPolicy):
    """Keep what any of ``policies`` keeps; the reasons are joined."""

    policies: tuple[PreservationPolicy, ...]

    def select(self, records: Sequence[Record]) -> Reasons:
        """Join the reasons of every policy that keeps a record."""
        joined: dict[Path, str] = {}
        for policy in self.policies:
            for path, reason in policy.select(records).items():
                joined[path] = f"{joined[path]}; {reason}" if path in joined else reason
        return joined

    def why_not(self, record: Record) -> str:
        """Join what every policy says."""
        return " and ".join(policy.why_not(record) for policy in self.policies)

    def takes(self, record: Record, records: Sequence[Record]) -> str:
        """Join what every policy asks for; one is enough."""
        return ", or ".join(policy.takes(record, records) for policy in self.policies)

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that any of the policies ranks by."""
        return frozenset().union(*(policy.metrics for policy in self.policies))

    @property
    def at_most(self) -> int | None:
        """The sum, where each of the policies is bounded."""
        counts = [policy.at_most for policy in self.policies]
        return None if None in counts else sum(count for count in counts if count is not None)


@dataclass(frozen=True, slots=True)
class Best(PreservationPolicy):
    """Keep the ``n`` best by ``metric`` of those saved at step ``after_step`` or later.

    A record without the metric never counts, and neither does NaN. Ties keep the earlier record.
    """

    metric: str
    n: int = 1
    mode: Mode = "min"
    after_step: int = 0

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the best ``n``, each with its rank and value."""
        return {
            record.path: f"{self._rank_words(rank)} by {self.metric} ({record.metrics[self.metric]:.6g})"
            for rank, record in enumerate(self.ranked(records)[: self.n])
        }

    def why_not(self, record: Record) -> str:
        """Say that it is not good enough, with its value, or that it has none, or comes too early."""
        place = "the best" if self.n == 1 else f"among the best {self.n}"
        if record.step < self.after_step:
            return f"not {place} by {self.metric} (which counts from step {self.after_step})"
        if self.metric not in record.metrics or self.metric in record.measured_at:
            return f"not {place} by {self.metric} (not measured at its step)"
        return f"not {place} by {self.metric} ({record.metrics[self.metric]:.6g})"

    def takes(self, record: Record, records: Sequence[Record]) -> str:
        """Name the value to beat, or to equal if the record is the earlier one."""
        if record.step < self.after_step:
            return f"ranking from step {record.step} on"
        others = [other for other in self.ranked(records) if other.path != record.path]
        if len(others) < self.n:
            return f"a number for {self.metric}"
        last = others[self.n - 1]
        value = f"{last.metrics[self.metric]:.6g}"
        if record.time < last.time:
            return f"{self.metric} at {'most' if self.mode == 'min' else 'least'} {value}"
        return f"{self.metric} {'below' if self.mode == 'min' else 'above'} {value}"

    def ranked(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that have the metric as a number, best first, the earlier of equals first."""
        having = [
            record
            for record in records
            if record.step >= self.after_step
            and self.metric not in record.measured_at
            and not math.isnan(record.metrics.get(self.metric, math.nan))
        ]
        sign = 1 if self.mode == "min" else -1
        return sorted(having, key=lambda record: sign * record.metrics[self.metric])

    @property
    def metrics(self) -> frozenset[str]:
        """The one metric."""
        return frozenset((self.metric,))

    @property
    def at_most(self) -> int:
        """As many as are the best."""
        return self.n

    @staticmethod
    def _rank_words(rank: int) -> str:
        return "best" if rank == 0 else f"number {rank + 1}"


@dataclass(frozen=True, slots=True)
class Latest(PreservationPolicy):
    """Keep the ``n`` saved last."""

    n: int = 1

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the last ``n``."""
        newest_first = list(reversed(records))[: self.n]
        return {
            record.path: "the latest" if back == 0 else f"among the latest {self.n}"
            for back, record in enumerate(newest_first)
        }

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say that later ones were saved."""
        return "not the latest" if self.n == 1 else f"not among the latest {self.n}"

    def takes(self, record: Record, records: Sequence[Record]) -> str:
        """Name the number that would reach back to it."""
        return f"keep.latest({1 + sum(other.time > record.time for other in records)})"

    @property
    def at_most(self) -> int:
        """As many as are the latest."""
        return self.n


@dataclass(frozen=True, slots=True)
class EverySteps(PreservationPolicy):
    """Keep for good one record for every ``interval`` steps: the first at or after each multiple."""

    interval: int

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the first record at or after steps ``interval``, ``2 * interval``, ..."""
        first: dict[int, Record] = {}
        for record in records:
            if record.step >= self.interval:
                first.setdefault(record.step // self.interval, record)
        return {record.path: f"one for every {self.interval} steps" for record in first.values()}

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say that another one stands for its steps."""
        return f"not the one for its {self.interval} steps"

    def takes(self, record: Record, records: Sequence[Record]) -> str:  # noqa: ARG002 - one signature for all policies
        """Name the step at or after which the first one stays."""
        return f"being the first one from step {max(1, record.step // self.interval) * self.interval} on"


@dataclass(frozen=True, slots=True)
class EveryEpochs(PreservationPolicy):
    """Keep for good one record of every ``interval``-th epoch: the last one saved in it."""

    interval: int

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the last record of epochs ``interval - 1``, ``2 * interval - 1``, ... (indices from 0)."""
        last = {record.epoch: record for record in records if (record.epoch + 1) % self.interval == 0}
        return {record.path: f"one for every {self.interval} epochs" for record in last.values()}

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say that it is not the last one of an epoch that counts."""
        return f"not the last of a {_ordinal(self.interval)} epoch"

    def takes(self, record: Record, records: Sequence[Record]) -> str:  # noqa: ARG002 - one signature for all policies
        """Say the same the other way round."""
        return f"being the last of a {_ordinal(self.interval)} epoch"


@dataclass(frozen=True, slots=True)
class WithinAge(PreservationPolicy):
    """Keep what is at most ``limit_s`` seconds older than the newest record."""

    limit_s: float

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the newest record, and those that were saved no longer than ``limit_s`` before it."""
        return {
            record.path: f"at most {self.limit_s:g} s older than the newest"
            for record in records
            if records[-1].time - record.time <= self.limit_s
        }

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say that it is older."""
        return f"more than {self.limit_s:g} s older than the newest"

    def takes(self, record: Record, records: Sequence[Record]) -> str:
        """Name the age that would reach back to it."""
        newest = max((record, *records), key=lambda other: other.time)
        return f"keep.within(seconds={math.ceil(newest.time - record.time)})"


@dataclass(frozen=True, slots=True)
class WithinBytes(PreservationPolicy):
    """Keep the newest records that fit into ``limit_bytes`` together; the newest one in any case.

    One that is not written yet counts as large as the largest there is.
    """

    limit_bytes: int

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the newest, back to the first one that does not fit any more."""
        return {
            record.path: f"among the newest {self.limit_bytes / 1e9:g} GB"
            for back, (record, total) in enumerate(self._totals(records))
            if back == 0 or total <= self.limit_bytes
        }

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say that newer ones fill the budget."""
        return f"not among the newest {self.limit_bytes / 1e9:g} GB"

    def takes(self, record: Record, records: Sequence[Record]) -> str:
        """Name the budget that would reach back to it."""
        total = next((total for other, total in self._totals(records) if other.time <= record.time), 0)
        total += 0 if any(other.path == record.path for other in records) else record.size_bytes
        return f"keep.within(gigabytes={total / 1e9:g})"

    @staticmethod
    def _totals(records: Sequence[Record]) -> list[tuple[Record, int]]:
        """Return the records, newest first, each with the size of all down to it."""
        largest = max((record.size_bytes for record in records), default=0)
        newest_first = list(reversed(records))
        return list(zip(newest_first, accumulate(record.size_bytes or largest for record in newest_first), strict=True))


@dataclass(frozen=True, slots=True)
class Pinned(PreservationPolicy):
    """Keep what is pinned."""

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the pinned records."""
        return {record.path: "pinned" for record in records if record.pinned}

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say that it is not."""
        return "not pinned"

    def takes(self, record: Record, records: Sequence[Record]) -> str:  # noqa: ARG002 - one signature for all policies
        """Say how it would be."""
        return A_PIN


@dataclass(frozen=True, slots=True)
class All(PreservationPolicy):
    """Keep everything."""

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return every record."""
        return {record.path: "all are kept" for record in records}

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say what cannot be, unless something else sorted the record out."""
        return "not counted"

    def takes(self, record: Record, records: Sequence[Record]) -> str:  # noqa: ARG002 - one signature for all policies
        """Say that it would take nothing."""
        return "nothing more"


def best(metric: str, n: int = 1, mode: Mode = "min", *, after_step: int = 0) -> PreservationPolicy:
    """Keep the ``n`` checkpoints with the best ``metric``; ``mode`` says whether the smallest or the largest is best.

    A checkpoint counts only by a metric that was measured on its own weights. NaN is never best; ties keep the earlier.
    Those saved before step ``after_step`` do not count: a metric that starts out well by chance holds no place.

    Raises:
        ConfigurationError: the metric has no name, ``n`` is below 1, ``mode`` is neither "min" nor "max", or
            ``after_step`` is not a step.

    """
    if not isinstance(metric, str) or not metric:
        raise ConfigurationError(f"keep.best({metric!r}): give the name of a metric, as passed to epoch_end().")
    if after_step != 0:
        positive_count("keep.best", "after_step", after_step)
    return Best(metric, positive_count("keep.best", "n", n), checked_mode("keep.best", mode), after_step)


def latest(n: int = 1) -> PreservationPolicy:
    """Keep the ``n`` checkpoints that were saved last."""
    return Latest(positive_count("keep.latest", "n", n))


def every(*, epochs: int | None = None, steps: int | None = None) -> PreservationPolicy:
    """Keep one checkpoint for every n epochs (the last of the n-th) or n steps (the first at or after), for good.

    Raises:
        ConfigurationError: not exactly one unit is given, or its value is below 1.

    """
    unit, value = one_unit("keep.every", "Join two with '|'.", epochs=epochs, steps=steps)
    interval = positive_count("keep.every", unit, value)
    return EveryEpochs(interval) if unit == "epochs" else EverySteps(interval)


def within(
    *,
    days: float | None = None,
    hours: float | None = None,
    minutes: float | None = None,
    seconds: float | None = None,
    gigabytes: float | None = None,
) -> PreservationPolicy:
    """Keep the newest checkpoints: those at most so much older than the newest, or that fit into so much disk space.

    Exactly one unit; a gigabyte is 10^9 bytes. Space that other policies' checkpoints take is not counted: a budget
    alone bounds the disk, joined with ``|`` it bounds what is kept besides.

    Raises:
        ConfigurationError: not exactly one unit is given, or its value is not positive.

    """
    unit, value = one_unit(
        "keep.within",
        "Join two with '|'.",
        days=days,
        hours=hours,
        minutes=minutes,
        seconds=seconds,
        gigabytes=gigabytes,
    )
    if unit == "gigabytes":
        return WithinBytes(int(positive_number("keep.within", unit, value) * 1e9))
    return WithinAge(in_seconds("keep.within", unit, value))


def pinned() -> PreservationPolicy:
    """Keep what is pinned (``save(pinned=True)``, or ``safepoint pin``), and only what is never removed: the newest."""
    return Pinned()


def all() -> PreservationPolicy:  # noqa: A001 - read as ``keep.all()``, the module is never star-imported
    """Keep every checkpoint."""
    return All()


def checked_mode(owner: str, mode: object) -> Mode:
    """Return ``mode`` if it is "min" or "max", or raise a ConfigurationError that names ``owner``."""
    if mode == "min" or mode == "max":  # noqa: PLR1714 - a type checker narrows these comparisons, not membership
        return mode
    choices = " or ".join(repr(choice) for choice in get_args(Mode))
    raise ConfigurationError(f"{owner}(mode={mode!r}): mode must be {choices}: is the smallest or the largest best?")


def _parts(policy: PreservationPolicy) -> tuple[PreservationPolicy, ...]:
    return policy.policies if isinstance(policy, Union) else (policy,)


def _ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, ..., 11th, ..., 21st."""
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
