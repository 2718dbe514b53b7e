"""Pinning, as a person at the command line does it, and here and now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safepoint.pinning import set_pinned
from safepoint.places import place_of


def command(*arguments: object) -> str:
    """Run ``safepoint`` in a process of its own, which must succeed, and return what it prints."""
    program = [sys.executable, "-c", "from safepoint.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def pin(path: Path, *, pinned: bool = True) -> None:
    """Pin what is at ``path``, or lift its pin."""
    set_pinned(place_of(path), pinned=pinned)
