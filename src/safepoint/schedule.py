"""When to save, as a pure state machine: ``decide`` maps (state, event) to (state, decision).

No clock, no disk, no torch: time comes in the events, and what became of a save is told with ``begun``, ``secured`` and
``failed``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safepoint.naming import render
from safepoint.records import Decision, Defer, Event, EventKind, Save, ScheduleState, Skip
from safepoint.when import SavePolicy

_MEASURED_BY_NOW = (EventKind.EPOCH_END, EventKind.VALIDATION_END, EventKind.TRAIN_END)
_NOTHING_DUE = Skip("nothing is due")
_ONLY_IF_UNSAVED = (EventKind.TRAIN_END, EventKind.EXCEPTION, EventKind.SIGNAL, EventKind.PREEMPTION)


def start(position: tuple[int, int, int], time_s: float) -> ScheduleState:
    """Return the state of a run that starts, or has just been restored, at ``position``."""
    return ScheduleState(position, time_s, position, time_s)


def decide(
    policy: SavePolicy, state: ScheduleState, event: Event, templates: Sequence[str] = ()
) -> tuple[ScheduleState, Decision]:
    """Return whether to save at ``event``, as what and why or why not, and the state after it.

    A request always saves, also one that is the cause of a step. The end of training, an exception, a signal and a
    preemption save only if the run has moved on since the last save. A save that is due while ``event.awaits`` names a
    metric waits until an epoch, a validation or the training ends without awaiting it. ``templates`` give the names of
    the save, from epoch, step and metrics.

    Raises:
        MissingMetricError: a save is due and a template names a metric that was not measured.

    """
    waited = bool(state.waiting) and event.kind in _MEASURED_BY_NOW and not event.awaits
    if event.kind is EventKind.REQUEST:
        reasons: tuple[str, ...] = (_requested(event),)
    elif event.kind in _ONLY_IF_UNSAVED and event.position == state.last_position and not waited:
        return state, Skip(f"step {event.step} is already saved" if event.step else "no step was made")
    else:
        due = policy.due(event, state)
        asked = (_requested(event),) if event.kind is EventKind.STEP and event.cause else ()
        if due is None and not waited and not asked:
            return state, _NOTHING_DUE
        reasons = (*(state.waiting if waited else ()), *((due,) if due else ()), *asked)
    if event.awaits and event.kind is not EventKind.REQUEST:
        until = f"{event.awaits} is measured"
        return replace(state, waiting=tuple(f"{reason}, once {until}" for reason in reasons)), Defer(until, reasons)
    names = tuple(render(each, {**event.metrics, "epoch": event.epoch, "step": event.step}) for each in templates)
    waiting = () if waited else state.waiting
    return replace(state, last_position=event.position, last_save_s=event.time_s, waiting=waiting), Save(names, reasons)


def begun(state: ScheduleState, stall_s: float) -> ScheduleState:
    """Return the state once the save that was decided last is on its way, after training was held up ``stall_s``."""
    return replace(state, stall_s=stall_s, is_writing=True)


def secured(state: ScheduleState, write_s: float) -> ScheduleState:
    """Return the state once everything saved so far is durable; the last one took ``write_s`` after its stall."""
    return replace(
        state,
        secured_position=state.last_position,
        secured_s=state.last_save_s,
        write_s=write_s,
        is_writing=False,
    )


def failed(state: ScheduleState) -> ScheduleState:
    """Return the state once a save has failed: what it was to save counts as not saved."""
    return replace(state, last_position=state.secured_position, is_writing=False)


def _requested(event: Event) -> str:
    return f"requested: {event.cause}" if event.cause else "requested"
