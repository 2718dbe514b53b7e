"""Host memory for images and slabs: shared, in huge pages, faulted in ahead of use.

Fresh memory is 10 to 40 times slower to write than memory that has been touched, because the kernel clears each page at
the first touch. It is mapped shared: a fork (every DataLoader worker is one) while the disk reads private pages by
O_DIRECT would leave one of the two processes with a copy that the disk does not see (open(2), O_DIRECT). MADV_DONTFORK
would serve as well, but a child that collects the mapping as garbage would then unmap whatever it has put there.
This file knows bytes only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from pathlib import Path

from safepoint import cgroup

PAGE_BYTES = 4096
_STRIDE_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_MADV_POPULATE_WRITE = 23  # madvise(2), Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class HostMemory:
    """``size_bytes`` of memory, rounded up to whole pages, which cost nothing until they are touched.

    Raises:
        MemoryError: the kernel does not grant it.

    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = max(1, -(-size_bytes // PAGE_BYTES)) * PAGE_BYTES
        try:
            self._map = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{self.size_bytes} bytes of host memory for checkpoints: {error}") from error
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        # The address, and an object that keeps the mapping alive for as long as anybody holds it.
        self._anchor = (ctypes.c_char * self.size_bytes).from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)

    def populate(self, size_bytes: int) -> None:
        """Fault in the first ``size_bytes``, without holding the GIL; their content stays as it is."""
        for offset in range(0, min(size_bytes, self.size_bytes), _STRIDE_BYTES):
            length = min(_STRIDE_BYTES, self.size_bytes - offset)
            if not _libc.madvise(self.address + offset, length, _MADV_POPULATE_WRITE):
                continue
            if ctypes.get_errno() != errno.EINVAL:
                return  # no memory left: nothing is gained by running into that now
            self._read(offset, length)

    def _read(self, offset: int, size_bytes: int) -> None:
        """Fault pages in by reading them, on kernels that cannot be told to: a shared page is there once it is read."""
        piece = ctypes.create_string_buffer(min(_PIECE_BYTES, size_bytes))
        for start in range(offset, offset + size_bytes, len(piece)):
            ctypes.memmove(piece, self.address + start, min(len(piece), offset + size_bytes - start))

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Return the bytes from ``offset`` on, without a copy."""
        return memoryview(self._map)[offset : offset + size_bytes]


def copy(target: int, source: int, size_bytes: int) -> None:
    """Copy between two addresses in this thread, without holding the GIL."""
    ctypes.memmove(target, source, size_bytes)


def equal(first: memoryview, second: memoryview) -> bool:
    """Return whether two runs of bytes are the same, without holding the GIL; a memoryview compares one by one."""
    if len(first) != len(second):
        return False
    return not first or _libc.memcmp(_pointer(first), _pointer(second), len(first)) == 0


def _pointer(data: memoryview) -> ctypes.Array[ctypes.c_char] | bytes:
    return bytes(data) if data.readonly else (ctypes.c_char * len(data)).from_buffer(data)


def bytes_at(address: int, size_bytes: int) -> memoryview:
    """Return the bytes at an address, without a copy; whoever owns them keeps them alive."""
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def available_bytes(proc: Path = Path("/proc")) -> int:
    """Return how much memory this process may still take: what the machine has left, and what its cgroups allow."""
    return max(0, min([_machine_bytes(proc), *cgroup.left_bytes(proc)]))


def _machine_bytes(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
