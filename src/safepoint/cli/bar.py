"""A bar on the terminal while a command works: on standard error, if that is a terminal, and in no other case."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(what: str, size_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show how far ``what`` has come; what is yielded is told how many further bytes of ``size_bytes`` are done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    words = TextColumn("{task.description}", markup=False)
    columns = (words, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # What is printed meanwhile goes above the bar if it goes to the terminal, and past it if it does not.
    is_shared = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=is_shared) as shown:
        task = shown.add_task(what, total=size_bytes)
        yield lambda done_bytes: shown.advance(task, done_bytes)
