"""Files past the page cache: O_DIRECT writes and reads in slabs, buffered where a file system refuses them.

The page cache would cost a second copy, its memory, and several times the processor time. Order, contents and
guarantees are the same either way; nothing here is durable before the caller's fsync.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from safepoint.background import Background
from safepoint.memory import PAGE_BYTES, HostMemory
from safepoint.stores import Chunk, Unchanged

SLAB_BYTES = 32 << 20
IN_FLIGHT = 2
"""How many slabs are on their way at once, each by a thread of its own."""
_READ_SLAB_BYTES = 4 << 20
"""Short enough to be in the processor's cache still while it is hashed and copied."""
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


Share = Callable[[int, Unchanged, int], int]
"""(descriptor, chunk, offset) -> how many bytes of the chunk, from its beginning, need not be written."""


def write_chunks(descriptor: int, chunks: Iterable[Chunk], share: Share) -> int:
    """Write ``chunks`` one behind the other, from the beginning of the file; return how many bytes were not shared.

    Chunks that begin at a multiple of 4096 bytes, in the file as in memory, go past the page cache. A chunk must stay
    as it is until ``IN_FLIGHT`` further ones have been taken: the next is made while these are written.
    """
    threads = Background("disk", IN_FLIGHT)
    pending: deque[Future[int]] = deque()
    _set_direct(descriptor, on=True)
    offset = written_bytes = 0
    try:
        for chunk in chunks:
            while len(pending) >= IN_FLIGHT:
                written_bytes += pending.popleft().result()
            data = chunk.data if isinstance(chunk, Unchanged) else memoryview(chunk)
            whole = len(data) // PAGE_BYTES * PAGE_BYTES
            if whole:
                pending.append(threads.submit(_put, descriptor, chunk, data[:whole], offset, share))
            if whole < len(data):  # the end of the file; nothing behind it would begin at a page
                written_bytes += _drained(pending) + len(data) - whole
                _set_direct(descriptor, on=False)
                _write_at(descriptor, data[whole:], offset + whole)
            offset += len(data)
        return written_bytes + _drained(pending)
    finally:
        threads.close()


def read_chunks(descriptor: int, size_bytes: int) -> Generator[tuple[int, memoryview]]:
    """Yield (offset, bytes) of the file's first ``size_bytes``, in order; a chunk is valid until the next is asked for.

    Reads ahead in threads, past the page cache; what fits into one slab plainly and at once. Of a file that turns out
    shorter, what there is.
    """
    if size_bytes <= _READ_SLAB_BYTES:
        whole = memoryview(bytearray(size_bytes))
        yield 0, whole[: _read_at(descriptor, whole, 0)]
        return
    direct = _set_direct(descriptor, on=True)
    threads = Background("disk", IN_FLIGHT)
    # One more than are with the caller and on their way, so that the disk need not wait for the caller.
    slabs = [HostMemory(_READ_SLAB_BYTES).view(0, _READ_SLAB_BYTES) for _ in range(IN_FLIGHT + 2)]
    pending: deque[tuple[int, Future[int]]] = deque()
    try:
        for turn, offset in enumerate(range(0, size_bytes, _READ_SLAB_BYTES)):
            pending.append((turn, threads.submit(_read_at, descriptor, slabs[turn % len(slabs)], offset)))
            if len(pending) == len(slabs):
                yield _taken(pending, slabs, size_bytes)
        while pending:
            yield _taken(pending, slabs, size_bytes)
    finally:
        threads.close()
        if direct:
            _set_direct(descriptor, on=False)


def _taken(pending: deque[tuple[int, Future[int]]], slabs: list[memoryview], size_bytes: int) -> tuple[int, memoryview]:
    turn, future = pending.popleft()
    offset = turn * len(slabs[0])
    return offset, slabs[turn % len(slabs)][: min(future.result(), size_bytes - offset)]


def _drained(pending: deque[Future[int]]) -> int:
    total = 0
    while pending:
        total += pending.popleft().result()
    return total


def _put(descriptor: int, chunk: Chunk, data: memoryview, offset: int, share: Share) -> int:
    """Let the file have ``data``, whole pages of ``chunk``, at ``offset``; return how much had to be written for it."""
    shared_bytes = share(descriptor, replace(chunk, data=data), offset) if isinstance(chunk, Unchanged) else 0
    _write_at(descriptor, data[shared_bytes:], offset + shared_bytes)
    return len(data) - shared_bytes


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    left = data
    while left:
        written = _unrefused(descriptor, os.pwrite, left, offset)
        left, offset = left[written:], offset + written


def _read_at(descriptor: int, slab: memoryview, offset: int) -> int:
    done = 0
    while done < len(slab):
        count = _unrefused(descriptor, os.preadv, [slab[done:]], offset + done)
        done += count
        if not count or done % PAGE_BYTES:  # the end of the file, which no direct read goes on from
            break
    return done


def _unrefused(descriptor: int, transfer: Callable[[int, Any, int], int], data: object, offset: int) -> int:
    """Do ``transfer``; once more without O_DIRECT if refused: some file systems take the flag and not its use."""
    try:
        return transfer(descriptor, data, offset)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
    _set_direct(descriptor, on=False)
    return transfer(descriptor, data, offset)


def _set_direct(descriptor: int, *, on: bool) -> bool:
    """Switch O_DIRECT on or off; return whether that changed anything."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
    if wanted == flags:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, wanted)
    except OSError:
        return False
    return True
