"""What the page tells, as plain values: the checkpoints, those on disk and those removed, and what sums them up.

Pure: knows no disk, no HTML and no chart.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from safepoint.records import Metrics, SaveStats

MOST_CHECKPOINTS = 2000
MOST_METRICS = 24


class Kind(StrEnum):
    """Name what a checkpoint is drawn as."""

    KEPT = "kept"
    REMOVED = "removed"
    EMERGENCY = "emergency"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint; ``None`` and 0 are what nothing tells of it.

    ``name`` is relative to the directory; ``run`` tells the runs of a directory apart; ``why`` is why it is kept or was
    removed, ``reasons`` why it was saved.
    """

    name: str
    run: str
    time: float
    kept: bool
    why: str
    step: int | None = None
    epoch: int | None = None
    metrics: Metrics = field(default_factory=dict)
    measured_at: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    reasons: tuple[str, ...] = ()
    emergency: str = ""
    pinned: bool = False
    stats: SaveStats | None = None

    @property
    def kind(self) -> Kind:
        """What it is drawn as."""
        if not self.kept:
            return Kind.REMOVED
        return Kind.EMERGENCY if self.emergency else Kind.KEPT


@dataclass(frozen=True, slots=True)
class Extremes:
    """The checkpoints on disk with the lowest and the highest value of a metric; the earlier of equals."""

    metric: str
    lowest: Checkpoint
    highest: Checkpoint


@dataclass(frozen=True, slots=True)
class Costs:
    """What the saves cost: medians of seconds, and bytes in all."""

    saves: int
    stalled_s: float
    slowest_stall_s: float
    committed_s: float
    size_bytes: int
    written_bytes: int


def metrics_of(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """Return the names of the metrics that any of ``checkpoints`` has, those that most of them have first."""
    counts: dict[str, int] = {}
    for checkpoint in checkpoints:
        for metric in checkpoint.metrics:
            counts[metric] = counts.get(metric, 0) + 1
    return sorted(counts, key=lambda metric: (-counts[metric], metric))


def extremes(checkpoints: Sequence[Checkpoint], metric: str) -> Extremes | None:
    """Return where ``metric`` is lowest and highest on disk, ``None`` where it is no number anywhere.

    As for a policy, what an exception left counts for nothing, and neither does what was measured on other weights.
    """
    ranked = [
        checkpoint
        for checkpoint in checkpoints
        if checkpoint.kind is Kind.KEPT
        and metric not in checkpoint.measured_at
        and not math.isnan(checkpoint.metrics.get(metric, math.nan))
    ]
    if not ranked:
        return None

    def value(checkpoint: Checkpoint) -> float:
        return checkpoint.metrics[metric]

    return Extremes(metric, min(ranked, key=value), max(ranked, key=value))


def costs(checkpoints: Iterable[Checkpoint]) -> Costs | None:
    """Return what the saves of ``checkpoints`` cost, ``None`` where nothing tells of any."""
    told = [checkpoint.stats for checkpoint in checkpoints if checkpoint.stats is not None]
    if not told:
        return None
    return Costs(
        saves=len(told),
        stalled_s=statistics.median(stats.stalled_s for stats in told),
        slowest_stall_s=max(stats.stalled_s for stats in told),
        committed_s=statistics.median(stats.committed_s for stats in told),
        size_bytes=sum(stats.size_bytes for stats in told),
        written_bytes=sum(stats.written_bytes for stats in told),
    )
