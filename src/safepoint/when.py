"""Save policies: at which moments a checkpoint is due. Compose them with ``|``.

Pure decisions: a policy sees one event and what is known of the saves so far, and answers with a reason or with
``None``. It reads no clock, touches no disk and keeps no state of its own.
"""

from __future__ import annotations

import math
import signal as system
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from safepoint.errors import ConfigurationError
from safepoint.records import Event, EventKind, ScheduleState

_IN_TRAINING = (EventKind.STEP, EventKind.EPOCH_END)
_PREEMPTING = ("SIGTERM", "SIGUSR1", "SIGUSR2")


class Ending(NamedTuple):
    """How a signal ends the run: within ``grace_s`` seconds. ``is_asked``: the user has given it by name."""

    grace_s: float
    is_asked: bool


class SavePolicy(ABC):
    """Say at which events a checkpoint is due."""

    @abstractmethod
    def due(self, event: Event, state: ScheduleState) -> str | None:
        """Return why a save is due at ``event``, or ``None``."""

    @property
    def signals(self) -> frozenset[str]:
        """The names of the signals that the policy answers, and after which the run goes on."""
        return frozenset()

    @property
    def endings(self) -> Mapping[str, Ending]:
        """The names of the signals that end the run, and how."""
        return {}

    def __or__(self, other: SavePolicy) -> SavePolicy:
        """Be due whenever either policy is."""
        if not isinstance(other, SavePolicy):
            return NotImplemented
        return AnyOf((*_parts(self), *_parts(other)))


@dataclass(frozen=True, slots=True)
class AnyOf(SavePolicy):
    """Be due whenever one of ``policies`` is; the reasons are joined."""

    policies: tuple[SavePolicy, ...]

    def due(self, event: Event, state: ScheduleState) -> str | None:
        """Join the reasons of every policy that is due."""
        reasons = [reason for policy in self.policies if (reason := policy.due(event, state))]
        return "; ".join(reasons) or None

    @property
    def signals(self) -> frozenset[str]:
        """The signals that any of the policies answers."""
        return frozenset().union(*(policy.signals for policy in self.policies))

    @property
    def endings(self) -> Mapping[str, Ending]:
        """Those of any of the policies; of one that several have, the shortest time."""
        found: dict[str, Ending] = {}
        for policy in self.policies:
            for name, ending in policy.endings.items():
                known = found.get(name, ending)
                found[name] = Ending(min(known.grace_s, ending.grace_s), known.is_asked or ending.is_asked)
        return found


@dataclass(frozen=True, slots=True)
class EverySteps(SavePolicy):
    """Be due after each optimizer step whose number is a multiple of ``interval``."""

    interval: int

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason at steps ``interval``, ``2 * interval``, ..."""
        if event.kind is EventKind.STEP and event.step % self.interval == 0:
            return f"every {_count(self.interval, 'step')}"
        return None


@dataclass(frozen=True, slots=True)
class AtSteps(SavePolicy):
    """Be due after the optimizer steps with the numbers ``steps``."""

    steps: frozenset[int]

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason at each of the steps."""
        if event.kind is EventKind.STEP and event.step in self.steps:
            return f"at step {event.step}"
        return None


@dataclass(frozen=True, slots=True)
class EveryEpochs(SavePolicy):
    """Be due at the end of every ``interval``-th epoch, counted from the first."""

    interval: int

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason at the end of epochs ``interval - 1``, ``2 * interval - 1``, ... (indices from 0)."""
        if event.kind is EventKind.EPOCH_END and (event.epoch + 1) % self.interval == 0:
            return f"every {_count(self.interval, 'epoch')}"
        return None


@dataclass(frozen=True, slots=True)
class EverySeconds(SavePolicy):
    """Be due at the first step or epoch end that is ``interval_s`` or more after the last save of any kind."""

    interval_s: float

    def due(self, event: Event, state: ScheduleState) -> str | None:
        """Return the reason once the interval has passed."""
        if event.kind in _IN_TRAINING and event.time_s - state.last_save_s >= self.interval_s:
            return f"every {self.interval_s:g} s"
        return None


@dataclass(frozen=True, slots=True)
class Overhead(SavePolicy):
    """Be due as often as saving holds training up for no more than ``share`` of the time.

    What the last save cost decides when the next one is due, and none is while one is still being written. Until a
    cost is known, the first step or epoch end is saved, to learn it.
    """

    share: float

    def due(self, event: Event, state: ScheduleState) -> str | None:
        """Return the reason once the last save's stall is down to the share of the time since it began."""
        if event.kind not in _IN_TRAINING or state.is_writing:
            return None
        if state.stall_s is None:
            return f"at most {self.share:.3g} of the time: the first save measures it"
        if state.stall_s <= self.share * (event.time_s - state.last_save_s):
            return f"at most {self.share:.3g} of the time"
        return None


@dataclass(frozen=True, slots=True)
class AtRisk(SavePolicy):
    """Be due early enough that, when the next save is durable, no more than ``limit_s`` of work was unsaved.

    "Early enough" takes what the last save took, and that the next chance comes a step later. No save is due while one
    is being written: where a write takes longer than half the limit, saves follow one another without a pause and
    the limit cannot be held.
    """

    limit_s: float

    def due(self, event: Event, state: ScheduleState) -> str | None:
        """Return the reason at the last chance at which a save still becomes durable in time."""
        if event.kind not in _IN_TRAINING or state.is_writing:
            return None
        lead_s = event.step_s + (state.stall_s or 0.0) + (state.write_s or 0.0)
        if event.time_s + lead_s - state.secured_s >= self.limit_s:
            return f"at most {self.limit_s:g} s of work at risk"
        return None


@dataclass(frozen=True, slots=True)
class AtTrainEnd(SavePolicy):
    """Be due when training ends in good order."""

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason at the end of training."""
        return "train end" if event.kind is EventKind.TRAIN_END else None


@dataclass(frozen=True, slots=True)
class OnException(SavePolicy):
    """Be due when training ends with an exception."""

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason, with the exception's name."""
        return f"exception: {event.cause}" if event.kind is EventKind.EXCEPTION else None


@dataclass(frozen=True, slots=True)
class OnSignal(SavePolicy):
    """Be due when one of the signals called ``names`` has come."""

    names: frozenset[str]

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason, with the signal's name."""
        return f"signal: {event.cause}" if event.kind is EventKind.SIGNAL and event.cause in self.names else None

    @property
    def signals(self) -> frozenset[str]:
        """The names."""
        return self.names


@dataclass(frozen=True, slots=True)
class OnPreemption(SavePolicy):
    """Be due when one of the signals called ``names`` ends the run, ``grace_s`` after it came at the latest."""

    names: frozenset[str]
    grace_s: float
    is_asked: bool

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason, with the signal's name."""
        is_due = event.kind is EventKind.PREEMPTION and event.cause in self.names
        return f"preempted: {event.cause}" if is_due else None

    @property
    def endings(self) -> Mapping[str, Ending]:
        """The names, each with the time there is."""
        return dict.fromkeys(self.names, Ending(self.grace_s, self.is_asked))


def every(
    *,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    seconds: float | None = None,
) -> SavePolicy:
    """Save at a fixed interval of exactly one unit.

    ``steps``: after optimizer steps n, 2n, ...; ``epochs``: at the end of every n-th epoch; ``minutes`` or
    ``seconds``: at the first step or epoch end that far after the last save, whatever caused it.

    Raises:
        ConfigurationError: not exactly one unit is given, or its value is not positive.

    """
    remedy = "Write when.every(steps=500) | when.every(minutes=10) for both."
    unit, value = one_unit("when.every", remedy, steps=steps, epochs=epochs, minutes=minutes, seconds=seconds)
    if unit in ("steps", "epochs"):
        interval = positive_count("when.every", unit, value)
        return EverySteps(interval) if unit == "steps" else EveryEpochs(interval)
    return EverySeconds(in_seconds("when.every", unit, value))


def at(*, steps: Iterable[int]) -> SavePolicy:
    """Save after the optimizer steps with these numbers, counted from 1: ``when.at(steps=[10, 100, 1000])``.

    Raises:
        ConfigurationError: no step is given, or one is not a whole number of 1 or more.

    """
    numbers: frozenset[object] = frozenset(steps) if isinstance(steps, Iterable) else frozenset()
    if not numbers:
        raise ConfigurationError(f"when.at(steps={steps!r}): give the numbers of steps, such as [10, 100, 1000].")
    return AtSteps(frozenset(positive_count("when.at", "steps", number) for number in numbers))


def first_step() -> SavePolicy:
    """Save after the very first optimizer step of a run: proof that saving works, before hours depend on it."""
    return AtSteps(frozenset((1,)))


def overhead(share: float) -> SavePolicy:
    """Save as often as it may be for checkpointing to hold training up for at most this share of the time.

    ``when.overhead(0.01)``: at most 1 %. Measured, not guessed: after a save that held training up for 0.2 s the next
    one is due 20 s after it began, and never while that one is still being written. The first step is always saved.

    Raises:
        ConfigurationError: ``share`` is not between 0 and 1.

    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ConfigurationError(f"when.overhead({share!r}): give a share between 0 and 1, such as 0.01 for 1 %.")
    return Overhead(float(share))


def at_risk(*, minutes: float | None = None, seconds: float | None = None) -> SavePolicy:
    """Save so that a crash never costs more than this much work, the time of step, stall and write included.

    Raises:
        ConfigurationError: not exactly one unit is given, or its value is not positive.

    """
    unit, value = one_unit("when.at_risk", "Give the stricter one.", minutes=minutes, seconds=seconds)
    return AtRisk(in_seconds("when.at_risk", unit, value))


def train_end() -> SavePolicy:
    """Save when training ends in good order: when ``Checkpointer`` is closed, unless that step is already saved."""
    return AtTrainEnd()


def exception() -> SavePolicy:
    """Save when an exception, KeyboardInterrupt included, ends the ``with Checkpointer(...)`` block.

    What is saved is the state as the exception left it, under the step counted last; unless that step is saved. It is
    marked (``Record.emergency``), counts for no preservation policy, and goes once the run has saved again. If it holds
    NaN, or an optimizer was interrupted in its step, ``Record.flaw`` says so, and ``restore()`` passes over it.
    """
    return OnException()


def signal(*names: str) -> SavePolicy:
    """Save at the next ``step()`` or ``epoch_end()`` after one of these signals (default: SIGUSR1) has come.

    Training goes on afterwards; a Python handler that was there is called as before.

    Raises:
        ConfigurationError: a name is not that of a signal of this system, or of one that no program can answer.

    """
    return OnSignal(_known_signals("when.signal", names or ("SIGUSR1",)))


def preempted(grace_s: float = 30.0, signals: Iterable[str] | None = None) -> SavePolicy:
    """Save and end the process when a scheduler takes the machine away: within ``grace_s`` seconds of its signal.

    The signal is answered at the next ``step()``, ``epoch_end()`` or ``close()``, and nowhere else: as long as the loop
    waits for a batch or for another rank, nothing is saved. This step is saved unless it is already, everything becomes
    durable, and ``Preempted`` is raised, a SystemExit with the status 128 + the signal's number. Where the speed
    measured so far says that the state will not fit into the time that is left, parts of it are left out, as few as do:
    frozen parameters, then averaged copies of the model, then what optimizers have gathered. A further signal, a second
    later or more, ends the process at once. Python handlers from before are called as ever; one that is set later must
    call what ``signal.signal()`` returned, or the signal does not come here (a logged warning tells of it).

    ``signals``, by default: SIGTERM (Kubernetes, with 30 s; Slurm at preemption, ``scancel`` and the time limit, 30 s
    by its KillWait; PBS; LSF; torchrun to its workers), SIGUSR1 and SIGUSR2 (Slurm's ``--signal=USR1@60``; LSF's run
    limit; SGE's ``-notify``). Of the latter two, one that somebody has a handler for (faulthandler, say) or ignores
    (SIG_IGN) when the Checkpointer is made stays so, and of all three, one that ``when.signal()`` names, unless it is
    given here by name. SIGTERM is taken in any case. Set ``grace_s`` to what your scheduler grants, and let it signal
    the processes that train (``srun``, not the batch script alone).

    Raises:
        ConfigurationError: ``grace_s`` is not positive, or a name is not that of a signal that a program can answer.

    """
    chosen = (signals,) if isinstance(signals, str) else signals
    names = _known_signals("when.preempted", _PREEMPTING if chosen is None else chosen)
    return OnPreemption(names, positive_number("when.preempted", "grace_s", grace_s), chosen is not None)


def one_unit(owner: str, remedy: str, **given: float | None) -> tuple[str, float]:
    """Return the one unit that is given and its value, or raise a ConfigurationError that names ``owner``."""
    chosen = [(unit, value) for unit, value in given.items() if value is not None]
    if len(chosen) != 1:
        named = ", ".join(unit for unit, _ in chosen) or "none"
        raise ConfigurationError(f"{owner} takes exactly one of {', '.join(given)}; given: {named}. {remedy}")
    return chosen[0]


def positive_count(owner: str, name: str, value: object) -> int:
    """Return ``value`` as a count of 1 or more, or raise a ConfigurationError that names ``owner(name=value)``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{owner}({name}={value!r}): give a whole number of 1 or more.")
    return value


def positive_number(owner: str, name: str, value: object) -> float:
    """Return ``value`` as a positive finite number, or raise a ConfigurationError that names ``owner(name=value)``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{owner}({name}={value!r}): give a positive number.")
    return float(value)


def _known_signals(owner: str, names: Iterable[str]) -> frozenset[str]:
    """Return ``names``, or raise a ConfigurationError that names ``owner`` if one of them cannot be answered."""
    chosen = frozenset(names)
    for name in chosen:
        if name not in system.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
            raise ConfigurationError(f"{owner}({name!r}): give the name of a signal, such as 'SIGUSR1'.")
    if not chosen:
        raise ConfigurationError(f"{owner}(signals=()): give the names of signals, such as ['SIGTERM'].")
    return chosen


_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}


def in_seconds(owner: str, unit: str, value: object) -> float:
    """Return ``value`` of ``unit`` in seconds, or raise a ConfigurationError that names ``owner``."""
    return positive_number(owner, unit, value) * _SECONDS[unit]


def _parts(policy: SavePolicy) -> tuple[SavePolicy, ...]:
    return policy.policies if isinstance(policy, AnyOf) else (policy,)


def _count(number: int, unit: str) -> str:
    return unit if number == 1 else f"{number} {unit}s"
