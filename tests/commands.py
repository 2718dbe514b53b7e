"""The command line as a user runs it: in a process of its own, piped or on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping

COMMAND = (sys.executable, "-c", "from safepoint.cli import main; main()")
_OURS = {"COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM"}


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: none of what decides how it prints, but ``more``."""
    return {**{name: value for name, value in os.environ.items() if name not in _OURS}, "TERM": "xterm", **more}


def safepoint(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint`` with its output piped."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(more))


def on_terminal(*arguments: object, columns: int = 80, **more: str) -> tuple[int, str]:
    """Run ``safepoint`` on a terminal of so many ``columns``; return its exit code, and all that it printed there."""
    theirs, ours = os.openpty()
    termios.tcsetwinsize(ours, (24, columns))
    read: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(theirs, read))
    reader.start()
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, stdin=ours, stdout=ours, stderr=ours, check=False, env=environment(more))
    os.close(ours)
    reader.join()
    os.close(theirs)
    return done.returncode, b"".join(read).decode().replace("\r\n", "\n")


def _drain(terminal: int, read: list[bytes]) -> None:
    try:
        while data := os.read(terminal, 1 << 16):
            read.append(data)
    except OSError:  # nobody has the other end open any more
        return
