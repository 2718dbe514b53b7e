"""Mutants of checkpoints, opened through every door by a process with little memory and an alarm clock."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripts" / "fuzz.py"


def _fuzz(count: int, seed: int) -> None:
    folders = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": folders, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-2000:]}{done.stderr[-6000:]}"
    print(done.stdout)  # noqa: T201 - how many of them went how far


def test_mutants_behave_or_are_refused() -> None:
    """Damaged and forged checkpoints are read as they are, or refused by an error of ours: no crash, hang or bomb."""
    _fuzz(800, 1)


@pytest.mark.torture
def test_a_hundred_thousand_mutants_behave_or_are_refused() -> None:
    """The same, with other mutants each time."""
    _fuzz(100_000, random.randrange(2**32))
