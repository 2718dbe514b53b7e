"""The checkpoints of one run in one directory: the training thread's end of the pipeline.

``save`` captures, stages and queues; ``settle`` takes in what the background has done since, and is where its errors
come out. The facade for plain loops and the adapters for frameworks both stand on this; it knows no policy for *when*.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import torch

from safepoint.capture import Capture, capture
from safepoint.errors import ConfigurationError, SaveError
from safepoint.image import lay_out
from safepoint.keep import PreservationPolicy
from safepoint.manifest import FORMAT_VERSION, Blob, Manifest, Position, encoded_history, encoded_metrics
from safepoint.records import Fate, Metrics, Plan, Record
from safepoint.schedule import Ledger, Proposal
from safepoint.staging import Pool
from safepoint.stores import Store
from safepoint.stores.local import LocalStore, clean
from safepoint.when import positive_count
from safepoint.writer import Job, Outcome, Writer

OnError = Literal["raise", "warn"]
Staging = Literal["copy"]
NOTHING: Mapping[Path, str] = MappingProxyType({})


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
    """What to save and what to say of it: ``position`` is (step, epoch, batch) to go on with."""

    state: object
    step: int
    epoch: int
    position: tuple[int, int, int]
    metrics: Metrics
    reasons: tuple[str, ...]
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """Under which names a checkpoint appears, relative to the directory.

    ``links`` and ``symlinks`` are further names for the same bytes and replace what had them; ``obsolete`` are names
    to remove once all of these are durable.
    """

    name: str
    replace: bool = False
    links: tuple[str, ...] = ()
    symlinks: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()


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
        self._proposals: dict[str, Proposal] = {}
        self._last_time = 0.0

    def adopt(self, identity: str, records: tuple[Record, ...], removed: tuple[Fate, ...]) -> None:
        """Go on as the run ``identity``, whose checkpoints these are; clean up what dead writers left."""
        self.identity = identity
        self.ledger = Ledger(records=records, removed=removed)
        self._last_time = max((record.time for record in records), default=0.0)
        clean(self.directory)

    def candidate(self, snapshot: Snapshot, name: str) -> Record:
        """Return the record that ``snapshot`` would have as ``name``; its time is later than any before in this run."""
        return Record(
            path=self.directory / name,
            step=snapshot.step,
            epoch=snapshot.epoch,
            metrics=snapshot.metrics,
            time=max(time.time(), self._last_time + 1e-6),
            size_bytes=0,
            reasons=snapshot.reasons,
            pinned=snapshot.pinned,
            run=self.identity,
        )

    def save(
        self,
        snapshot: Snapshot,
        names: Names,
        policy: PreservationPolicy | None,
        *,
        protected: Mapping[Path, str] = NOTHING,
        superseded: Mapping[Path, str] = NOTHING,
    ) -> Plan | None:
        """Stage ``snapshot`` and queue it; return, once staged, what will stay and what will go.

        Without a ``policy`` the checkpoint is outside the ledger: nothing goes for it, and it never goes for another.

        Raises:
            CaptureError: the state holds something that cannot be saved; nothing was changed.

        """
        captured = capture(snapshot.state)
        layout = lay_out(len(captured.pickle), [storage.nbytes() for storage in captured.storages])
        image = self._pool.acquire()
        try:
            image.stage(captured.pickle, captured.storages, layout)
            record = self.candidate(snapshot, names.name)
            ledger, proposal = self.ledger, None
            if policy is not None:
                ledger, proposal = ledger.propose(record, policy, protected=protected, superseded=superseded)
            manifest = self._manifest(captured, snapshot, record, self._history(ledger, names, record))
        except BaseException:
            self._pool.release(image)
            raise
        self._last_time = record.time
        self.ledger = ledger
        if proposal is not None:
            self._proposals[names.name] = proposal
        released = () if proposal is None else tuple(self._name(gone) for gone in proposal.released)
        self._writer.submit(
            Job(
                image=image,
                layout=layout,
                manifest=manifest,
                name=names.name,
                replace=names.replace,
                links=names.links,
                symlinks=names.symlinks,
                remove=(*released, *names.obsolete),
            )
        )
        if self._options.blocking:
            self.wait()
        return None if proposal is None else proposal.plan

    def settle(self) -> list[str]:
        """Take in what the background has done and return the names that became durable, oldest first.

        Raises:
            SaveError: a save failed since the last call (with ``on_error="warn"``, a warning instead).

        """
        durable: list[str] = []
        errors: list[SaveError] = []
        for outcome in self._writer.outcomes():
            self._take_in(outcome)
            if outcome.durable:
                durable.append(outcome.job.name)
            if outcome.error is not None:
                errors.append(self._told(outcome, outcome.error))
        self._report(errors)
        return durable

    def wait(self) -> list[str]:
        """Return as ``settle`` does when everything queued is durable."""
        self._writer.wait()
        return self.settle()

    def close(self) -> list[str]:
        """Wait as ``wait`` does, and end the writer's thread whatever happened."""
        try:
            return self.wait()
        finally:
            self._writer.close()

    def taken(self, name: str) -> bool:
        """Tell whether a file of this name is there or on its way."""
        path = self.directory / name
        return path in self.ledger.pending or path.is_symlink() or path.exists()

    def _take_in(self, outcome: Outcome) -> None:
        proposal = self._proposals.pop(outcome.job.name, None)
        if proposal is None:
            return
        if outcome.durable:
            still_there = [gone for gone in proposal.released if self._name(gone) in outcome.still_there]
            self.ledger = self.ledger.committed(proposal, outcome.size_bytes, still_there)
        else:
            self.ledger = self.ledger.failed(proposal)

    def _told(self, outcome: Outcome, cause: Exception) -> SaveError:
        path = self.directory / outcome.job.name
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

    def _report(self, errors: list[SaveError]) -> None:
        if not errors:
            return
        if self._options.on_error == "warn":
            for error in errors:
                warnings.warn(str(error), RuntimeWarning, stacklevel=4)
            return
        first, *others = errors
        for other in others:
            first.add_note(str(other))
        raise first

    def _history(self, ledger: Ledger, names: Names, record: Record) -> tuple[Fate, ...]:
        """Return the run's history with ``record`` in it under all its names."""
        known = ledger.history()
        extra = [Fate(record, True, "; ".join(record.reasons))] if names.name not in map(self._fate_name, known) else []
        return (*known, *extra)

    def _fate_name(self, fate: Fate) -> str:
        return self._name(fate.record)

    def _name(self, record: Record) -> str:
        return record.path.relative_to(self.directory).as_posix()

    def _manifest(
        self, captured: Capture, snapshot: Snapshot, record: Record, history: tuple[Fate, ...]
    ) -> Manifest:
        step, epoch, batch = snapshot.position
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
            position=Position(step, epoch, batch),
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
