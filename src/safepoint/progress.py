"""Show, on a terminal, what a training that has ended still waits for. Draws with rich where that is installed."""

from __future__ import annotations

from typing import Protocol

_QUIET_S = 1.0
_REDRAW_S = 0.1


class Waited(Protocol):
    """What is waited for."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether everything has ended, after ``timeout_s`` at the latest."""

    def progress(self) -> tuple[int, int]:
        """Return how many bytes are written, and how many will be."""


def wait_and_show(work: Waited) -> None:
    """Wait for ``work``; after a second, with a bar on the terminal, if standard error is one."""
    if work.wait(_QUIET_S):
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    except ImportError:
        work.wait()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        work.wait()
        return
    columns = (TextColumn("making checkpoints durable"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        while not work.wait(_REDRAW_S):
            done, total = work.progress()
            bar.update(task, completed=done, total=total)
        done, total = work.progress()
        bar.update(task, completed=done, total=total)
