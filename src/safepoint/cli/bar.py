"""A bar of bytes on standard error while something long goes on, if that is a terminal; it makes way for lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET_S = 1.0
"""What ends sooner needs no bar."""


class Bar:
    """A context in which ``show`` draws how far it has come, and ``print`` prints what there is to say meanwhile."""

    def __init__(self, doing: str, total_bytes: int) -> None:
        self._doing = doing
        self._total_bytes = total_bytes
        self._since_s = time.monotonic()
        self._is_wanted = sys.stderr.isatty()
        self._waiting: list[Callable[[], None]] = []
        self._drawn: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._drawn is not None:
            self._drawn.stop()
        self._print_waiting()

    def show(self, done_bytes: int) -> None:
        """Draw how far it has come, a second after it began at the earliest."""
        if not self._is_wanted or time.monotonic() - self._since_s < _QUIET_S:
            return
        if self._drawn is None:
            self._drawn = self._begun()
        elif self._waiting:
            self._drawn.stop()  # it goes from the screen, which the lines may go to as well
            self._print_waiting()
            self._drawn.start()
        self._drawn.update(self._drawn.task_ids[0], completed=done_bytes)

    def print(self, line: Callable[[], None]) -> None:
        """Have ``line`` printed, in the order of the calls: at once, or where the bar is drawn, with its next move."""
        self._waiting.append(line)
        if self._drawn is None:
            self._print_waiting()

    def _print_waiting(self) -> None:
        for line in self._waiting:
            line()
        self._waiting.clear()

    def _begun(self) -> Progress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn(self._doing), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        drawn = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        drawn.add_task("", total=self._total_bytes)
        drawn.start()
        return drawn
