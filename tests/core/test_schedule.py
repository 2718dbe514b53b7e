"""The decisions of a run: when to save, and what stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safepoint import when
from safepoint.errors import MissingMetricError
from safepoint.records import Defer, Event, EventKind, Save, Skip
from safepoint.schedule import begun, decide, failed, secured, start

START = start((0, 0, 0), 0.0)


def _event(kind: EventKind, step: int = 0, *, epoch: int = 0, time_s: float = 0.0) -> Event:
    return Event(kind, step, epoch, (step, epoch, step), time_s)


# decide


def test_decide_saves_when_the_policy_is_due() -> None:
    """A due save carries the policy's reason, and the next one counts from here."""
    event = _event(EventKind.STEP, 10, time_s=5.0)
    assert decide(when.every(steps=10), START, event) == (
        replace(START, last_position=(10, 0, 10), last_save_s=5.0),
        Save((), ("every 10 steps",)),
    )


def test_decide_skips_when_nothing_is_due() -> None:
    """Nothing due: the state stays as it is, and the decision says so."""
    assert decide(when.every(steps=10), START, _event(EventKind.STEP, 9, time_s=5.0)) == (START, Skip("nothing is due"))


def test_decide_always_saves_on_request() -> None:
    """A request saves whatever the policy says, even where nothing has changed since the last save."""
    state, decision = decide(when.train_end(), START, _event(EventKind.REQUEST, time_s=3.0))
    assert decision == Save((), ("requested",))
    assert state == replace(START, last_save_s=3.0)


def test_decide_saves_at_train_end_what_is_not_saved() -> None:
    """A run that has moved on since its last save is saved at the end of training."""
    state = replace(START, last_position=(10, 0, 10))
    assert decide(when.train_end(), state, _event(EventKind.TRAIN_END, 12))[1] == Save((), ("train end",))


def test_decide_does_not_save_the_same_position_twice() -> None:
    """The end of training right after a save saves nothing again, and says why."""
    policy = when.every(steps=10) | when.train_end()
    state, _ = decide(policy, START, _event(EventKind.STEP, 10))
    assert decide(policy, state, _event(EventKind.TRAIN_END, 10)) == (state, Skip("step 10 is already saved"))


def test_decide_does_not_save_an_empty_run() -> None:
    """A run without a single step has nothing to save at its end."""
    assert decide(when.train_end(), START, _event(EventKind.TRAIN_END)) == (START, Skip("no step was made"))


def test_decide_without_train_end_policy_leaves_the_end_alone() -> None:
    """Where the policy does not ask for it, the end of training is no reason to save."""
    assert decide(when.every(steps=10), START, _event(EventKind.TRAIN_END, 7))[1] == Skip("nothing is due")


def test_decide_counts_time_from_the_last_save_of_any_kind() -> None:
    """A save for another reason starts the time interval afresh."""
    policy = when.every(steps=2) | when.every(seconds=10)
    state, _ = decide(policy, START, _event(EventKind.STEP, 2, time_s=8.0))
    assert decide(policy, state, _event(EventKind.STEP, 3, time_s=12.0))[1] == Skip("nothing is due")
    assert decide(policy, state, _event(EventKind.STEP, 5, time_s=18.0))[1] == Save((), ("every 10 s",))


def _awaiting(kind: EventKind, step: int, awaits: str = "val_loss") -> Event:
    return _event(kind, step)._replace(awaits=awaits)


def test_decide_defers_what_awaits_a_measurement() -> None:
    """A save that is due before its metric is measured waits, and says until when and why it is due."""
    state, decision = decide(when.every(steps=2), START, _awaiting(EventKind.STEP, 2))
    assert decision == Defer("val_loss is measured", ("every 2 steps",))
    assert state == replace(START, waiting=("every 2 steps, once val_loss is measured",))


@pytest.mark.parametrize("kind", [EventKind.VALIDATION_END, EventKind.EPOCH_END, EventKind.TRAIN_END])
def test_decide_saves_what_waited(kind: EventKind) -> None:
    """The first end that awaits nothing more saves what waited, once, also where no step was made since."""
    policy = when.every(steps=2)
    state, _ = decide(policy, START, _awaiting(EventKind.STEP, 2))
    state, decision = decide(policy, state, _event(kind, 2))
    assert decision == Save((), ("every 2 steps, once val_loss is measured",))
    assert state.waiting == ()
    assert decide(policy, state, _event(kind, 2))[1] in (Skip("nothing is due"), Skip("step 2 is already saved"))


def test_decide_goes_on_waiting() -> None:
    """A step, and an end at which the metric is still awaited, change nothing for what waits."""
    policy = when.every(steps=2)
    waiting, _ = decide(policy, START, _awaiting(EventKind.STEP, 2))
    assert decide(policy, waiting, _event(EventKind.STEP, 3)) == (waiting, Skip("nothing is due"))
    assert decide(policy, waiting, _awaiting(EventKind.EPOCH_END, 3)) == (waiting, Skip("nothing is due"))
    state, decision = decide(policy, waiting, _event(EventKind.STEP, 4))
    assert isinstance(decision, Save)
    assert state.waiting == waiting.waiting


def test_decide_joins_what_waited_and_what_is_due() -> None:
    """A save for two reasons has both."""
    policy = when.every(steps=2) | when.every(epochs=1)
    state, _ = decide(policy, START, _awaiting(EventKind.STEP, 2))
    _, decision = decide(policy, state, _event(EventKind.EPOCH_END, 3))
    assert decision == Save((), ("every 2 steps, once val_loss is measured", "every epoch"))


def test_decide_lets_a_request_wait_for_nothing() -> None:
    """Who asks for a save gets it at once."""
    assert decide(when.every(steps=2), START, _awaiting(EventKind.REQUEST, 1))[1] == Save((), ("requested",))


@pytest.mark.parametrize("kind", [EventKind.EXCEPTION, EventKind.SIGNAL, EventKind.PREEMPTION, EventKind.TRAIN_END])
def test_decide_saves_the_unsaved_only(kind: EventKind) -> None:
    """An exception, a signal and the end of training save nothing where nothing has happened since the last save."""
    policy = when.exception() | when.signal("SIGTERM") | when.preempted() | when.train_end() | when.every(steps=5)
    event = _event(kind, 5)._replace(cause="SIGTERM")
    state, _ = decide(policy, START, _event(EventKind.STEP, 5))
    assert decide(policy, state, event) == (state, Skip("step 5 is already saved"))
    assert isinstance(decide(policy, state, event._replace(position=(6, 0, 6)))[1], Save)


def test_decide_names_the_save() -> None:
    """Every template gives a name, from epoch, step and the metrics of the event."""
    event = _event(EventKind.STEP, 3, epoch=1)._replace(metrics={"loss": 0.5})
    _, decision = decide(when.every(steps=1), START, event, ("{epoch}-{step}", "{loss:.2f}"))
    assert decision == Save(("epoch=1-step=3", "loss=0.50"), ("every step",))


def test_decide_needs_the_metrics_of_the_names() -> None:
    """A name with a metric that was not measured is an error, at a save that is due and not before."""
    assert decide(when.every(steps=2), START, _event(EventKind.STEP, 1), ("{loss}",))[1] == Skip("nothing is due")
    with pytest.raises(MissingMetricError, match="loss"):
        decide(when.every(steps=2), START, _event(EventKind.STEP, 2), ("{loss}",))


def test_saves_are_accounted_for() -> None:
    """What a save cost and whether it is durable is told to the state; after a failure the step counts as unsaved."""
    policy = when.every(steps=1) | when.train_end()
    state, _ = decide(policy, START, _event(EventKind.STEP, 1, time_s=10.0))
    state = begun(state, stall_s=0.5)
    assert (state.is_writing, state.stall_s, state.write_s) == (True, 0.5, None)
    state = secured(state, write_s=2.0)
    assert (state.is_writing, state.write_s, state.secured_s, state.secured_position) == (False, 2.0, 10.0, (1, 0, 1))
    state, _ = decide(policy, state, _event(EventKind.STEP, 2, time_s=20.0))
    state = failed(begun(state, stall_s=0.25))
    assert (state.is_writing, state.secured_s, state.last_save_s, state.stall_s) == (False, 10.0, 20.0, 0.25)
    assert isinstance(decide(policy, state, _event(EventKind.TRAIN_END, 2))[1], Save)


def test_decide_saves_a_step_that_is_asked_for() -> None:
    """What requests a save at a step is told beside what is due there anyway; without either, nothing is saved."""
    asked = _event(EventKind.STEP, 2)._replace(cause=".save-now")
    assert decide(when.every(steps=9), START, asked)[1] == Save((), ("requested: .save-now",))
    assert decide(when.every(steps=2), START, asked)[1] == Save((), ("every 2 steps", "requested: .save-now"))
    assert decide(when.every(steps=9), START, _event(EventKind.STEP, 2))[1] == Skip("nothing is due")
