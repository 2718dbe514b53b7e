"""Writing past the page cache: the same bytes whatever is refused, and nothing left of what fails."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import file_systems
import pytest

from safepoint.memory import HostMemory
from safepoint.stores import Chunk, direct
from safepoint.stores.disk import Disk
from safepoint.stores.local import LocalStore

MIB = 1 << 20


@pytest.fixture
def data() -> memoryview:
    """Return 8 MiB and a bit, as an image has them."""
    size_bytes = 8 * MIB + 100
    view = HostMemory(size_bytes).view(0, size_bytes)
    view[:] = os.urandom(size_bytes)
    return view


def chunks_of(data: memoryview) -> list[Chunk]:
    """Cut ``data`` into whole MiB, and a rest."""
    return [data[start : start + MIB] for start in range(0, len(data), MIB)]


def written(directory: Path, chunks: list[Chunk], size_bytes: int) -> bytes:
    """Write ``chunks`` and return what arrived."""
    assert LocalStore(directory).write("a.ckpt", chunks, size_bytes, replace=True) == size_bytes
    return (directory / "a.ckpt").read_bytes()


def _settled() -> tuple[list[str], int]:
    """Return what is open and running once what other tests have left is gone: threads take a moment to end."""
    found = None
    while found != (now := (_open_files(), threading.active_count())):
        found = now
        gc.collect()
        time.sleep(0.1)
    return now


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Assert that the test ends with the files and threads that it began with."""
    before = _settled()
    yield
    gc.collect()  # a store holds its newest file
    assert (_open_files(), threading.active_count()) == before


def _open_files() -> list[str]:
    paths = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sorted(target for path in paths if (target := os.readlink(path)).startswith("/"))


# The same bytes, whatever is refused.


def is_direct(descriptor: int) -> bool:
    """Return whether the file is written past the page cache now."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def test_whole_pages_go_past_the_page_cache(
    tmp_path: Path, data: memoryview, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """Whole pages are written directly, the rest of the file is not; several threads write."""
    pwrite = os.pwrite
    seen: list[tuple[int, bool]] = []
    names: set[str] = set()

    def watched(descriptor: int, part: memoryview, offset: int) -> int:
        seen.append((offset, is_direct(descriptor)))
        names.add(threading.current_thread().name)
        return pwrite(descriptor, part, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    assert written(tmp_path, chunks_of(data), len(data)) == bytes(data)
    assert sorted(seen) == [*((index * MIB, True) for index in range(8)), (8 * MIB, False)]
    assert sum("disk" in name for name in names) == direct.IN_FLIGHT


def test_o_direct_refused_as_a_flag(
    tmp_path: Path, data: memoryview, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """A file system that refuses the flag is written to through the page cache."""
    real = fcntl.fcntl

    def refusing(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, command, argument)

    monkeypatch.setattr(direct.fcntl, "fcntl", refusing)
    assert written(tmp_path, chunks_of(data), len(data)) == bytes(data)


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("first", [0, 3])
def test_o_direct_refused_at_a_write(
    tmp_path: Path, data: memoryview, monkeypatch: pytest.MonkeyPatch, nothing_left: None, refusal: int, first: int
) -> None:
    """A file system that takes the flag and refuses a write, the first or a later one, is written to all the same."""
    pwrite = os.pwrite

    def refusing(descriptor: int, part: memoryview, offset: int) -> int:
        if offset >= first * MIB and is_direct(descriptor):
            raise OSError(refusal, os.strerror(refusal))
        return pwrite(descriptor, part, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    assert written(tmp_path, chunks_of(data), len(data)) == bytes(data)


@pytest.mark.parametrize("taken_bytes", [4096, 5000, 3])
def test_short_writes_are_gone_on_with(
    tmp_path: Path, data: memoryview, monkeypatch: pytest.MonkeyPatch, nothing_left: None, taken_bytes: int
) -> None:
    """The kernel may take less than it was given, down to an odd number of bytes; the rest follows."""
    pwrite = os.pwrite

    def short(descriptor: int, part: memoryview, offset: int) -> int:
        return pwrite(descriptor, part[: max(taken_bytes, len(part) // 2)], offset)

    monkeypatch.setattr(os, "pwrite", short)
    assert written(tmp_path, chunks_of(data), len(data)) == bytes(data)


@pytest.mark.parametrize("shift", [1, 512, 2048])
def test_memory_off_the_pages_is_written(tmp_path: Path, data: memoryview, nothing_left: None, shift: int) -> None:
    """Chunks that begin in the middle of a page of memory are written, directly or not."""
    part = data[shift:]
    assert written(tmp_path, chunks_of(part), len(part)) == bytes(part)


def test_chunks_off_the_pages_of_the_file_are_written(tmp_path: Path, data: memoryview, nothing_left: None) -> None:
    """Chunks of any size may stand anywhere, bytes objects among them."""
    chunks = [b"head", data[: MIB + 1], b"", bytes(data[MIB + 1 : 3 * MIB]), data[3 * MIB :], b"tail"]
    assert written(tmp_path, chunks, len(data) + 8) == b"head" + bytes(data) + b"tail"


def test_chunk_may_be_reused_once_enough_others_were_taken(
    tmp_path: Path, data: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One buffer more than are on their way is enough to make chunks in, however late the disk is."""
    pwrite = os.pwrite
    buffers = [HostMemory(MIB).view(0, MIB) for _ in range(direct.IN_FLIGHT + 1)]

    def late(descriptor: int, part: memoryview, offset: int) -> int:
        threading.Event().wait(0.02)
        return pwrite(descriptor, part, offset)

    def chunks() -> Iterator[memoryview]:
        for index in range(8):
            buffer = buffers[index % len(buffers)]
            buffer[:] = data[index * MIB : (index + 1) * MIB]
            yield buffer

    monkeypatch.setattr(os, "pwrite", late)
    LocalStore(tmp_path).write("a.ckpt", chunks(), 8 * MIB, replace=False)
    assert (tmp_path / "a.ckpt").read_bytes() == bytes(data[: 8 * MIB])


# Failures.


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the kernel refuse to write beyond 3 MiB of a file, and find it out late."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(Disk, "reserve", lambda *_: None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_error_in_a_thread_comes_out(tmp_path: Path, data: memoryview, small_files: None, nothing_left: None) -> None:
    """What the kernel says to a write in one of the threads is raised; no file is left, and few chunks were taken."""
    taken = 0

    def chunks() -> Iterator[memoryview]:
        nonlocal taken
        for chunk in range(8):
            taken += 1
            yield data[chunk * MIB : (chunk + 1) * MIB]

    with pytest.raises(OSError, match="File too large") as caught:
        LocalStore(tmp_path).write("a.ckpt", chunks(), 8 * MIB, replace=False)
    assert caught.value.errno == errno.EFBIG
    assert taken <= 4 + direct.IN_FLIGHT
    assert os.listdir(tmp_path) == []


def test_first_of_two_errors_comes_out(
    tmp_path: Path, data: memoryview, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """If both threads fail, the error of the bytes that come first in the file is the one that is raised."""
    later_failed = threading.Event()

    def failing(descriptor: int, part: memoryview, offset: int) -> int:
        if offset:
            later_failed.set()
            raise OSError(errno.ENOSPC, "second")
        later_failed.wait()
        raise OSError(errno.EIO, "first")

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OSError, match="first"):
        LocalStore(tmp_path).write("a.ckpt", chunks_of(data), len(data), replace=False)
    assert os.listdir(tmp_path) == []


def test_chunks_that_break_off_come_out(tmp_path: Path, data: memoryview, nothing_left: None) -> None:
    """An error where the chunks come from is raised once what was on its way has arrived; no file is left."""

    def chunks() -> Iterator[memoryview]:
        yield from (data[:MIB], data[MIB : 2 * MIB])
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        LocalStore(tmp_path).write("a.ckpt", chunks(), len(data), replace=False)
    assert os.listdir(tmp_path) == []


def test_disk_that_fails_comes_out(tmp_path: Path, data: memoryview, nothing_left: None) -> None:
    """A disk that promises space and does not have it (thinly provisioned) is an error, and no name is left."""
    with (
        file_systems.mounted("tmpfs", tmp_path, options="size=20m") as disk,
        file_systems.mounted("ext4", disk / "image") as directory,
    ):
        store, whole = LocalStore(directory / "run"), 0
        with pytest.raises(OSError, match=r"No space|Input/output"):
            for whole in range(5):
                store.write(f"{whole}.ckpt", chunks_of(data), len(data), replace=False)
        assert sorted(os.listdir(directory / "run")) == [f"{number}.ckpt" for number in range(whole)]
        assert 0 < whole < 4
        store.let_go()
