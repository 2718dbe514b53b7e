"""Checks of several checkpoints at once, in threads: results in order, and an end whenever it is wanted.

What a check is, is ``soundness``'s.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safepoint.background import Background
from safepoint.soundness import Finding, OnBytes, checked, size_of

if TYPE_CHECKING:
    from concurrent.futures import Future

_TICK_S = 0.1


def check_all(paths: Sequence[Path], jobs: int, on_bytes: OnBytes) -> Generator[Finding | None]:
    """Yield what was found of each of ``paths``, in their order, ``None`` for one that is gone; ``jobs`` at once.

    What has several names is read once. ``on_bytes`` is told now and then how many bytes more have been looked at, in
    the caller's thread, of ``total_bytes(paths)`` in the end. Whoever closes the iterator ends the checks that go on:
    they come to the end of the piece that they are at.
    """
    checks = _Checks()
    threads = Background("verify", jobs)
    try:
        named = _first_names(paths)
        futures = {path: threads.submit(checks.check, path) for path in dict.fromkeys(named.values())}
        for path in paths:
            future = futures[named[path]]
            while not _is_done(future):
                on_bytes(checks.further_bytes())
            on_bytes(checks.further_bytes())
            found = future.result()
            yield found and replace(found, path=path)
    finally:
        checks.are_wanted = False
        threads.close()


def total_bytes(paths: Sequence[Path]) -> int:
    """Return how many bytes the checkpoints at ``paths`` have, those of several names once."""
    return sum(map(size_of, dict.fromkeys(_first_names(paths).values())))


def _first_names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Return for each of ``paths`` the first of them that is a name of the same file or directory."""
    firsts: dict[tuple[int, int], Path] = {}
    found: dict[Path, Path] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found[path] = path
        else:
            found[path] = firsts.setdefault((status.st_dev, status.st_ino), path)
    return found


class _Stopped(Exception):  # noqa: N818 - no error
    """Nobody wants to know any more."""


class _Checks:
    """What the threads share: how many bytes they have looked at, and whether they are to go on."""

    def __init__(self) -> None:
        self.are_wanted = True
        self._counts: deque[int] = deque()  # threads append to it, and one takes from it

    def further_bytes(self) -> int:
        """Return how many bytes were looked at since this was asked the last time."""
        return sum(self._counts.popleft() for _ in range(len(self._counts)))

    def check(self, path: Path) -> Finding | None:
        """Check one; ``None`` if it is gone, or nobody wants to know any more."""
        left_bytes = size_of(path)

        def on_bytes(count: int) -> None:
            nonlocal left_bytes
            if not self.are_wanted:
                raise _Stopped
            self._counts.append(count)
            left_bytes -= count

        try:
            on_bytes(0)
            return checked(path, on_bytes)
        except (FileNotFoundError, _Stopped):
            return None
        finally:
            self._counts.append(left_bytes)


def _is_done(future: Future[Finding | None]) -> bool:
    try:
        future.exception(_TICK_S)
    except TimeoutError:
        return False
    return True
