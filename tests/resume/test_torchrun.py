"""A script that torchrun starts again needs no line for that: it starts, starts warm, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from loop import Training, equal

import safepoint
from safepoint import Checkpointer, keep, when

SCRIPT = Path(__file__).parent / "scripts" / "warm.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--max-restarts=2")


def launched(
    *command: str | Path, directory: Path, other: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the script to its end, and return what it said."""
    paths = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    return subprocess.run(
        [sys.executable, *command, SCRIPT, directory, other],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def test_script_that_torchrun_restarts_goes_on_from_its_own(tmp_path: Path) -> None:
    """The first start takes the best weights of another run, the second all of its own; the end is the same."""
    other, training = tmp_path / "other", Training(seed=1)
    with Checkpointer(other, state=training.state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        for _ in range(3):
            checkpointer.step(loss=training.advance())
    undisturbed = launched(directory=tmp_path / "undisturbed" / "run", other=other)
    assert undisturbed.stdout == "step 0, restored model\n"
    restarted = launched(*TORCHRUN, directory=tmp_path / "restarted" / "run", other=other, DIE="1")
    assert (tmp_path / "restarted" / "died").exists()
    assert restarted.stdout.splitlines() == ["step 0, restored model", "step 6, restored model, optimizer"]
    assert f"safepoint: restored model from {other}" in restarted.stderr
    ends = [safepoint.load(tmp_path / name / "run" / "epoch=2-step=12.ckpt") for name in ("undisturbed", "restarted")]
    first, second = ([*end["model"].values(), *tensors_of(end["optimizer"])] for end in ends)
    assert equal(first, second)
    assert torch.equal(ends[0]["safepoint"]["rng"]["torch"], ends[1]["safepoint"]["rng"]["torch"])


def tensors_of(state: dict[str, dict[int, dict[str, torch.Tensor]]]) -> list[torch.Tensor]:
    """Return what an optimizer's state holds."""
    return [value for moments in state["state"].values() for value in moments.values()]
