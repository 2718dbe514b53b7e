"""Whether a checkpoint is sound, whoever wrote it, and what that answer is worth: formats differ in what they tell.

Safepoint's files have a digest of everything. torch's archives have a CRC-32 of each record, unless they were written
without. safetensors have none: only their structure can be checked. A directory is checked file by file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safepoint import reader
from safepoint.archive import ForeignFileError
from safepoint.background import Background
from safepoint.errors import NotACheckpointError

if TYPE_CHECKING:
    from concurrent.futures import Future

OnBytes = Callable[[int], object]
"""Is told how many bytes more have been looked at; what it raises ends the check."""

_REFUSED = (errno.EACCES, errno.EPERM)
_TICK_S = 0.1


Verdict = Literal["sound", "damaged", "not checkable"]
Check = Literal["digests", "crc-32", "structure"]
"""What was compared, the best first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of checking one checkpoint.

    ``problems`` are all that was found, or why it cannot be checked: it is no checkpoint, or cannot be read.
    ``check``: what was compared; ``None`` if nothing was. ``worth`` tells in words what it is worth to be sound.
    """

    path: Path
    verdict: Verdict
    check: Check | None = None
    problems: tuple[str, ...] = ()
    worth: str = ""


def checked(path: Path, on_bytes: OnBytes | None = None) -> Finding:
    """Read every byte of the checkpoint at ``path``, a file or the directory of one, and return what was found.

    Raises:
        FileNotFoundError: nothing is there.

    """
    on_bytes = on_bytes or _ignore
    try:
        return _checked(path, on_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        verdict: Verdict = "not checkable" if error.errno in _REFUSED else "damaged"
        return Finding(path, verdict, problems=(f"cannot be read: {error.strerror or error}",))


def size_of(path: Path) -> int:
    """Return how many bytes the checkpoint at ``path`` has, a file or a directory of files; of what is gone, 0."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(size_of(Path(place, name)) for place, _, names in os.walk(path) for name in names)
    except OSError:
        return 0


def check_all(paths: Sequence[Path], jobs: int, on_bytes: OnBytes | None = None) -> Generator[Finding | None]:
    """Yield what was found of each of ``paths``, in their order, ``None`` for one that is gone; ``jobs`` at once.

    ``on_bytes`` is told from time to time how many bytes more have been looked at, in the caller's thread.
    Whoever closes the iterator ends the checks that go on, without waiting for more than the piece they are at.
    """
    checks = _Checks(len(paths))
    threads = Background("verify", jobs)
    try:
        futures = [threads.submit(checks.check, index, path) for index, path in enumerate(paths)]
        for future in futures:
            while not _is_done(future):
                (on_bytes or _ignore)(checks.further_bytes())
            yield future.result()
    finally:
        checks.are_wanted = False
        threads.close()


class _Stopped(Exception):  # noqa: N818 - no error
    """Nobody wants to know any more."""


class _Checks:
    """What the threads share: how many bytes of each checkpoint were looked at, and whether to go on."""

    def __init__(self, count: int) -> None:
        self.done_bytes = [0] * count  # each changed by the one thread that looks at it
        self.told_bytes = 0
        self.are_wanted = True

    def further_bytes(self) -> int:
        """Return how many bytes were looked at since this was asked the last time."""
        before, self.told_bytes = self.told_bytes, sum(self.done_bytes)
        return self.told_bytes - before

    def check(self, index: int, path: Path) -> Finding | None:
        """Check one; ``None`` if it is gone, or nobody wants to know any more."""

        def on_bytes(count: int) -> None:
            if not self.are_wanted:
                raise _Stopped
            self.done_bytes[index] += count

        try:
            on_bytes(0)
            return checked(path, on_bytes)
        except (FileNotFoundError, _Stopped):
            return None
        finally:
            self.done_bytes[index] = size_of(path)


def _is_done(future: Future[Finding | None]) -> bool:
    try:
        future.exception(_TICK_S)
    except TimeoutError:
        return False
    return True


def _ignore(_: int) -> None:
    pass


def _checked(path: Path, on_bytes: OnBytes) -> Finding:
    if path.is_dir():
        return Finding(path, "not checkable")
    try:
        with reader.opened(path) as checkpoint:
            problems = tuple(reader.problems(checkpoint, _counting(on_bytes)))
    except ForeignFileError as error:
        return Finding(path, "not checkable", problems=(str(error),))
    except NotACheckpointError as error:
        return Finding(path, "damaged", problems=(str(error),))
    return Finding(path, "damaged" if problems else "sound", "digests", problems, "sound")


def _counting(on_bytes: OnBytes) -> reader.Sink:
    def sink(_: int, __: int, piece: memoryview) -> Callable[[], None]:
        on_bytes(len(piece))
        return _nothing

    return sink


def _nothing() -> None:
    pass
