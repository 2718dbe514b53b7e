"""The records of a run, those on disk and those on their way there, and what stays of them: pure functions.

No clock, no disk, no torch: what happened is handed in, removal is done elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from safepoint.keep import A_PIN, PreservationPolicy
from safepoint.records import Fate, Metrics, Plan, Record, SaveStats

NOTHING: Mapping[Path, str] = MappingProxyType({})
_NEWEST = "the newest is never removed"
_GONE_ON = "it was saved at an exception, and the run has saved again since"


def plan_retention(
    policy: PreservationPolicy,
    records: Sequence[Record],
    *,
    protected: Mapping[Path, str] = NOTHING,
    superseded: Mapping[Path, str] = NOTHING,
) -> Plan:
    """Return what stays and what goes of ``records``, oldest first.

    Never removed: the newest ordinary record, a pinned one and what ``protected`` names (path to reason). What
    ``superseded`` names (path to reason) counts for no policy. Neither does an emergency checkpoint, which takes
    nobody's place: it stays for as long as no later ordinary one is there.
    """
    ordinary = [record for record in records if not record.emergency]
    reasons = dict(policy.select([record for record in ordinary if record.path not in superseded]))
    if ordinary:
        reasons.setdefault(ordinary[-1].path, _NEWEST)
    for record in records:
        if record.pinned:
            reasons.setdefault(record.path, "pinned")
    reasons = {**protected, **reasons}
    for record in _saved_last_of_all(records):
        if record.path not in superseded:
            reasons.setdefault(record.path, f"saved at an exception ({record.emergency}), until the run saves again")
    return Plan(
        keep={record.path: reasons[record.path] for record in records if record.path in reasons},
        remove={
            record.path: superseded.get(record.path) or (_GONE_ON if record.emergency else policy.why_not(record))
            for record in records
            if record.path not in reasons
        },
    )


def _saved_last_of_all(records: Sequence[Record]) -> Iterator[Record]:
    """Yield the emergency checkpoints that no ordinary one has followed."""
    for record in reversed(records):
        if not record.emergency:
            return
        yield record


@dataclass(frozen=True, slots=True)
class Proposal:
    """A save that is decided but not yet durable, and what its success lets go.

    ``released`` are to be removed afterwards; ``replaced`` has the very name of the new one and goes by being replaced.
    """

    record: Record
    plan: Plan
    released: tuple[Record, ...]
    replaced: Record | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The records of one run, immutable: each change returns a new ledger.

    ``records``: what is to be on disk once every pending save is durable, oldest first; ``pending``: the paths that are
    not durable yet; ``removed``: what was let go, with reasons, oldest first; ``kept``: the reasons of the last plan;
    ``lost``: the saves that failed, by path and time, which no plan made before can bring back, and what each was to
    replace.
    """

    records: tuple[Record, ...] = ()
    pending: frozenset[Path] = frozenset()
    removed: tuple[Fate, ...] = ()
    kept: Mapping[Path, str] = field(default_factory=dict)
    lost: Mapping[tuple[Path, float], Record | None] = field(default_factory=dict)

    @property
    def durable(self) -> tuple[Record, ...]:
        """The records that are known to be durable, oldest first."""
        return tuple(record for record in self.records if record.path not in self.pending)

    def propose(
        self,
        candidate: Record,
        policy: PreservationPolicy,
        *,
        protected: Mapping[Path, str] = NOTHING,
        superseded: Mapping[Path, str] = NOTHING,
    ) -> tuple[Ledger, Proposal]:
        """Return the ledger as it will be once ``candidate`` is durable, and the proposal to hand to the writer.

        A record of the same path is replaced by the candidate.
        """
        replaced = next((record for record in self.records if record.path == candidate.path), None)
        records = (*(record for record in self.records if record is not replaced), candidate)
        plan = plan_retention(policy, records, protected=protected, superseded=superseded)
        released = tuple(record for record in records if record.path in plan.remove)
        after = replace(
            self,
            records=tuple(record for record in records if record.path in plan.keep),
            pending=self.pending | {candidate.path},
            removed=(
                *self.removed,
                *(Fate(record, kept=False, reason=plan.remove[record.path]) for record in released),
            ),
            kept=plan.keep,
        )
        return after, Proposal(candidate, plan, released, replaced)

    def committed(
        self,
        proposal: Proposal,
        size_bytes: int,
        still_there: Sequence[Record] = (),
        stats: SaveStats | None = None,
    ) -> Ledger:
        """Return the ledger with the proposal's record durable, at its true size, and with ``still_there`` back in.

        ``still_there`` are those of ``proposal.released`` that were not removed after all; ``stats``: what it cost.
        """
        done = _key(proposal.record)

        def told(record: Record) -> Record:
            return replace(record, size_bytes=size_bytes, stats=stats) if _key(record) == done else record

        return replace(self._each(told), pending=self._pending_without(proposal.record)).with_back(still_there)

    def failed(self, proposal: Proposal) -> Ledger:
        """Return the ledger without the proposal's record, and with what it let go back in."""
        gone = _key(proposal.record)
        lost = {**self.lost, gone: proposal.replaced}
        replaced = proposal.replaced
        while replaced is not None and _key(replaced) in lost:
            replaced = lost[_key(replaced)]
        return replace(
            self,
            records=tuple(record for record in self.records if _key(record) != gone),
            removed=tuple(fate for fate in self.removed if _key(fate.record) != gone),
            pending=self._pending_without(proposal.record),
            lost=lost,
        ).with_back(proposal.released if replaced is None else (*proposal.released, replaced))

    def measured(self, step: int, metrics: Metrics) -> Ledger:
        """Return the ledger with ``metrics`` attached to what was saved at ``step``: they were measured on its weights.

        What is kept by them shows in the next plan.
        """

        def attached(record: Record) -> Record:
            return replace(record, metrics={**record.metrics, **metrics}) if record.step == step else record

        return self._each(attached)

    def with_pins(self, pinned: Collection[Path]) -> Ledger:
        """Return the ledger in which its records of ``pinned`` are pinned, and no others."""

        def told(record: Record) -> Record:
            is_pinned = record.path in pinned
            return record if record.pinned == is_pinned else replace(record, pinned=is_pinned)

        return replace(self, records=tuple(told(record) for record in self.records))

    def explain(self, path: Path, policy: PreservationPolicy, *, protected: Mapping[Path, str] = NOTHING) -> str | None:
        """Say why the checkpoint at ``path`` is kept or not, and what it would take; ``None`` if it is unknown."""
        fates = {fate.record.path: fate for fate in self.history()}  # of one path the latest
        if path not in fates:
            return None
        record, name = fates[path].record, path.name
        if not fates[path].kept:
            reason = fates[path].reason
            return f"{name} was removed: {reason}. To stay, it would have taken {self._takes(record, policy)}."
        plan = plan_retention(policy, self.records, protected=protected)
        if path in plan.remove:
            reason = plan.remove[path]
            return f"{name} goes with the next save: {reason}. To stay, it would take {self._takes(record, policy)}."
        if plan.keep[path] == _NEWEST:
            return (
                f"{name} is kept while it is the newest, but is {policy.why_not(record)}. To stay after the next save, "
                f"it would take {self._takes(record, policy)}."
            )
        flaw = f" It is not gone on from: {record.flaw}." if record.flaw else ""
        return f"{name} is kept: {plan.keep[path]}.{flaw}"

    def _takes(self, record: Record, policy: PreservationPolicy) -> str:
        if record.emergency:
            return "a copy of it under another name"
        takes = policy.takes(record, [other for other in self.records if not other.emergency])
        return takes if A_PIN in takes else f"{takes}, or {A_PIN}"

    def history(self) -> tuple[Fate, ...]:
        """Return every checkpoint of the run, oldest first, and what became of it."""
        present = tuple(Fate(record, kept=True, reason=self.kept.get(record.path, "")) for record in self.records)
        return tuple(sorted((*self.removed, *present), key=lambda fate: fate.record.time))

    def without(self, gone: Collection[Path], reason: str) -> Ledger:
        """Return the ledger without its durable records of ``gone``: they went for ``reason``, and not by a plan."""
        lost = tuple(record for record in self.durable if record.path in gone)
        keys = {_key(record) for record in lost}
        return replace(
            self,
            records=tuple(record for record in self.records if _key(record) not in keys),
            removed=(*self.removed, *(Fate(record, kept=False, reason=reason) for record in lost)),
        )

    def times_of(self, record: Record) -> frozenset[float]:
        """Return the times of capture that the file of ``record`` may tell.

        A save that was to replace it and failed may have got the name all the same, without becoming durable.
        """
        return frozenset((record.time, *(time for path, time in self.lost if path == record.path)))

    def with_back(self, back: Sequence[Record]) -> Ledger:
        """Return the ledger with ``back`` among its records again.

        They are still there, unless their own saves failed, or a later save has their name now.
        """
        held = {record.path for record in self.records}
        known = {_key(fate.record): fate.record for fate in self.removed}  # with what was measured since
        back = [known.get(_key(record), record) for record in back]
        back = [record for record in back if _key(record) not in self.lost and record.path not in held]
        returned = {_key(record) for record in back}
        return replace(
            self,
            records=tuple(sorted((*self.records, *back), key=lambda record: record.time)),
            removed=tuple(fate for fate in self.removed if _key(fate.record) not in returned),
        )

    def _each(self, change: Callable[[Record], Record]) -> Ledger:
        """Return the ledger with every record changed, those removed, too: a failure may bring them back."""
        return replace(
            self,
            records=tuple(change(record) for record in self.records),
            removed=tuple(replace(fate, record=change(fate.record)) for fate in self.removed),
        )

    def _pending_without(self, settled: Record) -> frozenset[Path]:
        """Return what is pending once ``settled`` is not; its path still is if a later save has it."""
        later = any(record.path == settled.path and record.time != settled.time for record in self.records)
        return self.pending if later else self.pending - {settled.path}


def _key(record: Record) -> tuple[Path, float]:
    """Return what tells one save from another of the same name."""
    return record.path, record.time
