"""Lives of trainings: processes that begin in milliseconds, what they have logged, and what they have come to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORKER = Path(__file__).parent / "scripts" / "forker.py"


class Forker:
    """A process that has imported everything, and forks one child at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, call: str, **arguments: object) -> int:
        """Begin ``module:function`` in a process of its own; return its number."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": call, **arguments}, default=str) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """Return how the process that was begun last has ended, ``-9`` after SIGKILL."""
        return self._answer()

    def run(self, call: str, **arguments: object) -> int:
        """Begin, and wait for the end."""
        self.start(call, **arguments)
        return self.wait()

    def end(self) -> None:
        """End, when the last child has ended."""
        self._process.communicate()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the forker ended: {self._process.wait()}"
        return int(line)


def entries(log: Path) -> list[tuple[str, str]]:
    """Return what was logged, in order, what was done twice twice: of what, and what."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(what, value) for what, _, value in (line.partition(" ") for line in lines)]


def curve(log: Path) -> dict[str, list[str]]:
    """Return all that was logged of each thing; once what came out the same whenever it was done."""
    found: dict[str, list[str]] = {}
    for what, value in entries(log):
        values = found.setdefault(what, [])
        if value not in values:
            values.append(value)
    return found


def bits(value: Any) -> Any:
    """Return ``value`` as what is equal only if every bit is."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().contiguous()
        return str(plain.dtype), tuple(plain.shape), plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [bits(each) for each in value]
    return value.hex() if isinstance(value, float) else value


def differences(here: Any, there: Any, path: str = "") -> list[str]:
    """Return the places at which two states are not the same bit for bit."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        missing = [f"{path}.{key}" for key in here.keys() ^ there.keys()]
        return missing + [
            found for key in here.keys() & there.keys() for found in differences(here[key], there[key], f"{path}.{key}")
        ]
    return [] if bits(here) == bits(there) else [path]
