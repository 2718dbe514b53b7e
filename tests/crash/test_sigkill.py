"""A training process is killed at random moments; what is in the directory afterwards, and what the next run does."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from invariants import temporaries, whole_checkpoints

from safepoint.reader import read_manifest

KILLS = 20
LONGEST_LIFE_S = 0.5


def train_and_kill(script: Path, directory: Path, life_s: float) -> tuple[int, int]:
    """Start ``script``, SIGKILL it ``life_s`` after it began to train; return the steps resumed at and acknowledged."""
    process = subprocess.Popen(
        [sys.executable, str(script), str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first = next((line for line in process.stdout if line.startswith("resumed")), None)
        assert first is not None, process.communicate()[1]
        time.sleep(life_s)
        assert process.poll() is None, process.communicate()[1]
    finally:
        process.kill()
        rest, _ = process.communicate()
    resumed = int(first.split()[1])
    durable = [int(line.split()[1]) for line in rest.splitlines() if line.startswith("durable") and line[-1].isdigit()]
    return resumed, max(durable, default=resumed)


def newest_step(directory: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none; every one must be whole."""
    return max((read_manifest(path).step for path in whole_checkpoints(directory)), default=0)


def kill_again_and_again(script: Path, directory: Path, kills: int, seed: int) -> None:
    """Kill ``script`` at ``kills`` random moments and check the directory and the resumption each time."""
    moments = random.Random(seed)
    expected = left_behind = 0
    for kill in range(kills):
        resumed, acknowledged = train_and_kill(script, directory, moments.uniform(0, LONGEST_LIFE_S))
        newest = newest_step(directory)
        assert resumed == expected, f"seed {seed}, kill {kill}: resumed at {resumed}, the newest was {expected}"
        assert newest >= acknowledged, f"seed {seed}, kill {kill}: step {acknowledged} was durable, and is gone"
        assert len(temporaries(directory)) <= 1, f"seed {seed}, kill {kill}: temporaries of dead runs pile up"
        left_behind += len(temporaries(directory))
        expected = newest
    assert expected > 0, "nothing was ever saved: the test proves nothing"
    print(f"seed {seed}: {kills} kills, {left_behind} in mid-write, reached step {expected}")


def test_sigkill_leaves_whole_checkpoints_and_the_run_resumes(scripts: Path, tmp_path: Path) -> None:
    """Killed 20 times at random moments, a plain loop leaves only whole checkpoints and resumes from the newest."""
    kill_again_and_again(scripts / "train_loop.py", tmp_path / "run", KILLS, random.randrange(10**6))


def test_sigkill_of_a_lightning_run_leaves_whole_checkpoints_and_it_resumes(scripts: Path, tmp_path: Path) -> None:
    """Killed at random moments, a Lightning run leaves only whole checkpoints, and ``last`` is where it goes on."""
    directory = tmp_path / "run"
    moments = random.Random()
    for _ in range(3):
        resumed, _ = train_and_kill(scripts / "train_lightning.py", directory, moments.uniform(0.1, LONGEST_LIFE_S))
        whole_checkpoints(directory)
        assert len(temporaries(directory)) <= 1
    last = directory / "last.ckpt"
    expected = read_manifest(last).step if last.exists() else 0
    resumed, _ = train_and_kill(scripts / "train_lightning.py", directory, 0)
    assert expected > 0
    assert resumed == expected


@pytest.mark.torture
def test_sigkill_two_hundred_times(scripts: Path, tmp_path: Path) -> None:
    """The same, 200 times."""
    kill_again_and_again(scripts / "train_loop.py", tmp_path / "run", 200, random.randrange(10**6))
