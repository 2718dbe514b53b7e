"""A directory on a POSIX file system, written so that a crash at any point leaves only whole checkpoints.

Temporary in the same directory, preallocate, write, fsync, publish under the final name, fsync the directory and every
one above it. A temporary has no name where the file system can make such a file, else a hidden one. Its writer
locks it for as long as that lives: a hidden name whose file can be locked is dead and is cleaned away. The lock stays
on the newest checkpoint, which tells that its run is alive. After an error nothing of a file is used any further.
Knows names and bytes; knows nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safepoint.errors import ConfigurationError
from safepoint.naming import TEMPORARY_PREFIX
from safepoint.stores import NOTE_LIMIT_BYTES, Check, Chunk, IsOwn, Replace
from safepoint.stores.disk import Disk
from safepoint.stores.extents import share
from safepoint.stores.lease import Held, Lease, is_held_here

_LINKS_REFUSED = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_TEMPORARY_SUFFIX = ".tmp"
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_DISK = Disk()


class LocalStore:
    """The checkpoints in ``directory``, which is made at the first write."""

    def __init__(self, directory: Path, disk: Disk = _DISK) -> None:
        self.directory = directory
        self._disk = disk
        self._made: set[Path] = set()
        self._undropped: set[Path] = set()
        self._prepared: set[Path] = set()
        self._unnamed: dict[Path, bool] = {}
        self._lease = Lease()

    def write(
        self, name: str, chunks: Iterable[Chunk], size_bytes: int, *, replace: Replace, check: Check | None = None
    ) -> int:
        """See ``Store.write``; shares extents where the file system can."""
        return self._write(name, chunks, size_bytes, self._lease.take, replace=replace, check=check)

    def _write(
        self,
        name: str,
        chunks: Iterable[Chunk],
        size_bytes: int,
        take: Callable[[Held], None],
        *,
        replace: Replace = True,
        check: Check | None = None,
    ) -> int:
        """Do as ``write`` does, and let ``take`` have the locked file."""
        final = self._parent_made(name)
        with _opened_temporary(final.parent, self._disk, unnamed=self._unnamed[final.parent]) as temporary:
            try:
                self._disk.reserve(temporary.descriptor, size_bytes)
                written_bytes = self._disk.write(temporary.descriptor, chunks, partial(share, self.directory))
                self._disk.sync(temporary.descriptor)
                if check is not None:
                    check(temporary.descriptor)
                replaces, is_new = _replaces(final, replace), not os.path.lexists(final)
                temporary.give_up_writing()
                if replaces:
                    temporary.replace(final)
                else:
                    temporary.publish(final)
            finally:
                self._drop(temporary.place)
            self._sync_name(final, undo=is_new)
            take(temporary.held)
        return written_bytes

    def link(self, target: str, name: str, *, replace: Replace = True) -> None:
        """See ``Store.link``; a copy where the file system has no links."""
        with _held(self.directory / target):
            source, final = self.directory / target, self._parent_made(name)
            replaces = _replaces(final, replace)
            temporary = final if not replaces else _temporary_path(final.parent)
            try:
                self._disk.link(source, temporary)
            except OSError as error:
                if error.errno not in _LINKS_REFUSED:
                    raise
                self._copy(source, name, replace=replace)
                return
            if replaces:
                self._rename_over(temporary, final)
            else:
                self._sync_name(final, undo=True)

    def symlink(self, target: str, name: str, *, replace: Replace = True) -> None:
        """See ``Store.symlink``; the link is relative, so that the directory can be moved."""
        with _held(self.directory / target):
            final = self._parent_made(name)
            _replaces(final, replace)
            temporary = _temporary_path(final.parent)
            self._disk.symlink(os.path.relpath(self.directory / target, final.parent), temporary)
            self._rename_over(temporary, final)

    def remove(self, name: str, *, is_own: IsOwn | None = None) -> bool:
        """See ``Store.remove``."""
        path = self.directory / name
        if is_own is not None and path.exists():
            with _read(path) as descriptor:
                if not is_own(descriptor):
                    return False
        self._disk.unlink(path)
        self._lease.let_go_of_the_removed()
        return True

    def sync(self, name: str) -> None:
        """See ``Store.sync``."""
        self._disk.sync_directory((self.directory / name).parent)

    def note(self, name: str, data: bytes) -> None:
        """See ``Store.note``: written as a checkpoint is."""
        self._write(name, [data], len(data), Held.close)

    def noted(self, name: str) -> bytes | None:
        """See ``Store.noted``; what is no file is not opened."""
        try:
            return _beginning(f"{self.directory}/{name}")  # asked for often, and a path takes its time
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return None

    def claim(self, name: str) -> bool:
        """See ``Store.claim``: it is locked."""
        path = self.directory / name
        is_shared = is_held_here(path)
        if not self._lease.claim(path):
            return False
        if not is_shared:  # whoever was giving it a further name is dead, and from now on nobody could tell
            for hidden in _temporaries(path.parent):
                if hidden.exists() and hidden.samefile(path):
                    self._drop(hidden)
        return True

    def let_go(self) -> None:
        """See ``Store.let_go``."""
        self._lease.let_go()

    def free_bytes(self) -> int | None:
        """See ``Store.free_bytes``."""
        place = self.directory
        try:
            while not place.exists():
                place = place.parent
            found = os.statvfs(place)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def _copy(self, source: Path, name: str, *, replace: Replace) -> None:
        with source.open("rb") as file:
            chunks = iter(lambda: file.read(4 << 20), b"")
            self.write(name, chunks, os.fstat(file.fileno()).st_size, replace=replace)

    def _parent_made(self, name: str) -> Path:
        final = self.directory / name
        for path in tuple(self._undropped):
            self._drop(path)
        for path in reversed([path for path in (final.parent, *final.parent.parents) if not path.exists()]):
            self._disk.make_directory(path)
            self._made.add(path)
            self._prepared.discard(path)
        if final.parent not in self._prepared:
            self._sync_above(final.parent)
            self._unnamed[final.parent] = _takes_unnamed(final.parent, self._disk)
            self._clean(final.parent)
        return final

    def _clean(self, directory: Path) -> None:
        """Remove what dead writers left; if something refuses to go, it is tried again before the next write."""
        self._prepared.add(directory)
        for path in _temporaries(directory):
            try:
                _removed_if_abandoned(path, self._disk)
            except OSError:
                self._prepared.discard(directory)

    def _sync_above(self, directory: Path) -> None:
        """Make durable what leads to ``directory``: whoever made that, a moment ago perhaps, need not have done so."""
        for path in (directory, *directory.parents):
            if os.path.ismount(path):
                return
            try:
                self._disk.sync_directory(path.parent)
            except PermissionError:  # where we may not read; it is only known of what we made that it need be done
                if path in self._made:
                    raise

    def _drop(self, temporary: Path) -> None:
        """Remove a hidden name; one that refuses to go is tried again before the next write.

        Not now, as another error may be on its way; nor by ``clean``, as its file may be locked: the newest is.
        """
        try:
            self._disk.unlink(temporary)
        except OSError:
            self._undropped.add(temporary)
        else:
            self._undropped.discard(temporary)

    def _rename_over(self, temporary: Path, final: Path) -> None:
        is_new = not os.path.lexists(final)
        try:
            if final.is_dir() and not final.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
            self._disk.rename(temporary, final)
        finally:
            # Between two names of one file, rename does nothing and leaves both (POSIX).
            self._drop(temporary)
        self._sync_name(final, undo=is_new)

    def _sync_name(self, final: Path, *, undo: bool) -> None:
        """Make the name ``final`` durable; ``undo``: or let it not be there, for what is not durable has no name."""
        try:
            self._disk.sync_directory(final.parent)
        except OSError:
            if undo:
                with contextlib.suppress(OSError):
                    self._disk.unlink(final)
            raise


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


def _replaces(final: Path, replace: Replace) -> bool:
    """Tell whether ``final`` is to be taken from something; raise a FileExistsError if that is not to be replaced."""
    if isinstance(replace, bool):
        return replace
    if not final.exists():  # a link to nothing has nothing to lose
        return os.path.lexists(final)
    with _read(final) as descriptor:
        if not replace(descriptor):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    return True


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock on what a further name is made for, by which ``clean`` sees that its temporary is in use.

    Refused where the run's own lock is on it, which does as well.
    """
    held = Held(partial(os.open, path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        held.lock(fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        held.close()


@contextlib.contextmanager
def _read(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _beginning(path: str) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    with _read(Path(path)) as descriptor:
        return os.pread(descriptor, NOTE_LIMIT_BYTES, 0)


def clean(directory: Path, disk: Disk = _DISK) -> list[Path]:
    """Remove the temporaries that dead writers left in ``directory``, and return their paths.

    A living writer, in this process or in another, holds a lock on its own; so does one on another machine where the
    file system shares locks. Where locks are refused, nothing is removed. What refuses to go stays.
    """
    removed: list[Path] = []
    for path in _temporaries(directory):
        with contextlib.suppress(OSError):
            removed += [path] if _removed_if_abandoned(path, disk) else []
    return removed


def _temporaries(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    names = (path for path in directory.iterdir() if path.name.startswith(TEMPORARY_PREFIX))
    return [path for path in names if path.suffix == _TEMPORARY_SUFFIX]  # others are notes on what is called like this


def _removed_if_abandoned(path: Path, disk: Disk) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        disk.unlink(path)  # a symbolic link to nothing, or gone meanwhile
        return True
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        # Under the lock: a writer that gets the lock after this finds its file gone, and makes another.
        disk.unlink(path)
    finally:
        os.close(descriptor)
    return True


def _temporary_path(directory: Path) -> Path:
    return directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"


@dataclass(slots=True)
class _Temporary:
    """A locked file that is to become a checkpoint; ``path`` is its hidden name, which an unnamed one has not yet."""

    held: Held
    path: Path
    unnamed: bool
    disk: Disk

    @property
    def descriptor(self) -> int:
        """The open file."""
        return self.held.descriptor

    @property
    def place(self) -> Path:
        """Where the hidden name is by now, if there is one: somebody may have moved the directory."""
        try:
            found = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
        except OSError:
            return self.path
        return found if found.name == self.path.name else self.path

    def give_up_writing(self) -> None:
        """Hold the file without the right to write, with which no file system could be made read-only any more."""
        if self.unnamed:
            held = Held(partial(os.open, f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC))
            self.held.lock(fcntl.LOCK_UN)  # nobody comes in between: nobody else can see the file yet
            self.held.close()
            held.lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = held

    def replace(self, final: Path) -> None:
        """Let the file have the name ``final``, whatever had it."""
        if self.unnamed:
            self.link(self.path)  # no call gives a file without a name the name of another
        self.disk.rename(self.path, final)

    def publish(self, final: Path) -> None:
        """Let the file have the name ``final``, unless another has it: ``link`` refuses where ``rename`` replaces."""
        try:
            self.link(final)
        except OSError as error:
            if error.errno not in _LINKS_REFUSED:
                raise
            if os.path.lexists(final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
            self.disk.rename(self.path, final)

    def link(self, name: Path) -> None:
        """Give the file a further name, or its first."""
        self.disk.link(self.descriptor if self.unnamed else self.path, name)


@contextlib.contextmanager
def _opened_temporary(directory: Path, disk: Disk, *, unnamed: bool) -> Iterator[_Temporary]:
    path, held = _unnamed_file(directory, disk) if unnamed else _locked_file(directory, disk)
    temporary = _Temporary(held, path, unnamed, disk)
    try:
        yield temporary
    finally:
        temporary.held.close()  # unless it is the lease's by now


def _takes_unnamed(directory: Path, disk: Disk) -> bool:
    """Try whether a file without a name can be made in ``directory`` and be given one: too much can refuse either."""
    try:
        with _opened_temporary(directory, disk, unnamed=True) as temporary:
            temporary.link(temporary.path)
            disk.unlink(temporary.path)
    except OSError:
        return False
    return True


def _unnamed_file(directory: Path, disk: Disk) -> tuple[Path, Held]:
    held = Held(partial(disk.create_unnamed, directory))
    held.lock()  # where that is refused, nobody cleans either
    return _temporary_path(directory), held


def _locked_file(directory: Path, disk: Disk) -> tuple[Path, Held]:
    while True:
        path = _temporary_path(directory)
        held = Held(partial(disk.create, path))
        held.lock()
        # Between open and lock another process may have taken the file for abandoned; it is gone once we have the lock.
        if os.fstat(held.descriptor).st_nlink:
            return path, held
        held.close()
