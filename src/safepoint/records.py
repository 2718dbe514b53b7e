"""The values that travel between the parts: frozen, plain, and without behaviour that reaches outside.

This file knows no clock, no disk and no torch.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

Metrics = Mapping[str, float]
"""Metric name to plain number; integers stay integers, so that names print ``3`` and not ``3.0``."""

NO_METRICS: Metrics = MappingProxyType({})


class EventKind(enum.Enum):
    """Name the moments of a training run at which a save can be due."""

    STEP = "step"
    EPOCH_END = "epoch end"
    TRAIN_END = "train end"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Event:
    """One moment of a training run, with everything that a save policy may look at.

    ``step`` counts optimizer steps done, ``epoch`` is the index of the epoch that is running or, at its end, that just
    ended; ``position`` is where a run restored from here would go on: (step, epoch, batch) as in ``Progress``;
    ``time_s`` is a monotonic clock in seconds, read by the caller.
    """

    kind: EventKind
    step: int
    epoch: int
    position: tuple[int, int, int]
    time_s: float


@dataclass(frozen=True, slots=True)
class Save:
    """The decision to save now, and why."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """The decision not to save now, and why."""

    reason: str


Decision = Save | Skip


@dataclass(frozen=True, slots=True)
class Record:
    """One checkpoint.

    ``step`` and ``epoch`` are those of the save, ``metrics`` only what was measured at that very step, ``time`` the
    seconds since 1970 at which the state was captured (strictly rising within a run), ``reasons`` why it was saved,
    ``run`` the identity of the run that wrote it.
    """

    path: Path
    step: int
    epoch: int
    metrics: Metrics
    time: float
    size_bytes: int
    reasons: tuple[str, ...]
    pinned: bool = False
    run: str = ""


@dataclass(frozen=True, slots=True)
class Fate:
    """A checkpoint of the run's history: its record and what became of it."""

    record: Record
    kept: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays and what goes: every path given is in exactly one of the two, with its reason."""

    keep: Mapping[Path, str]
    remove: Mapping[Path, str]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: what to continue with after ``restore()``.

    ``epoch`` is the epoch to run next or to go on with, ``batch`` the number of optimizer steps already done in it.
    ``path`` is the checkpoint that was restored, ``None`` for a fresh start.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    metrics: Metrics = field(default_factory=lambda: NO_METRICS)
    path: Path | None = None
