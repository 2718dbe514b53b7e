"""What the machine can do at best, measured beside everything else: copy, write, read and hash the same bytes.

Memory is private, in huge pages and touched before. Large states cycle through a smaller buffer, which is still far
larger than any cache. The disk is used by O_DIRECT from one thread; two were not faster where this was written.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from isal import isal_zlib
from xxhash import xxh3_128

BUFFER_BYTES = 1 << 30
_SLAB_BYTES = 64 << 20
_PAGE_BYTES = 4096


class Limits:
    """The limits for saving and restoring ``tensors``, with files in ``directory``."""

    def __init__(self, tensors: list[torch.Tensor], directory: Path, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.nbytes]
        self.size_bytes = _whole_pages(sum(tensor.nbytes for tensor in self._tensors))
        largest = max(tensor.nbytes for tensor in self._tensors)
        size = _whole_pages(max(largest, min(self.size_bytes, buffer_bytes)))
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self._buffer = torch.frombuffer(self._map, dtype=torch.uint8)
        self._buffer.random_(0, 256)
        self._path = directory / "limit.bin"

    def copy(self) -> dict[str, float]:
        """Copy every tensor into warm memory, by torch and by memmove."""
        began = time.perf_counter()
        for target, tensor in zip(self._targets(), self._tensors, strict=True):
            target.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        copied = time.perf_counter()
        for target, tensor in zip(self._targets(), self._tensors, strict=True):
            ctypes.memmove(target.data_ptr(), tensor.data_ptr(), tensor.nbytes)
        return {"torch_s": copied - began, "memmove_s": time.perf_counter() - copied}

    def write(self) -> dict[str, float]:
        """Write as many bytes durably: preallocated, O_DIRECT, fsync."""
        began = time.perf_counter()
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_DIRECT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size_bytes)
            for offset, slab in self._slabs():
                if os.pwrite(descriptor, slab, offset) != len(slab):
                    raise OSError("the disk took less than it was given; free some space.")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return {"seconds": time.perf_counter() - began}

    def read(self) -> dict[str, float]:
        """Read them back into warm memory: O_DIRECT."""
        if not self._path.exists():
            self.write()
        began = time.perf_counter()
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
        try:
            for offset, slab in self._slabs():
                if os.preadv(descriptor, [slab], offset) != len(slab):
                    raise OSError("the disk gave less than was written.")
        finally:
            os.close(descriptor)
        return {"seconds": time.perf_counter() - began}

    def hash(self) -> dict[str, float]:
        """Compute CRC-32 and xxh3-128 of as many bytes; in CPU seconds."""
        began = time.thread_time()
        crc, xxh = 0, xxh3_128()
        for _, slab in self._slabs():
            crc = isal_zlib.crc32(slab, crc)
            xxh.update(slab)
        return {"cpu_s": time.thread_time() - began}

    def clean(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def _targets(self) -> Iterator[torch.Tensor]:
        offset = 0
        for tensor in self._tensors:
            if offset + tensor.nbytes > len(self._map):
                offset = 0
            yield self._buffer[offset : offset + tensor.nbytes]
            offset += _whole_pages(tensor.nbytes)

    def _slabs(self) -> Iterator[tuple[int, memoryview]]:
        view, step = memoryview(self._map), min(_SLAB_BYTES, len(self._map))
        starts = len(self._map) // step
        for index, offset in enumerate(range(0, self.size_bytes, step)):
            start = index % starts * step
            yield offset, view[start : start + min(step, self.size_bytes - offset)]


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES
