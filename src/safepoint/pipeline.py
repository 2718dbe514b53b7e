"""One directory's pipeline as the training thread sees it: stage, queue, and learn what has become of it.

Several runs (the callbacks of one trainer) may share it. They then have one identity, one queue and one pool of images,
and what they save at the same moment is staged and written once, under the names of all of them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
import sys
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args
from uuid import uuid4

import torch

from safepoint import pins, room
from safepoint.capture import Capture, capture, untrusted
from safepoint.deferral import Barrier, Live
from safepoint.errors import ConfigurationError, shortened, warn
from safepoint.frozen import Frozen
from safepoint.image import Layout, lay_out
from safepoint.ledger import Ledger, Proposal
from safepoint.manifest import FORMAT_VERSION, Blob, Manifest, Position, encoded_history
from safepoint.progress import wait_and_show
from safepoint.ranks import rank
from safepoint.records import ANOTHER_NAME, Fate, Metrics, Record, encoded_metrics
from safepoint.removal import Removal
from safepoint.sealing import Seal
from safepoint.staging import RING_BYTES, Pool, Staged, StagedLive, Stager, ring
from safepoint.stores import Store
from safepoint.stores.local import LocalStore
from safepoint.transfer import Copier, HostBuffer
from safepoint.when import positive_count
from safepoint.writer import Asked, Job, Names, Outcome, Writer

OnError = Literal["raise", "warn"]
Staging = Literal["copy", "deferred"]
NOTHING_LIVE = Live()
Proposed = tuple[Ledger, Proposal]
"""What ``Ledger.propose`` answers."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run saves.

    ``staging``: "copy", training waits for one memory copy; "deferred", what optimizers own is copied during the next
    forward and backward. ``blocking``: each save returns when it is durable. ``max_images``: host images in memory at
    most, of ``max_host_bytes`` together (``None``: half of the memory available). ``exclude_frozen``: parameters that
    need no gradient are left out. ``on_error``: what a failed save does at the next hook. ``verify_after_write``: every
    checkpoint is read back from the disk before it gets its name.
    """

    staging: Staging = "copy"
    blocking: bool = False
    max_images: int = 2
    max_host_bytes: int | None = None
    exclude_frozen: bool = False
    on_error: OnError = "raise"
    verify_after_write: bool = False

    def check(self, owner: str) -> None:
        """Raise a ConfigurationError that names ``owner`` and the option that is wrong."""
        for name, value, choices in (
            ("staging", self.staging, get_args(Staging)),
            ("on_error", self.on_error, get_args(OnError)),
        ):
            if value not in choices:
                raise ConfigurationError(f"{owner}({name}={value!r}): give one of {', '.join(map(repr, choices))}.")
        positive_count(owner, "max_images", self.max_images)
        if self.max_host_bytes is not None:
            positive_count(owner, "max_host_bytes", self.max_host_bytes)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What to say of a state.

    ``position`` is (step, epoch, batch) to go on with, ``None`` where a framework knows; for ``excluded`` and
    ``inexact`` see ``Manifest``, for ``emergency`` and ``flaw`` see ``Record``.
    """

    step: int
    epoch: int
    position: tuple[int, int, int] | None
    metrics: Metrics
    reasons: tuple[str, ...]
    pinned: bool = False
    measured_at: Mapping[str, int] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    inexact: Mapping[str, str] = field(default_factory=dict)
    emergency: str = ""
    flaw: str = ""


@dataclass(slots=True, eq=False)
class Book:
    """What one run keeps of its saves: its ledger, and what has become of its parts since it last looked."""

    ledger: Ledger = field(default_factory=Ledger)
    ended: deque[tuple[Part, Outcome]] = field(default_factory=deque)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One run's part in a save: its names, and what ``ledger.propose`` answered for its record.

    Without ``proposed`` the checkpoint is outside of the ledger: nothing goes for it, and it never goes for another.
    """

    book: Book
    names: Names
    proposed: Proposed | None


class Pipeline:
    """Save into ``directory`` for the runs whose ``books`` are registered here. For the training thread only."""

    def __init__(self, directory: Path, options: Options, store: Store | None = None) -> None:
        self.directory = directory
        self.options = options
        self.identity = uuid4().hex
        self.books: list[Book] = []
        self.predecessors: set[str] = set()  # besides those of the records; "" stands for another program
        self._pool = Pool(options.max_images, options.max_host_bytes)
        self._barrier = Barrier()
        self._stager = Stager(self._pool, self._barrier, Frozen(), Copier())
        self._store = store or LocalStore(directory)
        self._writer = Writer(self._store)
        weakref.finalize(self, self._writer.abandon)
        self._ring: HostBuffer | None = None
        self._said_that_it_streams = False
        self._said_that_room_ends = False
        self._named: frozenset[object] = frozenset()
        self._told_of: set[str] = set()
        self._under_way: deque[tuple[Part, ...]] = deque()  # of the jobs queued, in their order
        self._last_time = 0.0
        self._captured_at: dict[tuple[Path, float], float] = {}  # what the manifest tells, where a record has its own
        self._last_size_bytes = 0

    def starts_after(self, time_s: float) -> None:
        """Let every time of capture be later than ``time_s``, whatever the clock says."""
        self._last_time = max(self._last_time, time_s)

    def candidate(self, snapshot: Snapshot, name: str) -> Record:
        """Return the record that ``snapshot`` would have as ``name``; its time is later than any before.

        Until it is written, its size is taken to be that of the one before.
        """
        return Record(
            path=self.directory / name,
            step=snapshot.step,
            epoch=snapshot.epoch,
            metrics=dict(snapshot.metrics),
            time=max(time.time(), min(math.nextafter(self._last_time + 1e-6, math.inf), sys.float_info.max)),
            size_bytes=self._last_size_bytes,
            reasons=snapshot.reasons,
            pinned=snapshot.pinned,
            run=self.identity,
            measured_at=dict(snapshot.measured_at),
            emergency=snapshot.emergency,
            flaw=snapshot.flaw,
        )

    def prepare(self, size_bytes: int, *, at_most: int | None) -> None:
        """Have memory ready for states of about ``size_bytes``; warn if the disk has no room for ``at_most`` of them.

        Cheap, and of no effect once the memory is there.
        """
        self._pool.prepare(size_bytes)
        free_bytes = self._store.free_bytes()
        if free_bytes is None:
            return
        held = {record.path: record.size_bytes for book in self.books for record in book.ledger.durable}
        found = room.shortage_at_start(
            self.directory, free_bytes, size_bytes, at_most=at_most, held_bytes=sum(held.values())
        )
        if found is not None:
            warn(found, stacklevel=5)

    def save(self, state: object, snapshot: Snapshot, parts: Sequence[Part], live: Live = NOTHING_LIVE) -> bool:
        """Stage ``state`` once and queue it under the names of all ``parts``; return once it is staged.

        With ``staging="deferred"``, what the optimizers in ``live`` own is staged later, and at the latest before their
        next step. The ledgers are changed only if staging succeeds. ``blocking``, or where no image fits: return once
        it is durable or has failed. Returns whether that is so.

        Raises:
            CaptureError: the state holds something that cannot be saved; nothing was changed.

        """
        began_s = time.perf_counter()
        captured = capture(state)
        layout = lay_out(len(captured.pickle), [storage.nbytes() for storage in captured.storages])
        records = [self._record(part, snapshot) for part in parts]
        ledgers = {id(part.book): part.proposed[0] for part in parts if part.proposed is not None}
        history = self._history([ledgers.get(id(book), book.ledger) for book in self.books], parts, records)
        seal = Seal(layout, self._manifest(captured, snapshot, records[0], history))
        staged, waited_s = self._staged(captured, layout, live)
        self._captured_at |= {(record.path, record.time): records[0].time for record in records[1:]}
        self._last_time, self._last_size_bytes = max(record.time for record in records), seal.size_bytes
        for part in parts:
            part.book.ledger = ledgers.get(id(part.book), part.book.ledger)
        first, *others = (part.names for part in parts)
        self._under_way.append(tuple(parts))
        asked = Asked(began_s, waited_s, time.perf_counter() - began_s)
        path = self.directory / first.name
        runs = self._runs()
        removals, holds_up = self._removals(parts, runs), self.options.blocking or isinstance(staged, StagedLive)
        try:
            verify, more = self.options.verify_after_write, tuple(others)
            job = Job(staged, seal, path, snapshot.step, first, asked, removals, more, runs, holds_up, verify)
            self._writer.submit(job)
            if holds_up:
                self._barrier.release()
                self._writer.wait()
        except BaseException:  # an interrupt: what is streamed must not be read any more
            if isinstance(staged, StagedLive):
                staged.abandon()
            raise
        self._warn_of_classes(captured)
        return holds_up

    def _staged(self, captured: Capture, layout: Layout, live: Live) -> tuple[Staged, float]:
        """Return the state staged, or being staged, and the seconds of waiting for an image."""
        self._barrier.release()
        asked_s = time.perf_counter()
        image = self._pool.acquire(layout.body_bytes)
        waited_s = time.perf_counter() - asked_s
        if image is None:
            self._say_that_it_streams(layout.body_bytes)
            self._ring = self._ring or ring()
            return StagedLive(captured, layout, self._ring), waited_s
        try:
            deferred = self.options.staging == "deferred"
            return self._stager.stage(image, captured, layout, live, deferred=deferred), waited_s
        except BaseException:
            self._pool.release(image)
            raise

    def _say_that_it_streams(self, size_bytes: int) -> None:
        if not self._said_that_it_streams:
            self._said_that_it_streams = True
            warn(
                f"checkpoints of {size_bytes / 1e9:.2f} GB do not fit into the host memory allowed for them "
                f"({self._pool.max_host_bytes / 1e9:.2f} GB): each goes to disk through a buffer of {RING_BYTES >> 20} "
                "MiB while training waits. Give a larger max_host_bytes=, or exclude_frozen=True if most weights are"
                " frozen.",
                stacklevel=6,
            )

    def _warn_of_classes(self, captured: Capture) -> None:
        """Say once of each class and function in the state that a later load will not take it on trust."""
        if unsafe := sorted(captured.unsafe - self._told_of):
            self._told_of.update(unsafe)
            warn(
                f"the state holds {', '.join(map(shortened, unsafe))}, which PyTorch loads only with "
                "weights_only=False, whatever it is told to trust: safepoint.load() and, in Lightning, trainer.fit() "
                "take that, and restore() cannot load the checkpoints. Put lists, dictionaries and numbers that fit "
                "into it instead.",
                stacklevel=6,
            )
        if captured.named <= self._named:
            return
        self._named |= captured.named
        new = [name for name in untrusted(captured.named) if name not in self._told_of]
        if new:
            self._told_of.update(new)
            warn(
                f"the state needs {', '.join(map(shortened, new))}, which PyTorch loads only if it is told to: a file "
                "can make classes do anything. To load the checkpoints, pass trust=[...] with these, or "
                "weights_only=False, in Lightning to trainer.fit(ckpt_path=...); or take them out of the state.",
                stacklevel=6,
            )

    @property
    def leads(self) -> bool:
        """Whether this process is the first of its group, the one that saves, or on its own."""
        return rank() == 0

    def claim(self, path: Path) -> bool:
        """Hold the checkpoint at ``path`` until there is a newer one, unless another process does; return whether.

        It says to others that the run is alive, and ends with this process at the latest.
        """
        try:
            return self._store.claim(path.relative_to(self.directory).as_posix())
        except FileNotFoundError:  # removed since the directory was read, perhaps by a living run
            return False
        except OSError:  # nobody can tell
            return True

    def let_go(self) -> None:
        """Hold no checkpoint any more."""
        self._store.let_go()

    def hold_back(self) -> None:
        """Return when everything that was deferred is copied: what it was copied from may change then."""
        self._barrier.release()

    @property
    def has_ended(self) -> bool:
        """Whether anything has ended since the last ``drain``; also where deferred copies get their verdict."""
        self._barrier.look()
        return self._writer.has_ended

    def drain(self) -> None:
        """Tell every book what has ended since the last call."""
        for outcome in self._writer.outcomes():
            self._look_at_room(outcome)
            for part in self._under_way.popleft():
                part.book.ended.append((part, outcome))

    def _look_at_room(self, outcome: Outcome) -> None:
        """Warn that the next save will not fit, once for as long as that is so and none fails."""
        if outcome.stats is None or outcome.free_bytes is None:
            self._said_that_room_ends = False
            return
        found = room.shortage_ahead(outcome.job.path, outcome.free_bytes, outcome.job.seal.size_bytes)
        if found is not None and not self._said_that_room_ends:
            warn(found, stacklevel=6)
        self._said_that_room_ends = found is not None

    def wait(self) -> None:
        """Return when everything queued has ended, and every book knows."""
        self._barrier.release()
        wait_and_show(self._writer)
        self.drain()

    def close(self) -> None:
        """Wait, end all threads and let go of the memory; the next ``save`` starts afresh."""
        self.wait()
        self._writer.close()
        self._barrier.close()
        self._stager.copier.close()
        self._ring = None
        self._pool.close()
        self._store.let_go()

    @property
    def pending_bytes(self) -> int:
        """How many bytes of what is queued are still to be written."""
        return self._writer.pending_bytes

    def has_under_way(self, book: Book) -> bool:
        """Tell whether anything that is queued has a part for ``book``."""
        return any(part.book is book for parts in self._under_way for part in parts)

    def names_under_way(self) -> set[str]:
        """Return every name that something queued will have."""
        return {name for parts in self._under_way for part in parts for name in part.names.all}

    def name_of(self, record: Record) -> str:
        """Return the name of ``record`` relative to the directory."""
        return record.path.relative_to(self.directory).as_posix()

    def verdict(self, record: Record, ledger: Ledger) -> bool | None:
        """Return whether ``record`` of ``ledger`` is pinned, as somebody has said since; ``None`` if nobody has."""
        path, place = str(record.path), os.path.join(self.directory, "")
        pin = pins.read(self._store, path[len(place) :]) if path.startswith(place) else None
        return None if pin is None else pin.verdict(record.run, self._times(record, ledger))

    def _record(self, part: Part, snapshot: Snapshot) -> Record:
        return self.candidate(snapshot, part.names.name) if part.proposed is None else part.proposed[1].record

    def _runs(self) -> frozenset[str]:
        """Return who wrote what this run may replace, or remove without a record of it: itself, and whom it goes on."""
        records = (record for book in self.books for record in book.ledger.records)
        return frozenset((self.identity, *self.predecessors, *(record.run for record in records)))

    def _removals(self, parts: Sequence[Part], any_own: frozenset[str]) -> tuple[Removal, ...]:
        """Return what goes once the save is durable under all names: never one of these names."""
        named = {name for part in parts for name in part.names.all}
        released = [
            (gone, self._times(gone, part.book.ledger))
            for part in parts
            if part.proposed is not None
            for gone in part.proposed[1].released
        ]
        removals = {
            self.name_of(gone): Removal(self.name_of(gone), frozenset((gone.run,)), times) for gone, times in released
        }
        for name in (name for part in parts for name in part.names.obsolete):
            removals.setdefault(name, Removal(name, any_own))
        return tuple(removal for name, removal in removals.items() if name not in named)

    def _times(self, gone: Record, ledger: Ledger) -> frozenset[float]:
        """Return which times of capture the file of ``gone`` may tell; another program's tells none."""
        if not gone.run:
            return frozenset()
        return frozenset(self._captured_at.get((gone.path, time), time) for time in ledger.times_of(gone))

    def _history(self, ledgers: Sequence[Ledger], parts: Sequence[Part], records: Sequence[Record]) -> tuple[Fate, ...]:
        """Return what the ledgers tell, oldest first, with this save in it under all its names."""
        fates: list[Fate] = []
        for part, record in zip(parts, records, strict=True):
            if part.proposed is None:
                fates.append(Fate(record, kept=True, reason="; ".join(record.reasons)))
            fates += (
                Fate(replace(record, path=self.directory / name), kept=True, reason=f"{ANOTHER_NAME}{part.names.name}")
                for name in (*part.names.links, *part.names.symlinks)
            )
        again = {fate.record.path for fate in fates}
        known = {
            (fate.record.path, fate.record.time): fate
            for ledger in ledgers
            for fate in ledger.history()
            if fate.record.path not in again
        }
        return (*sorted(known.values(), key=lambda fate: fate.record.time), *fates)

    def _manifest(self, captured: Capture, snapshot: Snapshot, record: Record, history: tuple[Fate, ...]) -> Manifest:
        unknown = Blob(0, "0" * 32)
        return Manifest(
            format_version=FORMAT_VERSION,
            run=self.identity,
            step=record.step,
            epoch=record.epoch,
            metrics=encoded_metrics(record.metrics),
            time=record.time,
            reasons=snapshot.reasons,
            pinned=record.pinned,
            position=None if snapshot.position is None else Position(*snapshot.position),
            producer=producer(),
            pickle=unknown,
            storages=(),
            tensors=captured.tensors,
            history=encoded_history(history, self.directory),
            measured_at=dict(record.measured_at),
            excluded=dict(snapshot.excluded),
            inexact=dict(snapshot.inexact),
            emergency=record.emergency,
            flaw=record.flaw,
        )


@functools.cache  # reads a file
def producer() -> dict[str, str]:
    """Return the versions of what writes a checkpoint."""
    return {
        "safepoint": importlib.metadata.version("safepoint"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
