"""A process of its own that saves into a directory, and does what a test says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

SCRIPTS = Path(__file__).parent / "two_writers" / "scripts"


class Other:
    """A process of its own, ``under`` another command perhaps, and the children that it leaves."""

    def __init__(self, script: str, *arguments: object, under: Sequence[str] = ()) -> None:
        tests = str(Path(__file__).parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((tests, os.environ.get("PYTHONPATH", "")))}
        self.process = subprocess.Popen(
            [*under, sys.executable, str(SCRIPTS / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def send(self, command: str) -> None:
        """Let it begin with ``command``."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Wait for its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.process.wait()}"
        return line.rstrip()

    def ask(self, command: str) -> str:
        """Let it do ``command``, and return what it answers."""
        self.send(command)
        return self.answer()

    def kill(self) -> None:
        """Kill it alone, so that it can do nothing more."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill it and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.communicate()


Start = Callable[..., Other]
"""Starts another process, with these arguments; ``script``: of which script."""
