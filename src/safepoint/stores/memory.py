"""A store in memory, for tests: it logs every operation in order, and fails where it is told to."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable

from safepoint.stores import Chunk, Unchanged


class MemoryStore:
    """Checkpoints in a dictionary.

    ``log`` lists the operations as (operation, name). Put an exception into ``failures[(operation, name)]`` to have
    that operation raise it, once, before it changes anything. ``gate`` is waited for before each write.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.failures: dict[tuple[str, str], Exception] = {}
        self.gate = threading.Event()
        self.gate.set()

    def write(self, name: str, chunks: Iterable[Chunk], size_bytes: int, *, replace: bool) -> int:
        """See ``Store.write``; nothing is shared."""
        self.gate.wait()
        self._enter("write", name)
        if name in self.files and not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        data = b"".join(chunk.data if isinstance(chunk, Unchanged) else chunk for chunk in chunks)
        if len(data) != size_bytes:
            raise AssertionError(f"{name}: {len(data)} bytes written, {size_bytes} announced")
        self.files[name] = data
        return size_bytes

    def link(self, target: str, name: str, *, replace: bool = True) -> None:
        """See ``Store.link``."""
        self._enter("link", name)
        if not replace and name in self.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self.files[name] = self.files[target]

    def symlink(self, target: str, name: str) -> None:
        """See ``Store.symlink``; here no different from a link."""
        self._enter("symlink", name)
        self.files[name] = self.files[target]

    def remove(self, name: str) -> None:
        """See ``Store.remove``."""
        self._enter("remove", name)
        self.files.pop(name, None)

    def _enter(self, operation: str, name: str) -> None:
        self.log.append((operation, name))
        failure = self.failures.pop((operation, name), None)
        if failure is not None:
            raise failure
