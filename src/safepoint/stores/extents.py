"""Extents that a new file shares with a durable one, so that bytes which have not changed are not written again.

What is shared is read back from the new file and compared with what it should be: the older file may have been damaged
since it was written. Knows files, offsets and bytes; whatever is not shared, the caller writes.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from safepoint.memory import HostMemory, equal
from safepoint.stores import Unchanged

_FICLONERANGE = 0x4020940D  # linux/fs.h; where the number is another one, the call is refused and the bytes are written
_CLONE_RANGE = struct.Struct("=qQQQ")  # struct file_clone_range: from descriptor, from offset, length, to offset
_PIECE_BYTES = 4 << 20


def share(directory: Path, descriptor: int, chunk: Unchanged, offset: int) -> int:
    """Let the file show ``chunk`` at ``offset`` without writing it; return how many bytes from its beginning it does.

    None where anything refuses: the file system, for which whole blocks have to line up, or the source, which may be
    gone or damaged. What the range holds then is for the caller to write.
    """
    block_bytes = os.fstatvfs(descriptor).f_bsize
    size_bytes = len(chunk.data) // block_bytes * block_bytes
    if not size_bytes:  # which the kernel would take for all of the source
        return 0
    try:
        _clone(directory / chunk.source, chunk.offset, size_bytes, descriptor, offset)
        return size_bytes if _holds(descriptor, chunk.data[:size_bytes], offset) else 0
    except OSError:
        return 0


def _clone(source: Path, source_offset: int, size_bytes: int, descriptor: int, offset: int) -> None:
    opened = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _FICLONERANGE, _CLONE_RANGE.pack(opened, source_offset, size_bytes, offset))
    finally:
        os.close(opened)


def _holds(descriptor: int, data: memoryview, offset: int) -> bool:
    """Return whether the file has ``data`` at ``offset``. No cache holds a fresh clone: the disk answers."""
    piece_bytes = min(_PIECE_BYTES, len(data))
    piece = HostMemory(piece_bytes).view(0, piece_bytes)
    for start in range(0, len(data), piece_bytes):
        wanted = data[start : start + piece_bytes]
        found = piece[: len(wanted)]
        if os.preadv(descriptor, [found], offset + start) != len(wanted) or not equal(found, wanted):
            return False
    return True
