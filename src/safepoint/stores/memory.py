"""A store in memory, for tests: it logs every step of its protocol, and fails or loses power where it is told to.

The steps are those of a directory on disk (``disk.Disk``), in the same order. Until ``sync_directory`` a name is there,
and a power cut takes it away.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from safepoint.stores import NOTE_LIMIT_BYTES, Check, Chunk, IsOwn, Replace, Unchanged

Files = dict[str, bytes]
T = TypeVar("T")


class MemoryStore:
    """Checkpoints in a dictionary, ``files``; ``durable`` is what a power cut would leave of them.

    ``log`` lists the steps as (step, name): "reserve", "write", "sync", "publish", "link", "symlink", "note", "remove"
    and "sync_directory". Put an exception into ``failures[(step, name)]`` to have that step raise it, once, before it
    changes anything, or into ``failures_at[k]`` for the k-th step of all. ``gate`` is waited for before each write.
    """

    def __init__(self) -> None:
        self.files: Files = {}
        self.durable: Files = {}
        self.log: list[tuple[str, str]] = []
        self.failures: dict[tuple[str, str], BaseException] = {}
        self.failures_at: dict[int, BaseException] = {}
        self.held: str | None = None
        self.gate = threading.Event()
        self.gate.set()

    def write(
        self, name: str, chunks: Iterable[Chunk], size_bytes: int, *, replace: Replace, check: Check | None = None
    ) -> int:
        """See ``Store.write``; nothing is shared."""
        self.gate.wait()
        self._step("reserve", name)
        data = b"".join(chunk.data if isinstance(chunk, Unchanged) else chunk for chunk in chunks)
        if len(data) != size_bytes:
            raise AssertionError(f"{name}: {len(data)} bytes written, {size_bytes} announced")
        self._step("write", name)
        self._step("sync", name)
        if check is not None:
            _shown(data, check)
        self._step("publish", name)
        self._name(name, data, replace=replace)
        self.held = name
        return size_bytes

    def link(self, target: str, name: str, *, replace: Replace = True) -> None:
        """See ``Store.link``."""
        self._step("link", name)
        self._name(name, self.files[target], replace=replace)

    def symlink(self, target: str, name: str, *, replace: Replace = True) -> None:
        """See ``Store.symlink``; here no different from a link."""
        self._step("symlink", name)
        self._name(name, self.files[target], replace=replace)

    def remove(self, name: str, *, is_own: IsOwn | None = None) -> bool:
        """See ``Store.remove``."""
        self._step("remove", name)
        if is_own is not None and name in self.files and not _shown(self.files[name], is_own):
            return False
        self.files.pop(name, None)
        return True

    def sync(self, name: str) -> None:
        """See ``Store.sync``."""
        self._step("sync_directory", name)
        self.durable = dict(self.files)

    def note(self, name: str, data: bytes) -> None:
        """See ``Store.note``."""
        self._step("note", name)
        self._name(name, data, replace=True)

    def noted(self, name: str) -> bytes | None:
        """See ``Store.noted``."""
        found = self.files.get(name)
        return None if found is None else found[:NOTE_LIMIT_BYTES]

    def claim(self, name: str) -> bool:
        """See ``Store.claim``: nobody else is here."""
        self.held = name
        return True

    def let_go(self) -> None:
        """See ``Store.let_go``."""
        self.held = None

    def free_bytes(self) -> int | None:
        """See ``Store.free_bytes``."""
        return None

    def power_cut(self) -> None:
        """Lose what is not durable; what was removed and not made durable is there again."""
        self.files = dict(self.durable)

    def _name(self, name: str, data: bytes, *, replace: Replace) -> None:
        before = self.files.get(name)
        if before is not None and not (replace if isinstance(replace, bool) else _shown(before, replace)):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self.files[name] = data
        try:
            self._step("sync_directory", name)
        except OSError:
            if before is None:
                del self.files[name]
            raise
        self.durable = dict(self.files)

    def _step(self, step: str, name: str) -> None:
        number = len(self.log)
        self.log.append((step, name))
        failure = self.failures.pop((step, name), None) or self.failures_at.pop(number, None)
        if failure is not None:
            raise failure


def _shown(data: bytes, look: Callable[[int], T]) -> T:
    descriptor = os.memfd_create("checkpoint")
    try:
        os.write(descriptor, data)
        return look(descriptor)
    finally:
        os.close(descriptor)
