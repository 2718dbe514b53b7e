"""Host images: where the state is copied to, the only thing that training waits for.

An image is one reused buffer that holds the file's bytes in front of the manifest, storages at their final offsets.
The pool holds at most ``max_images`` of them, within ``max_host_bytes``. Their memory is faulted in, and page-locked
where there is CUDA, in the background: the first one as soon as the size of the state is known, a further one when a
save had to wait for the first. Where not one fits, the state passes to the disk through a few slabs, and training
waits. Knows torch and memory; knows no file and no policy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from safepoint.background import Background
from safepoint.capture import Capture
from safepoint.deferral import Barrier, Deferral, Live
from safepoint.errors import CaptureError
from safepoint.frozen import Frozen, Held, take_in, unchanged
from safepoint.image import ALIGNMENT_BYTES, Layout
from safepoint.memory import available_bytes
from safepoint.sealing import SLAB_BYTES, Known
from safepoint.transfer import SMALL_BYTES, Copier, HostBuffer, Piece, tensors_in

logger = logging.getLogger("safepoint")

RING_BYTES = 3 * SLAB_BYTES
"""What a streamed state passes through: two slabs on their way to disk, and the one that is filled and digested."""


class Staged(Protocol):
    """A state on its way to the writer."""

    def wait(self) -> None:
        """Return when all of it is staged; raise what went wrong."""

    def slab(self, start: int, end: int) -> memoryview:
        """See ``sealing.Slabs``."""

    def sealed(self, digest_at: Callable[[int], str]) -> None:
        """Take in the digest of each storage, by its offset, before the file gets its name; raise if one is wrong."""

    def durable(self, name: str) -> None:
        """Take in that all of it is durable as ``name``."""

    def known_at(self) -> Mapping[int, Known]:
        """Return which storages are in an older checkpoint already, as far as is known, by their offset."""

    def release(self) -> None:
        """Give the memory back; the state is not needed any more."""

    @property
    def stalled_s(self) -> float:
        """For how long training was held back after the save had returned."""

    @property
    def staged_at_s(self) -> float:
        """When all of it was staged, by ``time.perf_counter``; once ``wait`` has returned."""


class Image:
    """One host buffer. A little larger than asked for: the next state may be."""

    def __init__(self, size_bytes: int) -> None:
        self.buffer = HostBuffer(size_bytes + size_bytes // 16)
        self.held: Held = {}
        self._asked_bytes = size_bytes
        self._pinned = False

    @property
    def size_bytes(self) -> int:
        """How much it holds."""
        return self.buffer.memory.size_bytes

    def prepare(self) -> None:
        """Fault the memory in and, where there is CUDA, lock its pages; copies may go on meanwhile."""
        self.buffer.memory.populate(self._asked_bytes)
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            status = runtime.cudaHostRegister(self.buffer.memory.address, self.size_bytes, 0)
            self._pinned = int(status) == 0
            if not self._pinned:
                logger.warning("host memory could not be page-locked (CUDA error %s): copies will be slower", status)

    def close(self) -> None:
        """Unlock the pages."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self.buffer.memory.address)  # type: ignore[no-untyped-call]
            self._pinned = False


class Pool:
    """At most ``max_images`` images, reused for the life of the run, of ``max_host_bytes`` together at most.

    ``max_host_bytes=None``: half of the memory that is available when the first image is asked for.
    """

    def __init__(self, max_images: int, max_host_bytes: int | None = None) -> None:
        self._max_images = max_images
        self._max_host_bytes = max_host_bytes
        self._free: list[Image] = []
        self._count = 0
        self._growing = False
        self._changed = threading.Condition()
        self._thread = Background("memory")

    def prepare(self, size_bytes: int) -> None:
        """Begin to fault in a first image for a state of ``size_bytes``, so that the first save need not."""
        with self._changed:
            if not self._count and self._allowed(size_bytes):
                self._free.append(self._made(size_bytes))

    def acquire(self, size_bytes: int) -> Image | None:
        """Return a free image for ``size_bytes``; wait for one if all are in use. ``None``: the budget allows none."""
        with self._changed:
            while allowed := self._allowed(size_bytes):
                while self._free:
                    image = self._free.pop()
                    if image.size_bytes >= size_bytes:
                        return image
                    self._drop(image)  # the state has grown
                if not self._count:
                    return self._made_if_granted(size_bytes)
                if self._count < allowed and not self._growing:
                    self._growing = True
                    self._thread.submit(self._grow, size_bytes)
                self._changed.wait()
            return None

    def release(self, image: Image) -> None:
        """Give an image back."""
        with self._changed:
            self._free.append(image)
            self._changed.notify()

    def close(self) -> None:
        """Let go of the memory that is not in use; the next save starts afresh."""
        self._thread.close()
        with self._changed:
            while self._free:
                self._drop(self._free.pop())

    @property
    def max_host_bytes(self) -> int:
        """How much memory all images may take together."""
        if self._max_host_bytes is None:
            self._max_host_bytes = available_bytes() // 2
        return self._max_host_bytes

    def _allowed(self, size_bytes: int) -> int:
        return min(self._max_images, self.max_host_bytes // max(1, size_bytes))

    def _made(self, size_bytes: int) -> Image:
        image = Image(size_bytes)
        self._count += 1
        self._thread.submit(image.prepare)
        return image

    def _made_if_granted(self, size_bytes: int) -> Image | None:
        try:
            return self._made(size_bytes)
        except MemoryError as error:
            logger.warning("%s: the state is streamed instead", error)
            return None

    def _drop(self, image: Image) -> None:
        image.close()
        self._count -= 1

    def _grow(self, size_bytes: int) -> None:
        """Add an image, faulted in before anybody gets it: whoever waits may get another one sooner."""
        image = None
        try:
            image = Image(size_bytes)
            image.prepare()
        except MemoryError:
            logger.warning("no memory for a further image of %d bytes: saves wait for those that are there", size_bytes)
        with self._changed:
            self._growing = False
            if image is None:
                self._max_images = self._count
            else:
                self._count += 1
                self._free.append(image)
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class StagedImage:
    """A state in an image of ``pool``, or on its way there.

    ``looked_at`` are its frozen parameters, ``kept`` those of them that the image held already.
    """

    image: Image
    pool: Pool
    copied_at_s: float
    looked_at: Held = field(default_factory=dict)
    kept: Held = field(default_factory=dict)
    deferral: Deferral | None = None

    def wait(self) -> None:
        """See ``Staged``."""
        if self.deferral is not None:
            self.deferral.wait()

    def slab(self, start: int, end: int) -> memoryview:
        """See ``sealing.Slabs``."""
        return self.image.buffer.memory.view(start, end - start)

    def sealed(self, digest_at: Callable[[int], str]) -> None:
        """See ``Staged``."""
        if self.deferral is not None:
            self.deferral.confirm()
        if self.image.held is not self.looked_at:  # written once more, it is not seen once more
            take_in(self.looked_at, self.kept, digest_at)
            self.image.held = self.looked_at

    def durable(self, name: str) -> None:
        """See ``Staged``."""
        for offset, sighting in self.looked_at.items():
            sighting.source, sighting.offset = name, offset

    def known_at(self) -> Mapping[int, Known]:
        """See ``Staged``."""
        steady = {offset: seen for offset, seen in self.looked_at.items() if seen.is_steady and seen.source}
        return {offset: Known(seen.source, seen.offset, seen.storage.nbytes()) for offset, seen in steady.items()}

    def release(self) -> None:
        """See ``Staged``."""
        self.pool.release(self.image)

    @property
    def stalled_s(self) -> float:
        """See ``Staged``."""
        return 0.0 if self.deferral is None else self.deferral.stalled_s

    @property
    def staged_at_s(self) -> float:
        """See ``Staged``."""
        return self.copied_at_s if self.deferral is None else self.deferral.copied_at_s


class StagedLive:
    """A state that is copied slab by slab as the writer asks for it; training must wait until that has ended."""

    stalled_s = 0.0
    staged_at_s = 0.0

    def __init__(self, captured: Capture, layout: Layout, ring: HostBuffer) -> None:
        self._ring = ring
        self._pickle, self._pickle_offset = captured.pickle, layout.pickle.data_offset
        self._pieces = _pieces(captured, layout)
        self._next = 0
        self._is_abandoned = False
        for device in {piece.storage.device for piece in self._pieces if piece.storage.device.type != "cpu"}:
            torch.get_device_module(device).current_stream(device).synchronize()

    def abandon(self) -> None:
        """Take no more of the state: training has not waited to the end, and may change it."""
        self._is_abandoned = True

    def wait(self) -> None:
        """See ``Staged``."""

    def slab(self, start: int, end: int) -> memoryview:
        """See ``sealing.Slabs``; they are asked for from the beginning to the end, perhaps more than once."""
        self._next = self._next if start else 0
        base = start % self._ring.memory.size_bytes
        self._check_not_abandoned()
        view = self._ring.memory.view(base, end - start)
        first, last = max(start, self._pickle_offset), min(end, self._pickle_offset + len(self._pickle))
        if first < last:
            view[first - start : last - start] = self._pickle[first - self._pickle_offset : last - self._pickle_offset]
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            first, last = max(start, piece.offset), min(end, piece.offset + piece.storage.nbytes())
            if first < last:
                self._ring.copy_range(piece, first - piece.offset, last - piece.offset, base + first - start)
            if piece.offset + piece.storage.nbytes() > end:
                break
            self._next += 1
        self.staged_at_s = time.perf_counter()
        return view

    def sealed(self, digest_at: Callable[[int], str]) -> None:  # noqa: ARG002 - nothing is remembered
        """See ``Staged``."""
        self._check_not_abandoned()

    def _check_not_abandoned(self) -> None:
        if self._is_abandoned:
            raise CaptureError("the save was interrupted while the state was streamed: this checkpoint was given up.")

    def durable(self, name: str) -> None:
        """See ``Staged``; nothing is remembered."""

    def known_at(self) -> Mapping[int, Known]:
        """See ``Staged``."""
        return {}

    def release(self) -> None:
        """See ``Staged``."""
        self._pieces = []


def ring() -> HostBuffer:
    """Return the buffer that states are streamed through."""
    return HostBuffer(RING_BYTES)


def image_bytes(state: object) -> int:
    """Return about how large an image ``state`` needs: its storages, each at a page of its own, and the rest."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(state))
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(size_bytes + 2 * ALIGNMENT_BYTES for size_bytes in sizes.values()) + (1 << 20)


@dataclass(frozen=True, slots=True)
class Stager:
    """What copying states into the images of one pipeline takes."""

    pool: Pool
    barrier: Barrier
    frozen: Frozen
    copier: Copier

    def stage(self, image: Image, captured: Capture, layout: Layout, live: Live, *, deferred: bool) -> StagedImage:
        """Copy the state into ``image``; return when all of it is there.

        ``deferred``: when what training may change at any time is there, with the rest under way behind the barrier.
        """
        pieces, owned = _pieces(captured, layout), live.owned()
        resting = live.frozen(owned)
        looked_at = self.frozen.look(pieces, resting)
        kept = unchanged(looked_at, image.held)
        if not deferred:
            kept = {offset: sighting for offset, sighting in kept.items() if sighting.is_live()}
        image.held = {}
        _put_pickle(image, captured, layout)
        may_wait = owned if deferred else {}
        moving = [piece for piece in pieces if piece.offset not in kept]
        later = [p for p in moving if p.storage.data_ptr() in may_wait and p.storage.nbytes() >= SMALL_BYTES]
        waiting = {piece.offset for piece in later}
        self.copier.copy_in(image.buffer, [piece for piece in moving if piece.offset not in waiting])
        deferral = None
        if deferred and (later or kept):
            deferral = self.barrier.defer(image.buffer, later, live, may_wait, list(kept.values()))
        return StagedImage(image, self.pool, time.perf_counter(), looked_at, kept, deferral)


def _put_pickle(image: Image, captured: Capture, layout: Layout) -> None:
    image.buffer.memory.view(layout.pickle.data_offset, len(captured.pickle))[:] = captured.pickle


def _pieces(captured: Capture, layout: Layout) -> Sequence[Piece]:
    return [
        Piece(storage, entry.data_offset)
        for storage, entry in zip(captured.storages, layout.storages, strict=True)
        if entry.size_bytes
    ]
