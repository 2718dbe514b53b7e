"""Random training runs, decided by the state machine and by an oracle: slow, obvious, and without a line in common.

The oracle knows policies as plain tuples and a run as a list of everything that happened; at each event it looks at all
of that list again. The invariants of the design (nothing goes before its successor is durable; every decision has a
reason; NaN is never best, and what waits is saved at the next measurement) are asserted in every state.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from safepoint import keep, when
from safepoint.keep import PreservationPolicy
from safepoint.ledger import Ledger, Proposal
from safepoint.records import Defer, Event, EventKind, Record, Save, Skip
from safepoint.schedule import begun, decide, failed, secured, start
from safepoint.state import decode, encode
from safepoint.when import SavePolicy

Spec = tuple[Any, ...]
STEP, EPOCH_END, VALIDATION_END = EventKind.STEP, EventKind.EPOCH_END, EventKind.VALIDATION_END
LOSSES = (0.25, 0.5, 0.5, 1.0, 2.0, math.inf, -math.inf, math.nan, None)
GIGABYTE = 10**9

SAVE_SPECS: tuple[Spec, ...] = (
    ("steps", 2),
    ("steps", 3),
    ("epochs", 1),
    ("epochs", 2),
    ("seconds", 7),
    ("at", 1, 4, 5),
    ("overhead", 0.125),
    ("risk", 9),
    ("train end",),
    ("exception",),
    ("signal", "SIGUSR1"),
)
KEEP_SPECS: tuple[Spec, ...] = (
    ("best", "loss", 1, "min", 0),
    ("best", "loss", 2, "max", 0),
    ("best", "loss", 2, "min", 4),
    ("best", "other", 1, "min", 0),
    ("latest", 1),
    ("latest", 3),
    ("every steps", 3),
    ("every epochs", 2),
    ("age", 6),
    ("gigabytes", 5),
    ("pinned",),
    ("all",),
)


def _save_policy(spec: Spec) -> SavePolicy:
    name, *rest = spec
    return {
        "steps": lambda: when.every(steps=rest[0]),
        "epochs": lambda: when.every(epochs=rest[0]),
        "seconds": lambda: when.every(seconds=rest[0]),
        "at": lambda: when.at(steps=rest),
        "overhead": lambda: when.overhead(rest[0]),
        "risk": lambda: when.at_risk(seconds=rest[0]),
        "train end": when.train_end,
        "exception": when.exception,
        "signal": lambda: when.signal(*rest),
    }[name]()


def _keep_policy(spec: Spec) -> PreservationPolicy:
    name, *rest = spec
    return {
        "best": lambda: keep.best(*rest[:3], after_step=rest[3]),
        "latest": lambda: keep.latest(rest[0]),
        "every steps": lambda: keep.every(steps=rest[0]),
        "every epochs": lambda: keep.every(epochs=rest[0]),
        "age": lambda: keep.within(seconds=rest[0]),
        "gigabytes": lambda: keep.within(gigabytes=rest[0]),
        "pinned": keep.pinned,
        "all": keep.all,
    }[name]()


@dataclass
class Attempt:
    """A save as the oracle remembers it; ``fate`` is "writing", "durable", "failed" or "removed"."""

    name: str
    step: int
    epoch: int
    position: tuple[int, int, int]
    clock_s: int
    metrics: dict[str, float]
    pinned: bool
    gigabytes: int
    stall_s: float
    is_emergency: bool = False
    lets_go: list[str] = field(default_factory=list)
    fate: str = "writing"


@dataclass
class Oracle:
    """Everything that has happened, and what follows from it."""

    saves: list[Spec]
    keeps: list[Spec]
    attempts: list[Attempt] = field(default_factory=list)
    secured_s: int = 0
    write_s: float = 0.0
    waits: bool = False

    def due(self, kind: EventKind, step: int, epoch: int, now_s: int, step_s: int, cause: str) -> bool:
        """Tell whether any of the policies asks for a save."""
        return any(self._asks(spec, kind, step, epoch, now_s, step_s, cause) for spec in self.saves)

    def _asks(  # noqa: PLR0911 - a table
        self, spec: Spec, kind: EventKind, step: int, epoch: int, now_s: int, step_s: int, cause: str
    ) -> bool:
        name, *rest = spec
        last = self.attempts[-1] if self.attempts else None
        writing = any(attempt.fate == "writing" for attempt in self.attempts)
        if name == "steps":
            return kind is STEP and step in range(rest[0], step + 1, rest[0])
        if name == "at":
            return kind is STEP and step in rest
        if name == "epochs":
            return kind is EPOCH_END and epoch in range(rest[0] - 1, epoch + 1, rest[0])
        if name in ("train end", "exception", "signal"):
            return kind.value == name and (name != "signal" or cause in rest)
        if kind not in (STEP, EPOCH_END):
            return False
        if name == "seconds":
            return all(now_s >= attempt.clock_s + rest[0] for attempt in self.attempts) and now_s >= rest[0]
        if writing:
            return False
        if name == "overhead":
            return last is None or last.stall_s / rest[0] <= now_s - last.clock_s
        ready_s = now_s + step_s + (last.stall_s if last else 0) + self.write_s
        return ready_s - self.secured_s >= rest[0]

    def is_saved(self, position: tuple[int, int, int]) -> bool:
        """Tell whether the newest save that has not failed, or the start, is at ``position``."""
        if any(attempt.fate == "failed" for attempt in self._since_secured()):
            newest = [attempt.position for attempt in self.attempts if attempt.clock_s == self.secured_s]
            later = self._since_last_failure_told()
            newest = [attempt.position for attempt in later] or newest
        else:
            newest = [attempt.position for attempt in self.attempts]
        return position == (newest[-1] if newest else (0, 0, 0))

    def _since_secured(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.clock_s > self.secured_s]

    def _since_last_failure_told(self) -> list[Attempt]:
        """Return the saves begun after the last settling in which one had failed."""
        told = max(i for i, attempt in enumerate(self.attempts) if attempt.fate == "failed")
        return [attempt for attempt in self.attempts[told + 1 :] if attempt.fate == "writing"]

    def on_disk(self) -> set[str]:
        """Return what lies in the directory."""
        return {attempt.name for attempt in self.attempts if attempt.fate == "durable"}

    def held(self) -> list[Attempt]:
        """Return what will be there once all is written, oldest first."""
        let_go = {name for attempt in self.attempts if attempt.fate == "writing" for name in attempt.lets_go}
        return [a for a in self.attempts if a.fate in ("durable", "writing") and a.name not in let_go]

    def staying(self, held: list[Attempt]) -> set[str]:
        """Return what stays of ``held``: the newest, the pinned, what any policy wants, and what exceptions left last.

        What an exception left is nothing to the others.
        """
        ordinary = [one for one in held if not one.is_emergency]
        last_of_all = {one.name for at, one in enumerate(held) if not any(o in ordinary for o in held[at:])}
        return last_of_all | {
            one.name
            for one in ordinary
            if one is ordinary[-1] or one.pinned or any(self._wants(spec, one, ordinary) for spec in self.keeps)
        }

    @staticmethod
    def _wants(spec: Spec, one: Attempt, held: list[Attempt]) -> bool:  # noqa: PLR0911 - a table
        name, *rest = spec
        at = held.index(one)
        newer = held[at + 1 :]
        if name == "best":
            metric, n, mode, after_step = rest
            sign = 1 if mode == "min" else -1
            real = [
                o for o in held if o.metrics.get(metric, math.nan) == o.metrics.get(metric) and o.step >= after_step
            ]
            if one not in real:
                return False
            mine = sign * one.metrics[metric]
            better = [o for o in real if sign * o.metrics[metric] < mine]
            equal_before = [o for o in held[:at] if o in real and sign * o.metrics[metric] == mine]
            return len(better) + len(equal_before) < n
        if name == "latest":
            return len(newer) < rest[0]
        if name == "every steps":
            block = one.step // rest[0]
            return block > 0 and not any(o.step // rest[0] == block for o in held[:at])
        if name == "every epochs":
            return one.epoch in range(rest[0] - 1, 1000, rest[0]) and not any(o.epoch == one.epoch for o in newer)
        if name == "age":
            return held[-1].clock_s - one.clock_s <= rest[0]
        if name == "gigabytes":
            sizes = {o.name: o.gigabytes if o.fate == "durable" else 0 for o in held}
            largest = max(sizes.values())
            return one is held[-1] or sum(sizes[o.name] or largest for o in (one, *newer)) <= rest[0]
        return bool(name == "all" or one.pinned)


class Runs(RuleBasedStateMachine):
    """One run: the machine under test and the oracle see the same events."""

    @initialize(
        saves=st.lists(st.sampled_from(SAVE_SPECS), min_size=1, max_size=4, unique=True),
        keeps=st.lists(st.sampled_from(KEEP_SPECS), min_size=1, max_size=3, unique=True),
    )
    def begin(self, saves: list[Spec], keeps: list[Spec]) -> None:
        """Draw the policies."""
        self.oracle = Oracle(saves, keeps)
        self.save_policy, self.keep_policy = _save_policy(saves[0]), _keep_policy(keeps[0])
        for spec in saves[1:]:
            self.save_policy |= _save_policy(spec)
        for spec in keeps[1:]:
            self.keep_policy |= _keep_policy(spec)
        self.state, self.ledger = start((0, 0, 0), 0.0), Ledger()
        self.proposals: list[Proposal] = []
        self.now_s = self.step = self.epoch = self.batch = 0

    @rule(seconds=st.integers(1, 9), loss=st.sampled_from(LOSSES), awaits=st.booleans(), size=st.integers(1, 3))
    def train_a_step(self, seconds: int, loss: float | None, awaits: bool, size: int) -> None:  # noqa: FBT001 - drawn by name
        """Make an optimizer step, which may be of an epoch whose validation is still to come."""
        self.now_s += seconds
        self.step, self.batch = self.step + 1, self.batch + 1
        self.happen(STEP, step_s=seconds, loss=loss, awaits=awaits, gigabytes=size)

    @rule(loss=st.sampled_from(LOSSES), awaits=st.booleans())
    def end_the_epoch(self, loss: float | None, awaits: bool) -> None:  # noqa: FBT001 - drawn by name
        """End an epoch, perhaps before its validation."""
        self.now_s += 1
        self.epoch, self.batch = self.epoch + 1, 0
        self.happen(EPOCH_END, epoch=self.epoch - 1, loss=loss, awaits=awaits)

    @rule(loss=st.sampled_from(LOSSES))
    def validate(self, loss: float | None) -> None:
        """End a validation."""
        self.now_s += 1
        self.happen(VALIDATION_END, loss=loss)

    @rule(
        kind=st.sampled_from((EventKind.EXCEPTION, EventKind.SIGNAL, EventKind.TRAIN_END)),
        cause=st.sampled_from(("SIGUSR1", "SIGTERM")),
    )
    def interrupt(self, kind: EventKind, cause: str) -> None:
        """Let a signal or an exception come, or training end; the script may go on afterwards."""
        self.now_s += 1
        self.happen(kind, cause=cause)

    @rule(pinned=st.booleans())
    def request(self, pinned: bool) -> None:  # noqa: FBT001 - drawn by name
        """Ask for a save."""
        self.now_s += 1
        self.happen(EventKind.REQUEST, pinned=pinned)

    @precondition(lambda self: self.oracle.attempts)
    @rule(loss=st.sampled_from(LOSSES[:-1]), back=st.integers(1, 3))
    def measure_late(self, loss: float, back: int) -> None:
        """Attach a metric to a save that is some saves old."""
        step = self.oracle.attempts[-min(back, len(self.oracle.attempts))].step
        self.ledger = self.ledger.measured(step, {"loss": loss})
        for attempt in self.oracle.attempts:
            if attempt.step == step:
                attempt.metrics["loss"] = loss

    @precondition(lambda self: self.proposals)
    @rule(outcomes=st.lists(st.booleans(), min_size=3, max_size=3), write_s=st.integers(0, 5))
    def settle(self, outcomes: list[bool], write_s: int) -> None:
        """Let all that is being written end; after a failure nothing more is removed, as in the writer."""
        before, any_failed, any_durable = self.oracle.on_disk(), False, False
        for proposal in self.proposals:
            durable = outcomes.pop()
            (attempt,) = (a for a in self.oracle.attempts if a.name == proposal.record.path.stem)
            let_go = [] if any_failed or not durable else attempt.lets_go
            attempt.lets_go, attempt.fate = let_go, "durable" if durable else "failed"
            for other in self.oracle.attempts:
                if other.name in let_go and other.fate == "durable":
                    other.fate = "removed"
            if durable:
                stays = proposal.released if any_failed else ()
                self.ledger = self.ledger.committed(proposal, attempt.gigabytes * GIGABYTE, stays)
            else:
                self.ledger = self.ledger.failed(proposal)
            any_failed, any_durable = any_failed or not durable, any_durable or durable
        if any_failed:
            self.state = failed(self.state)
        else:
            self.state = secured(self.state, write_s)
            self.oracle.secured_s, self.oracle.write_s = self.oracle.attempts[-1].clock_s, write_s
        self.proposals = []
        assert any_durable or self.oracle.on_disk() == before, "a failed save let something go"

    @rule()
    def store_and_take_up(self) -> None:
        """Put the state into JSON and go on with what comes out."""
        text = json.dumps(encode(self.state, self.ledger), allow_nan=False)
        self.state, self.ledger = decode(json.loads(text))

    def happen(
        self,
        kind: EventKind,
        *,
        epoch: int | None = None,
        step_s: int = 0,
        loss: float | None = None,
        awaits: bool = False,
        cause: str = "",
        pinned: bool = False,
        gigabytes: int = 1,
    ) -> None:
        """Let both decide, compare, and begin the save if there is one."""
        if len(self.proposals) == 3:
            self.settle([True, True, True], 1)
        metrics = {} if loss is None or awaits else {"loss": loss}
        epoch, position = self.epoch if epoch is None else epoch, (self.step, self.epoch, self.batch)
        event = Event(kind, self.step, epoch, position, self.now_s, step_s, metrics, "loss" if awaits else "", cause)
        self.state, decision = decide(self.save_policy, self.state, event, ("{step}",))
        expected = self._expected(event)
        assert isinstance(decision, expected), decision
        if expected is Defer:
            self.oracle.waits = True
        elif kind in (EPOCH_END, VALIDATION_END, EventKind.TRAIN_END) and not awaits:
            self.oracle.waits = False
        if isinstance(decision, Skip):
            assert decision.reason
            return
        assert all(decision.reasons)
        if isinstance(decision, Defer):
            assert decision.until == "loss is measured"
            return
        assert decision.names == (f"step={self.step}",)
        self._save(event, decision, pinned=pinned, gigabytes=gigabytes)

    def _expected(self, event: Event) -> type[Any]:
        """Return the kind of decision that the oracle comes to."""
        kind, oracle = event.kind, self.oracle
        if kind is EventKind.REQUEST:
            return Save
        ends = kind in (EPOCH_END, VALIDATION_END, EventKind.TRAIN_END)
        if oracle.waits and ends and not event.awaits:
            return Save
        if kind in (EventKind.EXCEPTION, EventKind.SIGNAL, EventKind.TRAIN_END) and oracle.is_saved(event.position):
            return Skip
        if not oracle.due(kind, event.step, event.epoch, self.now_s, int(event.step_s), event.cause):
            return Skip
        return Defer if event.awaits else Save

    def _save(self, event: Event, decision: Save, *, pinned: bool, gigabytes: int) -> None:
        name = f"{len(self.oracle.attempts)}"
        metrics = dict(event.metrics)
        is_emergency = event.kind is EventKind.EXCEPTION
        record = Record(
            Path(f"{name}.ckpt"), event.step, event.epoch, metrics, self.now_s, 0, decision.reasons, pinned=pinned
        )
        record = replace(record, emergency="Error" if is_emergency else "")
        attempt = Attempt(
            name,
            event.step,
            event.epoch,
            event.position,
            self.now_s,
            dict(metrics),
            pinned,
            gigabytes,
            self.now_s % 3 / 4,
            is_emergency,
        )
        before = self.oracle.held()
        self.oracle.attempts.append(attempt)
        staying = self.oracle.staying([*before, attempt])
        attempt.lets_go = [one.name for one in before if one.name not in staying]
        self.ledger, proposal = self.ledger.propose(record, self.keep_policy)
        self.proposals.append(proposal)
        self.state = begun(self.state, attempt.stall_s)
        assert {gone.path.stem for gone in proposal.released} == set(attempt.lets_go)
        assert set(proposal.plan.keep) | set(proposal.plan.remove) == {
            Path(f"{one.name}.ckpt") for one in (*before, attempt)
        }
        assert all((*proposal.plan.keep.values(), *proposal.plan.remove.values()))

    @invariant()
    def the_ledger_holds_what_the_oracle_holds(self) -> None:
        """What will be there once all is written is the same in both; what is durable now is on disk."""
        if not hasattr(self, "oracle"):
            return
        assert [record.path.stem for record in self.ledger.records] == [one.name for one in self.oracle.held()]
        assert {record.path.stem for record in self.ledger.durable} <= self.oracle.on_disk()
        assert [record.metrics.get("loss", "none") for record in self.ledger.records] == Same(
            [one.metrics.get("loss", "none") for one in self.oracle.held()]
        )

    @invariant()
    def nothing_goes_that_must_stay(self) -> None:
        """The newest durable checkpoint and the pinned ones are there, whatever was decided and whatever failed.

        So is the newest of those that no exception left.
        """
        if not hasattr(self, "oracle"):
            return
        durable = [a for a in self.oracle.attempts if a.fate in ("durable", "removed")]
        ordinary = [a for a in durable if not a.is_emergency]
        assert all(newest.fate == "durable" for newest in (*durable[-1:], *ordinary[-1:]))
        assert all(attempt.fate == "durable" for attempt in durable if attempt.pinned)

    @invariant()
    def everything_is_explained(self) -> None:
        """Of every checkpoint that is or was there, a sentence tells why; NaN is never why it is kept."""
        if not hasattr(self, "oracle"):
            return
        for fate in self.ledger.history():
            sentence = self.ledger.explain(fate.record.path, self.keep_policy)
            assert sentence
            assert sentence.endswith(".")
            assert not fate.record.emergency or " by " not in sentence, "an exception's counts for no policy"
            assert "best by loss (nan)" not in sentence.partition(" is kept:")[2]


class Same(list[Any]):
    """Compare lists in which NaN equals itself."""

    def __eq__(self, other: object) -> bool:
        """Compare what the elements look like."""
        return [repr(one) for one in self] == [repr(one) for one in other]  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=200, stateful_step_count=30, deadline=None, derandomize=True)


@pytest.mark.torture
class TestManyRuns(Runs.TestCase):  # type: ignore[name-defined,misc]
    """The same, with other runs each time, and many more."""

    settings = settings(max_examples=5000, stateful_step_count=50, deadline=None)
