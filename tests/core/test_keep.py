"""Which checkpoints stay: tables of records and their survivors, with no disk anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safepoint import keep
from safepoint.errors import ConfigurationError
from safepoint.keep import PreservationPolicy
from safepoint.records import Record

NAN = math.nan


def _record(index: int, *, step: int | None = None, epoch: int = 0, **metrics: float) -> Record:
    step = index if step is None else step
    return Record(Path(f"{index}.ckpt"), step, epoch, metrics, time=float(index), size_bytes=1, reasons=("test",))


def _losses(values: Sequence[float]) -> list[Record]:
    return [_record(index, loss=value) for index, value in enumerate(values)]


def _survivors(policy: PreservationPolicy, records: Sequence[Record]) -> list[int]:
    selected = policy.select(records)
    return [index for index, record in enumerate(records) if record.path in selected]


@pytest.mark.parametrize(
    ("policy", "losses", "survivors"),
    [
        (keep.best("loss"), [3.0, 1.0, 2.0], [1]),
        (keep.best("loss", mode="max"), [3.0, 1.0, 2.0], [0]),
        (keep.best("loss", n=2), [3.0, 1.0, 2.0], [1, 2]),
        (keep.best("loss", n=5), [3.0, 1.0], [0, 1]),
        (keep.best("loss"), [1.0, 1.0, 1.0], [0]),
        (keep.best("loss", mode="max"), [1.0, 1.0], [0]),
        (keep.best("loss", n=2), [1.0, 2.0, 1.0, 2.0], [0, 2]),
        (keep.best("loss"), [NAN, 2.0, NAN], [1]),
        (keep.best("loss", mode="max"), [NAN, 2.0, NAN], [1]),
        (keep.best("loss", n=3), [NAN, NAN], []),
        (keep.best("loss"), [math.inf, -math.inf], [1]),
        (keep.best("loss"), [], []),
    ],
)
def test_best_keeps_the_best(policy: PreservationPolicy, losses: list[float], survivors: list[int]) -> None:
    """The best stay, the earlier of equals first, and NaN never."""
    assert _survivors(policy, _losses(losses)) == survivors


def test_best_does_not_count_what_was_not_measured() -> None:
    """A record without the metric is not among the best, even where places are free."""
    assert _survivors(keep.best("loss", n=3), [_record(0), _record(1, loss=9.0), _record(2, accuracy=0.0)]) == [1]


def test_best_gives_rank_and_value_as_reason() -> None:
    """Why a record stays names its rank, the metric and the value."""
    reasons = keep.best("loss", n=3).select(_losses([0.25, 0.125, 0.5]))
    assert dict(reasons) == {
        Path("1.ckpt"): "best by loss (0.125)",
        Path("0.ckpt"): "number 2 by loss (0.25)",
        Path("2.ckpt"): "number 3 by loss (0.5)",
    }


def test_best_says_why_a_record_is_not_among_them() -> None:
    """Why a record goes names the metric and its value, or that it has none."""
    assert keep.best("loss").why_not(_record(0, loss=0.5)) == "not the best by loss (0.5)"
    assert keep.best("loss", n=3).why_not(_record(0, loss=NAN)) == "not among the best 3 by loss (nan)"
    assert keep.best("loss").why_not(_record(0)) == "not the best by loss (not measured at its step)"


@given(st.lists(st.floats(), max_size=8), st.integers(1, 4), st.sampled_from(["min", "max"]))
def test_best_survivors_do_not_depend_on_what_was_removed_before(losses: list[float], n: int, mode: Any) -> None:
    """Selecting after each save among the survivors keeps the same records as selecting once among all."""
    policy = keep.best("loss", n, mode)
    records = _losses(losses)
    left: list[Record] = []
    for record in records:
        left = [kept for kept in (*left, record) if kept.path in policy.select([*left, record])]
    assert {record.path for record in left} == set(policy.select(records))


@pytest.mark.parametrize(("n", "survivors"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_latest_keeps_those_saved_last(n: int, survivors: list[int]) -> None:
    """The last ``n`` stay; fewer if there are fewer."""
    assert _survivors(keep.latest(n), _losses([1.0, 2.0, 3.0])) == survivors


def test_latest_goes_by_the_order_of_saving() -> None:
    """After a run was put back to an earlier step, the latest is what was saved last, not the highest step."""
    assert _survivors(keep.latest(), [_record(0, step=100), _record(1, step=50)]) == [1]


def test_latest_gives_reasons() -> None:
    """The last one is told apart from the others."""
    reasons = keep.latest(2).select(_losses([1.0, 2.0]))
    assert dict(reasons) == {Path("1.ckpt"): "the latest", Path("0.ckpt"): "among the latest 2"}
    assert keep.latest(1).why_not(_record(0)) == "not the latest"
    assert keep.latest(2).why_not(_record(0)) == "not among the latest 2"


@pytest.mark.parametrize(
    ("steps", "survivors"),
    [
        ([10, 100, 110, 200, 210], [1, 3]),
        ([90, 105, 120, 290], [1, 3]),
        ([99], []),
        ([250, 260, 300], [0, 2]),
    ],
)
def test_every_steps_keeps_the_first_at_or_after_each_multiple(steps: list[int], survivors: list[int]) -> None:
    """Of the records between two multiples the first stays; those before the first multiple do not count."""
    records = [_record(index, step=step) for index, step in enumerate(steps)]
    assert _survivors(keep.every(steps=100), records) == survivors


@pytest.mark.parametrize(
    ("epochs", "survivors"),
    [([0, 1, 2, 3], [1, 3]), ([0, 1, 1, 2], [2]), ([0, 2, 4], [])],
)
def test_every_epochs_keeps_the_last_of_each_nth(epochs: list[int], survivors: list[int]) -> None:
    """Of every second epoch (indices 1, 3, ...) the record saved last stays."""
    records = [_record(index, epoch=epoch) for index, epoch in enumerate(epochs)]
    assert _survivors(keep.every(epochs=2), records) == survivors


def test_every_gives_reasons() -> None:
    """Why a record stays for good, and why another does not."""
    steps, epochs = keep.every(steps=5), keep.every(epochs=2)
    assert dict(steps.select([_record(0, step=5)])) == {Path("0.ckpt"): "one for every 5 steps"}
    assert dict(epochs.select([_record(0, epoch=1)])) == {Path("0.ckpt"): "one for every 2 epochs"}
    assert steps.why_not(_record(0)) == "not the one for its 5 steps"
    assert epochs.why_not(_record(0)) == "not the last of a 2nd epoch"


def test_all_keeps_everything() -> None:
    """Nothing goes, with or without metrics."""
    assert _survivors(keep.all(), [_record(0), _record(1, loss=NAN)]) == [0, 1]


def test_union_keeps_what_either_keeps() -> None:
    """A composed policy keeps the best and the latest, and joins the reasons where they are the same record."""
    policy = keep.best("loss") | keep.latest(2)
    assert dict(policy.select(_losses([0.5, 2.0, 3.0]))) == {
        Path("0.ckpt"): "best by loss (0.5)",
        Path("2.ckpt"): "the latest",
        Path("1.ckpt"): "among the latest 2",
    }
    assert policy.select(_losses([0.5]))[Path("0.ckpt")] == "best by loss (0.5); the latest"


def test_union_joins_why_not() -> None:
    """A record goes because no part of the policy wanted it; every part says so."""
    policy = keep.best("loss") | keep.latest(2)
    assert policy.why_not(_record(0, loss=0.5)) == "not the best by loss (0.5) and not among the latest 2"


def test_union_ranks_by_the_metrics_of_all_parts() -> None:
    """The metrics that must be measured are those of every part."""
    assert (keep.best("loss") | keep.latest() | keep.best("accuracy")).metrics == {"loss", "accuracy"}
    assert keep.latest().metrics == frozenset()


def test_union_is_flat_however_it_is_grouped() -> None:
    """Grouping makes no difference to what a composed policy is."""
    a, b, c, d = (keep.latest(n) for n in (1, 2, 3, 4))
    assert (a | b) | (c | d) == a | b | c | d


def test_union_with_something_else_is_refused() -> None:
    """Only policies compose."""
    with pytest.raises(TypeError):
        keep.latest() | None  # type: ignore[operator]


@pytest.mark.parametrize("policy", [keep.best("loss"), keep.latest(), keep.every(steps=1), keep.all()])
def test_policy_leaves_the_records_as_they_are(policy: PreservationPolicy) -> None:
    """A decision changes nothing in the list that it was given."""
    records = _losses([2.0, 1.0, 3.0])
    before = list(records)
    policy.select(records)
    assert records == before


@pytest.mark.parametrize("n", [0, -1, 1.0, "1", True])
def test_counts_are_whole_numbers_of_one_or_more(n: Any) -> None:
    """What is no count is refused with the name of the argument and its value."""
    for build, owner in (
        (lambda: keep.best("loss", n), f"keep.best(n={n!r})"),
        (lambda: keep.latest(n), f"keep.latest(n={n!r})"),
        (lambda: keep.every(steps=n), f"keep.every(steps={n!r})"),
        (lambda: keep.every(epochs=n), f"keep.every(epochs={n!r})"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            build()
        assert owner in str(caught.value)


@pytest.mark.parametrize("mode", ["auto", "MIN", None, 1])
def test_best_refuses_another_mode(mode: Any) -> None:
    """The mode is "min" or "max"; the message says so and repeats what was given."""
    with pytest.raises(ConfigurationError, match="mode must be 'min' or 'max'") as caught:
        keep.best("loss", mode=mode)
    assert repr(mode) in str(caught.value)


@pytest.mark.parametrize("metric", ["", None, 3])
def test_best_needs_the_name_of_a_metric(metric: Any) -> None:
    """A metric without a name is refused at once, not when the first checkpoint goes."""
    with pytest.raises(ConfigurationError, match="give the name of a metric"):
        keep.best(metric)


@pytest.mark.parametrize(("arguments", "given_"), [({}, "none"), ({"epochs": 1, "steps": 1}, "epochs, steps")])
def test_every_takes_exactly_one_unit(arguments: dict[str, Any], given_: str) -> None:
    """None and two units are refused."""
    with pytest.raises(ConfigurationError, match=f"given: {given_}"):
        keep.every(**arguments)


def test_best_ranks_late() -> None:
    """What was saved before ``after_step`` holds no place, and says from where on it would count."""
    policy = keep.best("loss", after_step=2)
    records = _losses([0.1, 0.2, 0.5, 0.4])
    assert policy.select(records) == {Path("3.ckpt"): "best by loss (0.4)"}
    assert policy.why_not(records[0]) == "not the best by loss (which counts from step 2)"
    assert policy.takes(records[0], records) == "ranking from step 0 on"


@pytest.mark.parametrize("after_step", [-1, 1.5, True, "3", None])
def test_best_counts_from_a_step(after_step: Any) -> None:
    """What is no step is refused."""
    with pytest.raises(ConfigurationError, match="after_step"):
        keep.best("loss", after_step=after_step)


def test_within_age_counts_from_the_newest() -> None:
    """What is at most so much older than the newest stays, the limit included."""
    records = [_record(index) for index in (0, 50, 70, 130)]
    policy = keep.within(minutes=1)
    assert policy.select(records) == dict.fromkeys(
        (Path("70.ckpt"), Path("130.ckpt")), "at most 60 s older than the newest"
    )
    assert policy.why_not(records[0]) == "more than 60 s older than the newest"
    assert policy.takes(records[0], records) == "keep.within(seconds=130)"
    assert policy.takes(records[0], []) == "keep.within(seconds=0)"
    assert policy.select([]) == {}


@pytest.mark.parametrize(
    ("arguments", "limit_s"), [({"seconds": 3}, 3), ({"minutes": 2}, 120), ({"hours": 1}, 3600), ({"days": 0.5}, 43200)]
)
def test_within_takes_any_unit_of_time(arguments: dict[str, float], limit_s: float) -> None:
    """Each unit means what it says."""
    assert keep.within(**arguments) == keep.WithinAge(limit_s)


def _sized(*gigabytes: float) -> list[Record]:
    return [replace(_record(index), size_bytes=int(size * 1e9)) for index, size in enumerate(gigabytes)]


def test_within_gigabytes_keeps_the_newest_that_fit() -> None:
    """Going back from the newest, they stay until one does not fit; the ones behind it go even if they would."""
    records = _sized(0.5, 3, 2, 1)
    policy = keep.within(gigabytes=5)
    assert policy.select(records) == dict.fromkeys((Path("3.ckpt"), Path("2.ckpt")), "among the newest 5 GB")
    assert policy.why_not(records[0]) == "not among the newest 5 GB"
    assert policy.takes(records[1], records) == "keep.within(gigabytes=6)"
    assert policy.takes(records[0], records) == "keep.within(gigabytes=6.5)"
    assert policy.takes(records[0], records[1:]) == "keep.within(gigabytes=0.5)"


def test_within_gigabytes_keeps_the_newest_in_any_case() -> None:
    """A budget that is too small for a single one still keeps one."""
    assert list(keep.within(gigabytes=0.1).select(_sized(1, 1))) == [Path("1.ckpt")]
    assert keep.within(gigabytes=0.1).select([]) == {}


def test_within_gigabytes_counts_the_unwritten_as_the_largest() -> None:
    """The size of what is still being written is not known: it counts as much as the largest there is."""
    assert list(keep.within(gigabytes=5).select(_sized(2, 1, 0))) == [Path("2.ckpt"), Path("1.ckpt"), Path("0.ckpt")]
    assert list(keep.within(gigabytes=4).select(_sized(2, 1, 0))) == [Path("2.ckpt"), Path("1.ckpt")]


@pytest.mark.parametrize("arguments", [{}, {"days": 1, "gigabytes": 1}, {"gigabytes": 0}, {"hours": -1}, {"days": "1"}])
def test_within_takes_one_positive_unit(arguments: dict[str, Any]) -> None:
    """None, two, zero, less and text are refused."""
    with pytest.raises(ConfigurationError, match=r"keep\.within"):
        keep.within(**arguments)


def test_pinned_keeps_what_is_pinned() -> None:
    """And nothing else."""
    records = [replace(_record(0), pinned=True), _record(1)]
    assert keep.pinned().select(records) == {Path("0.ckpt"): "pinned"}
    assert keep.pinned().why_not(records[1]) == "not pinned"
    assert keep.pinned().takes(records[1], records) == "a pin ('safepoint pin')"


@pytest.mark.parametrize(
    ("policy", "takes"),
    [
        (keep.best("loss"), "loss below 0.3"),
        (keep.best("loss", 2), "loss below 0.5"),
        (keep.best("loss", mode="max"), "loss at least 0.9"),
        (keep.best("loss", 4), "a number for loss"),
        (keep.latest(), "keep.latest(2)"),
        (keep.every(steps=2), "being the first one from step 2 on"),
        (keep.every(steps=10), "being the first one from step 10 on"),
        (keep.every(epochs=3), "being the last of a 3rd epoch"),
        (keep.all(), "nothing more"),
        (keep.best("loss") | keep.latest(), "loss below 0.3, or keep.latest(2)"),
    ],
)
def test_policies_tell_what_it_takes(policy: PreservationPolicy, takes: str) -> None:
    """Every policy tells what would have kept a record: here the last but one, of four."""
    records = _losses([0.3, 0.5, 0.9, 1.0])
    records = [records[0], records[1], records[3], records[2]]
    times = [replace(record, time=float(time)) for time, record in enumerate(records)]
    assert policy.takes(times[2], times) == takes


@pytest.mark.parametrize(("mode", "takes"), [("min", "loss at most 0.3"), ("max", "loss at least 0.3")])
def test_an_earlier_record_needs_only_to_equal(mode: keep.Mode, takes: str) -> None:
    """Ties keep the earlier one, so the earlier one need not be better."""
    records = _losses([0.9 if mode == "min" else 0.1, 0.3])
    assert keep.best("loss", mode=mode).takes(records[0], records) == takes


@pytest.mark.parametrize(("number", "ordinal"), [(1, "1st"), (4, "4th"), (11, "11th"), (22, "22nd"), (113, "113th")])
def test_ordinals_read_well(number: int, ordinal: str) -> None:
    """As one says them."""
    assert keep.every(epochs=number).why_not(_record(0)) == f"not the last of a {ordinal} epoch"


def test_all_leaves_nothing_to_want() -> None:
    """Whatever else sorted a record out, ``all()`` has nothing against it."""
    assert keep.all().why_not(_record(0)) == "not counted"
