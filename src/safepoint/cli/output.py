"""What the commands share: lines that pipe as plain text, and the words for sizes, ages and metrics.

Nothing of rich is imported before it is needed: it takes as long as all else that a command does. What a command alone
needs is likewise imported by its function.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from safepoint.errors import in_line

if TYPE_CHECKING:
    from safepoint.cli.documents import Document
    from safepoint.records import Metrics

PIPED_WIDTH = 250
UNUSABLE = 2
"""The exit code for a path that is not there or holds nothing to look at."""


def width() -> int:
    """Return how many cells a line has: as many as the terminal, or enough for a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH


def line(text: str, colour: str | None = None, *, bold: bool | None = None, dim: bool | None = None) -> None:
    """Print one line to standard output, styled if that is a terminal and the user has not set ``NO_COLOR``."""
    if colour is None and not bold and not dim:
        typer.echo(in_line(text))
        return
    typer.secho(in_line(text), fg=colour, bold=bold, dim=dim, color=False if os.environ.get("NO_COLOR") else None)


def document(found: Document) -> None:
    """Print a document as JSON, in one line, to standard output."""
    import msgspec

    try:
        typer.echo(msgspec.json.encode(found).decode())
    except UnicodeEncodeError:  # a file's name that is no Unicode
        import json

        typer.echo(json.dumps(msgspec.to_builtins(found)))


def note(message: str) -> None:
    """Print one line to standard error, and go on."""
    typer.echo(in_line(f"safepoint: {message}"), err=True)


def fail(message: str) -> NoReturn:
    """Print one line to standard error and end with exit code 2."""
    note(message)
    raise typer.Exit(UNUSABLE)


def size(size_bytes: int) -> str:
    """Return a size in words."""
    from rich.filesize import decimal

    return decimal(size_bytes)


def age(seconds: float) -> str:
    """Return an age in its largest unit."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def metrics(values: Metrics) -> str:
    """Return metrics as ``name value`` pairs."""
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))


def existing(path: Path) -> Path:
    """Return ``path``, or fail if nothing is there; a variable that is not set is not taken for where we are."""
    if path == Path() and "" in sys.argv[1:]:
        fail("an argument is empty: is a variable not set? '.' is the directory that you are in.")
    if not os.path.exists(path):
        fail(f"{path}: no such file or directory; give the directory of a run.")
    return path
