"""Save policies: at which moments a checkpoint is due. Compose them with ``|``.

Pure decisions: a policy sees one event and when the last save was, and answers with a reason or with ``None``. It
reads no clock, touches no disk and keeps no state of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from safepoint.errors import ConfigurationError
from safepoint.records import Event, EventKind


class SavePolicy(ABC):
    """Say at which events a checkpoint is due."""

    @abstractmethod
    def due(self, event: Event, last_save_s: float) -> str | None:
        """Return why a save is due at ``event``, or ``None``; ``last_save_s`` is when the last one was."""

    def __or__(self, other: SavePolicy) -> SavePolicy:
        """Be due whenever either policy is."""
        if not isinstance(other, SavePolicy):
            return NotImplemented
        return AnyOf((*_parts(self), *_parts(other)))


@dataclass(frozen=True, slots=True)
class AnyOf(SavePolicy):
    """Be due whenever one of ``policies`` is; the reasons are joined."""

    policies: tuple[SavePolicy, ...]

    def due(self, event: Event, last_save_s: float) -> str | None:
        """Join the reasons of every policy that is due."""
        reasons = [reason for policy in self.policies if (reason := policy.due(event, last_save_s))]
        return "; ".join(reasons) or None


@dataclass(frozen=True, slots=True)
class EverySteps(SavePolicy):
    """Be due after each optimizer step whose number is a multiple of ``interval``."""

    interval: int

    def due(self, event: Event, last_save_s: float) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason at steps ``interval``, ``2 * interval``, ..."""
        if event.kind is EventKind.STEP and event.step % self.interval == 0:
            return f"every {_count(self.interval, 'step')}"
        return None


@dataclass(frozen=True, slots=True)
class EveryEpochs(SavePolicy):
    """Be due at the end of every ``interval``-th epoch, counted from the first."""

    interval: int

    def due(self, event: Event, last_save_s: float) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason at the end of epochs ``interval - 1``, ``2 * interval - 1``, ... (indices from 0)."""
        if event.kind is EventKind.EPOCH_END and (event.epoch + 1) % self.interval == 0:
            return f"every {_count(self.interval, 'epoch')}"
        return None


@dataclass(frozen=True, slots=True)
class EverySeconds(SavePolicy):
    """Be due at the first step or epoch end that is ``interval_s`` or more after the last save of any kind."""

    interval_s: float

    def due(self, event: Event, last_save_s: float) -> str | None:
        """Return the reason once the interval has passed."""
        if event.kind in (EventKind.STEP, EventKind.EPOCH_END) and event.time_s - last_save_s >= self.interval_s:
            return f"every {self.interval_s:g} s"
        return None


@dataclass(frozen=True, slots=True)
class AtTrainEnd(SavePolicy):
    """Be due when training ends in good order."""

    def due(self, event: Event, last_save_s: float) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return the reason at the end of training."""
        return "train end" if event.kind is EventKind.TRAIN_END else None


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
    given = {"steps": steps, "epochs": epochs, "minutes": minutes, "seconds": seconds}
    chosen = {unit: value for unit, value in given.items() if value is not None}
    if len(chosen) != 1:
        named = ", ".join(chosen) or "none"
        raise ConfigurationError(
            f"when.every takes exactly one of steps, epochs, minutes, seconds; given: {named}. "
            "Write when.every(steps=500) | when.every(minutes=10) for both."
        )
    ((unit, value),) = chosen.items()
    if unit in ("steps", "epochs"):
        interval = positive_count("when.every", unit, value)
        return EverySteps(interval) if unit == "steps" else EveryEpochs(interval)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigurationError(f"when.every({unit}={value!r}): give a positive number.")
    return EverySeconds(value * 60.0 if unit == "minutes" else float(value))


def train_end() -> SavePolicy:
    """Save when training ends in good order: when ``Checkpointer`` is closed, unless that step is already saved."""
    return AtTrainEnd()


def positive_count(owner: str, name: str, value: object) -> int:
    """Return ``value`` as a count of 1 or more, or raise a ConfigurationError that names ``owner(name=value)``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{owner}({name}={value!r}): give a whole number of 1 or more.")
    return value


def _parts(policy: SavePolicy) -> tuple[SavePolicy, ...]:
    return policy.policies if isinstance(policy, AnyOf) else (policy,)


def _count(number: int, unit: str) -> str:
    return unit if number == 1 else f"{number} {unit}s"
