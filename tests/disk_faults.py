"""Disks that are full, fail or refuse, for real: each fault has a directory to save into, and strikes it for a while.

Knows file systems, limits and system calls; knows nothing of what is saved. Where the machine lacks a tool or a right,
the test that asks for the fault is skipped and says why.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from file_systems import mounted, unmount
from injection import injected

NOBODY = 65534
BLOCK_BYTES = 4096
SMALL_BYTES = 64 << 10
"""Less than any checkpoint here."""
_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), of ext4 and XFS: stop at once, as when the device is gone
_ROOM = "size=16m"


@dataclass(frozen=True)
class Scene:
    """A directory to save into, which is not there yet, and the fault, which strikes until its context ends."""

    directory: Path
    strike: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: which errors it answers with, and its scene, set below a directory of one's own."""

    name: str
    errors: tuple[int, ...]
    scene: Callable[[Path], AbstractContextManager[Scene]]


@contextlib.contextmanager
def on(
    kind: str,
    strike: Callable[[Path], AbstractContextManager[None]],
    below: Path,
    *,
    options: str = _ROOM,
    make: tuple[str, ...] = (),
) -> Iterator[Scene]:
    """Set a scene on a file system of ``kind`` that ``strike`` strikes as a whole."""
    with mounted(kind, below, options=options, make=make) as disk:
        yield Scene(disk / "run", partial(strike, disk))


# No room.


@contextlib.contextmanager
def filled(disk: Path, *, left_bytes: int = 0) -> Iterator[None]:
    """Leave ``left_bytes`` on ``disk`` for a while."""
    reserve, ballast = disk / "reserve", disk / "ballast"
    with reserve.open("wb") as file:
        if left_bytes:
            os.posix_fallocate(file.fileno(), 0, left_bytes)
    with ballast.open("wb") as file:
        size_bytes, more_bytes = 0, 512 << 20
        while more_bytes >= BLOCK_BYTES:
            try:
                os.posix_fallocate(file.fileno(), size_bytes, more_bytes)
                size_bytes += more_bytes
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EFBIG):
                    raise
                file.truncate(size_bytes)
                more_bytes //= 2
    reserve.unlink()
    subprocess.run(["sync", "-f", disk], check=True)
    try:
        yield
    finally:
        ballast.unlink()
        subprocess.run(["sync", "-f", disk], check=True)


@contextlib.contextmanager
def filled_unseen(disk: Path) -> Iterator[None]:
    """Fill ``disk``; that there is no room is not found when space is reserved, but in the middle of the write."""
    with filled(disk), injected({"fallocate": "retval=0"}):
        yield


@contextlib.contextmanager
def crowded(disk: Path) -> Iterator[None]:
    """Use up the inodes of ``disk`` for a while."""
    crowd = disk / "crowd"
    crowd.mkdir()
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (crowd / str(number)).touch()
    try:
        yield
    finally:
        shutil.rmtree(crowd)


@contextlib.contextmanager
def _quota(below: Path) -> Iterator[Scene]:
    """Set a scene in a Btrfs subvolume with a quota group: the other file systems' quotas are rare in kernels."""
    with mounted("btrfs", below) as disk:
        volume = disk / "volume"
        _btrfs("subvolume", "create", volume)
        _btrfs("quota", "enable", disk)
        yield Scene(volume / "run", partial(_over_quota, volume))


@contextlib.contextmanager
def _over_quota(volume: Path) -> Iterator[None]:
    subprocess.run(["sync", "-f", volume], check=True)
    held_bytes = sum(path.stat().st_size for path in volume.rglob("*") if path.is_file())
    _btrfs("qgroup", "limit", str(held_bytes + 8 * SMALL_BYTES), volume)
    try:
        yield
    finally:
        _btrfs("qgroup", "limit", "none", volume)


def _btrfs(*arguments: str | Path) -> None:
    done = subprocess.run(["btrfs", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no quota groups here: {done.stderr.strip()}")


# A disk that fails.


@contextlib.contextmanager
def _thin(kind: str, below: Path) -> Iterator[Scene]:
    """Set a scene on a device that promises more than is behind it: space can be reserved, and not written."""
    make = {"ext4": ("-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"), "xfs": ("-K",)}[kind]
    with mounted("tmpfs", below, options="size=128m") as host, mounted(kind, host / kind, make=make) as disk:
        yield Scene(disk / "run", partial(_nothing_behind, host, disk))


@contextlib.contextmanager
def _nothing_behind(host: Path, disk: Path) -> Iterator[None]:
    try:
        with filled(host):
            yield
    finally:
        _mend(disk)


def _mend(disk: Path) -> None:
    """Unmount, check and mount again, as an administrator does once the device works."""
    (image,) = disk.parent.glob("*.img")
    unmount(disk)
    if image.stem == "ext4":
        subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True)  # 1: errors were corrected
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)


@contextlib.contextmanager
def _shut_down(disk: Path) -> Iterator[None]:
    """Stop the file system: nothing can be read or written until it is mounted again."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", 0))
    finally:
        os.close(descriptor)
    try:
        yield
    finally:
        _mend(disk)


@contextlib.contextmanager
def _answering(calls: str, answer: str, below: Path, *, at_directory: bool = False) -> Iterator[Scene]:
    """Set a scene on the machine's own disk, where system calls fail."""
    directory = below / "run"
    yield Scene(directory, lambda: injected({calls: answer}, path=directory if at_directory else None))


# A disk that refuses.


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Mount ``disk`` read-only for a while."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@contextlib.contextmanager
def _read_only_after_an_error(disk: Path) -> Iterator[None]:
    """Let an ext4 find an error in itself, for which it becomes read-only, as most are told to."""
    subprocess.run(["mount", "-o", "remount,errors=remount-ro", disk], check=True)
    source = subprocess.run(["findmnt", "-no", "SOURCE", disk], check=True, capture_output=True, text=True)
    trigger = Path("/sys/fs/ext4", Path(source.stdout.strip()).name, "trigger_fs_error")
    if not trigger.exists():
        pytest.skip("the ext4 of this kernel has no trigger_fs_error")
    trigger.write_text("by a test")
    try:
        yield
    finally:
        _mend(disk)


@contextlib.contextmanager
def forbidden(mode: int, below: Path) -> Iterator[Scene]:
    """Set a scene for a job that permissions bind: nobody's, if it is root who runs this."""
    del below  # which nobody else may enter
    with tempfile.TemporaryDirectory() as place, _unprivileged(Path(place)):
        yield Scene(Path(place, "run"), partial(_of_mode, Path(place), mode))


@contextlib.contextmanager
def _unprivileged(place: Path) -> Iterator[None]:
    """Be the owner of ``place``, whom permissions bind."""
    if os.geteuid():
        yield
        return
    os.chown(place, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def _of_mode(place: Path, mode: int) -> Iterator[None]:
    directory = place / "run" if (place / "run").exists() else place
    before = stat.S_IMODE(directory.stat().st_mode)
    directory.chmod(mode)
    try:
        yield
    finally:
        directory.chmod(before)


@contextlib.contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    """Lower a limit of this process for a while."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


@contextlib.contextmanager
def _limiting(which: int, soft: int, below: Path) -> Iterator[Scene]:
    yield Scene(below / "run", partial(limited, which, soft))


FILES_TOO_LARGE = Fault("a limit for files", (errno.EFBIG,), partial(_limiting, resource.RLIMIT_FSIZE, SMALL_BYTES))
NO_FILES_TO_OPEN = Fault("a limit for open files", (errno.EMFILE,), partial(_limiting, resource.RLIMIT_NOFILE, 0))
FULL_TMPFS = Fault("full tmpfs", (errno.ENOSPC,), partial(on, "tmpfs", filled))
FAILING_FSYNC = Fault("fsync fails", (errno.EIO,), partial(_answering, "fsync", "error=EIO"))
READ_ONLY_EXT4 = Fault("a read-only ext4", (errno.EROFS,), partial(on, "ext4", read_only))
_DEVICE = (errno.EIO, errno.ENOSPC, errno.EROFS)
FAULTS = (
    FULL_TMPFS,
    Fault("full ext4", (errno.ENOSPC,), partial(on, "ext4", filled)),
    Fault(
        "full ext4 that reserves nothing", (errno.ENOSPC,), partial(on, "ext4", filled, make=("-O", "^extents,^64bit"))
    ),
    Fault("xfs full in mid-write", (errno.ENOSPC,), partial(on, "xfs", filled_unseen)),
    Fault("no inodes on tmpfs", (errno.ENOSPC,), partial(on, "tmpfs", crowded, options=f"{_ROOM},nr_inodes=64")),
    Fault("a quota", (errno.EDQUOT,), _quota),
    Fault("nothing behind an ext4", _DEVICE, partial(_thin, "ext4")),
    Fault("an xfs whose device is gone", (errno.EIO,), partial(on, "xfs", _shut_down)),
    Fault("writes fail", (errno.EIO,), partial(_answering, "pwrite64", "error=EIO")),
    FAILING_FSYNC,
    Fault("no name can be given", (errno.EIO,), partial(_answering, "link,linkat", "error=EIO")),
    READ_ONLY_EXT4,
    Fault("an ext4 that found an error", (errno.EROFS, errno.EIO), partial(on, "ext4", _read_only_after_an_error)),
    Fault("a directory not to be written", (errno.EACCES,), partial(forbidden, 0o500)),
    Fault("a directory not to be entered", (errno.EACCES,), partial(forbidden, 0)),
    FILES_TOO_LARGE,
)
FURTHER_FAULTS = (
    Fault("full xfs", (errno.ENOSPC,), partial(on, "xfs", filled)),
    Fault("full btrfs", (errno.ENOSPC,), partial(on, "btrfs", filled)),
    *(
        Fault(f"{kind} full in mid-write", (errno.ENOSPC,), partial(on, kind, filled_unseen))
        for kind in ("tmpfs", "ext4", "btrfs")
    ),
    Fault("no inodes on ext4", (errno.ENOSPC,), partial(on, "ext4", crowded, make=("-N", "64"))),
    Fault("nothing behind an xfs", _DEVICE, partial(_thin, "xfs")),
    Fault("an ext4 whose device is gone", (errno.EIO,), partial(on, "ext4", _shut_down)),
    Fault("reserving fails", (errno.EIO,), partial(_answering, "fallocate", "error=EIO")),
    Fault("no file can be made", (errno.EIO,), partial(_answering, "openat", "error=EIO", at_directory=True)),
    Fault("a read-only tmpfs", (errno.EROFS,), partial(on, "tmpfs", read_only)),
)
"""Much like those above; for the long version."""
