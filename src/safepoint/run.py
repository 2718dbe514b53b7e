"""The checkpoints of one run in one directory: the training thread's end of the pipeline.

``save`` captures, stages and queues; ``settle`` takes in what the background has done since, and is where its errors
come out. The facade for plain loops and the adapters for frameworks both stand on this; it knows no policy for *when*.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
import uuid
import warnings
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from safepoint.capture import Capture, capture
from safepoint.errors import ConfigurationError, SaveError
from safepoint.image import lay_out
from safepoint.ledger import Ledger, Proposal
from safepoint.manifest import FORMAT_VERSION, Blob, Manifest, Position, encoded_history
from safepoint.records import Fate, Metrics, Record, encoded_metrics
from safepoint.staging import Pool
from safepoint.stores import Store
from safepoint.stores.local import LocalStore, clean
from safepoint.when import positive_count
from safepoint.writer import Job, Names, Outcome, Writer

OnError = Literal["raise", "warn"]
Staging = Literal["copy"]
Proposed = tuple[Ledger, Proposal]
"""What ``Ledger.propose`` answers."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run saves.

    ``staging``: "copy", training waits for one memory copy. ``blocking``: each save returns when it is durable.
    ``max_images``: host images in memory at most. ``on_error``: what a failed save does at the next hook.
    """

    staging: Staging = "copy"
    blocking: bool = False
    max_images: int = 2
    on_error: OnError = "raise"

    def check(self, owner: str) -> None:
        """Raise a ConfigurationError that names ``owner`` and the option that is wrong."""
        for name, value, choices in (
            ("staging", self.staging, get_args(Staging)),
            ("on_error", self.on_error, get_args(OnError)),
        ):
            if value not in choices:
                raise ConfigurationError(f"{owner}({name}={value!r}): give one of {', '.join(map(repr, choices))}.")
        positive_count(owner, "max_images", self.max_images)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What to say of a state: ``position`` is (step, epoch, batch) to go on with, ``None`` where a framework knows."""

    step: int
    epoch: int
    position: tuple[int, int, int] | None
    metrics: Metrics
    reasons: tuple[str, ...]
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What the training thread has just taken notice of: what became durable, what failed, and with which errors.

    ``write_s``: how long the last one that became durable took to, from when it was staged.
    """

    durable: tuple[Names, ...]
    failed: tuple[Names, ...]
    errors: tuple[SaveError, ...]
    write_s: float = 0.0


class Run:
    """One run: its identity, its ledger, its writer. For the training thread only."""

    def __init__(self, directory: Path, options: Options, *, store: Store | None = None) -> None:
        self.directory = directory
        self.identity = uuid.uuid4().hex
        self.ledger = Ledger()
        self._options = options
        self._store = store or LocalStore(directory)
        self._pool = Pool(options.max_images)
        self._writer = Writer(self._store, self._pool)
        self._under_way: deque[tuple[Names, Proposal | None]] = deque()  # of the jobs queued, in their order
        self._last_time = 0.0
        self._last_size_bytes = 0

    def adopt(self, identity: str, ledger: Ledger) -> None:
        """Go on as the run ``identity``, which has saved what is in ``ledger``; clean up what dead writers left."""
        self.identity = identity
        self.ledger = ledger
        self._last_time = max((record.time for record in ledger.records), default=0.0)
        clean(self.directory)

    def candidate(self, snapshot: Snapshot, name: str) -> Record:
        """Return the record that ``snapshot`` would have as ``name``; its time is later than any before in this run.

        Until it is written, its size is taken to be that of the one before.
        """
        return Record(
            path=self.directory / name,
            step=snapshot.step,
            epoch=snapshot.epoch,
            metrics=dict(snapshot.metrics),
            time=max(time.time(), self._last_time + 1e-6),
            size_bytes=self._last_size_bytes,
            reasons=snapshot.reasons,
            pinned=snapshot.pinned,
            run=self.identity,
        )

    def save(self, state: object, snapshot: Snapshot, names: Names, proposed: Proposed | None) -> None:
        """Stage ``state`` and queue it; return once it is staged (``blocking``: once it is durable).

        ``proposed`` is what ``self.ledger.propose`` answered for its record; the ledger is changed only if staging
        succeeds. Without it the checkpoint is outside the ledger: nothing goes for it, and it never goes for another.

        Raises:
            CaptureError: the state holds something that cannot be saved; nothing was changed.

        """
        captured = capture(state)
        layout = lay_out(len(captured.pickle), [storage.nbytes() for storage in captured.storages])
        record = self.candidate(snapshot, names.name) if proposed is None else proposed[1].record
        ledger = self.ledger if proposed is None else proposed[0]
        manifest = self._manifest(captured, snapshot, record, self._history(ledger, names, record))
        image = self._pool.acquire()
        try:
            image.stage(captured.pickle, captured.storages, layout)
        except BaseException:
            self._pool.release(image)
            raise
        self._last_time, self._last_size_bytes = record.time, layout.body_bytes
        self.ledger = ledger
        released: tuple[str, ...] = ()
        if proposed is not None:
            released = tuple(self.name_of(gone) for gone in proposed[1].released)
        self._under_way.append((names, None if proposed is None else proposed[1]))
        self._writer.submit(Job(image, layout, manifest, names, (*released, *names.obsolete)))
        if self._options.blocking:
            self._writer.wait()

    @property
    def idle(self) -> bool:
        """Whether everything that was queued has been taken in."""
        return self._writer.idle

    def settle(self) -> Settled:
        """Take in what the background has done; ``report`` raises what went wrong."""
        durable: list[Names] = []
        failed: list[Names] = []
        errors: list[SaveError] = []
        write_s = 0.0
        for outcome in self._writer.outcomes():
            self._take_in(outcome)
            (durable if outcome.durable else failed).append(outcome.job.names)
            if outcome.durable:
                write_s = outcome.write_s
            if outcome.error is not None:
                errors.append(self._told(outcome, outcome.error))
        return Settled(tuple(durable), tuple(failed), tuple(errors), write_s)

    def wait(self) -> Settled:
        """Do as ``settle`` does when everything queued has ended."""
        self._writer.wait()
        return self.settle()

    def close(self) -> Settled:
        """Wait as ``wait`` does, and end the writer's thread; the next ``save`` starts another."""
        settled = self.wait()
        self._writer.close()
        return settled

    def report(self, settled: Settled) -> None:
        """Raise the first error of ``settled``, the others noted on it; with ``on_error="warn"``, warn of each.

        Raises:
            SaveError: a save failed; its cause has the original traceback.

        """
        if not settled.errors:
            return
        if self._options.on_error == "warn":
            for error in settled.errors:
                warnings.warn(str(error), RuntimeWarning, stacklevel=4)
            return
        first, *others = settled.errors
        for other in others:
            first.add_note(str(other))
        raise first

    def taken(self, path: Path) -> bool:
        """Tell whether a file is there, or is on its way as one of this run's."""
        on_its_way = (self.directory / name for names, _ in self._under_way for name in names.all)
        return path in on_its_way or os.path.lexists(path)

    def name_of(self, record: Record) -> str:
        """Return the name of ``record`` relative to the directory."""
        return record.path.relative_to(self.directory).as_posix()

    def _take_in(self, outcome: Outcome) -> None:
        _, proposal = self._under_way.popleft()
        if proposal is None:
            return
        if outcome.durable:
            still_there = [gone for gone in proposal.released if self.name_of(gone) in outcome.still_there]
            self.ledger = self.ledger.committed(proposal, outcome.size_bytes, still_there)
        else:
            self.ledger = self.ledger.failed(proposal)

    def _told(self, outcome: Outcome, cause: Exception) -> SaveError:
        path = self.directory / outcome.job.names.name
        if outcome.durable:
            message = f"{path} is saved, but {outcome.still_there[0]} could not be removed: {cause}"
        else:
            message = (
                f"{path} was not saved: {cause}. Earlier checkpoints are intact and nothing was removed; "
                "free or mend the disk, then resume from the newest."
            )
        error = SaveError(message)
        error.__cause__ = cause
        return error

    def _history(self, ledger: Ledger, names: Names, record: Record) -> tuple[Fate, ...]:
        """Return the run's history with ``record`` in it under all its names."""
        known = ledger.history()
        fates = [] if record.path in ledger.kept else [Fate(record, kept=True, reason="; ".join(record.reasons))]
        fates += (
            Fate(replace(record, path=self.directory / name), kept=True, reason=f"another name of {names.name}")
            for name in (*names.links, *names.symlinks)
        )
        again = {fate.record.path for fate in fates}
        return (*(fate for fate in known if fate.record.path not in again), *fates)

    def _manifest(self, captured: Capture, snapshot: Snapshot, record: Record, history: tuple[Fate, ...]) -> Manifest:
        unknown = Blob(0, "0" * 32)
        return Manifest(
            format_version=FORMAT_VERSION,
            run=self.identity,
            step=record.step,
            epoch=record.epoch,
            metrics=encoded_metrics(record.metrics),
            time=record.time,
            reasons=record.reasons,
            pinned=record.pinned,
            position=None if snapshot.position is None else Position(*snapshot.position),
            producer=producer(),
            pickle=unknown,
            storages=(),
            tensors=captured.tensors,
            history=encoded_history(history, self.directory),
        )


def producer() -> dict[str, str]:
    """Return the versions of what writes a checkpoint."""
    return {
        "safepoint": importlib.metadata.version("safepoint"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
