"""What the commands share: a console that pipes as plain text, and the words for sizes, ages and metrics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from safepoint.records import Metrics

PIPED_WIDTH = 250
UNUSABLE = 2
"""The exit code for a path that is not there or holds nothing to look at."""


def console() -> Console:
    """Return a console on standard output, as wide as the terminal, or wide enough for a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH, soft_wrap=False)


def fail(message: str) -> NoReturn:
    """Print one line to standard error and end with exit code 2."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(plain(f"safepoint: {message}"))
    raise typer.Exit(UNUSABLE)


def plain(text: str, style: str = "") -> Text:
    """Return ``text`` with nothing in it that a terminal would obey: names and metrics come from files."""
    return Text("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text), style=style)


def size(size_bytes: int) -> str:
    """Return a size in words."""
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
    """Return ``path``, or fail if nothing is there."""
    if not path.exists():
        fail(f"{path}: no such file or directory; give the directory of a run.")
    return path
