"""The command line: one file a command, which parses and prints and leaves the work to ``catalog`` and ``reader``.

Imports no torch, and never unpickles.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import os
import signal
import sys

UNUSABLE = 2
"""The exit code for what cannot be looked at."""

_OBJECTS = 100_000
"""Made between two searches for garbage: what a command makes lives as long as it, and searching a list takes long."""


def main() -> None:
    """Run the command line; say what to install if its libraries are missing.

    What a command cannot do for the input that it got (an error of Safepoint's, or the system's) ends in one line. When
    nobody reads on (``| head -1``), it ends by SIGPIPE as others do: an exit code would be taken for an answer.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _open_what_is_closed()
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"safepoint: the command line needs {' and '.join(missing)}: pip install 'safepoint[cli]'\n")
        sys.exit(UNUSABLE)
    gc.set_threshold(_OBJECTS)
    from safepoint.cli.app import app
    from safepoint.errors import SafepointError, in_line

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may have no letters for a name
    try:
        app()
    except SafepointError as error:
        sys.stderr.write(f"safepoint: {in_line(str(error))}\n")
    except OSError as error:
        subject = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"safepoint: {in_line(subject + (error.strerror or str(error)))}\n")
    sys.exit(UNUSABLE)


def _open_what_is_closed() -> None:
    """Let the standard streams that whoever started us has closed lead to nothing, and no file get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            place = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(place, "w" if number else "r", closefd=False))
