"""The one background pipeline: digest, write, name, remove, in this order.

Jobs run one after another in the order of submission. Nothing is removed before the job's own checkpoint is durable
under all its names, and once a job has failed nothing more is removed until the training thread has taken notice: what
later jobs were going to remove was decided in the belief that the failed one would be there. An error that may pass by
itself is tried again, each time from the beginning; what has a name to be removed is looked at first.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from safepoint import reader, removal
from safepoint.background import Background
from safepoint.errors import plain
from safepoint.records import SaveStats
from safepoint.removal import Left, Removal
from safepoint.sealing import Seal
from safepoint.staging import Staged
from safepoint.stores import Chunk, Replace, Store

logger = logging.getLogger("safepoint")

RETRY_AFTER_S = (0.1, 0.5, 2.0)
_TRANSIENT = frozenset(
    (
        errno.EIO,
        errno.EREMOTEIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ENOLCK,
        errno.ENOBUFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    )
)
"""What a medium says that may be well again a moment later: a full disk, a missing right or a wrong name is not."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Names:
    """Under which names a checkpoint appears, relative to the directory.

    ``replace`` allows it to take the place of a file called ``name``. ``links`` and ``symlinks`` are further names for
    the same bytes and replace what had them. Replaced is only what the run wrote itself; with ``overwrite``, anything.
    ``obsolete`` are names to remove once all of these are durable.
    """

    name: str
    replace: bool = False
    overwrite: bool = False
    links: tuple[str, ...] = ()
    symlinks: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every name that it will have."""
        return (self.name, *self.links, *self.symlinks)

    def without(self, missing: Collection[str]) -> Names:
        """Return the same without the further names that are ``missing``."""
        links = tuple(name for name in self.links if name not in missing)
        return replace(self, links=links, symlinks=tuple(name for name in self.symlinks if name not in missing))


@dataclass(frozen=True, slots=True)
class Asked:
    """How a save began: when, by ``time.perf_counter``, and how long it held training up until it was queued.

    ``waited_s`` is the part of ``stalled_s`` that was spent waiting for a free image.
    """

    began_s: float
    waited_s: float = 0.0
    stalled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One checkpoint and what to do with it.

    ``path`` is where it will be; ``holds_up``: training waits until it has ended. ``remove`` goes once the checkpoint
    is durable under all its names, of which ``more`` are those that others have for it: links to the same bytes, each
    with links of its own. ``runs`` are those whose files it may replace. ``verify``: read it back from the medium
    before it gets its name.
    """

    staged: Staged
    seal: Seal
    path: Path
    step: int
    names: Names
    asked: Asked
    remove: tuple[Removal, ...] = ()
    more: tuple[Names, ...] = ()
    runs: frozenset[str] = frozenset()
    holds_up: bool = False
    verify: bool = False

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every name that the checkpoint is to have."""
        return tuple(name for names in (self.names, *self.more) for name in names.all)

    def replaces(self, names: Names) -> Replace:
        """Return what the checkpoint may take its name from."""
        return names.overwrite or (self.is_own if names.replace else False)

    def is_own(self, descriptor: int) -> bool:
        """Tell whether an open file is one that the run wrote."""
        origin = reader.origin_of(descriptor)
        return origin is not None and removal.is_of(origin, self.runs)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    ``stats`` are there if its checkpoint is durable; ``error`` is what went wrong, if anything did; ``missing`` are the
    names that it did not get for that, ``still_there`` those that were to be removed and were not; ``free_bytes`` is
    the room left afterwards, if the medium tells.
    """

    job: Job
    stats: SaveStats | None = None
    error: Exception | None = None
    missing: tuple[str, ...] = ()
    still_there: tuple[str, ...] = ()
    free_bytes: int | None = None

    @property
    def durable(self) -> bool:
        """Whether the checkpoint is, under its first name at least."""
        return self.stats is not None

    @property
    def complete(self) -> bool:
        """Whether it is, under all its names."""
        return self.durable and not self.missing


class Writer:
    """Write jobs to ``store`` in a background thread, and give back the memory that they are staged in.

    Every method is for the training thread only.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = Background("writer")
        self._futures: deque[Future[Outcome]] = deque()
        self._queued_bytes = 0  # since the queue was empty; the training thread's
        self._done_bytes = 0  # of these; the writer thread's
        self._failures = 0  # the writer thread's
        self._failures_told = 0  # the training thread's

    def submit(self, job: Job) -> None:
        """Queue ``job``; what it is staged in belongs to the writer from now on."""
        if all(future.done() for future in self._futures):
            self._queued_bytes = self._done_bytes = 0
        self._queued_bytes += job.seal.size_bytes
        self._futures.append(self._thread.submit(self._run, job, self._failures_told))

    def outcomes(self) -> Iterator[Outcome]:
        """Take what became of the jobs that have ended since the last call, oldest first."""
        while self._futures and self._futures[0].done():
            outcome = self._futures[0].result()
            self._futures.popleft()
            self._failures_told += not outcome.complete
            yield outcome

    @property
    def has_ended(self) -> bool:
        """Whether ``outcomes`` has something new to tell: cheap enough to be asked at every step."""
        return bool(self._futures) and self._futures[0].done()

    @property
    def idle(self) -> bool:
        """Whether ``outcomes`` has told of every job."""
        return not self._futures

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether every job has ended, after ``timeout_s`` at the latest; ``outcomes`` tells how."""
        return not wait(self._futures, timeout_s).not_done

    def progress(self) -> tuple[int, int]:
        """Return how many bytes are with the store, of how many; both since there was nothing to do."""
        return self._done_bytes, self._queued_bytes

    @property
    def pending_bytes(self) -> int:
        """How many bytes are still to be written."""
        return 0 if all(future.done() for future in self._futures) else self._queued_bytes - self._done_bytes

    def abandon(self) -> None:
        """Log what has failed, or will: nobody is going to ask for it."""
        for future in self._futures:
            future.add_done_callback(_log_failure)

    def close(self) -> None:
        """Wait, and end the thread; the next ``submit`` starts another."""
        self._thread.close()

    def _run(self, job: Job, failures_told: int) -> Outcome:
        """Do ``job``, decided when ``failures_told`` failures were known; it removes only if there were no more."""
        outcome = Outcome(job, still_there=tuple(removal.name for removal in job.remove))
        try:
            stats = self._written(job)
        except Exception as error:  # noqa: BLE001 - handed to the training thread, which raises it
            self._failures += 1
            return replace(outcome, error=error, missing=job.all_names)
        finally:
            job.staged.release()
        missing, refusal = self._give_names(job)
        self._failures += bool(missing)
        committed_s = time.perf_counter() - job.asked.began_s
        stalled_s = committed_s if job.holds_up else stats.stalled_s
        stats = replace(stats, committed_s=committed_s, stalled_s=stalled_s)
        outcome = replace(outcome, stats=stats, error=refusal, missing=missing)
        outcome = outcome if failures_told < self._failures else self._removed(outcome)
        return replace(outcome, free_bytes=self._store.free_bytes())

    def _written(self, job: Job) -> SaveStats:
        """Make the checkpoint durable under its first name, and return what that has cost."""
        staged, seal, names, asked = job.staged, job.seal, job.names, job.asked
        written_at_s, done_bytes = 0.0, self._done_bytes

        def chunks() -> Iterator[Chunk]:
            nonlocal written_at_s
            self._done_bytes = done_bytes
            for chunk in seal.chunks(staged, staged.known_at()):
                yield chunk
                self._done_bytes += len(chunk)
            staged.sealed(seal.digest_at)  # an error here, as any in the chunks, leaves nothing of the file
            written_at_s = time.perf_counter()

        def check(descriptor: int) -> None:
            if job.verify:
                _read_back(descriptor)
            if names.replace or names.overwrite:
                self._set_aside(names.name)

        staged.wait()
        written_bytes = _persisting(
            lambda: self._store.write(names.name, chunks(), seal.size_bytes, replace=job.replaces(names), check=check)
        )
        staged.durable(names.name)
        return SaveStats(
            path=job.path,
            step=job.step,
            size_bytes=seal.size_bytes,
            written_bytes=written_bytes,
            waited_s=asked.waited_s,
            stalled_s=asked.stalled_s + staged.stalled_s,
            staged_s=staged.staged_at_s - asked.began_s,
            written_s=written_at_s - asked.began_s,
            committed_s=time.perf_counter() - asked.began_s,
        )

    def _give_names(self, job: Job) -> tuple[tuple[str, ...], Exception | None]:
        """Give the checkpoint its further names; return those that it did not get, with what refused the first."""
        given = {job.names.name}
        try:
            for give, name in self._further_names(job):
                _persisting(give)
                given.add(name)
        except Exception as error:  # noqa: BLE001 - as in _run
            return tuple(name for name in job.all_names if name not in given), error
        return (), None

    def _further_names(self, job: Job) -> Iterator[tuple[Callable[[], None], str]]:
        """Yield what gives each further name, and the name."""
        store = self._store
        for other in job.more:
            yield partial(self._give, store.link, job.names.name, other.name, job.replaces(other)), other.name
        for each in (job.names, *job.more):
            replaces = each.overwrite or job.is_own
            for name in each.links:
                yield partial(self._give, store.link, each.name, name, replaces), name
            for name in each.symlinks:
                yield partial(self._give, store.symlink, each.name, name, replaces), name

    def _give(self, give: Callable[..., None], target: str, name: str, replaces: Replace) -> None:
        if replaces is not False:
            self._set_aside(name)
        give(target, name, replace=replaces)

    def _set_aside(self, name: str) -> None:
        """Let what is pinned under ``name``, which is about to be taken from it, go on under another."""
        if (aside := removal.set_aside(self._store, name)) is not None:
            logger.warning("%s", plain(f"{name} is pinned, and is called {aside} from now on: {name} is the new one"))

    def _removed(self, outcome: Outcome) -> Outcome:
        pinned: list[str] = []
        for index, wanted in enumerate(outcome.job.remove):
            try:
                left = _persisting(partial(removal.remove, self._store, wanted))
            except OSError as error:
                return replace(outcome, error=error, still_there=(*outcome.still_there[index:], *pinned))
            if left is Left.ANOTHERS:
                logger.warning("%s is not what this run saved under that name, and was not removed", plain(wanted.name))
            elif left is Left.PINNED:
                logger.info("%s", plain(f"{wanted.name} was pinned since it was let go, and stays"))
                pinned.append(wanted.name)
        return replace(outcome, still_there=tuple(pinned))


def _log_failure(future: Future[Outcome]) -> None:
    outcome = future.result()
    if outcome.error is not None:
        what = "was saved, and then" if outcome.durable else "was not saved"
        logger.error("%s", plain(f"{outcome.job.path} {what}: {outcome.error}"))


def _persisting(act: Callable[[], T]) -> T:
    """Do ``act``, again after a while if the medium has a moment of weakness; raises what the last attempt raises."""
    for wait_s in RETRY_AFTER_S:
        try:
            return act()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            logger.warning("%s: trying again in %g s", plain(str(error)), wait_s)
            time.sleep(wait_s)
    return act()


def _read_back(descriptor: int) -> None:
    """Raise an OSError unless the medium gives back what was written; nobody can use what it gives back."""
    if problems := reader.verify_open(descriptor):
        raise OSError(errno.EIO, f"read back from the disk, it is not what was written ({'; '.join(problems)})")
