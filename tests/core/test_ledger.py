"""What stays and what goes: the plan, and the ledger of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safepoint import keep
from safepoint.keep import PreservationPolicy
from safepoint.ledger import Ledger, Proposal, plan_retention
from safepoint.records import Fate, Plan, Record

NOTHING: dict[Path, str] = {}


def _record(name: str, time: float, *, pinned: bool = False, emergency: str = "", **metrics: float) -> Record:
    path = Path(f"{name}.ckpt")
    record = Record(path, int(time), 0, metrics, time=time, size_bytes=0, reasons=("test",), pinned=pinned)
    return replace(record, emergency=emergency)


def _paths(*names: str) -> list[Path]:
    return [Path(f"{name}.ckpt") for name in names]


def _saved(policy: PreservationPolicy, *records: Record) -> Ledger:
    """Return the ledger of a run in which every save became durable."""
    ledger = Ledger()
    for record in records:
        ledger, proposal = ledger.propose(record, policy)
        ledger = ledger.committed(proposal, size_bytes=7)
    return ledger


def _names(ledger: Ledger) -> list[str]:
    return [record.path.stem for record in ledger.records]


# plan_retention


def test_plan_gives_every_record_one_place_and_one_reason() -> None:
    """What the policy selects stays, the rest goes, each with its reason."""
    records = [_record("a", 1, loss=1.0), _record("b", 2, loss=2.0), _record("c", 3, loss=3.0)]
    assert plan_retention(keep.best("loss"), records, protected=NOTHING, superseded=NOTHING) == Plan(
        keep={Path("a.ckpt"): "best by loss (1)", Path("c.ckpt"): "the newest is never removed"},
        remove={Path("b.ckpt"): "not the best by loss (2)"},
    )


def test_plan_never_removes_the_newest() -> None:
    """The newest record stays even if it is the worst or not measured at all."""
    records = [_record("a", 1, loss=1.0), _record("b", 2, loss=math.nan)]
    plan = plan_retention(keep.best("loss"), records, protected=NOTHING, superseded=NOTHING)
    assert plan.keep[Path("b.ckpt")] == "the newest is never removed"
    assert plan.remove == {}


def test_plan_never_removes_a_pinned_record() -> None:
    """A pinned record stays, and says that this is why."""
    records = [_record("a", 1, pinned=True), _record("b", 2)]
    plan = plan_retention(keep.latest(), records, protected=NOTHING, superseded=NOTHING)
    assert plan.keep[Path("a.ckpt")] == "pinned"


def test_plan_never_removes_what_is_protected() -> None:
    """The record that the run was resumed from stays, even where a later save of the same step supersedes it."""
    records, resumed = [_record("a", 1), _record("b", 2)], Path("a.ckpt")
    for superseded in (NOTHING, {resumed: "superseded"}):
        plan = plan_retention(keep.latest(), records, protected={resumed: "resumed from"}, superseded=superseded)
        assert plan.keep[resumed] == "resumed from"


def test_plan_says_the_policy_reason_where_both_hold() -> None:
    """A record that the policy wants anyway says so, whatever protects it besides."""
    records = [_record("a", 1, pinned=True)]
    plan = plan_retention(keep.latest(), records, protected={Path("a.ckpt"): "resumed from"}, superseded=NOTHING)
    assert plan.keep == {Path("a.ckpt"): "the latest"}


def test_plan_does_not_count_what_is_superseded() -> None:
    """A superseded record takes no place from another, and goes for the reason given."""
    records = [_record("a", 1), _record("b", 2), _record("c", 3)]
    plan = plan_retention(keep.latest(2), records, protected=NOTHING, superseded={Path("b.ckpt"): "superseded by c"})
    assert list(plan.keep) == _paths("a", "c")
    assert plan.remove == {Path("b.ckpt"): "superseded by c"}


def test_plan_ignores_what_protects_records_that_are_not_there() -> None:
    """A protected path without a record is not in the plan."""
    plan = plan_retention(keep.all(), [_record("a", 1)], protected={Path("gone.ckpt"): "resumed"}, superseded=NOTHING)
    assert list(plan.keep) == _paths("a")


def test_plan_of_nothing_is_empty() -> None:
    """No records, no plan, no error."""
    assert plan_retention(keep.latest(), [], protected=NOTHING, superseded=NOTHING) == Plan(keep={}, remove={})


@given(
    st.lists(st.tuples(st.floats(), st.booleans(), st.booleans(), st.booleans()), max_size=8),
    st.sampled_from([keep.best("loss"), keep.latest(2), keep.best("loss", 2) | keep.every(steps=3), keep.all()]),
)
def test_plan_holds_the_invariants_for_any_records(
    rows: list[tuple[float, bool, bool, bool]], policy: PreservationPolicy
) -> None:
    """Each record is in exactly one half with a reason; the newest, pinned and protected ones are in the first."""
    records = [_record(str(time), time, pinned=pinned, loss=loss) for time, (loss, pinned, _, _) in enumerate(rows)]
    protected = {record.path: "resumed" for record, row in zip(records, rows, strict=True) if row[2]}
    superseded = {record.path: "superseded" for record, row in zip(records, rows, strict=True) if row[3]}
    plan = plan_retention(policy, records, protected=protected, superseded=superseded)
    assert sorted([*plan.keep, *plan.remove]) == sorted(record.path for record in records)
    assert all((*plan.keep.values(), *plan.remove.values()))
    safe = {record.path for record in records if record.pinned} | protected.keys() | {r.path for r in records[-1:]}
    assert safe <= plan.keep.keys()


POLICIES = [
    keep.best("loss"),
    keep.latest(),
    keep.latest(2) | keep.every(steps=2),
    keep.every(epochs=1),
    keep.within(seconds=2),
    keep.within(gigabytes=1),
    keep.pinned(),
]


@pytest.mark.parametrize("policy", POLICIES)
@given(losses=st.lists(st.floats(), max_size=6), own=st.floats())
def test_emergency_takes_nobody_s_place(policy: PreservationPolicy, losses: list[float], own: float) -> None:
    """What stays of the others, and why, is the same with an emergency checkpoint as without; it stays, too."""
    records = [_record(str(time), time, loss=loss) for time, loss in enumerate(losses)]
    emergency = _record("e", len(records), emergency="ValueError", loss=own)
    without, plan = plan_retention(policy, records), plan_retention(policy, [*records, emergency])
    assert plan.remove == without.remove
    assert plan.keep == {
        **without.keep,
        emergency.path: "saved at an exception (ValueError), until the run saves again",
    }


def test_emergency_goes_once_the_run_has_saved_again() -> None:
    """The next ordinary checkpoint lets all of them go, though they might be the best; they say why."""
    emergencies = [_record("e", 2, emergency="ValueError", loss=0.0), _record("f", 3, emergency="OSError", loss=0.0)]
    records = [_record("a", 1, loss=1.0), *emergencies, _record("b", 4, loss=2.0)]
    plan = plan_retention(keep.best("loss") | keep.latest(4), records)
    assert sorted(plan.keep) == _paths("a", "b")
    assert set(plan.remove) == set(_paths("e", "f"))
    assert set(plan.remove.values()) == {"it was saved at an exception, and the run has saved again since"}


def test_pins_of_others_hold_from_the_next_plan_on() -> None:
    """What somebody has pinned since it was saved stays, and what was unpinned goes."""
    ledger = Ledger(records=(_record("a", 1), _record("b", 2, pinned=True), _record("c", 3)))
    ledger = ledger.with_pins({Path("a.ckpt")})
    assert [record.pinned for record in ledger.records] == [True, False, False]
    _, proposal = ledger.propose(_record("d", 4), keep.latest())
    assert [record.path.stem for record in proposal.released] == ["b", "c"]
    assert proposal.plan.keep[Path("a.ckpt")] == "pinned"


def test_emergency_stays_where_it_is_protected_or_pinned_and_goes_where_superseded() -> None:
    """What a run was resumed from, and what is pinned, stays here, too; a later one of its step may take its place."""
    resumed, pinned = _record("e", 1, emergency="OSError"), _record("f", 2, emergency="OSError", pinned=True)
    plan = plan_retention(
        keep.latest(), [resumed, pinned, _record("a", 3)], protected={resumed.path: "the run was resumed from it"}
    )
    assert plan.keep == dict(
        zip(_paths("e", "f", "a"), ["the run was resumed from it", "pinned", "the latest"], strict=True)
    )
    records = [_record("a", 1), resumed, _record("g", 3, emergency="OSError")]
    plan = plan_retention(keep.latest(), records, superseded={resumed.path: "superseded by g"})
    assert plan.remove == {resumed.path: "superseded by g"}


# Ledger


def test_ledger_proposes_what_to_release() -> None:
    """A proposal names the records that go once it is durable, and nothing is durable or gone before that."""
    first = _saved(keep.latest(), _record("a", 1))
    ledger, proposal = first.propose(_record("b", 2), keep.latest())
    assert [record.path for record in proposal.released] == _paths("a")
    assert proposal.replaced is None
    assert ledger.pending == {Path("b.ckpt")}
    assert _names(ledger) == ["b"]
    assert ledger.durable == ()
    assert _names(first) == ["a"]


def test_ledger_commits_a_save_at_its_size() -> None:
    """Once durable, the record is no longer pending and has its true size."""
    ledger, proposal = Ledger().propose(_record("a", 1), keep.latest())
    ledger = ledger.committed(proposal, size_bytes=4096)
    assert ledger.pending == frozenset()
    assert [record.size_bytes for record in ledger.durable] == [4096]


def test_ledger_takes_back_what_could_not_be_removed() -> None:
    """A record that is still there counts again, and is no longer told of as removed."""
    ledger, proposal = _saved(keep.latest(), _record("a", 1)).propose(_record("b", 2), keep.latest())
    ledger = ledger.committed(proposal, size_bytes=7, still_there=proposal.released)
    assert _names(ledger) == ["a", "b"]
    assert ledger.removed == ()


def test_ledger_after_a_failure_is_what_it_was() -> None:
    """A failed save leaves no record, and what it would have released is back, in its old place."""
    before = _saved(keep.latest(2), _record("a", 1), _record("b", 2))
    ledger, proposal = before.propose(_record("c", 3), keep.latest(2))
    assert _names(ledger) == ["b", "c"]
    after = ledger.failed(proposal)
    assert after.records == before.records
    assert after.pending == before.pending
    assert after.removed == before.removed


def test_ledger_replaces_a_record_of_the_same_path() -> None:
    """A candidate takes the place of the record that has its path; that one is not released, it is overwritten."""
    old, new = _record("a", 1, loss=1.0), _record("a", 2, loss=0.5)
    ledger, proposal = _saved(keep.all(), old).propose(new, keep.all())
    assert proposal.replaced is not None
    assert proposal.replaced.time == old.time
    assert proposal.released == ()
    assert ledger.records == (new,)


def test_ledger_takes_back_a_replaced_record_after_a_failure() -> None:
    """If the save that was to replace a file fails, the file's old record counts again."""
    before = _saved(keep.all(), _record("a", 1, loss=1.0))
    ledger, proposal = before.propose(_record("a", 2, loss=0.5), keep.all())
    assert ledger.failed(proposal).records == before.records


def _two_pending() -> tuple[Ledger, Proposal, Proposal]:
    """Return a ledger with ``x`` durable and two saves on their way: ``a`` releases ``x``, and ``b`` releases ``a``."""
    policy = keep.best("loss")
    ledger = _saved(policy, _record("x", 1, loss=3.0))
    ledger, first = ledger.propose(_record("a", 2, loss=2.0), policy)
    ledger, second = ledger.propose(_record("b", 3, loss=1.0), policy)
    assert [record.path for record in (*first.released, *second.released)] == _paths("x", "a")
    return ledger, first, second


def test_ledger_forgets_a_failed_save_that_a_later_one_released() -> None:
    """A save that failed is no record, also when a later one is durable and says that it could not remove it."""
    ledger, first, second = _two_pending()
    ledger = ledger.failed(first).committed(second, size_bytes=7, still_there=second.released)
    assert _names(ledger) == ["x", "b"]
    assert [fate.record.path for fate in ledger.history()] == _paths("x", "b")


def test_ledger_forgets_two_failed_saves() -> None:
    """After two failures, one of which was to release the other, only what is durable has a record."""
    ledger, first, second = _two_pending()
    ledger = ledger.failed(first).failed(second)
    assert _names(ledger) == ["x"]
    assert [fate.record.path for fate in ledger.history()] == _paths("x")


def test_ledger_after_two_failed_replacements_has_the_first_record() -> None:
    """Two saves that were to replace one file, and failed, leave the record of what is in the file."""
    before = _saved(keep.all(), _record("a", 1, loss=3.0))
    ledger, first = before.propose(_record("a", 2, loss=2.0), keep.all())
    ledger, second = ledger.propose(_record("a", 3, loss=1.0), keep.all())
    assert ledger.failed(first).failed(second).records == before.records


def test_ledger_after_a_failed_and_a_good_replacement_has_the_last_record() -> None:
    """If the first of two saves that replace one file fails, the file is the second one's."""
    before = _saved(keep.all(), _record("a", 1, loss=3.0))
    ledger, first = before.propose(_record("a", 2, loss=2.0), keep.all())
    ledger, second = ledger.propose(_record("a", 3, loss=1.0), keep.all())
    ledger = ledger.failed(first).committed(second, size_bytes=7)
    assert [record.metrics["loss"] for record in ledger.records] == [1.0]
    assert ledger.pending == frozenset()


def test_ledger_after_a_good_and_a_failed_replacement_has_the_first_record_of_them() -> None:
    """If the second of two saves that replace one file fails, the file is the first one's."""
    before = _saved(keep.all(), _record("a", 1, loss=3.0))
    ledger, first = before.propose(_record("a", 2, loss=2.0), keep.all())
    ledger, second = ledger.propose(_record("a", 3, loss=1.0), keep.all())
    ledger = ledger.committed(first, size_bytes=7)
    assert [record.metrics["loss"] for record in ledger.failed(second).records] == [2.0]


def test_ledger_tells_the_history_oldest_first() -> None:
    """The history holds what stays and what went, each with its reason, in the order of saving."""
    policy = keep.latest(1)
    ledger = _saved(policy, _record("a", 1), _record("b", 2), _record("c", 3))
    assert [(fate.record.path.stem, fate.kept, fate.reason) for fate in ledger.history()] == [
        ("a", False, "not the latest"),
        ("b", False, "not the latest"),
        ("c", True, "the latest"),
    ]


def test_ledger_starts_with_what_an_earlier_run_left() -> None:
    """A resumed run counts the records found, and goes on telling of those that were removed before."""
    gone = Fate(_record("a", 1), kept=False, reason="not the latest")
    ledger = Ledger(records=(_record("b", 2),), removed=(gone,))
    ledger, proposal = ledger.propose(_record("c", 3), keep.latest())
    assert [record.path for record in proposal.released] == _paths("b")
    assert [fate.record.path for fate in ledger.history()] == _paths("a", "b", "c")


@pytest.mark.parametrize("policy", [keep.latest(2), keep.best("loss"), keep.best("loss", 2) | keep.latest()])
@given(outcomes=st.lists(st.tuples(st.floats(), st.sampled_from(["ok", "fails", "stays"])), max_size=10), lag=st.data())
def test_ledger_counts_what_is_on_disk(
    policy: PreservationPolicy, outcomes: list[tuple[float, str]], lag: st.DataObject
) -> None:
    """However saves end and however late that is known, the records at rest are the files that are there.

    As in the writer, a save decided before an earlier failure was known removes nothing.
    """
    ledger, disk = Ledger(), set[Path]()
    pending: list[tuple[Proposal, str]] = []
    for time, (loss, outcome) in enumerate(outcomes, 1):
        ledger, proposal = ledger.propose(_record(str(time), time, loss=loss), policy)
        unknown_failure = any(earlier == "fails" for _, earlier in pending)
        pending.append((proposal, "stays" if outcome == "ok" and unknown_failure else outcome))
        while pending and (len(pending) > 2 or lag.draw(st.booleans())):
            ledger = _settled(ledger, disk, *pending.pop(0))
    for entry in pending:
        ledger = _settled(ledger, disk, *entry)
    assert {record.path for record in ledger.records} == disk
    assert ledger.pending == frozenset()
    assert {fate.record.path for fate in ledger.history() if fate.kept} == disk


def _settled(ledger: Ledger, disk: set[Path], proposal: Proposal, outcome: str) -> Ledger:
    """Do on ``disk`` what the writer does, and tell the ledger as the run does."""
    if outcome == "fails":
        return ledger.failed(proposal)
    disk.add(proposal.record.path)
    if outcome == "stays":
        return ledger.committed(proposal, 7, still_there=proposal.released)
    disk.difference_update(record.path for record in proposal.released)
    return ledger.committed(proposal, 7)


def test_late_metrics_attach_to_their_step() -> None:
    """What was measured on the weights of a step counts for what was saved there, kept or removed, and no other."""
    policy = keep.best("loss") | keep.latest()
    ledger = _saved(policy, _record("a", 1), _record("b", 2), _record("c", 3))
    ledger = ledger.measured(2, {"loss": 0.5}).measured(1, {"loss": 0.1})
    assert [(fate.record.path.stem, dict(fate.record.metrics)) for fate in ledger.history()] == [
        ("a", {"loss": 0.1}),
        ("b", {"loss": 0.5}),
        ("c", {}),
    ]


def test_late_metrics_count_in_the_next_plan() -> None:
    """A checkpoint that turns out to be the best stays as the best."""
    policy = keep.best("loss")
    ledger = _saved(policy, _record("a", 1, loss=1.0), _record("b", 2)).measured(2, {"loss": 0.5})
    ledger, proposal = ledger.propose(_record("c", 3, loss=0.7), policy)
    assert [record.path for record in proposal.released] == _paths("a")
    assert ledger.kept[Path("b.ckpt")] == "best by loss (0.5)"


def test_explain_tells_why_a_checkpoint_is_kept() -> None:
    """What a policy keeps, says by which rule; what protects one, too."""
    policy = keep.best("loss") | keep.latest()
    ledger = _saved(policy, _record("a", 1, loss=0.5), _record("b", 2, loss=0.7))
    assert ledger.explain(Path("a.ckpt"), policy) == "a.ckpt is kept: best by loss (0.5)."
    assert ledger.explain(Path("b.ckpt"), policy) == "b.ckpt is kept: the latest."
    protected = {Path("a.ckpt"): "the run was resumed from it"}
    assert ledger.explain(Path("a.ckpt"), keep.latest(), protected=protected) == (
        "a.ckpt is kept: the run was resumed from it."
    )


def test_explain_tells_what_the_newest_lacks() -> None:
    """What stays only while it is the newest says so, and what it would take to stay."""
    policy = keep.best("loss")
    ledger = _saved(policy, _record("a", 1, loss=0.5), _record("b", 2, loss=0.7))
    assert ledger.explain(Path("b.ckpt"), policy) == (
        "b.ckpt is kept while it is the newest, but is not the best by loss (0.7). To stay after the next save, it "
        "would take loss below 0.5, or a pin ('safepoint pin')."
    )


def test_explain_tells_what_goes_next() -> None:
    """What the next save will let go says so, here because a late metric has dethroned it."""
    policy = keep.best("loss")
    ledger = _saved(policy, _record("a", 1, loss=0.5), _record("b", 2)).measured(2, {"loss": 0.1})
    assert ledger.explain(Path("a.ckpt"), policy) == (
        "a.ckpt goes with the next save: not the best by loss (0.5). To stay, it would take loss at most 0.1, or "
        "a pin ('safepoint pin')."
    )


def test_explain_tells_what_went() -> None:
    """What was removed tells why, and what would have kept it; of one name the latest is meant."""
    policy = keep.latest() | keep.pinned()
    ledger = _saved(policy, _record("a", 1), _record("b", 2))
    assert ledger.explain(Path("a.ckpt"), policy) == (
        "a.ckpt was removed: not the latest and not pinned. To stay, it would have taken keep.latest(2), or "
        "a pin ('safepoint pin')."
    )
    ledger, _ = ledger.propose(_record("a", 3), policy)
    assert ledger.explain(Path("a.ckpt"), policy) == "a.ckpt is kept: the latest."


def test_explain_tells_of_an_emergency_checkpoint() -> None:
    """It says until when it stays, what is wrong with it, and that no policy would keep it."""
    policy = keep.latest()
    emergency = replace(_record("e", 2, emergency="OSError"), flaw="model.weight holds NaN")
    ledger = _saved(policy, _record("a", 1), emergency)
    assert ledger.explain(Path("a.ckpt"), policy) == "a.ckpt is kept: the latest."
    assert ledger.explain(emergency.path, policy) == (
        "e.ckpt is kept: saved at an exception (OSError), until the run saves again. It is not gone on from: "
        "model.weight holds NaN."
    )
    ledger, _ = ledger.propose(_record("b", 3), policy)
    assert ledger.explain(emergency.path, policy) == (
        "e.ckpt was removed: it was saved at an exception, and the run has saved again since. To stay, it would have "
        "taken a copy of it under another name."
    )


def test_explain_does_not_count_emergency_checkpoints() -> None:
    """What it would take to stay is told of the ordinary ones alone."""
    policy = keep.latest()
    ledger = _saved(policy, _record("a", 1), _record("b", 2), _record("e", 3, emergency="OSError"))
    told = ledger.explain(Path("a.ckpt"), policy)
    assert told is not None
    assert "keep.latest(2)" in told


def test_explain_knows_its_own_only() -> None:
    """Of what is not the run's there is nothing to tell."""
    assert Ledger().explain(Path("a.ckpt"), keep.all()) is None


def test_late_metrics_survive_a_failure() -> None:
    """What was measured late stays attached to a checkpoint that was to go, and stays because its successor failed."""
    ledger, proposal = _saved(keep.latest(), _record("a", 1)).propose(_record("b", 2), keep.latest())
    ledger = ledger.measured(1, {"loss": 0.5}).failed(proposal)
    assert [dict(record.metrics) for record in ledger.records] == [{"loss": 0.5}]


def test_sizes_survive_a_failure() -> None:
    """A record that was let go before it was written, and stays because its successor failed, has its true size."""
    ledger, first = Ledger().propose(_record("a", 1), keep.latest())
    ledger, second = ledger.propose(_record("b", 2), keep.latest())
    ledger = ledger.committed(first, 7).failed(second)
    assert [record.size_bytes for record in ledger.records] == [7]


def test_ledger_without_what_somebody_removed() -> None:
    """What is gone counts for no plan and is told of as gone; what is pending is on its way, whatever is there."""
    policy = keep.best("loss")
    ledger, _ = _saved(keep.all(), _record("a", 1, loss=1.0), _record("b", 2, loss=2.0)).propose(
        _record("c", 3, loss=3.0), keep.all()
    )
    ledger = ledger.without(_paths("a", "c", "z"), "removed by somebody else")
    assert _names(ledger) == ["b", "c"]
    assert next((fate.record.path.stem, fate.kept, fate.reason) for fate in ledger.history()) == (
        "a",
        False,
        "removed by somebody else",
    )
    ledger, proposal = ledger.propose(_record("d", 4, loss=4.0), policy)
    assert [record.path for record in proposal.released] == _paths("c")
    assert _names(ledger.with_back([_record("a", 1, loss=1.0)])) == ["a", "b", "d"]


def test_ledger_knows_the_times_that_a_file_may_tell() -> None:
    """A failed replacement may have the name all the same: the file of the record may be either."""
    before = _record("a", 1)
    ledger, proposal = _saved(keep.all(), before, _record("b", 2)).propose(_record("a", 3), keep.all())
    ledger = ledger.failed(proposal)
    assert ledger.times_of(before) == {1, 3}
    assert ledger.times_of(_record("b", 2)) == {2}
