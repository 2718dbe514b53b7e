"""Checkpoints of a survey as ``ls``, ``best`` and ``latest`` tell of them: in words, and as documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safepoint.contents import Outline
from safepoint.records import Fate, encoded_metrics
from safepoint.survey import Entry, size_on_disk

if TYPE_CHECKING:
    from safepoint.cli import documents
    from safepoint.soundness import Finding


@dataclass(frozen=True, slots=True)
class Listing:
    """What is to be listed, in this order; ``removed`` is ``None`` and ``findings`` empty if that was not asked for."""

    readable: Sequence[tuple[Entry, Outline]]
    unreadable: Sequence[Entry]
    removed: Sequence[Fate] | None
    findings: Mapping[Path, Finding]

    @property
    def is_damaged(self) -> bool:
        """Whether something was found to be damaged."""
        return any(finding.verdict == "damaged" for finding in self.findings.values())

    def document(self) -> documents.Ls:
        """Return it as a document."""
        from safepoint.cli import documents

        return documents.Ls(
            tuple(listed(*each, self.findings.get(each[0].path)) for each in self.readable),
            tuple(
                documents.Unreadable(str(entry.path), entry.problem, _sound(self.findings.get(entry.path)))
                for entry in self.unreadable
            ),
            None if self.removed is None else tuple(map(_removed, self.removed)),
            size_on_disk(entry for entry, _ in self.readable),
        )


def listed(entry: Entry, outline: Outline, finding: Finding | None = None) -> documents.Listed:
    """Return an entry, of which ``outline`` tells, as it stands in a document."""
    from safepoint.cli import documents

    record = entry.record
    return documents.Listed(
        path=str(entry.path),
        directory=str(entry.directory),
        name=entry.name,
        format=outline.format.value,
        step=outline.step,
        epoch=outline.epoch,
        metrics=encoded_metrics(outline.metrics),
        size_bytes=outline.size_bytes,
        time=outline.time,
        kept=None if entry.fate is None else entry.fate.kept,
        why=entry.why,
        run="" if record is None else record.run,
        reasons=() if record is None else record.reasons,
        pinned=record is not None and record.pinned,
        emergency="" if record is None else record.emergency,
        flaw="" if record is None else record.flaw,
        sound=_sound(finding),
        check=None if finding is None else finding.check,
        problems=() if finding is None else finding.problems,
    )


def _sound(finding: Finding | None) -> documents.Sound:
    return "not checked" if finding is None else finding.verdict


def _removed(fate: Fate) -> documents.Removed:
    from safepoint.cli import documents

    record = fate.record
    metrics = encoded_metrics(record.metrics)
    return documents.Removed(str(record.path), record.step, record.epoch, metrics, record.time, fate.reason)
