"""A bar on the terminal while a command works: on standard error, if that is a terminal, and in no other case."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_BETWEEN_S = 0.1


class Bar:
    """Shows how far it has come: to be called with how many further bytes are done."""

    def __call__(self, done_bytes: int) -> None:
        """Show that ``done_bytes`` more are done."""

    def say(self, line: Callable[[], None]) -> None:
        """Have ``line`` print something, in the order of the calls, such that the bar is not in its way."""
        line()


class _Drawn(Bar):
    """A bar that is on the terminal. What goes there as well waits, and takes its place for a moment."""

    def __init__(self, shown: Progress, what: str, size_bytes: int) -> None:
        self._shown = shown
        self._task = shown.add_task(what, total=size_bytes)
        self._waiting: list[Callable[[], None]] = []
        self._said_s = time.monotonic()
        self._is_shared = sys.stdout.isatty()

    def __call__(self, done_bytes: int) -> None:
        self._shown.advance(self._task, done_bytes)
        if self._waiting and time.monotonic() - self._said_s >= _BETWEEN_S:
            self._shown.stop()
            self.say_rest()
            self._shown.start()

    def say(self, line: Callable[[], None]) -> None:
        """Do as every bar does."""
        if self._is_shared:
            self._waiting.append(line)
        else:
            line()

    def say_rest(self) -> None:
        """Print what has waited; the bar is not on the terminal any more."""
        for line in self._waiting:
            line()
        self._waiting.clear()
        self._said_s = time.monotonic()


@contextlib.contextmanager
def bar(what: str, size_bytes: int) -> Iterator[Bar]:
    """Show how far ``what`` has come, of ``size_bytes``, for as long as the context lasts."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    words = TextColumn("{task.description}", markup=False)
    columns = (words, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    drawn = _Drawn(shown, what, size_bytes)
    try:
        with shown:
            yield drawn
    finally:
        drawn.say_rest()
