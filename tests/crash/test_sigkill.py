"""Processes are killed: at every step, at system calls, at random moments, by the kernel; and what the next run does.

``campaigns`` kills forked children by the hundred; one test kills whole Lightning trainings.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import disks
import pytest
from campaigns import REFUSED
from invariants import temporaries, whole_checkpoints
from scenarios import LIVES, Life

from safepoint.reader import read_manifest

LONGEST_LIFE_S = 0.5


def carry_out(campaign: str, ground: Path, *arguments: object) -> None:
    """Have ``campaigns`` do its work in a process of its own."""
    program = Path(__file__).with_name("campaigns.py")
    command = [sys.executable, program, campaign, ground, *arguments]
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    if done.returncode == REFUSED:
        pytest.skip("this machine does not let us")
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def test_sigkill_in_front_of_any_step_leaves_whole_checkpoints(ground: Path) -> None:
    """Whichever step is not done any more: whole checkpoints, all that was told, and a run that goes on there."""
    carry_out("every_step", ground, "loop", "named")


def test_sigkill_in_front_of_some_steps_of_any_life_leaves_whole_checkpoints(ground: Path) -> None:
    """The same for the drop-in, for replaced checkpoints, and on other file systems, at steps chosen by chance."""
    carry_out("some_steps", ground, 2)


def test_sigkill_at_random_moments_leaves_whole_checkpoints(ground: Path) -> None:
    """Killed again and again in one directory, a run is further each time, and its leavings do not pile up."""
    carry_out("random_moments", ground, "loop", "named", 5)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_sigkill_at_some_system_calls_leaves_whole_checkpoints(ground: Path) -> None:
    """Killed as it enters the kernel to link, to fsync, to write and so on."""
    carry_out("some_calls", ground)


def test_running_out_of_memory_leaves_whole_checkpoints(ground: Path) -> None:
    """The kernel's own kill, in a control group with too little memory, is one like any other."""
    carry_out("out_of_memory", ground)


@pytest.mark.torture
@pytest.mark.parametrize("medium", disks.MEDIA)
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_sigkill_in_front_of_any_step_of_any_life_leaves_whole_checkpoints(
    ground: Path, life: Life, medium: str
) -> None:
    """Every step of every life."""
    carry_out("every_step", ground, life, medium)


@pytest.mark.torture
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_sigkill_a_thousand_times_leaves_whole_checkpoints(ground: Path, life: Life) -> None:
    """Random moments for minutes."""
    carry_out("random_moments", ground, life, "named", 100)


@pytest.mark.torture
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_sigkill_at_any_system_call_leaves_whole_checkpoints(ground: Path) -> None:
    """Every system call of the commit protocol."""
    carry_out("every_call", ground)


def train_and_kill(script: Path, directory: Path, life_s: float) -> int:
    """Start ``script``, SIGKILL it ``life_s`` after it began to train; return the step that it resumed at."""
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
        process.communicate()
    return int(first.split()[1])


def test_sigkill_of_a_lightning_run_leaves_whole_checkpoints_and_it_resumes(scripts: Path, tmp_path: Path) -> None:
    """Killed at random moments, a Lightning run leaves only whole checkpoints, and ``last`` is where it goes on."""
    directory = tmp_path / "run"
    last, kills = directory / "last.ckpt", 0
    while kills < 2 or not last.exists():  # on a busy machine none of them may live long enough
        train_and_kill(scripts / "train_lightning.py", directory, random.uniform(0.1, LONGEST_LIFE_S) * (1 + kills))
        whole_checkpoints(directory)
        assert len(temporaries(directory)) <= 1
        kills += 1
    expected = read_manifest(last).step
    assert expected > 0
    assert train_and_kill(scripts / "train_lightning.py", directory, 0) == expected
