"""The command line: one file a command, which parses and prints and leaves the work to ``catalog`` and ``reader``.

Imports no torch, and never unpickles.
"""

from __future__ import annotations

import importlib.util
import io
import sys


def main() -> None:
    """Run the command line; say what to install if its libraries are missing."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"safepoint: the command line needs {' and '.join(missing)}: pip install 'safepoint[cli]'\n")
        sys.exit(2)
    from safepoint.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may have no letters for a name
    app()
