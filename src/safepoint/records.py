"""The values that travel between the parts: frozen, plain, and without behaviour that reaches outside.

This file knows no clock, no disk and no torch.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from safepoint.report import NO_REPORT, RestoreReport

Metrics = Mapping[str, float]
"""Metric name to plain number; integers stay integers, so that names print ``3`` and not ``3.0``."""

NO_METRICS: Metrics = MappingProxyType({})

ANOTHER_NAME = "another name of "
"""How the reason of a further name begins, in a history; the name of the checkpoint itself follows."""
REMOVED_BY_OTHERS = "by hand, or by 'safepoint prune'"
"""Why a checkpoint of a run is gone that its policy kept."""
MISSING = f"{REMOVED_BY_OTHERS}, unless its save had failed"
"""The same of one that nobody knows to have been durable."""

_INTEGER_LIMIT = 2**63
Number = float | int | Literal["nan", "inf", "-inf"]
"""A metric in JSON, which knows no NaN and no infinity."""


class EventKind(enum.Enum):
    """Name the moments of a training run at which a save can be due."""

    STEP = "step"
    EPOCH_END = "epoch end"
    VALIDATION_END = "validation end"
    TRAIN_END = "train end"
    EXCEPTION = "exception"
    SIGNAL = "signal"
    PREEMPTION = "preemption"
    REQUEST = "request"


class Event(NamedTuple):  # one is made at every step: a named tuple costs a third of a frozen dataclass
    """One moment of a training run, with everything that a save policy may look at.

    ``step`` counts optimizer steps done, ``epoch`` is the index of the epoch that is running or, at its end, that just
    ended; ``position`` is where a run restored from here would go on: (step, epoch, batch) as in ``Progress``;
    ``time_s`` is a monotonic clock in seconds, read by the caller, and ``step_s`` what the last step took; ``metrics``
    are those that were measured on the weights of this moment. ``awaits`` names what is still to be measured on them:
    a save that is due waits for it. ``cause`` is the name of the exception's class, or of the signal, or says what
    requests a save, at a step, too.
    """

    kind: EventKind
    step: int
    epoch: int
    position: tuple[int, int, int]
    time_s: float
    step_s: float = 0.0
    metrics: Metrics = NO_METRICS
    awaits: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """What the next decision depends on, besides the event.

    ``last_position`` and ``last_save_s``: where, and at which ``time_s``, the last save (or the start) was;
    ``secured_position`` and ``secured_s``: the same of the last one known to be durable. ``stall_s``: for how long the
    last save held training up, ``write_s``: how long the last durable one took to become so; ``None`` until measured.
    ``is_writing``: a save is on its way. ``waiting``: why a save is due that waits for a measurement.
    """

    last_position: tuple[int, int, int]
    last_save_s: float
    secured_position: tuple[int, int, int]
    secured_s: float
    stall_s: float | None = None
    write_s: float | None = None
    is_writing: bool = False
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Save:
    """The decision to save now: under which names (without extension and version), and why."""

    names: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Defer:
    """The decision to save later: what the save waits for, and why it is due."""

    until: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """The decision not to save now, and why."""

    reason: str


Decision = Save | Defer | Skip


@dataclass(frozen=True, slots=True)
class SaveStats:
    """What one save cost. Seconds from when it was asked for, but for the first two.

    ``stalled_s``: how long training was held up in all; ``waited_s``: the part of it spent waiting for a free image.
    ``staged_s``: until the state was in host memory; ``written_s``: until the last of its bytes was handed to the disk;
    ``committed_s``: until it was durable under all its names. ``written_bytes`` leaves out those of ``size_bytes``
    that the file shares with an earlier one.
    """

    path: Path
    step: int
    size_bytes: int
    written_bytes: int
    waited_s: float
    stalled_s: float
    staged_s: float
    written_s: float
    committed_s: float

    @property
    def write_s(self) -> float:
        """How long it took from staged to durable, waiting for its turn included."""
        return self.committed_s - self.staged_s

    @property
    def megabytes_per_s(self) -> float:
        """How fast the bytes became durable once they were staged."""
        return self.written_bytes / 1e6 / max(self.write_s, 1e-9)

    def __str__(self) -> str:
        """Tell it in a line."""
        return (
            f"{self.path.name} is durable: {self.size_bytes / 1e6:.1f} MB; training held up {self.stalled_s:.3f} s, of "
            f"which {self.waited_s:.3f} s for a free image; staged after {self.staged_s:.3f} s, written after "
            f"{self.written_s:.3f} s, durable after {self.committed_s:.3f} s ({self.megabytes_per_s:.0f} MB/s)"
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One checkpoint.

    ``step`` and ``epoch`` are those of the save, ``time`` the seconds since 1970 at which the state was captured
    (strictly rising within a run), ``reasons`` why it was saved, ``run`` the identity of the run that wrote it.
    ``pinned``: no policy removes it, as it was saved so, or as somebody has said since (``safepoint pin``).
    ``metrics`` were measured on its very weights, but for those in ``measured_at``, which were at an earlier step.
    ``stats`` is what the save cost, if known: a checkpoint cannot hold that of itself, but a later one of its run does.
    ``emergency`` is the class name of the exception at which it was saved, if it was: such a one counts for no policy
    and is never the best. ``flaw`` says why its state is not to be gone on from, "" if nothing speaks against it.
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
    measured_at: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    stats: SaveStats | None = None
    emergency: str = ""
    flaw: str = ""


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
    ``path`` is the checkpoint that was restored, ``None`` for a fresh start. ``report`` says how it fitted; ``str()``
    of this is a sentence: what was restored, from where, and where the run goes on.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    metrics: Metrics = field(default_factory=lambda: NO_METRICS)
    path: Path | None = None
    report: RestoreReport = field(default=NO_REPORT, compare=False, repr=False)

    def __str__(self) -> str:
        """Tell it in a sentence."""
        if self.path is None:
            where = "" if self.report.directory is None else f" in {self.report.directory}"
            return f"no checkpoint{where}: starting at step {self.step}"
        what = str(self.path)
        if self.report.restored:
            how = "restored" if self.report.restored_whole else "restored in part:"
            what = f"{how} {', '.join(self.report.restored)} from {self.path}"
        if self.step or self.epoch or self.batch:
            return f"{what}: going on at step {self.step}, epoch {self.epoch}, batch {self.batch}"
        return f"{what}: starting at step 0"


def encoded_metrics(metrics: Metrics) -> dict[str, Number]:
    """Return ``metrics`` as JSON can hold them."""
    return {name: _encoded(value) for name, value in metrics.items()}


def decoded_metrics(metrics: Mapping[str, Number]) -> Metrics:
    """Return the metrics that ``encoded_metrics`` was given."""
    return {name: float(value) if isinstance(value, str) else value for name, value in metrics.items()}


def _encoded(value: float) -> Number:
    if not math.isfinite(value):
        return _spelled(value)
    return value if -_INTEGER_LIMIT <= value < _INTEGER_LIMIT else float(value)


def _spelled(value: float) -> Literal["nan", "inf", "-inf"]:
    if math.isnan(value):
        return "nan"
    return "inf" if value > 0 else "-inf"
