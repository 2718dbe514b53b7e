"""Every change that a ``LocalStore`` makes to a file system, one method a step of its protocol.

A seam, so that the protocol can be tried with a failure, a kill or a power cut between any two of its steps: the names
of the methods are the names of the failpoints. Knows system calls; the order of them, and what it is good for, is
``local``'s.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from safepoint.stores import Chunk, direct

_PREALLOCATION_REFUSED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Disk:
    """The file systems of this machine; every method raises OSError if it is refused."""

    def make_directory(self, path: Path) -> None:
        """Make a directory, unless it is there."""
        path.mkdir(exist_ok=True)

    def create(self, path: Path) -> int:
        """Return a descriptor of a new file at ``path``, for reading and writing."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)

    def create_unnamed(self, directory: Path) -> int:
        """Return a descriptor of a new file in ``directory`` that has no name, and goes with the descriptor."""
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)

    def reserve(self, descriptor: int, size_bytes: int) -> None:
        """Reserve space for the file, where the file system can."""
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in _PREALLOCATION_REFUSED:
                raise

    def write(self, descriptor: int, chunks: Iterable[Chunk], share: direct.Share) -> int:
        """See ``direct.write_chunks``."""
        return direct.write_chunks(descriptor, chunks, share)

    def sync(self, descriptor: int) -> None:
        """Make the file's bytes durable; after an error nobody knows which of them are, and never will."""
        os.fsync(descriptor)

    def link(self, source: Path | int, name: Path) -> None:
        """Give a file, by its name or by a descriptor of it, a further name; never one that is taken."""
        if isinstance(source, int):
            # Given a directory descriptor, Python has the kernel follow the link in /proc to the file.
            os.link(f"/proc/self/fd/{source}", name, src_dir_fd=source)
        else:
            os.link(source, name)

    def symlink(self, target: str, name: Path) -> None:
        """Let ``name`` point to ``target``."""
        name.symlink_to(target)

    def rename(self, source: Path, name: Path) -> None:
        """Let the file at ``source`` have the name ``name`` instead, whatever had it."""
        source.replace(name)

    def unlink(self, path: Path) -> None:
        """Take the name ``path`` away, if it is there."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """Make the names in ``directory`` durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
