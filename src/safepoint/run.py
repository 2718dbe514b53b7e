"""The checkpoints of one run in one directory: the training thread's end of the pipeline.

``save`` captures, stages and queues; ``settle`` takes in what the background has done since, and is where its errors
come out. The facade for plain loops and the adapters for frameworks both stand on this; it knows no policy for *when*.
"""

from __future__ import annotations

import errno
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from safepoint.catalog import Catalog
from safepoint.claim import Choose, claimed
from safepoint.deferral import Live
from safepoint.errors import CaptureError, CheckpointError, SaveError, warn
from safepoint.ledger import Ledger
from safepoint.naming import EXTENSION
from safepoint.pipeline import NOTHING_LIVE, Book, Part, Pipeline, Proposed, Snapshot
from safepoint.reader import read_summary
from safepoint.records import REMOVED_BY_OTHERS, Record, SaveStats
from safepoint.stores.local import clean
from safepoint.writer import Names, Outcome

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class Settled:
    """What the training thread has just taken notice of: what became durable, what failed, and with which errors.

    ``durable`` have the names that they got; ``is_whole``: whether all got all of theirs. ``stats``: what each of those
    that became durable cost, in their order.
    """

    durable: tuple[Names, ...]
    failed: tuple[Names, ...]
    errors: tuple[SaveError, ...]
    stats: tuple[SaveStats, ...] = ()
    is_whole: bool = True


class Changes(NamedTuple):
    """What somebody else has done to the checkpoints of a run: which are not there any more, and which are pinned."""

    missing: frozenset[Path] = frozenset()
    pinned: frozenset[Path] = frozenset()


class Run:
    """One run: its ledger, and its part in a pipeline. For the training thread only."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.directory = pipeline.directory
        self._book = Book()
        self._missed: dict[Path, Record] = {}
        self._saved_pinned: dict[tuple[Path, float], bool] = {}
        pipeline.books.append(self._book)

    @property
    def identity(self) -> str:
        """The identity under which the run saves."""
        return self.pipeline.identity

    @property
    def ledger(self) -> Ledger:
        """The run's records, as they will be once everything queued is durable."""
        return self._book.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        """Replace the records by those of a ledger that follows from the one before."""
        self._book.ledger = ledger

    def adopt(self, identity: str, ledger: Ledger) -> None:
        """Go on as the run ``identity``, which has saved what is in ``ledger``; clean up what dead writers left."""
        self.pipeline.identity = identity
        self.ledger = ledger
        self.pipeline.starts_after(max((record.time for record in ledger.records), default=0.0))
        clean(self.directory)

    def claimed(self, choose: Choose, extension: str = EXTENSION, *, below: bool = True) -> Catalog:
        """Return what is in the directory, and ``below``, once the run of what ``choose`` picks is nobody else's.

        Of several ranks, the first alone sees to that, and holds the checkpoint.

        Raises:
            RunAliveError: another process goes on with it; nothing was changed.

        """
        if not self.pipeline.leads:
            return Catalog.of(self.directory, extension, below=below)
        try:
            return claimed(self.directory, choose, self.pipeline.claim, extension, below=below)
        except BaseException:
            self.pipeline.let_go()
            raise

    def claim(self, record: Record) -> None:
        """Do as ``claimed`` does for the run of ``record``, whose files lie side by side."""
        self.claimed(
            lambda catalog: next((found for found in catalog.records if found.path == record.path), None), below=False
        )

    def changes(self) -> Changes:
        """Return what others have done to the checkpoints of the run: taken them away, pinned them."""
        known = {record.path: record for record in (*self._missed.values(), *self.ledger.records)}
        on_disk = self._missed.keys() | {record.path for record in self.ledger.durable}
        missing = frozenset(path for path in on_disk if _is_gone(path))
        return Changes(missing, frozenset(path for path, record in known.items() if self._is_pinned(record)))

    def take(self, changes: Changes) -> None:
        """Take ``changes``, of several ranks those that the first found, into account; call it before each plan.

        What is missing counts for no plan, with a warning if it was there the last time; what has come back counts.
        """
        missing = changes.missing
        back = [record for path, record in self._missed.items() if path not in missing]
        gone = {record.path: record for record in self.ledger.durable if record.path in missing}
        self._missed = {path: record for path, record in (self._missed | gone).items() if path in missing}
        ledger = self.ledger.with_back(back).without(gone, REMOVED_BY_OTHERS)
        self.ledger = ledger.with_pins(changes.pinned)
        if gone:
            warn(_told_of_the_missing(self.directory, tuple(gone)), stacklevel=5)

    def take_pins(self) -> None:
        """Do as ``take`` does for what others have pinned."""
        self.ledger = self.ledger.with_pins(self.changes().pinned)

    def _is_pinned(self, record: Record) -> bool:
        """Tell whether ``record`` is pinned by now; without a pin beside it, as it was saved."""
        verdict = self.pipeline.verdict(record, self.ledger)
        if verdict is not None or not record.pinned or record.path in self.ledger.pending:
            return record.pinned if verdict is None else verdict
        key = record.path, record.time
        if key not in self._saved_pinned:
            self._saved_pinned[key] = _was_saved_pinned(record.path)
        return self._saved_pinned[key]

    def candidate(self, snapshot: Snapshot, name: str) -> Record:
        """See ``Pipeline.candidate``."""
        return self.pipeline.candidate(snapshot, name)

    def part(self, names: Names, proposed: Proposed | None) -> Part:
        """Return this run's part in a save."""
        return Part(self._book, names, proposed)

    def save(
        self,
        state: object,
        snapshot: Snapshot,
        names: Names,
        proposed: Proposed | None,
        live: Live = NOTHING_LIVE,
    ) -> bool:
        """Save for this run alone: see ``Pipeline.save``."""
        return self.pipeline.save(state, snapshot, [self.part(names, proposed)], live)

    @property
    def idle(self) -> bool:
        """Whether everything that was queued for this run has been taken in."""
        return not self._book.ended and not self.pipeline.has_under_way(self._book)

    @property
    def has_news(self) -> bool:
        """Whether ``settle`` would find anything: cheap enough to be asked at every step."""
        return bool(self._book.ended) or self.pipeline.has_ended

    def settle(self) -> Settled:
        """Take in what the background has done; ``report`` raises what went wrong."""
        self.pipeline.drain()
        durable: list[Names] = []
        failed: list[Names] = []
        errors: list[SaveError] = []
        stats: list[SaveStats] = []
        is_whole = True
        while self._book.ended:
            part, outcome = self._book.ended.popleft()
            self._take_in(part, outcome)
            is_there = part.names.name not in outcome.missing
            if is_there:
                durable.append(part.names.without(outcome.missing))
            else:
                failed.append(part.names)
            is_whole = is_whole and outcome.complete
            if outcome.stats is not None and is_there:
                stats.append(outcome.stats)
            if outcome.error is not None and part.names is outcome.job.names:  # told once, by the first of the parts
                errors.append(self._told(outcome, outcome.error))
        return Settled(tuple(durable), tuple(failed), tuple(errors), tuple(stats), is_whole)

    def wait(self) -> Settled:
        """Do as ``settle`` does when everything queued has ended."""
        self.pipeline.wait()
        return self.settle()

    def close(self) -> Settled:
        """Wait as ``wait`` does, and end the writer's thread; the next ``save`` starts another."""
        self.pipeline.close()
        return self.settle()

    def leave(self) -> None:
        """Have no more part in the pipeline; call it once everything has ended."""
        self.pipeline.books.remove(self._book)

    def report(self, settled: Settled) -> None:
        """Raise the first error of ``settled``, the others noted on it; with ``on_error="warn"``, warn of each.

        Raises:
            SaveError: a save failed; its cause has the original traceback.

        """
        if not settled.errors:
            return
        if self.pipeline.options.on_error == "warn":
            for error in settled.errors:
                warnings.warn(str(error), RuntimeWarning, stacklevel=4)
            return
        first, *others = settled.errors
        for other in others:
            first.add_note(str(other))
        raise first

    def taken(self, path: Path) -> bool:
        """Tell whether a file is there, or is on its way through this run's pipeline."""
        on_its_way = (self.directory / name for name in self.pipeline.names_under_way())
        return path in on_its_way or os.path.lexists(path)

    def name_of(self, record: Record) -> str:
        """Return the name of ``record`` relative to the directory."""
        return self.pipeline.name_of(record)

    def _take_in(self, part: Part, outcome: Outcome) -> None:
        if part.proposed is None:
            return
        _, proposal = part.proposed
        if outcome.stats is not None and part.names.name not in outcome.missing:
            still_there = [gone for gone in proposal.released if self.name_of(gone) in outcome.still_there]
            stats = replace(outcome.stats, path=proposal.record.path)
            self.ledger = self.ledger.committed(proposal, stats.size_bytes, still_there, stats)
        else:
            self.ledger = self.ledger.failed(proposal)

    def _told(self, outcome: Outcome, cause: Exception) -> SaveError:
        path = self.directory / outcome.job.names.name
        also = "".join(f" (and {names.name})" for names in outcome.job.more)
        if outcome.missing and outcome.durable:
            message = f"{path} is saved, but not as {outcome.missing[0]}: {cause}. Nothing was removed"
        elif outcome.durable:
            message = f"{path}{also} is saved, but {outcome.still_there[0]} could not be removed: {cause}"
        else:
            reason = str(cause).removesuffix(".")
            certainty, earlier = "", "Earlier"
            if _has_its_name(outcome):  # the directory could not be made durable, and what was replaced is gone
                certainty = " for certain"
                earlier = (
                    f"{path.name} has the new content, which a power cut may take back, in the place of the one before;"
                    " other"
                )
            message = (
                f"{path}{also} was not saved{certainty}: {reason}. {earlier} checkpoints are intact and nothing was "
                f"removed{_remedy(cause)}."
            )
        error = SaveError(message)
        error.__cause__ = cause
        return error


def _was_saved_pinned(path: Path) -> bool:
    try:
        return read_summary(path).pinned
    except (CheckpointError, OSError):
        return True  # nobody can tell


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except OSError as error:
        return error.errno in _NOT_THERE  # else nobody can tell
    return False


def _told_of_the_missing(directory: Path, gone: tuple[Path, ...]) -> str:
    count = "a checkpoint" if len(gone) == 1 else f"{len(gone)} checkpoints"
    then = "Somebody else has removed or moved them" if len(gone) > 1 else "Somebody else has removed or moved it"
    if not directory.is_dir():
        return (
            f"{directory} is not there any more, and with it {count} of this run. {then}; the next save makes the "
            "directory anew, and keep= counts only what is in it. Move what was there back, and it counts again."
        )
    names = f"{gone[0].name}{' and more' if len(gone) > 1 else ''}"
    return (
        f"{count} of this run, {names}, cannot be found in {directory} any more. {then}; keep= counts only what is "
        "there."
    )


def _has_its_name(outcome: Outcome) -> bool:
    """Tell whether a save that failed has taken the place of another all the same."""
    job = outcome.job
    if not (job.names.replace or job.names.overwrite):
        return False
    try:
        return read_summary(job.path).time == job.seal.captured_at
    except (CheckpointError, OSError):
        return False


def _remedy(cause: Exception) -> str:
    if isinstance(cause, CaptureError):
        return ""
    if isinstance(cause, FileExistsError):
        return (
            "; another run, or somebody, has put a file there since the name was chosen, and it was left alone: give"
            " each run a directory of its own"
        )
    return "; free or mend the disk, then resume from the newest"
