"""The drop-in with several processes: one decides, all follow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from invariants import whole_checkpoints


def test_ranks_follow_the_decisions_of_rank_0(tmp_path: Path) -> None:
    """With metrics that differ between ranks, nobody waits for ever, and rank 0's ranking and names hold."""
    script = Path(__file__).parent / "scripts" / "two_ranks.py"
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == [
        "epoch=1-val_loss=1.20.ckpt",
        "epoch=3-val_loss=0.98.ckpt",
        "last.ckpt",
    ]
    assert f"best {tmp_path / 'run' / 'epoch=3-val_loss=0.98.ckpt'}" in process.stdout
