"""The one background pipeline: digest, write, name, remove.

Jobs run one after another in the order of submission. Nothing is removed before the job's own checkpoint is durable
under all its names, and once a job has failed nothing more is removed until the training thread has taken notice: what
later jobs were going to remove was decided in the belief that the failed one would be there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

import msgspec

from safepoint import image
from safepoint.background import Background
from safepoint.checksums import checksums
from safepoint.image import Entry, Layout
from safepoint.manifest import Blob, Manifest, encode
from safepoint.staging import Image, Pool
from safepoint.stores import Store

_SLAB_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Names:
    """Under which names a checkpoint appears, relative to the directory.

    ``replace`` allows it to take the place of a file called ``name``. ``links`` and ``symlinks`` are further names for
    the same bytes and replace what had them; ``obsolete`` are names to remove once all of these are durable.
    """

    name: str
    replace: bool = False
    links: tuple[str, ...] = ()
    symlinks: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every name that it will have."""
        return (self.name, *self.links, *self.symlinks)


@dataclass(frozen=True, slots=True)
class Job:
    """One staged checkpoint and what to do with it.

    ``manifest`` still lacks sizes and digests; ``remove`` goes once the checkpoint is durable under all its names, of
    which ``more`` are those that others have for it: links to the same bytes, each with links of its own.
    """

    image: Image
    layout: Layout
    manifest: Manifest
    names: Names
    remove: tuple[str, ...] = ()
    more: tuple[Names, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    ``durable`` says whether its checkpoint is; ``error`` is what went wrong, if anything did; ``still_there`` are the
    names that were to be removed and were not; ``size_bytes`` is the size of the file; ``write_s`` is how long the job
    took, waiting for its turn included.
    """

    job: Job
    durable: bool
    size_bytes: int
    error: Exception | None
    still_there: tuple[str, ...]
    write_s: float = 0.0


class Writer:
    """Write jobs to ``store`` in a background thread, and give their images back to ``pool``.

    Every method is for the training thread only.
    """

    def __init__(self, store: Store, pool: Pool) -> None:
        self._store = store
        self._pool = pool
        self._thread = Background("writer")
        self._futures: deque[Future[Outcome]] = deque()
        self._failures = 0  # the writer thread's
        self._failures_told = 0  # the training thread's

    def submit(self, job: Job) -> None:
        """Queue ``job``; its image belongs to the writer from now on."""
        self._futures.append(self._thread.submit(self._run, job, self._failures_told, time.monotonic()))

    def outcomes(self) -> Iterator[Outcome]:
        """Take what became of the jobs that have ended since the last call, oldest first."""
        while self._futures and self._futures[0].done():
            outcome = self._futures[0].result()
            self._futures.popleft()
            self._failures_told += not outcome.durable
            yield outcome

    @property
    def has_ended(self) -> bool:
        """Whether ``outcomes`` has something new to tell: cheap enough to be asked at every step."""
        return bool(self._futures) and self._futures[0].done()

    @property
    def idle(self) -> bool:
        """Whether ``outcomes`` has told of every job."""
        return not self._futures

    def wait(self) -> None:
        """Return when every job has ended; ``outcomes`` tells how."""
        for future in tuple(self._futures):
            future.result()

    def close(self) -> None:
        """Wait, and end the thread; the next ``submit`` starts another."""
        self._thread.close()

    def _run(self, job: Job, failures_told: int, submitted_s: float) -> Outcome:
        """Do ``job``, decided when ``failures_told`` failures were known; it removes only if there were no more."""
        try:
            size_bytes = self._commit(job)
        except Exception as error:  # noqa: BLE001 - handed to the training thread, which raises it
            self._failures += 1
            return Outcome(job, durable=False, size_bytes=0, error=error, still_there=job.remove)
        finally:
            self._pool.release(job.image)
        outcome = Outcome(
            job,
            durable=True,
            size_bytes=size_bytes,
            error=None,
            still_there=job.remove,
            write_s=time.monotonic() - submitted_s,
        )
        return outcome if failures_told < self._failures else self._removed(outcome)

    def _commit(self, job: Job) -> int:
        tail = seal(job)
        body_bytes = job.layout.body_bytes
        size_bytes = body_bytes + len(tail)
        names = job.names
        self._store.write(names.name, _slabs(job.image, body_bytes, tail), size_bytes, replace=names.replace)
        for other in job.more:
            self._store.link(names.name, other.name, replace=other.replace)
        for each in (names, *job.more):
            for name in each.links:
                self._store.link(each.name, name)
            for name in each.symlinks:
                self._store.symlink(each.name, name)
        return size_bytes

    def _removed(self, outcome: Outcome) -> Outcome:
        for index, name in enumerate(outcome.job.remove):
            try:
                self._store.remove(name)
            except OSError as error:
                return replace(outcome, error=error, still_there=outcome.job.remove[index:])
        return replace(outcome, still_there=())


def seal(job: Job) -> bytes:
    """Complete the image in place (digests, headers, checksums) and return the bytes that follow it."""
    draft, layout = job.manifest, job.layout
    crcs: dict[str, int] = {}

    def blob(entry: Entry) -> Blob:
        sums = checksums(job.image.view(entry.data_offset, entry.size_bytes))
        crcs[entry.name] = sums.crc
        return Blob(entry.size_bytes, sums.digest)

    manifest = encode(
        msgspec.structs.replace(
            draft, pickle=blob(layout.pickle), storages=tuple(blob(entry) for entry in layout.storages)
        )
    )
    final = image.lay_out(layout.pickle.size_bytes, [entry.size_bytes for entry in layout.storages], len(manifest))
    crcs |= {entry.name: checksums(content).crc for entry, content in final.constants}
    crcs[final.manifest.name] = checksums(manifest).crc
    tail: list[bytes] = []
    for offset, data in image.frame(final, crcs):
        if offset < layout.body_bytes:
            job.image.put(offset, data)
        else:
            tail.append(data)
        if offset == final.manifest.header_offset:
            tail.append(manifest)
    return b"".join(tail)


def _slabs(staged: Image, body_bytes: int, tail: bytes) -> Iterator[bytes | memoryview]:
    for offset in range(0, body_bytes, _SLAB_BYTES):
        yield staged.view(offset, min(_SLAB_BYTES, body_bytes - offset))
    yield tail
