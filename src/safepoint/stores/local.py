"""A directory on a POSIX file system, written so that a crash at any point leaves only whole checkpoints.

Temporary in the same directory, preallocate, write, fsync, publish under the final name, fsync the directory and every
parent that was made. A temporary has no name where the file system can make such a file, else a hidden one. Its writer
locks it for as long as that lives: a hidden name whose file can be locked is dead and is cleaned away. Knows names and
bytes; knows nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safepoint.errors import ConfigurationError
from safepoint.naming import TEMPORARY_PREFIX
from safepoint.stores import Chunk, direct
from safepoint.stores.extents import share

_LINKS_REFUSED = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_PREALLOCATION_REFUSED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class LocalStore:
    """The checkpoints in ``directory``, which is made at the first write."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._cleaned: set[Path] = set()
        self._unnamed: dict[Path, bool] = {}

    def write(self, name: str, chunks: Iterable[Chunk], size_bytes: int, *, replace: bool) -> int:
        """See ``Store.write``; shares extents where the file system can."""
        final = self._parent_made(name)
        with _temporary(final.parent, unnamed=self._unnamed_in(final.parent)) as temporary:
            _preallocate(temporary.descriptor, size_bytes)
            written_bytes = direct.write_chunks(temporary.descriptor, chunks, partial(share, self.directory))
            os.fsync(temporary.descriptor)
            if replace:
                temporary.replace(final)
            else:
                temporary.publish(final)
        _sync_directory(final.parent)
        return written_bytes

    def link(self, target: str, name: str, *, replace: bool = True) -> None:
        """See ``Store.link``; a copy where the file system has no links."""
        with _held(self.directory / target):
            source, final = self.directory / target, self._parent_made(name)
            temporary = final if not replace else _temporary_path(final.parent)
            try:
                os.link(source, temporary)
            except OSError as error:
                if error.errno not in _LINKS_REFUSED:
                    raise
                self._copy(source, name, replace=replace)
                return
            if replace:
                _rename_over(temporary, final)
            else:
                _sync_directory(final.parent)

    def symlink(self, target: str, name: str) -> None:
        """See ``Store.symlink``; the link is relative, so that the directory can be moved."""
        with _held(self.directory / target):
            final = self._parent_made(name)
            temporary = _temporary_path(final.parent)
            temporary.symlink_to(os.path.relpath(self.directory / target, final.parent))
            _rename_over(temporary, final)

    def remove(self, name: str) -> None:
        """See ``Store.remove``."""
        (self.directory / name).unlink(missing_ok=True)

    def _copy(self, source: Path, name: str, *, replace: bool) -> None:
        with source.open("rb") as file:
            chunks = iter(lambda: file.read(4 << 20), b"")
            self.write(name, chunks, os.fstat(file.fileno()).st_size, replace=replace)

    def _unnamed_in(self, directory: Path) -> bool:
        if directory not in self._unnamed:
            self._unnamed[directory] = _takes_unnamed(directory)
        return self._unnamed[directory]

    def _parent_made(self, name: str) -> Path:
        final = self.directory / name
        _make_directory(final.parent)
        if final.parent not in self._cleaned:
            self._cleaned.add(final.parent)
            clean(final.parent)
        return final


def check_directory(directory: Path, *, owner: str) -> None:
    """Raise a ConfigurationError if checkpoints cannot be written to ``directory``; touches nothing."""
    existing = directory
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    except PermissionError as error:
        raise ConfigurationError(f"{owner}={str(directory)!r}: {existing} cannot be reached ({error}).") from None
    if not existing.is_dir():
        raise ConfigurationError(f"{owner}={str(directory)!r}: {existing} is a file; give a directory.")
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ConfigurationError(f"{owner}={str(directory)!r}: {existing} is not writable; change its mode.")


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock on what a further name is made for, by which ``clean`` sees that its temporary is in use."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def clean(directory: Path) -> list[Path]:
    """Remove the temporaries that dead writers left in ``directory``, and return their paths.

    A living writer, in this process or in another, holds a lock on its own; so does one on another machine where the
    file system shares locks. Where locks are refused, nothing is removed.
    """
    if not directory.is_dir():
        return []
    temporaries = [path for path in directory.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    return [path for path in temporaries if _removed_if_abandoned(path)]


def _removed_if_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        path.unlink(missing_ok=True)  # a symbolic link to nothing, or gone meanwhile
        return True
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Under the lock: a writer that gets the lock after this finds its file gone, and makes another.
        path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _temporary_path(directory: Path) -> Path:
    return directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"


@dataclass(frozen=True, slots=True)
class _Temporary:
    """A locked file that is to become a checkpoint; ``path`` is its hidden name, which an unnamed one has not yet."""

    descriptor: int
    path: Path
    unnamed: bool

    def replace(self, final: Path) -> None:
        """Let the file have the name ``final``, whatever had it."""
        if self.unnamed:
            self.link(self.path)  # no call gives a file without a name the name of another
        self.path.replace(final)

    def publish(self, final: Path) -> None:
        """Let the file have the name ``final``, unless another has it: ``link`` refuses where ``rename`` replaces."""
        try:
            self.link(final)
        except OSError as error:
            if error.errno not in _LINKS_REFUSED:
                raise
            if os.path.lexists(final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
            self.path.rename(final)

    def link(self, name: Path) -> None:
        """Give the file a further name, or its first."""
        if self.unnamed:
            # Given a directory descriptor, Python has the kernel follow the link in /proc to the file.
            os.link(f"/proc/self/fd/{self.descriptor}", name, src_dir_fd=self.descriptor)
        else:
            os.link(self.path, name)


@contextlib.contextmanager
def _temporary(directory: Path, *, unnamed: bool) -> Iterator[_Temporary]:
    """Open a temporary file in ``directory``; whatever is left under its hidden name at the end is removed."""
    path, descriptor = _unnamed_file(directory) if unnamed else _locked_file(directory)
    try:
        yield _Temporary(descriptor, path, unnamed)
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _takes_unnamed(directory: Path) -> bool:
    """Try whether a file without a name can be made in ``directory`` and be given one: too much can refuse either."""
    try:
        with _temporary(directory, unnamed=True) as temporary:
            temporary.link(temporary.path)
    except OSError:
        return False
    return True


def _unnamed_file(directory: Path) -> tuple[Path, int]:
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    _lock(descriptor)
    return _temporary_path(directory), descriptor


def _locked_file(directory: Path) -> tuple[Path, int]:
    while True:
        path = _temporary_path(directory)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        _lock(descriptor)
        # Between open and lock another process may have taken the file for abandoned; it is gone once we have the lock.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def _lock(descriptor: int, operation: int = fcntl.LOCK_EX) -> None:
    with contextlib.suppress(OSError):  # a file system without locks: nobody cleans there either
        fcntl.flock(descriptor, operation)


def _preallocate(descriptor: int, size_bytes: int) -> None:
    """Reserve the space, so that a full disk is found before anything is written."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in _PREALLOCATION_REFUSED:
            raise


def _rename_over(temporary: Path, final: Path) -> None:
    try:
        if final.is_dir() and not final.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
        temporary.replace(final)
    finally:
        # Between two names of one file, rename does nothing and leaves both (POSIX).
        temporary.unlink(missing_ok=True)
    _sync_directory(final.parent)


def _make_directory(directory: Path) -> None:
    """Make ``directory`` and its parents, each durable in the one above it."""
    missing = [directory, *directory.parents]
    for path in reversed([path for path in missing if not path.exists()]):
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
