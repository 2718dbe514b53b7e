"""Host images: where the state is copied to, the only thing that training waits for.

An image is one reused buffer that holds the file's bytes in front of the manifest, storages at their final offsets.
The pool holds at most ``max_images`` of them; when all are on their way to disk, the next save waits for one rather
than growing. Knows torch and memory; knows no file and no policy.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence

import torch

from safepoint.image import Layout


class Image:
    """One host buffer. Its memory is shared, so that no fork (a DataLoader worker) makes the kernel copy its pages."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._bytes: torch.Tensor | None = None

    def reserve(self, size_bytes: int) -> None:
        """Make room for ``size_bytes``; the buffer is kept if it is large enough."""
        if self._memory is None or len(self._memory) < size_bytes:
            self._bytes = self._memory = None
            self._memory = mmap.mmap(-1, size_bytes)
            self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)

    def stage(self, pickle: bytes, storages: Sequence[torch.UntypedStorage], layout: Layout) -> None:
        """Copy the pickle and every storage, from whatever device, to where the layout says."""
        self.reserve(layout.body_bytes)
        if self._bytes is None:
            raise AssertionError("reserve() has made the buffer")
        with torch.no_grad():
            for entry, storage in zip(layout.storages, storages, strict=True):
                if entry.size_bytes:
                    self._bytes[entry.data_offset : entry.data_offset + entry.size_bytes].copy_(_as_bytes(storage))
        self.put(layout.pickle.data_offset, pickle)

    def put(self, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset``."""
        self.view(offset, len(data))[:] = data

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Return the bytes of the image from ``offset`` on, without a copy."""
        if self._memory is None:
            raise AssertionError("an image is reserved before it is read")
        return memoryview(self._memory)[offset : offset + size_bytes]


class Pool:
    """At most ``max_images`` images, made when first needed and reused for the life of the run."""

    def __init__(self, max_images: int) -> None:
        self._free: list[Image] = [Image() for _ in range(max_images)]
        self._changed = threading.Condition()

    def acquire(self) -> Image:
        """Return a free image; wait for one if all are in use."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            return self._free.pop()

    def release(self, image: Image) -> None:
        """Give an image back."""
        with self._changed:
            self._free.append(image)
            self._changed.notify()


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
