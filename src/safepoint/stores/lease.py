"""Who is alive: a writer locks its temporary, and a living run its newest checkpoint, for as long as the process lives.

Owns the descriptors that hold such locks, in this process and for it alone: the kernel gives a lock back when the last
descriptor of it is closed, so that a forked child closes its copies. It must know all of them: no fork falls between
the opening of a file and the note of it. Knows files and processes; knows no manifest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_keys = itertools.count()
_descriptors: dict[int, int] = {}
_forking = threading.RLock()
"""Held while a process forks, and while a descriptor is not noted yet."""


class Held:
    """An open file that is this process's alone, closed at the latest when nobody refers to this any more.

    ``opened`` opens it, and returns its descriptor.
    """

    def __init__(self, opened: Callable[[], int]) -> None:
        self._key = next(_keys)  # no descriptor: their numbers are used again
        with _forking:
            self.descriptor = _descriptors[self._key] = opened()
        self._closing = weakref.finalize(self, _close, self._key)
        self._closing.atexit = False  # background threads may still write then; the kernel closes it after them

    def close(self) -> None:
        """Close the file, unless that is done."""
        self._closing()

    def moved(self) -> Held:
        """Return what holds the file from now on, in the place of this."""
        self._closing.detach()
        with _forking:
            _descriptors.pop(self._key, None)
            return Held(lambda: self.descriptor)

    def lock(self, operation: int = fcntl.LOCK_EX) -> bool:
        """Lock the file; return whether nobody else has it: where a file system has no locks, nobody has."""
        try:
            fcntl.flock(self.descriptor, operation)
        except OSError as error:
            return error.errno not in _BUSY
        return True


class Lease:
    """The lock that a living run holds on one checkpoint at a time, its newest. For one thread at a time."""

    def __init__(self) -> None:
        self._held: Held | None = None

    def take(self, held: Held) -> None:
        """Hold the locked file of ``held`` from now on, and let go of what was held before."""
        before, self._held = self._held, held.moved()
        if before is not None:
            before.close()

    def claim(self, path: Path) -> bool:
        """Hold the checkpoint at ``path``, unless another process does; return whether it is held.

        Two that claim it at the same moment: one of them gets it.

        Raises:
            OSError: it cannot be opened.

        """
        held = _held_here(path)
        if held is None:
            held = Held(partial(_opened, path))
            if not held.lock(fcntl.LOCK_EX | fcntl.LOCK_NB) or not os.path.samestat(
                os.fstat(held.descriptor), path.stat()
            ):
                held.close()
                return False
        self.take(held)
        return True

    def let_go(self) -> None:
        """Hold nothing any more."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def let_go_of_the_removed(self) -> None:
        """Hold nothing that has no name any more: it would keep its room on the disk."""
        if self._held is not None and not os.fstat(self._held.descriptor).st_nlink:
            self.let_go()


def is_held_elsewhere(path: Path) -> bool:
    """Tell whether another process holds the file at ``path``; where nobody can tell, it does not."""
    try:
        if _descriptor_here(path) is not None:
            return False
        held = Held(partial(_opened, path))
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(held.descriptor).st_mode) and not held.lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        held.close()


def is_held_here(path: Path) -> bool:
    """Tell whether this process holds the file at ``path``."""
    return _descriptor_here(path) is not None


def holder(path: Path) -> int | None:
    """Return the process on this host that holds the file at ``path``, if the kernel tells."""
    try:
        found = path.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    # A line: number, kind, ADVISORY, mode, process, file, from, to; "->" stands in front of the kind of who waits.
    fields = (line.split() for line in locks)
    pids = (int(field[4]) for field in fields if field[1] == "FLOCK" and field[5] == file)
    return next((pid for pid in pids if pid > 0), None)


def _opened(path: Path) -> int:
    """Open for reading; for writing where no other lock is to be had (NFS), though no disk goes read-only then."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EBADF:
            os.close(descriptor)
            return os.open(path, os.O_RDWR | flags)
    return descriptor


def _held_here(path: Path) -> Held | None:
    """Return a share in the lock that this process has on the file at ``path``: a process is no other run to itself."""
    descriptor = _descriptor_here(path)
    if descriptor is None:
        return None
    try:
        held = Held(partial(os.dup, descriptor))
    except OSError:  # another thread has closed it since
        return None
    return held if os.path.samestat(os.fstat(held.descriptor), path.stat()) else None


def _descriptor_here(path: Path) -> int | None:
    wanted = path.stat()
    for descriptor in tuple(_descriptors.values()):
        with contextlib.suppress(OSError):  # another thread has closed it since
            if os.path.samestat(os.fstat(descriptor), wanted):
                return descriptor
    return None


def _close(key: int) -> None:
    with _forking:
        descriptor = _descriptors.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)


def _close_in_child() -> None:
    """Close what a fork has copied: the lock would live as long as the child, or another that the child forks."""
    descriptors = tuple(_descriptors.values())
    _descriptors.clear()
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child)
