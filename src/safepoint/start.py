"""Where a loop's run starts: from its own newest checkpoint, from another run's, or afresh."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safepoint import entries, origin, source
from safepoint.announce import announce
from safepoint.catalog import Catalog
from safepoint.errors import ConfigurationError, StateMismatchError, plain
from safepoint.ledger import Ledger
from safepoint.loading import Trust
from safepoint.naming import EXTENSION
from safepoint.nearby import meant_by
from safepoint.randomness import set_rng_state
from safepoint.ranks import rank
from safepoint.records import Progress
from safepoint.report import RestoreReport, told_of_inexact
from safepoint.restore import Candidates, Restored, restore_first
from safepoint.run import Run
from safepoint.source import Source
from safepoint.training_state import OWN_ENTRY
from safepoint.wanted import Wanted, checked_rename, checked_strict, entries_wanted

logger = logging.getLogger("safepoint")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run goes on, ``seen``: which metrics it has had so far, and what must not be removed, with why.

    ``is_own``: it goes on with what lies in its directory.
    """

    progress: Progress
    seen: frozenset[str] = frozenset()
    protected: Mapping[Path, str] = field(default_factory=dict)
    is_own: bool = False


class Starter:
    """Find where ``run`` starts with the live ``objects``; ``resume_from`` as in ``Checkpointer``.

    Raises:
        ConfigurationError: ``resume_from`` says nothing that can be meant, or the run's own directory.

    """

    def __init__(self, run: Run, objects: Mapping[str, object], resume_from: object | None) -> None:
        self._run = run
        self._objects = objects
        self._source = None if resume_from is None else _source(resume_from, run.directory)

    def wanted(
        self, only: Iterable[str] | None, except_: Iterable[str] | None, strict: object, rename: object
    ) -> Wanted:
        """Return what ``Checkpointer.restore`` is asked for, if it can be asked for."""
        wanted = Wanted(
            entries_wanted(self._objects, only, except_),
            OWN_ENTRY,
            self._run.directory,
            only is None,
            checked_strict(strict),
            checked_rename(rename),
        )
        if wanted.strict and (lost := entries.inexact(self._objects)):
            lines = "\n".join(told_of_inexact(lost))
            raise StateMismatchError(f"state= holds what cannot be put back exactly, and strict=True:\n{lines}")
        return wanted

    def start(self, wanted: Wanted, trust: Trust) -> Start:
        """Restore what is wanted, and say where the run goes on; errors as in ``Checkpointer.restore``."""
        if self._source is None and not wanted.whole:
            found = self._elsewhere(
                Candidates.newest_first(Catalog.of(self._run.directory, below=False)), wanted, trust
            )
        else:
            found = self._own(wanted, trust)
            if found is None and self._source is not None:
                found = self._elsewhere(origin.candidates(self._source), wanted, trust)
        if found is None:
            found = Start(Progress(report=RestoreReport(self._run.directory, left=tuple(self._objects))))
        self._tell(found.progress)
        return found

    def _own(self, wanted: Wanted, trust: Trust) -> Start | None:
        """Go on with the run whose newest checkpoint is in the directory, ``None`` if there is nothing."""
        if self._source is not None:
            wanted = replace(wanted, entries=tuple(self._objects), whole=True, rename={})
        catalog = self._run.claimed(Catalog.latest, below=False)
        try:
            candidates = Candidates.newest_first(catalog)
            restored = restore_first(self._objects, candidates, wanted, self._run.claim, trust)
        except BaseException:
            self._run.pipeline.let_go()
            raise
        if restored is None:
            return None
        self._adopt(catalog, restored)
        _put_back_random_state(restored)
        if self._source is not None:
            logger.info("%s", plain(f"{self._run.directory} holds a checkpoint: resume_from= is not looked at"))
        record = restored.record
        seen = {name for fate in catalog.history(record.run) for name in fate.record.metrics}
        return Start(restored.progress, frozenset(seen), {record.path: "the run was resumed from it"}, is_own=True)

    def _elsewhere(self, candidates: Candidates, wanted: Wanted, trust: Trust) -> Start | None:
        """Start as a run of its own from what is wanted of a checkpoint, unclaimed; ``None`` if there is none."""
        restored = restore_first(self._objects, candidates, wanted, None, trust)
        if restored is None:
            return None
        if candidates.directory == self._run.directory:
            self._run.pipeline.starts_after(max(record.time for record in candidates.records))
        if not wanted.whole:
            return Start(restored.progress)
        _put_back_random_state(restored)
        return Start(restored.progress, frozenset(restored.progress.metrics))

    def _adopt(self, catalog: Catalog, restored: Restored) -> None:
        """Go on under the identity of what was restored, with the records that its run has left."""
        run = restored.record.run
        own = tuple(found for found in catalog.written_by(run) if found.path not in restored.skipped)
        self._run.adopt(run, Ledger(records=own, removed=catalog.gone(run)))
        # Those that were skipped may be sound another time, and must not be the newest again.
        self._run.pipeline.starts_after(max(found.time for found in catalog.records if found.run == run))

    def _tell(self, progress: Progress) -> None:
        if not self._run.pipeline.leads:
            return
        if progress.path is not None:
            announce(str(progress))
            return
        near = meant_by(self._run.directory)
        hint = "" if near is None else f"; {near} holds some: was that meant?"
        announce(f"{progress}{hint}", logging.WARNING)


def _put_back_random_state(restored: Restored) -> None:
    if rank() == 0:  # whose it is: two ranks with the same would drop out the same
        set_rng_state(restored.own["rng"])


def _source(resume_from: object, directory: Path) -> Source:
    """Return what ``resume_from=`` says, with an absolute path."""
    found = source.parsed(resume_from)
    path = Path(os.path.abspath(os.path.expanduser(found.path)))
    if directory in (path, path.parent if path.suffix == EXTENSION else None):
        raise ConfigurationError(
            f"resume_from={str(path)!r} is in the run's own directory, from whose newest checkpoint restore() goes on: "
            "give another directory for the run that is to start from it."
        )
    return replace(found, path=path)
