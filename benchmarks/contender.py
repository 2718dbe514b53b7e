"""What a benchmark asks of whatever saves: Safepoint and every peer look like this."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path


class Contender:
    """One way to save a training; a subclass says how.

    ``fsyncs``: whether a finished save is durable. Where it is not, ``save`` has an fsync of everything added, in the
    calling thread where the peer writes there, else in a thread of its own behind the peer; its time is told apart.
    """

    fsyncs = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.called_s = self.complete_s = self.durable_s = 0.0
        self.in_background = True
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._count = 0
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    def start(self, path: Path) -> Future[object] | None:
        """Begin to save to ``path``, a file or a directory; return what ends with the save, or None if it has ended."""
        raise NotImplementedError

    def guard(self) -> AbstractContextManager[object]:
        """Return what has to be around the optimizer's step."""
        return nullcontext()

    def close(self) -> None:
        """Release everything."""

    def save(self) -> None:
        """Save; return as soon as the peer does and, where the peer writes in this thread, as the fsync does.

        Sets ``called_s``, the seconds in the peer's own call; once ``wait`` has returned, ``complete_s`` and
        ``durable_s`` are the seconds from the call to the end of the write, and of the fsync. ``in_background``: the
        write outlives the call.
        """
        self._done.clear()
        self._error = None
        self._count += 1
        began, path = time.perf_counter(), self.directory / f"save-{self._count}"
        future = self.start(path)
        self.called_s = time.perf_counter() - began
        self.in_background = future is not None
        if future is None:
            self._finish(began, path)
        else:
            threading.Thread(target=self._follow, args=(future, began, path)).start()

    def is_done(self) -> bool:
        """Tell whether the last save is durable."""
        return self._done.is_set()

    def wait(self) -> None:
        """Return when the last save is durable."""
        self._done.wait()
        if self._error is not None:
            raise self._error

    def written_bytes(self) -> int:
        """Return the size of the files there are."""
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    def clean(self) -> None:
        """Remove every file."""
        for path in self.directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _follow(self, future: Future[object], began: float, path: Path) -> None:
        try:
            future.result()
            self._finish(began, path)
        except BaseException as error:  # noqa: BLE001 - raised again by wait()
            self._error = error
            self._done.set()

    def _finish(self, began: float, path: Path) -> None:
        self.complete_s = time.perf_counter() - began
        if not self.fsyncs:
            sync(path)
        self.durable_s = time.perf_counter() - began
        self._done.set()


def sync(path: Path) -> None:
    """Make ``path``, a file or a directory with all that is in it, durable, and its entry too."""
    inside = sorted(path.rglob("*")) if path.is_dir() else []
    for each in (*inside, path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def drop_cache(path: Path) -> None:
    """Take the pages of ``path``, which must be durable, out of the page cache: the next reader reads the disk."""
    for each in (path, *path.rglob("*")):
        if each.is_file():
            with each.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
