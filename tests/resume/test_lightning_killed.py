"""A Lightning script that is killed at random moments, and started again, ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_case import CASES
from models import differences

SCRIPT = Path(__file__).parent / "scripts" / "lightning_case_run.py"


def start(name: str, package: str, directory: Path) -> subprocess.Popen[str]:
    """Start the script, which says each batch."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), name, package, str(directory)]
    paths = [str(SCRIPT.parents[1]), str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with (directory / "errors").open("a") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)


def killed(process: subprocess.Popen[str], after: int) -> bool:
    """Kill the script after so many batches; return whether it lived so long."""
    assert process.stdout is not None
    for _ in range(after):
        if not process.stdout.readline():
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def finished(process: subprocess.Popen[str], directory: Path) -> None:
    """Wait for the end of the script."""
    process.communicate()
    assert process.returncode == 0, (directory / "errors").read_text()


def left_by(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the outcome, and the curve: what was logged again counts in the place of what had been."""
    curve: dict[str, str] = {}
    for line in (directory / "curve").read_text().splitlines():
        curve |= json.loads(line)
    return torch.load(directory / "outcome", weights_only=False), curve


def assert_survives(name: str, package: str, tmp_path: Path, kills: int, seed: int) -> None:
    """Assert that a script that is killed ``kills`` times ends as an undisturbed one."""
    moments = random.Random(seed)
    undisturbed = start(name, package, tmp_path / "whole")
    for _ in range(kills):
        killed(start(name, package, tmp_path / "killed"), moments.randrange(2, 10))
    finished(start(name, package, tmp_path / "killed"), tmp_path / "killed")
    finished(undisturbed, tmp_path / "whole")
    (whole, whole_curve), (again, curve) = left_by(tmp_path / "whole"), left_by(tmp_path / "killed")
    assert differences(whole, again) == []
    assert differences(dict(sorted(whole_curve.items())), dict(sorted(curve.items()))) == []


def test_killed_script_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Killed twice, at whatever step, and started again."""
    assert_survives("plain", "lightning.pytorch", tmp_path, kills=2, seed=1)


@pytest.mark.torture
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "max_steps" not in case.trainer])
def test_script_of_any_kind_survives(name: str, package: str, tmp_path: Path) -> None:
    """Each case, killed three times."""
    assert_survives(name, package, tmp_path, kills=3, seed=len(name))
