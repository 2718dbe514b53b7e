"""What a directory on disk promises, on every kind of file system: same bytes, same guarantees, shared or written."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import file_systems
import pytest
from invariants import temporaries

from safepoint.memory import HostMemory
from safepoint.stores import Unchanged, direct, local
from safepoint.stores.disk import Disk
from safepoint.stores.extents import share
from safepoint.stores.local import LocalStore, clean

MIB = 1 << 20
_numbers = itertools.count()


@pytest.fixture(scope="module", params=file_systems.KINDS)
def any_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Mount a file system of each kind for as long as its tests run."""
    below = tmp_path_factory.mktemp(request.param)
    with file_systems.mounted(request.param, below):
        yield request.param, below


@pytest.fixture
def kind(any_kind: tuple[str, Path]) -> str:
    """Return the kind of the file system."""
    return any_kind[0]


@pytest.fixture
def device(any_kind: tuple[str, Path]) -> Path:
    """Return where the file system's image lies."""
    return any_kind[1]


@pytest.fixture
def directory(any_kind: tuple[str, Path]) -> Iterator[Path]:
    """Return a new directory on it, which goes with the test, so that there is room for the next."""
    path = any_kind[1] / "mounted" / f"run-{next(_numbers)}"
    path.mkdir()
    yield path
    shutil.rmtree(path)
    subprocess.run(["sync", "-f", path.parent], check=True)


def only(kind: str, kinds: tuple[str, ...]) -> None:
    """Skip what concerns other kinds."""
    if kind not in kinds:
        pytest.skip(f"concerns {', '.join(kinds)}")


def filled(size_bytes: int) -> memoryview:
    """Return memory as an image has it, with bytes that occur once."""
    view = HostMemory(size_bytes).view(0, size_bytes)
    view[:] = os.urandom(size_bytes)
    return view


def chunks_of(data: memoryview, size_bytes: int = MIB) -> list[memoryview]:
    """Cut ``data`` as a writer does."""
    return [data[start : start + size_bytes] for start in range(0, len(data), size_bytes)]


def free_bytes(directory: Path) -> int:
    """Return what is free once everything is on disk."""
    subprocess.run(["sync", "-f", directory], check=True)
    found = os.statvfs(directory)
    return found.f_bfree * found.f_frsize


# Bytes and names.


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 3 * MIB, 3 * MIB + 1234])
def test_local_store_writes_the_same_bytes_everywhere(directory: Path, size_bytes: int) -> None:
    """Whole pages or not, past the page cache or through it: new, replaced and linked files hold what was given."""
    data = filled(size_bytes)
    store = LocalStore(directory)
    assert store.write("a.ckpt", chunks_of(data), size_bytes, replace=False) == size_bytes
    store.write("b.ckpt", [b"old"], 3, replace=False)
    assert store.write("b.ckpt", chunks_of(data), size_bytes, replace=True) == size_bytes
    store.link("a.ckpt", "last.ckpt")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == dict.fromkeys(
        ("a.ckpt", "b.ckpt", "last.ckpt"), bytes(data)
    )


def test_local_store_leaves_no_trace_while_it_writes(kind: str, directory: Path) -> None:
    """On the file systems of training machines nothing is to be seen before there is something whole."""
    only(kind, ("ext4", "xfs", "btrfs", "tmpfs"))
    seen: list[list[str]] = []

    def chunks() -> Iterator[bytes]:
        seen.append(os.listdir(directory))
        yield b"data"

    for replace in (False, True):
        LocalStore(directory).write("a.ckpt", chunks(), 4, replace=replace)
    assert seen == [[], ["a.ckpt"]]


KILLED = """
import os, signal, sys
from pathlib import Path
from safepoint.stores import local

def chunks():
    yield b"half"
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "naming":
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
local.LocalStore(Path(sys.argv[1])).write("a.ckpt", chunks(), 4, replace=True)
"""


@pytest.mark.parametrize("moment", ["writing", "naming"])
def test_killed_writer_leaves_nothing_that_is_not_cleaned(directory: Path, moment: str) -> None:
    """A kill in mid-write leaves nothing where files need no name; else, and just before the rename, a hidden name."""
    (directory / "a.ckpt").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(directory), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    left = 0 if moment == "writing" and local._takes_unnamed(directory, Disk()) else 1
    assert len(temporaries(directory)) == left
    assert len(clean(directory)) == left
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {"a.ckpt": b"old"}


@pytest.mark.parametrize("temporary", ["unnamed", "named"])
@pytest.mark.parametrize("last", ["new", "replaced", "shared", "linked"])
def test_local_store_survives_a_power_cut(
    kind: str,
    device: Path,
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    temporary: str,
    last: str,
) -> None:
    """What was written, shared or named last is whole on the disk the moment that the call has returned."""
    only(kind, file_systems.JOURNALED)
    if temporary == "named":
        monkeypatch.setattr(local, "_takes_unnamed", lambda *_: False)
    data = filled(2 * MIB)
    store = store_with(directory, data)
    if last == "linked":
        store.link("old.ckpt", "new.ckpt")
    else:
        if last == "replaced":
            (directory / "new.ckpt").write_bytes(b"what was there")
        chunks = [Unchanged(data, "old.ckpt", 0)] if last == "shared" else chunks_of(data)
        store.write("new.ckpt", chunks, len(data), replace=last == "replaced")
    store.let_go()  # which keeps the file system in use
    with file_systems.after_power_cut(kind, device, tmp_path / "after") as after:
        found = {path.name: path.read_bytes() for path in (after / directory.name).iterdir()}
    assert found == dict.fromkeys(("old.ckpt", "new.ckpt"), bytes(data))


def test_local_store_finds_a_full_disk_first(kind: str, directory: Path) -> None:
    """More than there is room for is refused before the first chunk is asked for, and nothing is left."""
    asked = iter([b"data"])
    found = os.statvfs(directory)  # all of it: what is free can grow, when a file that was removed is let go of
    size_bytes = found.f_blocks * found.f_frsize + MIB
    if kind == "overlay":
        pytest.skip("its disk is the machine's own")
    with pytest.raises(OSError, match="No space left") as caught:
        LocalStore(directory).write("a.ckpt", asked, size_bytes, replace=False)
    assert caught.value.errno == errno.ENOSPC
    assert list(asked) == [b"data"]
    assert os.listdir(directory) == []


# Shared extents.


def store_with(directory: Path, data: memoryview, name: str = "old.ckpt") -> LocalStore:
    """Return a store that holds ``data`` as a durable checkpoint."""
    store = LocalStore(directory)
    store.write(name, chunks_of(data), len(data), replace=False)
    return store


def rewritten(store: LocalStore, chunks: list[bytes | memoryview | Unchanged], wanted: bytes) -> int:
    """Write ``chunks`` as a further checkpoint; return how many bytes were written, once it is seen to be right."""
    written_bytes = store.write("new.ckpt", chunks, len(wanted), replace=False)
    assert (store.directory / "new.ckpt").read_bytes() == wanted
    assert temporaries(store.directory) == []
    return written_bytes


def test_unchanged_bytes_are_shared_or_written(kind: str, directory: Path) -> None:
    """Whole blocks of an older checkpoint are not written where extents can be shared; the file is the same."""
    data = filled(8 * MIB + 1234)
    store = store_with(directory, data)
    chunks = [Unchanged(chunk, "old.ckpt", index * MIB) for index, chunk in enumerate(chunks_of(data))]
    written_bytes = rewritten(store, [*chunks, b"tail"], bytes(data) + b"tail")
    assert written_bytes == (1234 + 4 if kind in file_systems.SHARING else len(data) + 4)


def test_shared_bytes_take_no_room(kind: str, directory: Path) -> None:
    """Sharing frees what was reserved for the bytes: two files take the room of one."""
    only(kind, file_systems.SHARING)
    data = filled(32 * MIB)
    store = store_with(directory, data)
    before_bytes = free_bytes(directory)
    rewritten(store, [Unchanged(chunk, "old.ckpt", i * MIB) for i, chunk in enumerate(chunks_of(data))], bytes(data))
    assert before_bytes - free_bytes(directory) < 2 * MIB


def test_changed_bytes_go_between_shared_ones(kind: str, directory: Path) -> None:
    """Chunks that are new, unchanged, and unchanged at another place follow one another."""
    old, new = filled(4 * MIB), filled(MIB)
    store = store_with(directory, old)
    chunks = [new, Unchanged(old[:MIB], "old.ckpt", 0), new, Unchanged(old[3 * MIB :], "old.ckpt", 3 * MIB)]
    wanted = bytes(new) + bytes(old[:MIB]) + bytes(new) + bytes(old[3 * MIB :])
    assert rewritten(store, [*chunks], wanted) == (2 if kind in file_systems.SHARING else 4) * MIB


def test_shared_bytes_outlive_their_source(kind: str, directory: Path) -> None:
    """A checkpoint that shares extents is whole after the older one is removed, and after that is written to."""
    data = filled(2 * MIB)
    store = store_with(directory, data)
    rewritten(store, [Unchanged(data, "old.ckpt", 0)], bytes(data))
    with (directory / "old.ckpt").open("r+b") as file:
        file.write(b"overwritten")
    store.remove("old.ckpt")
    assert (directory / "new.ckpt").read_bytes() == bytes(data)


@pytest.mark.parametrize(("source_offset", "offset"), [(0, 512), (512, 0), (512, 512), (0, 4096 * 3 + 1)])
def test_unchanged_bytes_off_the_blocks_are_written(directory: Path, source_offset: int, offset: int) -> None:
    """Where the blocks of the two files do not line up everything is written."""
    data = filled(MIB)
    store = store_with(directory, data)
    part, front = data[source_offset : source_offset + 8192], filled(offset)
    chunks = [*([front] if offset else []), Unchanged(part, "old.ckpt", source_offset)]
    assert rewritten(store, chunks, bytes(front) + bytes(part)) == offset + 8192


def test_less_than_a_block_is_not_shared(directory: Path) -> None:
    """Where not one whole block is unchanged the file stays as it is."""
    data = filled(MIB)
    store_with(directory, data)
    with (directory / "new").open("w+b") as file:
        assert share(directory, file.fileno(), Unchanged(data[:100], "old.ckpt", 0), 0) == 0
        assert file.read() == b""


@pytest.mark.parametrize("source", ["gone.ckpt", "short.ckpt", "."])
def test_unchanged_bytes_without_a_source_are_written(directory: Path, source: str) -> None:
    """A source that has been removed meanwhile, is too short or is no file makes no difference."""
    data = filled(MIB)
    store = store_with(directory, data[:4096], "short.ckpt")
    assert rewritten(store, [Unchanged(data, source, 0)], bytes(data)) == len(data)


def test_unchanged_bytes_from_another_file_system_are_written(directory: Path, tmp_path: Path) -> None:
    """Extents are not shared across file systems."""
    data = filled(MIB)
    store = store_with(directory, data)
    (directory / "away.ckpt").symlink_to(tmp_path / "away.ckpt")
    (tmp_path / "away.ckpt").write_bytes(data)
    assert rewritten(store, [Unchanged(data, "away.ckpt", 0)], bytes(data)) == len(data)


def test_unchanged_bytes_that_have_changed_are_written(directory: Path) -> None:
    """A source that does not hold the bytes, whatever was believed, is never shared: the new file is right."""
    data = filled(2 * MIB)
    store = store_with(directory, data)
    with (directory / "old.ckpt").open("r+b") as file:
        file.seek(MIB)
        file.write(b"another checkpoint")
    assert rewritten(store, [Unchanged(data, "old.ckpt", 0)], bytes(data)) == len(data)
    assert (directory / "old.ckpt").read_bytes() != bytes(data)


def test_rot_on_the_disk_is_not_shared(kind: str, device: Path, directory: Path) -> None:
    """A bit of the source that the disk has lost is found before it gets into a second checkpoint."""
    only(kind, file_systems.SHARING)
    data = filled(2 * MIB)
    store = store_with(directory, data)
    _flip(device / f"{kind}.img", bytes(data[MIB : MIB + 4096]))
    assert rewritten(store, [Unchanged(data, "old.ckpt", 0)], bytes(data)) == len(data)


def _flip(image: Path, page: bytes) -> None:
    """Change a byte of ``page`` behind the file system's back."""
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
        at = disk.find(page)
        assert at > 0
        disk[at] ^= 1


# Failures on the way.


def test_full_disk_in_mid_write_is_the_error_that_comes_out(
    kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing could be reserved and the disk fills up: that error, no file, no descriptor, no thread."""
    if kind == "overlay":
        pytest.skip("its disk is the machine's own")
    monkeypatch.setattr(Disk, "reserve", lambda *_: None)
    data = filled(4 * MIB)
    before, taken = _resources(), 0

    def chunks() -> Iterator[memoryview]:
        nonlocal taken
        while True:
            taken += 1
            yield data

    free = free_bytes(directory)
    with pytest.raises(OSError, match="No space left") as caught:
        LocalStore(directory).write("a.ckpt", chunks(), 1 << 40, replace=False)
    assert caught.value.errno == errno.ENOSPC
    assert taken <= free // len(data) + 1 + direct.IN_FLIGHT
    assert os.listdir(directory) == []
    assert _resources() == before
    assert free - free_bytes(directory) < MIB


def _resources() -> tuple[list[str], int]:
    """Return the open files and the number of threads of this process."""
    proc = Path("/proc/self")
    files = [os.readlink(path) for path in (proc / "fd").iterdir() if path.is_symlink()]
    return sorted(path for path in files if path.startswith("/")), threading.active_count()
