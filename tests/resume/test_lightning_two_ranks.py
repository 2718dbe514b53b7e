"""With several processes, each goes on with its own random state and its share of the data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import differences

SCRIPT = Path(__file__).parent / "scripts" / "lightning_two_ranks.py"


def run(*arguments: object) -> None:
    """Run the script to its end."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.torture
@pytest.mark.parametrize("step", [6, 4])
def test_each_rank_goes_on_as_itself(step: int, tmp_path: Path) -> None:
    """Within an epoch and at its last batch; the ranks draw different numbers, and draw them again."""
    run(tmp_path / "whole", 1)
    run(tmp_path / "resumed", 5, tmp_path / "whole" / "run" / f"step={step}.ckpt")
    left = [
        [torch.load(tmp_path / name / f"rank{rank}", weights_only=False) for rank in (0, 1)]
        for name in ("whole", "resumed")
    ]
    assert differences(left[0], left[1]) == []
    assert not torch.equal(left[0][0]["torch"], left[0][1]["torch"])
