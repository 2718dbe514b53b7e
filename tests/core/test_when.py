"""When a save is due: every policy answers with a reason or with nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from safepoint import when
from safepoint.errors import ConfigurationError
from safepoint.records import Event, EventKind, ScheduleState
from safepoint.schedule import start
from safepoint.when import SavePolicy


def _event(
    kind: EventKind, *, step: int = 0, epoch: int = 0, time_s: float = 0.0, cause: str = "", step_s: float = 0.0
) -> Event:
    return Event(kind, step, epoch, (step, epoch, 0), time_s, step_s, cause=cause)


def since(time_s: float) -> ScheduleState:
    """Return the state of a run that has just started."""
    return start((0, 0, 0), time_s)


def _due_steps(policy: SavePolicy, steps: range) -> list[int]:
    return [step for step in steps if policy.due(_event(EventKind.STEP, step=step), since(0.0))]


def test_every_steps_is_due_at_each_multiple() -> None:
    """``every(steps=3)`` is due after steps 3, 6 and 9, and after no other of the first ten."""
    assert _due_steps(when.every(steps=3), range(1, 11)) == [3, 6, 9]


@pytest.mark.parametrize("kind", [EventKind.EPOCH_END, EventKind.TRAIN_END, EventKind.REQUEST])
def test_every_steps_is_due_at_steps_only(kind: EventKind) -> None:
    """A step interval asks for nothing at other moments, even if the step number fits."""
    assert when.every(steps=3).due(_event(kind, step=3), since(0.0)) is None


def test_every_epochs_counts_from_the_first_epoch() -> None:
    """``every(epochs=2)`` is due at the end of the second and of the fourth epoch, whose indices are 1 and 3."""
    policy = when.every(epochs=2)
    due = [epoch for epoch in range(5) if policy.due(_event(EventKind.EPOCH_END, epoch=epoch), since(0.0))]
    assert due == [1, 3]


@pytest.mark.parametrize("kind", [EventKind.STEP, EventKind.TRAIN_END, EventKind.REQUEST])
def test_every_epochs_is_due_at_epoch_ends_only(kind: EventKind) -> None:
    """An epoch interval asks for nothing in the middle of the epoch that will be due."""
    assert when.every(epochs=1).due(_event(kind, epoch=0), since(0.0)) is None


@pytest.mark.parametrize(("policy", "interval_s"), [(when.every(seconds=90), 90.0), (when.every(minutes=1.5), 90.0)])
@pytest.mark.parametrize("kind", [EventKind.STEP, EventKind.EPOCH_END])
def test_every_seconds_is_due_once_the_interval_has_passed(
    policy: SavePolicy, interval_s: float, kind: EventKind
) -> None:
    """A time interval counts from the last save, and its end is part of it."""
    last_save_s = 1000.0
    assert policy.due(_event(kind, time_s=last_save_s + interval_s - 0.5), since(last_save_s)) is None
    assert policy.due(_event(kind, time_s=last_save_s + interval_s), since(last_save_s)) == "every 90 s"


@pytest.mark.parametrize("kind", [EventKind.TRAIN_END, EventKind.REQUEST])
def test_every_seconds_is_not_due_at_the_end_of_training(kind: EventKind) -> None:
    """Whether to save at the end is for ``train_end()`` to say, however long ago the last save was."""
    assert when.every(seconds=1).due(_event(kind, time_s=1e9), since(0.0)) is None


def test_train_end_is_due_at_the_end_of_training_only() -> None:
    """``train_end()`` asks for exactly one kind of event."""
    due = [kind for kind in EventKind if when.train_end().due(_event(kind, step=1), since(0.0))]
    assert due == [EventKind.TRAIN_END]


def test_union_joins_the_reasons_of_all_that_are_due() -> None:
    """At a moment that two policies ask for, the reason names both, in the order in which they were written."""
    policy = when.every(steps=2) | when.every(epochs=1) | when.every(seconds=5)
    assert policy.due(_event(EventKind.STEP, step=4, time_s=5.0), since(0.0)) == "every 2 steps; every 5 s"


def test_union_is_due_if_only_one_part_is() -> None:
    """One policy that is due is enough."""
    policy = when.every(steps=2) | when.train_end()
    assert policy.due(_event(EventKind.STEP, step=2), since(0.0)) == "every 2 steps"
    assert policy.due(_event(EventKind.TRAIN_END, step=3), since(0.0)) == "train end"


def test_union_is_not_due_if_no_part_is() -> None:
    """Where nothing is due the answer is ``None`` and not an empty reason."""
    assert (when.every(steps=2) | when.train_end()).due(_event(EventKind.STEP, step=3), since(0.0)) is None


def test_union_is_flat_however_it_is_grouped() -> None:
    """Grouping makes no difference to what a composed policy is."""
    a, b, c, d = (when.every(steps=n) for n in (1, 2, 3, 4))
    assert (a | b) | (c | d) == a | b | c | d


def test_union_with_something_else_is_refused() -> None:
    """Only policies compose."""
    with pytest.raises(TypeError):
        when.every(steps=1) | 5  # type: ignore[operator]


@pytest.mark.parametrize(
    ("policy", "event", "reason"),
    [
        (when.every(steps=1), _event(EventKind.STEP, step=7), "every step"),
        (when.every(steps=7), _event(EventKind.STEP, step=7), "every 7 steps"),
        (when.every(epochs=1), _event(EventKind.EPOCH_END), "every epoch"),
        (when.every(seconds=0.25), _event(EventKind.STEP, time_s=1.0), "every 0.25 s"),
    ],
)
def test_reason_reads_as_english(policy: SavePolicy, event: Event, reason: str) -> None:
    """One is not written as a number, and numbers carry no needless digits."""
    assert policy.due(event, since(0.0)) == reason


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "none"),
        ({"steps": 1, "epochs": 1}, "steps, epochs"),
        ({"minutes": 1, "seconds": 1}, "minutes, seconds"),
    ],
)
def test_every_takes_exactly_one_unit(arguments: dict[str, Any], named: str) -> None:
    """None and two are refused, and the message says which were given."""
    with pytest.raises(ConfigurationError, match=f"exactly one of .*given: {named}"):
        when.every(**arguments)


@pytest.mark.parametrize("unit", ["steps", "epochs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_every_refuses_what_is_no_count(unit: str, value: Any) -> None:
    """Steps and epochs are whole numbers of 1 or more; the message names the argument and its value."""
    with pytest.raises(ConfigurationError) as caught:
        when.every(**{unit: value})
    assert f"when.every({unit}={value!r})" in str(caught.value)


@pytest.mark.parametrize("unit", ["minutes", "seconds"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "3", True])
def test_every_refuses_what_is_no_duration(unit: str, value: Any) -> None:
    """Durations are positive, finite numbers; the message names the argument and its value."""
    with pytest.raises(ConfigurationError) as caught:
        when.every(**{unit: value})
    assert f"when.every({unit}={value!r})" in str(caught.value)


def test_at_steps_is_due_there_only() -> None:
    """``at(steps=...)`` is due after the steps named, in any order, and tells which."""
    policy = when.at(steps=[7, 2])
    assert _due_steps(policy, range(1, 11)) == [2, 7]
    assert policy.due(_event(EventKind.STEP, step=7), since(0.0)) == "at step 7"
    assert policy.due(_event(EventKind.EPOCH_END, step=7), since(0.0)) is None


def test_first_step_is_due_once() -> None:
    """``first_step()`` is due after step 1 and never again."""
    assert _due_steps(when.first_step(), range(1, 11)) == [1]


@pytest.mark.parametrize("steps", [[], (), 5, None, [0], [1, -1], [1.5], [True], "12", ["1"]])
def test_at_takes_numbers_of_steps(steps: Any) -> None:
    """Nothing, zero, fractions and text are refused, with an example."""
    with pytest.raises(ConfigurationError, match=r"when\.at\(steps="):
        when.at(steps=steps)


def test_exception_is_due_with_its_name() -> None:
    """``exception()`` is due at an exception, and tells which."""
    assert when.exception().due(_event(EventKind.EXCEPTION, cause="KeyboardInterrupt"), since(0.0)) == (
        "exception: KeyboardInterrupt"
    )
    assert when.exception().due(_event(EventKind.TRAIN_END), since(0.0)) is None


def test_signal_is_due_at_its_own_only() -> None:
    """``signal(name)`` answers the signals named, by default SIGUSR1, and tells which came."""
    assert when.signal().due(_event(EventKind.SIGNAL, cause="SIGUSR1"), since(0.0)) == "signal: SIGUSR1"
    policy = when.signal("SIGTERM", "SIGUSR2")
    assert policy.due(_event(EventKind.SIGNAL, cause="SIGUSR2"), since(0.0)) == "signal: SIGUSR2"
    assert policy.due(_event(EventKind.SIGNAL, cause="SIGUSR1"), since(0.0)) is None
    assert policy.due(_event(EventKind.STEP, cause="SIGUSR2"), since(0.0)) is None


def test_policies_tell_the_signals_that_they_answer() -> None:
    """Who sets handlers up learns from the policy which; without a signal policy there are none."""
    assert (when.every(steps=1) | when.signal("SIGTERM") | when.signal()).signals == {"SIGTERM", "SIGUSR1"}
    assert when.every(steps=1).signals == frozenset()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP", "sigterm", "15", ""])
def test_signal_takes_names_of_signals_that_can_be_answered(name: str) -> None:
    """What is no signal, or cannot be answered, is refused."""
    with pytest.raises(ConfigurationError, match=r"when\.signal"):
        when.signal(name)


def test_overhead_saves_first_to_measure() -> None:
    """While no cost is known, the first step is due, and says why."""
    reason = when.overhead(0.01).due(_event(EventKind.STEP, step=1), since(0.0))
    assert reason == "at most 0.01 of the time: the first save measures it"


@pytest.mark.parametrize("kind", [EventKind.STEP, EventKind.EPOCH_END])
def test_overhead_is_due_when_the_last_stall_is_down_to_the_share(kind: EventKind) -> None:
    """After a save that took 0.2 s at 1 %, the next is due 20 s after that one began."""
    state = replace(since(100.0), stall_s=0.2, write_s=1.0)
    policy = when.overhead(0.01)
    assert policy.due(_event(kind, time_s=119.9), state) is None
    assert policy.due(_event(kind, time_s=120.1), state) == "at most 0.01 of the time"


def test_overhead_never_waits_for_a_write() -> None:
    """While the last save is being written none is due, however cheap the stall was."""
    state = replace(since(0.0), stall_s=0.001, is_writing=True)
    assert when.overhead(0.5).due(_event(EventKind.STEP, time_s=1e6), state) is None
    assert when.overhead(0.5).due(_event(EventKind.STEP, time_s=1e6), replace(state, is_writing=False))


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), True, None, "1%"])
def test_overhead_takes_a_share(share: Any) -> None:
    """What is not between 0 and 1 is refused."""
    with pytest.raises(ConfigurationError, match=r"when\.overhead"):
        when.overhead(share)


@pytest.mark.parametrize(
    ("measured", "step_s", "due_s"),
    [({}, 0.0, 300.0), ({"stall_s": 1.0, "write_s": 9.0}, 0.0, 290.0), ({"stall_s": 1.0, "write_s": 9.0}, 5.0, 285.0)],
)
@pytest.mark.parametrize("policy", [when.at_risk(minutes=5), when.at_risk(seconds=300)])
def test_at_risk_is_due_early_enough(
    policy: SavePolicy, measured: dict[str, float], step_s: float, due_s: float
) -> None:
    """A save begins so early that it is durable before the limit, with the time that step, stall and write take."""
    state = replace(since(1000.0), **measured)
    assert policy.due(_event(EventKind.STEP, time_s=1000.0 + due_s - 0.1, step_s=step_s), state) is None
    assert policy.due(_event(EventKind.STEP, time_s=1000.0 + due_s, step_s=step_s), state) == (
        "at most 300 s of work at risk"
    )


def test_at_risk_counts_from_what_is_durable() -> None:
    """A save that failed secures nothing: the next is due as if it had not been."""
    state = replace(since(0.0), last_save_s=299.0)
    assert when.at_risk(minutes=5).due(_event(EventKind.STEP, time_s=300.0), replace(state, is_writing=True)) is None
    assert when.at_risk(minutes=5).due(_event(EventKind.STEP, time_s=300.0), state)


@pytest.mark.parametrize("policy", [when.overhead(0.5), when.at_risk(seconds=1)])
@pytest.mark.parametrize("kind", [EventKind.TRAIN_END, EventKind.VALIDATION_END, EventKind.SIGNAL])
def test_measured_policies_are_due_in_training_only(policy: SavePolicy, kind: EventKind) -> None:
    """Cost and risk are no reason to save at any other moment than a step or an epoch's end."""
    assert policy.due(_event(kind, time_s=1e6), since(0.0)) is None


@pytest.mark.parametrize("arguments", [{}, {"minutes": 1, "seconds": 1}, {"minutes": 0}, {"seconds": "1"}])
def test_at_risk_takes_one_positive_unit(arguments: dict[str, Any]) -> None:
    """None, two, zero and text are refused."""
    with pytest.raises(ConfigurationError, match=r"when\.at_risk"):
        when.at_risk(**arguments)


def test_preempted_is_due_at_its_signals() -> None:
    """By default at those that schedulers send, or at those that are named; at no other kind of event."""
    event = _event(EventKind.PREEMPTION, cause="SIGTERM")
    assert when.preempted().due(event, since(0.0)) == "preempted: SIGTERM"
    assert when.preempted(signals="SIGUSR1").due(event, since(0.0)) is None
    assert when.preempted().due(_event(EventKind.SIGNAL, cause="SIGTERM"), since(0.0)) is None
    assert sorted(when.preempted().endings) == ["SIGTERM", "SIGUSR1", "SIGUSR2"]
    assert when.preempted().signals == frozenset()
    assert when.signal().endings == {}


def test_union_takes_the_shortest_time_of_a_signal() -> None:
    """Whoever names a signal has asked for it."""
    policy = when.preempted(60) | when.preempted(20, signals=["SIGTERM"]) | when.train_end()
    assert policy.endings["SIGTERM"] == when.Ending(20.0, is_asked=True)
    assert policy.endings["SIGUSR1"] == when.Ending(60.0, is_asked=False)


@pytest.mark.parametrize("signals", [(), ["SIGKILL"], ["SIGTREM"], "SIGSTOP"])
def test_preempted_refuses_what_cannot_be_answered(signals: Any) -> None:
    """No name, and names of no signal, or of one that no program can answer."""
    with pytest.raises(ConfigurationError, match=r"when\.preempted"):
        when.preempted(signals=signals)


@pytest.mark.parametrize("grace_s", [0, -1, float("inf"), "30", True])
def test_preempted_refuses_what_is_no_time(grace_s: Any) -> None:
    """The time is a positive number of seconds."""
    with pytest.raises(ConfigurationError, match="grace_s"):
        when.preempted(grace_s=grace_s)
