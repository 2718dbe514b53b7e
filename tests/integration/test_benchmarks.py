"""The benchmarks run; what they measure depends on the machine and is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_step_cost_prints_both_sides() -> None:
    """A short run prints a row for every trigger, with both times and their ratio."""
    command = [sys.executable, str(BENCHMARKS / "step_cost.py"), "--rounds", "2", "--calls", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if " us" in line]
    assert len(rows) == 8
    assert all(float(row.split()[-1]) > 0 for row in rows if row.count(" us") == 2)


def test_listing_prints_all_sides() -> None:
    """A short run prints what each way of listing takes, and what starting does."""
    command = [sys.executable, str(BENCHMARKS / "listing.py"), "--count", "20", "--runs", "2", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for label in ("os.scandir", "zipfile", "Catalog.of", "safepoint ls", "import typer", "safepoint --help"):
        assert any(line.startswith(label) and line.endswith("s") for line in done.stdout.splitlines())
