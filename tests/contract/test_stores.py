"""What every store promises, and what a directory on disk promises besides."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from invariants import temporaries

from safepoint.errors import ConfigurationError
from safepoint.stores import Store, local
from safepoint.stores.disk import Disk
from safepoint.stores.local import LocalStore, check_directory, clean
from safepoint.stores.memory import MemoryStore


class Shop:
    """A store together with a way to look into it."""

    def __init__(self, store: Store, look: Callable[[], dict[str, bytes]]) -> None:
        self.store = store
        self.look = look

    def put(self, name: str, data: bytes, *, replace: bool = False) -> None:
        """Write ``data`` in two chunks."""
        half = len(data) // 2
        self.store.write(name, [data[:half], memoryview(data)[half:]], len(data), replace=replace)


def _files(directory: Path) -> dict[str, bytes]:
    paths = sorted(directory.rglob("*")) if directory.exists() else []
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(params=["local", "memory"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """Return one store of each kind; the directory of the local one is not there yet."""
    if request.param == "memory":
        memory = MemoryStore()
        return Shop(memory, lambda: dict(sorted(memory.files.items())))
    directory = tmp_path / "run" / "checkpoints"
    return Shop(LocalStore(directory), lambda: _files(directory))


def test_store_writes_chunks_one_after_another(shop: Shop) -> None:
    """Bytes and memory views arrive under the name, in order, with nothing between them."""
    shop.store.write("a.ckpt", iter([b"one", memoryview(b"two"), b"", b"three"]), 11, replace=False)
    assert shop.look() == {"a.ckpt": b"onetwothree"}


def test_store_writes_an_empty_file(shop: Shop) -> None:
    """Nothing to write is no error."""
    shop.put("a.ckpt", b"")
    assert shop.look() == {"a.ckpt": b""}


def test_store_refuses_a_taken_name(shop: Shop) -> None:
    """Without ``replace`` a name that is taken is refused, and what is there stays as it is."""
    shop.put("a.ckpt", b"old")
    with pytest.raises(FileExistsError):
        shop.put("a.ckpt", b"new")
    assert shop.look() == {"a.ckpt": b"old"}


def test_store_replaces_where_told(shop: Shop) -> None:
    """With ``replace`` the new content takes the name; a name that is free is no error."""
    shop.put("a.ckpt", b"old", replace=True)
    shop.put("a.ckpt", b"new one", replace=True)
    assert shop.look() == {"a.ckpt": b"new one"}


@pytest.mark.parametrize("operation", ["link", "symlink"])
def test_store_gives_a_second_name(shop: Shop, operation: str) -> None:
    """A second name shows the same bytes."""
    shop.put("a.ckpt", b"data")
    getattr(shop.store, operation)("a.ckpt", "last.ckpt")
    assert shop.look() == {"a.ckpt": b"data", "last.ckpt": b"data"}


@pytest.mark.parametrize("before", ["file", "link", "symlink"])
@pytest.mark.parametrize("operation", ["link", "symlink"])
def test_store_moves_a_second_name(shop: Shop, operation: str, before: str) -> None:
    """A name that shows something else is taken over, and what it showed keeps its own name and content."""
    shop.put("a.ckpt", b"old")
    shop.put("b.ckpt", b"new")
    if before == "file":
        shop.put("last.ckpt", b"something else")
    else:
        getattr(shop.store, before)("a.ckpt", "last.ckpt")
    getattr(shop.store, operation)("b.ckpt", "last.ckpt")
    assert shop.look() == {"a.ckpt": b"old", "b.ckpt": b"new", "last.ckpt": b"new"}


def test_store_does_not_replace_unless_told(shop: Shop) -> None:
    """A second name that must be new is refused where something has it, which stays what it is."""
    shop.put("a.ckpt", b"a")
    shop.put("b.ckpt", b"b")
    shop.store.link("a.ckpt", "new.ckpt", replace=False)
    with pytest.raises(FileExistsError):
        shop.store.link("a.ckpt", "b.ckpt", replace=False)
    assert shop.look() == {"a.ckpt": b"a", "b.ckpt": b"b", "new.ckpt": b"a"}


def test_store_links_twice(shop: Shop) -> None:
    """Giving a name that it already has changes nothing."""
    shop.put("a.ckpt", b"data")
    shop.store.link("a.ckpt", "last.ckpt")
    shop.store.link("a.ckpt", "last.ckpt")
    assert shop.look() == {"a.ckpt": b"data", "last.ckpt": b"data"}


def test_store_keeps_a_link_when_the_first_name_goes(shop: Shop) -> None:
    """A link is a name of the bytes, not of the other name."""
    shop.put("a.ckpt", b"data")
    shop.store.link("a.ckpt", "last.ckpt")
    shop.store.remove("a.ckpt")
    assert shop.look() == {"last.ckpt": b"data"}


def test_store_leaves_the_first_name_alone_when_a_link_is_replaced(shop: Shop) -> None:
    """Writing to a second name does not write through to the first."""
    shop.put("a.ckpt", b"data")
    shop.store.link("a.ckpt", "last.ckpt")
    shop.put("last.ckpt", b"other", replace=True)
    assert shop.look() == {"a.ckpt": b"data", "last.ckpt": b"other"}


def test_store_removes(shop: Shop) -> None:
    """A removed name is gone, and no other."""
    shop.put("a.ckpt", b"a")
    shop.put("b.ckpt", b"b")
    shop.store.remove("a.ckpt")
    assert shop.look() == {"b.ckpt": b"b"}


def test_store_removes_what_is_gone(shop: Shop) -> None:
    """Removing a name that is not there is no error."""
    shop.store.remove("a.ckpt")
    shop.put("a.ckpt", b"a")
    shop.store.remove("a.ckpt")
    shop.store.remove("a.ckpt")
    assert shop.look() == {}


def test_store_has_subdirectories(shop: Shop) -> None:
    """Names have parts; what they need is made."""
    shop.put("deep/er/a.ckpt", b"a")
    shop.store.link("deep/er/a.ckpt", "deep/last.ckpt")
    shop.store.symlink("deep/er/a.ckpt", "other/place/last.ckpt")
    assert shop.look() == {"deep/er/a.ckpt": b"a", "deep/last.ckpt": b"a", "other/place/last.ckpt": b"a"}
    shop.store.remove("deep/last.ckpt")
    assert "deep/last.ckpt" not in shop.look()


def _broken(error: Exception) -> Iterator[bytes]:
    yield b"some"
    raise error


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), ValueError("not a matter of the disk")])
def test_store_leaves_nothing_of_a_write_that_fails(shop: Shop, error: Exception, *, replace: bool) -> None:
    """Chunks that break off are an error, the same one, and leave what was there: not a byte more."""
    shop.put("other.ckpt", b"other")
    if replace:
        shop.put("a.ckpt", b"old")
    before = shop.look()
    with pytest.raises(type(error)) as caught:
        shop.store.write("a.ckpt", _broken(error), 100, replace=replace)
    assert caught.value is error
    assert shop.look() == before


def test_store_writes_after_a_write_that_failed(shop: Shop) -> None:
    """A failure leaves no name taken."""
    with pytest.raises(OSError, match="I/O"):
        shop.store.write("a.ckpt", _broken(OSError(errno.EIO, "I/O error")), 100, replace=False)
    shop.put("a.ckpt", b"data")
    assert shop.look() == {"a.ckpt": b"data"}


# A store in memory, as a double.


def test_memory_store_fails_where_told_and_once() -> None:
    """A failpoint raises before anything changes, and only once; the attempt is in the log."""
    memory = MemoryStore()
    memory.failures[("remove", "a")] = PermissionError("no")
    memory.write("a", [b"x"], 1, replace=False)
    with pytest.raises(PermissionError):
        memory.remove("a")
    assert memory.files == {"a": b"x"}
    memory.remove("a")
    assert memory.log[-2:] == [("remove", "a"), ("remove", "a")]


def test_memory_store_checks_the_announced_size() -> None:
    """A writer that announces another size than it writes is found out."""
    with pytest.raises(AssertionError, match="1 bytes written, 2 announced"):
        MemoryStore().write("a", [b"x"], 2, replace=False)


# A directory on disk.


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory that is there."""
    path = tmp_path / "checkpoints"
    path.mkdir()
    return path


@pytest.fixture(params=["unnamed", "named"])
def temporary_kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the store work in files without a name, and where a file system has none, in hidden ones."""
    if request.param == "named":
        monkeypatch.setattr(local, "_takes_unnamed", lambda *_: False)
    elif not local._takes_unnamed(tmp_path, Disk()):
        pytest.skip("this file system has no files without a name")
    return str(request.param)


def test_local_store_leaves_no_temporary(directory: Path, temporary_kind: str) -> None:
    """After writing, linking, refusing and failing there is nothing but the files themselves."""
    store = LocalStore(directory)
    store.write("a.ckpt", [b"data"], 4, replace=False)
    store.link("a.ckpt", "last.ckpt")
    store.link("a.ckpt", "last.ckpt")
    store.symlink("a.ckpt", "current.ckpt")
    store.symlink("a.ckpt", "current.ckpt")
    with pytest.raises(FileExistsError):
        store.write("a.ckpt", [b"new"], 3, replace=False)
    with pytest.raises(OSError, match="broken"):
        store.write("b.ckpt", _broken(OSError("broken")), 100, replace=True)
    assert sorted(os.listdir(directory)) == ["a.ckpt", "current.ckpt", "last.ckpt"]


def test_local_store_works_out_of_sight(directory: Path, temporary_kind: str) -> None:
    """While a file is written there is nothing beside its place or one hidden temporary, and nothing under its name."""
    seen: list[list[str]] = []

    def chunks() -> Iterator[bytes]:
        seen.append(sorted(os.listdir(directory)))
        yield b"data"

    LocalStore(directory).write("a.ckpt", chunks(), 4, replace=False)
    if temporary_kind == "unnamed":
        assert seen == [[]]
    else:
        ((temporary,),) = seen
        assert re.fullmatch(r"\.safepoint-[0-9a-f]{16}\.tmp", temporary)


def test_local_store_goes_by_hidden_names_where_a_file_needs_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file without a name cannot be given one (no links, no /proc) the store finds out before it writes."""
    link = os.link

    def refused(source: object, target: object, **options: object) -> None:
        if "src_dir_fd" in options:
            raise OSError(errno.ENOENT, "No such file or directory")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refused)
    store = LocalStore(directory)
    store.write("a.ckpt", [b"old"], 3, replace=False)
    store.write("a.ckpt", [b"data"], 4, replace=True)
    assert _files(directory) == {"a.ckpt": b"data"}


def test_local_store_does_not_clean_its_own_temporaries(directory: Path, temporary_kind: str) -> None:
    """A write that is under way in this very process is a living writer's."""
    found: list[list[Path]] = []

    def chunks() -> Iterator[bytes]:
        found.append(clean(directory))
        yield b"data"

    LocalStore(directory).write("a.ckpt", chunks(), 4, replace=False)
    assert found == [[]]
    assert _files(directory) == {"a.ckpt": b"data"}


def test_local_store_reserves_the_space_first(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has its full size before the first chunk is asked for, so that a full disk is found at once."""
    sizes: list[int] = []

    def chunks() -> Iterator[bytes]:
        (temporary,) = temporaries(directory)
        sizes.append(temporary.stat().st_size)
        yield bytes(100_000)

    monkeypatch.setattr(local, "_takes_unnamed", lambda *_: False)
    LocalStore(directory).write("a.ckpt", chunks(), 100_000, replace=False)
    assert sizes == [100_000]


def test_local_store_asks_for_no_chunk_on_a_full_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the space cannot be reserved nothing is written, and nothing is left."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    asked = iter([b"data"])
    with pytest.raises(OSError, match="No space left"):
        LocalStore(directory).write("a.ckpt", asked, 4, replace=False)
    assert list(asked) == [b"data"]
    assert os.listdir(directory) == []


def test_local_store_writes_where_space_cannot_be_reserved(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not know preallocation is written to all the same."""

    def unsupported(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    LocalStore(directory).write("a.ckpt", [b"data"], 4, replace=False)
    assert _files(directory) == {"a.ckpt": b"data"}


def test_local_store_writes_all_of_a_chunk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system may take less than it was given; the rest follows."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:3], offset))
    LocalStore(directory).write("a.ckpt", [b"0123456789"], 10, replace=False)
    assert _files(directory) == {"a.ckpt": b"0123456789"}


def test_local_store_discards_a_file_whose_fsync_fails(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed fsync is never tried again: the file is discarded and the error raised."""
    attempts: list[int] = []

    def failing(descriptor: int) -> None:
        attempts.append(descriptor)
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="I/O error"):
        LocalStore(directory).write("a.ckpt", [b"data"], 4, replace=False)
    assert len(attempts) == 1
    assert os.listdir(directory) == []


def test_local_store_gives_files_the_usual_mode(directory: Path, temporary_kind: str) -> None:
    """A checkpoint has the mode that any new file of the user's has."""
    (directory / "usual").touch()
    LocalStore(directory).write("a.ckpt", [b"data"], 4, replace=False)
    assert stat.S_IMODE((directory / "a.ckpt").stat().st_mode) == stat.S_IMODE((directory / "usual").stat().st_mode)


def test_local_store_links_without_a_copy(directory: Path) -> None:
    """A second name is a hard link: the same file."""
    store = LocalStore(directory)
    store.write("a.ckpt", [b"data"], 4, replace=False)
    store.link("a.ckpt", "last.ckpt")
    assert (directory / "a.ckpt").samefile(directory / "last.ckpt")
    assert not (directory / "last.ckpt").is_symlink()


@pytest.mark.parametrize("replace", [False, True])
def test_local_store_copies_where_links_are_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, replace: bool
) -> None:
    """Where the file system has no hard links names are still given, never over another file unless told."""

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    store = LocalStore(directory)
    store.write("a.ckpt", [b"data"], 4, replace=replace)
    store.link("a.ckpt", "last.ckpt")
    assert _files(directory) == {"a.ckpt": b"data", "last.ckpt": b"data"}
    assert not (directory / "a.ckpt").samefile(directory / "last.ckpt")
    with pytest.raises(FileExistsError):
        store.write("a.ckpt", [b"new"], 3, replace=False)
    assert sorted(os.listdir(directory)) == ["a.ckpt", "last.ckpt"]


def test_local_store_makes_relative_symbolic_links(directory: Path) -> None:
    """A symbolic link still holds after the directory has been moved."""
    store = LocalStore(directory)
    store.write("deep/a.ckpt", [b"data"], 4, replace=False)
    store.symlink("deep/a.ckpt", "other/last.ckpt")
    assert os.readlink(directory / "other" / "last.ckpt") == "../deep/a.ckpt"
    moved = directory.rename(directory.with_name("moved"))
    assert (moved / "other" / "last.ckpt").read_bytes() == b"data"


@pytest.mark.parametrize("operation", ["link", "symlink"])
def test_local_store_never_takes_the_place_of_a_directory(directory: Path, operation: str) -> None:
    """A directory that has the name of a link stays, with what is in it."""
    store = LocalStore(directory)
    store.write("a.ckpt", [b"data"], 4, replace=False)
    store.write("last.ckpt/kept.ckpt", [b"kept"], 4, replace=False)
    with pytest.raises(IsADirectoryError):
        getattr(store, operation)("a.ckpt", "last.ckpt")
    assert _files(directory) == {"a.ckpt": b"data", "last.ckpt/kept.ckpt": b"kept"}
    assert temporaries(directory) == []


def test_local_store_replaces_a_link_to_a_directory(directory: Path) -> None:
    """A symbolic link is a name like any other, whatever it points to."""
    store = LocalStore(directory)
    store.write("a.ckpt", [b"data"], 4, replace=False)
    (directory / "elsewhere").mkdir()
    (directory / "last.ckpt").symlink_to("elsewhere")
    store.link("a.ckpt", "last.ckpt")
    assert (directory / "last.ckpt").read_bytes() == b"data"
    assert list((directory / "elsewhere").iterdir()) == []


def test_local_store_refuses_a_name_that_a_dangling_link_has(directory: Path) -> None:
    """A symbolic link to nothing takes a name too."""
    (directory / "a.ckpt").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        LocalStore(directory).write("a.ckpt", [b"data"], 4, replace=False)
    assert (directory / "a.ckpt").is_symlink()
    assert not (directory / "nowhere").exists()


def test_local_store_never_shows_a_name_without_content(directory: Path) -> None:
    """A name that is moved to another checkpoint shows the old one or the new one at every moment."""
    store = LocalStore(directory)
    for name in ("a.ckpt", "b.ckpt"):
        store.write(name, [name.encode()], 6, replace=False)
    store.link("a.ckpt", "last.ckpt")
    seen = _traced(lambda: store.link("b.ckpt", "last.ckpt"), (directory / "last.ckpt").read_bytes)
    assert seen <= {b"a.ckpt", b"b.ckpt"}
    assert b"b.ckpt" in seen


def _traced(act: Callable[[], None], look: Callable[[], bytes]) -> set[bytes]:
    """Return everything that ``look`` shows at any call or return in ``act``."""
    seen: set[bytes] = set()
    looking = False

    def trace(*_: object) -> None:
        nonlocal looking
        if not looking:
            looking = True
            seen.add(look())
            looking = False

    sys.setprofile(trace)
    try:
        act()
    finally:
        sys.setprofile(None)
    seen.add(look())
    return seen


# Temporaries of others.


WRITER = """
import os, sys, time
from pathlib import Path
from safepoint.stores import local

def stop(*_):
    print("writing", flush=True)
    time.sleep(600)

def chunks():
    yield b"half"
    if MOMENT == "written":
        stop()

MOMENT = sys.argv[2]
if MOMENT == "named":
    Path.replace = stop
else:
    local._takes_unnamed = lambda *_: False
local.LocalStore(Path(sys.argv[1])).write("a.ckpt", chunks(), 4, replace=True)
"""


@pytest.fixture(params=["written", "named"])
def writing(request: pytest.FixtureRequest, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Return another process that has stopped while it writes, and that ends with the test.

    It has written half of a file with a hidden name, or just given a hidden name to a file that had none.
    """
    if request.param == "named" and not local._takes_unnamed(directory, Disk()):
        pytest.skip("this file system has no files without a name")
    command = [sys.executable, "-c", WRITER, str(directory), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


def test_clean_leaves_the_temporary_of_a_living_writer(directory: Path, writing: subprocess.Popen[str]) -> None:
    """What another process is writing at this moment is not touched."""
    (temporary,) = temporaries(directory)
    assert clean(directory) == []
    assert temporaries(directory) == [temporary]


def test_clean_removes_the_temporary_of_a_dead_writer(directory: Path, writing: subprocess.Popen[str]) -> None:
    """What a killed process left is removed, and told."""
    (temporary,) = temporaries(directory)
    writing.send_signal(signal.SIGKILL)
    assert writing.wait(timeout=60) == -signal.SIGKILL
    assert clean(directory) == [temporary]
    assert os.listdir(directory) == []


def test_local_store_cleans_at_its_first_write(directory: Path, writing: subprocess.Popen[str]) -> None:
    """A new run in the directory of a killed one removes what that left."""
    writing.kill()
    writing.wait(timeout=60)
    LocalStore(directory).write("b.ckpt", [b"data"], 4, replace=False)
    assert os.listdir(directory) == ["b.ckpt"]


def test_clean_removes_links_that_never_got_their_name(directory: Path) -> None:
    """A crash between making a link and naming it leaves a temporary, too; the checkpoint itself stays."""
    LocalStore(directory).write("a.ckpt", [b"data"], 4, replace=False)
    hard, symbolic = directory / ".safepoint-1.tmp", directory / ".safepoint-2.tmp"
    os.link(directory / "a.ckpt", hard)
    symbolic.symlink_to("a.ckpt")
    assert sorted(clean(directory)) == [hard, symbolic]
    assert _files(directory) == {"a.ckpt": b"data"}


def test_clean_touches_nothing_else(directory: Path) -> None:
    """Only names that begin as temporaries do are looked at, and a special file among them is not waited for."""
    for name in ("a.ckpt", ".hidden", "safepoint-1.tmp", ".lightning.tmp"):
        (directory / name).touch()
    os.mkfifo(directory / "pipe")
    (directory / ".safepoint-directory").mkdir()
    before = sorted(os.listdir(directory))
    assert clean(directory) == []
    assert sorted(os.listdir(directory)) == before


def test_clean_does_not_wait_for_a_pipe(directory: Path) -> None:
    """A FIFO with the name of a temporary is opened without waiting for whoever writes to it."""
    os.mkfifo(directory / ".safepoint-1.tmp")
    clean(directory)


def test_clean_of_a_missing_directory_is_nothing(directory: Path) -> None:
    """Where there is nothing, nothing is removed."""
    assert clean(directory / "missing") == []


# What can be written to.


def test_check_directory_accepts_what_can_be_made(directory: Path) -> None:
    """A directory that is not there yet, in one that is, is fine, and is not made."""
    check_directory(directory / "a" / "b", owner="dirpath")
    check_directory(directory, owner="dirpath")
    assert os.listdir(directory) == []


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_check_directory_refuses_a_file(directory: Path, below: str) -> None:
    """A file is no directory, and nothing can be made below one; the message names the argument and the file."""
    file = directory / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match=f"^dirpath=.*: {re.escape(str(file))} is a file"):
        check_directory(file / below, owner="dirpath")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_check_directory_refuses_what_cannot_be_written(directory: Path) -> None:
    """A directory without permission to write is refused before training."""
    directory.chmod(0o500)
    try:
        with pytest.raises(ConfigurationError, match="is not writable"):
            check_directory(directory, owner="dirpath")
    finally:
        directory.chmod(0o700)


# Durability.

STEPS = """
import sys
from pathlib import Path
from safepoint.stores import local

if sys.argv[2] == "named":
    local._takes_unnamed = lambda *_: False
store = local.LocalStore(Path(sys.argv[1]))
def act(): STEP
Path("/begin").exists()
act()
Path("/end").exists()
"""


def _calls(step: str, directory: Path, trace: Path, kind: str = "named") -> list[str]:
    """Return the system calls of ``step`` that matter, as the kernel sees them: ``call name [name]``."""
    watched = "fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,"
    watched += "fallocate,pwrite64,stat,newfstatat,statx"
    strace = ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={watched}"]
    code = STEPS.replace("STEP", step)
    done = subprocess.run([*strace, sys.executable, "-c", code, str(directory), kind], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"strace cannot trace here: {done.stderr.decode()[-200:]}")
    lines = trace.read_text().splitlines()
    begin = next(index for index, line in enumerate(lines) if '"/begin"' in line)
    end = next(index for index, line in enumerate(lines) if '"/end"' in line)
    found = [re.fullmatch(r"\d+ +(\w+)\((.*)\) += +0?.*", line) for line in lines[begin + 1 : end]]
    return [
        " ".join((_call(match[1]), *_names(match[2])))
        for match in found
        if match and "stat" not in match[1] and str(trace.parent) in match[2]
    ]


def _call(name: str) -> str:
    """Return the name of a system call without the mark of its variants."""
    return re.sub(r"(at2?|data)$", "", name.removeprefix("p").removesuffix("64")) if name != "fdatasync" else name


def _names(arguments: str) -> list[str]:
    """Return the base names of the paths in a call, with one word for every temporary, with a name or without."""
    paths = re.findall(r"\d+<([^>]*)>|\"(/(?!proc/)[^\"]*)\"", arguments)
    return [re.sub(r"^(\.safepoint-|#\d).*", "TEMPORARY", Path(one or other).name) for one, other in paths]


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@needs_strace
def test_local_store_publishes_only_what_is_durable(directory: Path, tmp_path: Path, temporary_kind: str) -> None:
    """Reserve, write, fsync the file, give it its name, fsync the directory: in this order, seen by the kernel."""
    step = "store.write('a.ckpt', [b'one', b'two'], 6, replace=False)"
    calls = _calls(step, directory, tmp_path / "trace", temporary_kind)
    assert calls[calls.index("fallocate TEMPORARY") :] == [
        "fallocate TEMPORARY",
        "write TEMPORARY",
        "write TEMPORARY",
        "fsync TEMPORARY",
        "link TEMPORARY a.ckpt",
        "unlink TEMPORARY",
        "fsync checkpoints",
    ]


@needs_strace
def test_local_store_replaces_only_by_what_is_durable(directory: Path, tmp_path: Path, temporary_kind: str) -> None:
    """A replacement is one rename of a file that is durable, and that has a hidden name only just before."""
    (directory / "a.ckpt").write_bytes(b"old")
    step = "store.write('a.ckpt', [b'new'], 3, replace=True)"
    calls = [call for call in _calls(step, directory, tmp_path / "trace", temporary_kind) if "unlink" not in call]
    assert calls[calls.index("fallocate TEMPORARY") :] == [
        "fallocate TEMPORARY",
        "write TEMPORARY",
        "fsync TEMPORARY",
        *(["link TEMPORARY TEMPORARY"] if temporary_kind == "unnamed" else []),
        "rename TEMPORARY a.ckpt",
        "fsync checkpoints",
    ]


@needs_strace
@pytest.mark.parametrize("operation", ["link", "symlink"])
def test_local_store_gives_names_durably(directory: Path, tmp_path: Path, operation: str) -> None:
    """A second name is made aside, takes its place in one step, and is made durable."""
    (directory / "a.ckpt").write_bytes(b"data")
    calls = _calls(f"store.{operation}('a.ckpt', 'last.ckpt')", directory, tmp_path / "trace")
    assert [call for call in calls if "unlink" not in call][-3:] == [
        "link a.ckpt TEMPORARY" if operation == "link" else "symlink TEMPORARY",
        "rename TEMPORARY last.ckpt",
        "fsync checkpoints",
    ]


@needs_strace
def test_local_store_makes_new_directories_durable(tmp_path: Path) -> None:
    """All that leads to a checkpoint, whoever made it, is made durable before anything is written there, and once."""
    (tmp_path / "runs").mkdir()
    step = "[store.write(name, [b'data'], 4, replace=False) for name in ('deep/a.ckpt', 'deep/b.ckpt')]"
    calls = _calls(step, tmp_path / "runs" / "x", tmp_path / "trace")
    assert calls[:5] == ["mkdir x", "mkdir deep", "fsync x", "fsync runs", f"fsync {tmp_path.name}"]
    assert calls.index("fallocate TEMPORARY") > calls.index(f"fsync {tmp_path.name}")
    assert [calls.count(f"fsync {name}") for name in ("x", "runs")] == [1, 1]


def _logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Log what the store asks of the operating system, in order."""
    log: list[str] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def name(path: object) -> str:
        return re.sub(r"^(\.safepoint-|#\d).*", "TEMPORARY", Path(str(path)).name)

    def logged_fsync(descriptor: int) -> None:
        log.append(f"fsync {name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def logged_link(source: Path, target: Path) -> None:
        log.append(f"link {name(source)} {name(target)}")
        link(source, target)

    def logged_replace(source: Path, target: Path) -> None:
        log.append(f"rename {name(source)} {name(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "link", logged_link)
    monkeypatch.setattr(os, "replace", logged_replace)
    return log


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name a descriptor")
def test_local_store_asks_for_durability_in_order(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same order where strace is missing: fsync the file, name it, fsync the directory."""
    monkeypatch.setattr(local, "_takes_unnamed", lambda *_: False)
    log = _logged(monkeypatch)
    store = LocalStore(directory / "new")
    store.write("a.ckpt", [b"data"], 4, replace=False)
    store.write("a.ckpt", [b"more"], 4, replace=True)
    store.link("a.ckpt", "last.ckpt")
    assert log[log.index("fsync TEMPORARY") :] == [
        "fsync TEMPORARY",
        "link TEMPORARY a.ckpt",
        "fsync new",
        "fsync TEMPORARY",
        "rename TEMPORARY a.ckpt",
        "fsync new",
        "link a.ckpt TEMPORARY",
        "rename TEMPORARY last.ckpt",
        "fsync new",
    ]


# Two processes, one directory.


def test_local_store_survives_another_process_that_cleans_at_the_worst_moment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaner that takes a temporary for abandoned between its making and its locking costs no checkpoint."""
    flock, attempts = local.fcntl.flock, 0
    holding: list[tuple[int, Path]] = []

    def contended(descriptor: int, operation: int) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            other = os.open(path, os.O_RDONLY)
            flock(other, local.fcntl.LOCK_EX)
            if operation & local.fcntl.LOCK_NB:
                holding.append((other, path))
            else:
                path.unlink()
                os.close(other)
        flock(descriptor, operation)

    def chunks() -> Iterator[bytes]:
        for other, path in holding:
            path.unlink(missing_ok=True)
            os.close(other)
        yield b"data"

    monkeypatch.setattr(local.fcntl, "flock", contended)
    LocalStore(directory).write("a.ckpt", chunks(), 4, replace=False)
    assert _files(directory) == {"a.ckpt": b"data"}


def test_clean_holds_the_lock_until_the_temporary_is_gone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that locks the file after the cleaner has looked must find it gone, not lose it later."""
    temporary = directory / ".safepoint-1.tmp"
    temporary.touch()
    states: list[bool] = []

    def watched(path: Path, *, missing_ok: bool = False) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            local.fcntl.flock(descriptor, local.fcntl.LOCK_EX | local.fcntl.LOCK_NB)
            states.append(False)
        except OSError:
            states.append(True)
        finally:
            os.close(descriptor)
        os.unlink(path)

    monkeypatch.setattr(Path, "unlink", watched)
    assert clean(directory) == [temporary]
    assert states == [True]
