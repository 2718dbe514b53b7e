"""Preservation policies: which checkpoints stay. Compose them with ``|``: what either keeps, stays.

Pure decisions over records: no policy sees a file name, a clock or a disk, and each answer carries its reason. The
records handed in are in the order in which they were saved.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from safepoint.errors import ConfigurationError
from safepoint.records import Record
from safepoint.when import positive_count

Mode = Literal["min", "max"]
Reasons = Mapping[Path, str]


class PreservationPolicy(ABC):
    """Say which records stay."""

    @abstractmethod
    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the paths that stay, each with its reason; ``records`` come oldest first."""

    @abstractmethod
    def why_not(self, record: Record) -> str:
        """Return, as the end of a sentence, why ``record`` was not selected."""

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that the policy ranks by."""
        return frozenset()

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

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that any of the policies ranks by."""
        return frozenset().union(*(policy.metrics for policy in self.policies))


@dataclass(frozen=True, slots=True)
class Best(PreservationPolicy):
    """Keep the ``n`` best by ``metric``.

    A record without the metric never counts, and neither does NaN. Ties keep the earlier record.
    """

    metric: str
    n: int = 1
    mode: Mode = "min"

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return the best ``n``, each with its rank and value."""
        return {
            record.path: f"{self._rank_words(rank)} by {self.metric} ({record.metrics[self.metric]:.6g})"
            for rank, record in enumerate(self.ranked(records)[: self.n])
        }

    def why_not(self, record: Record) -> str:
        """Say that it is not good enough, with its value, or that it has none."""
        place = "the best" if self.n == 1 else f"among the best {self.n}"
        if self.metric not in record.metrics:
            return f"not {place} by {self.metric} (not measured at its step)"
        return f"not {place} by {self.metric} ({record.metrics[self.metric]:.6g})"

    def ranked(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that have the metric as a number, best first, the earlier of equals first."""
        having = [record for record in records if not math.isnan(record.metrics.get(self.metric, math.nan))]
        sign = 1 if self.mode == "min" else -1
        return sorted(having, key=lambda record: sign * record.metrics[self.metric])

    @property
    def metrics(self) -> frozenset[str]:
        """The one metric."""
        return frozenset((self.metric,))

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
        return f"not the last of a {self.interval}th epoch"


@dataclass(frozen=True, slots=True)
class All(PreservationPolicy):
    """Keep everything."""

    def select(self, records: Sequence[Record]) -> Reasons:
        """Return every record."""
        return {record.path: "all are kept" for record in records}

    def why_not(self, record: Record) -> str:  # noqa: ARG002 - one signature for all policies
        """Say what cannot be, unless something else sorted the record out."""
        return "not counted"


def best(metric: str, n: int = 1, mode: Mode = "min") -> PreservationPolicy:
    """Keep the ``n`` checkpoints with the best ``metric``; ``mode`` says whether the smallest or the largest is best.

    A checkpoint counts only by a metric that was measured at its own step. NaN is never best; ties keep the earlier.

    Raises:
        ConfigurationError: the metric has no name, ``n`` is below 1, or ``mode`` is neither "min" nor "max".

    """
    if not isinstance(metric, str) or not metric:
        raise ConfigurationError(f"keep.best({metric!r}): give the name of a metric, as passed to epoch_end().")
    return Best(metric, positive_count("keep.best", "n", n), checked_mode("keep.best", mode))


def latest(n: int = 1) -> PreservationPolicy:
    """Keep the ``n`` checkpoints that were saved last."""
    return Latest(positive_count("keep.latest", "n", n))


def every(*, epochs: int | None = None, steps: int | None = None) -> PreservationPolicy:
    """Keep one checkpoint for every n epochs (the last of the n-th) or n steps (the first at or after), for good.

    Raises:
        ConfigurationError: not exactly one unit is given, or its value is below 1.

    """
    if (epochs is None) == (steps is None):
        given = "none" if epochs is None else "both"
        raise ConfigurationError(f"keep.every takes exactly one of epochs, steps; given: {given}. Join two with '|'.")
    if epochs is not None:
        return EveryEpochs(positive_count("keep.every", "epochs", epochs))
    return EverySteps(positive_count("keep.every", "steps", steps))


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
