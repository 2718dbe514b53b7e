"""Reading ahead past the page cache: the same bytes in the same order, whatever the size and the file system."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safepoint.stores.direct import read_chunks

MIB = 1 << 20


@contextlib.contextmanager
def _file(path: Path, data: bytes) -> Iterator[int]:
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 4096, MIB + 1, 4 * MIB, 4 * MIB + 1, 20 * MIB, 21 * MIB + 4095])
def test_read_chunks_yields_the_file_in_order(tmp_path: Path, size: int) -> None:
    """Chunk behind chunk, nothing left out and nothing twice, from one byte to more slabs than there are."""
    data = os.urandom(size)
    with _file(tmp_path / "x", data) as descriptor:
        found = bytearray()
        for offset, chunk in read_chunks(descriptor, size):
            assert offset == len(found)
            found += chunk
    assert found == data


@pytest.mark.parametrize("size", [100, 9 * MIB + 7])
def test_read_chunks_ends_where_the_file_ends(tmp_path: Path, size: int) -> None:
    """A file that turns out shorter than was said gives what it has."""
    data = os.urandom(size)
    with _file(tmp_path / "x", data) as descriptor:
        assert b"".join(bytes(chunk) for _, chunk in read_chunks(descriptor, size + 12 * MIB)) == data


def test_read_chunks_reads_a_part(tmp_path: Path) -> None:
    """No more is read than was asked for."""
    data = os.urandom(6 * MIB)
    with _file(tmp_path / "x", data) as descriptor:
        assert b"".join(bytes(chunk) for _, chunk in read_chunks(descriptor, 5 * MIB + 1)) == data[: 5 * MIB + 1]


def test_read_chunks_reads_where_direct_reads_are_refused() -> None:
    """On a file system that knows no O_DIRECT the same bytes come by way of the page cache."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("no file system in memory here")
    data, path = os.urandom(5 * MIB + 3), memory / f"safepoint-test-{os.getpid()}"
    try:
        with _file(path, data) as descriptor:
            assert b"".join(bytes(chunk) for _, chunk in read_chunks(descriptor, len(data))) == data
    finally:
        path.unlink()


def test_read_chunks_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """Closed half-way, it has ended its threads and left the descriptor as it was: for buffered reads, of any size."""
    with _file(tmp_path / "x", bytes(20 * MIB)) as descriptor:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        chunks = read_chunks(descriptor, 20 * MIB)
        next(chunks)
        assert any(thread.name.startswith("safepoint-disk") for thread in threading.enumerate())
        chunks.close()
        assert not any(thread.name.startswith("safepoint-disk") for thread in threading.enumerate())
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) == flags


def test_read_chunks_of_a_short_file_needs_no_thread(tmp_path: Path) -> None:
    """What fits into one slab is read at once: the threads would cost more than they bring."""
    with _file(tmp_path / "x", bytes(MIB)) as descriptor:
        chunks = read_chunks(descriptor, MIB)
        next(chunks)
        assert not any(thread.name.startswith("safepoint-disk") for thread in threading.enumerate())
