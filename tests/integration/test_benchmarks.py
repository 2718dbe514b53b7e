"""The benchmarks run; what they measure depends on the machine and is no test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# One thread each: where a machine is busy, threads that wait for each other at every tiny operation take seconds.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PEERS = (
    "torch.save",
    "safetensors save_file",
    "accelerate save_state",
    "Lightning ModelCheckpoint",
    "Lightning AsyncCheckpointIO",
    "dcp.async_save, thread",
    "dcp.async_save, process",
    "dcp.async_save, DefaultStager, thread",
    "dcp.async_save, DefaultStager, process",
    "torch-checkpointing",
)


def run(script: str, *arguments: str) -> str:
    """Run a benchmark and return what it printed."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tiny(directory: Path, *arguments: str) -> tuple[str, str]:
    """Run sections on a state of 4 MiB in two rounds; return what was printed, and the page of results."""
    files = ("--directory", str(directory / "files"), "--results", str(directory / "RESULTS.md"))
    printed = run("run.py", "--rounds", "2", "--mib", "4", "--width", "128", *files, *arguments)
    return printed, (directory / "RESULTS.md").read_text()


def test_step_cost_prints_both_sides() -> None:
    """A short run prints a row for every trigger, with both times and their ratio."""
    printed = run("step_cost.py", "--rounds", "2", "--calls", "2")
    rows = [line for line in printed.splitlines() if " us" in line]
    assert len(rows) == 8
    assert all(float(row.split()[-1]) > 0 for row in rows if row.count(" us") == 2)


def test_listing_prints_all_sides() -> None:
    """A short run prints what each way of listing takes, and what starting does."""
    command = [sys.executable, str(BENCHMARKS / "listing.py"), "--count", "20", "--runs", "2", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for label in ("os.scandir", "zipfile", "Catalog.of", "safepoint ls", "import typer", "safepoint --help"):
        assert any(line.startswith(label) and line.endswith("s") for line in done.stdout.splitlines())


def test_saves_show_every_peer_and_every_limit(tmp_path: Path) -> None:
    """Every peer works and has its row, and one more with an fsync if it does not fsync; the limits stand beside."""
    printed, results = tiny(tmp_path, "--sections", "saves-4")
    assert "does not work" not in printed
    for page in (printed, results):
        for peer in PEERS:
            assert peer in page
            assert (f"{peer} (not durable)" in page) == (f"{peer} + fsync" in page) == ("dcp" not in peer)
        for row in ("warm memcpy, memmove", "raw O_DIRECT write + fsync", "one training step without a save"):
            assert row in page
        for figure in ("stall per save, copy", "training time added per save, copy", "time to durable, copy"):
            assert figure in page


def test_fits_restores_and_footprints_show_their_rows(tmp_path: Path) -> None:
    """The other sections run; their targets come together on one page with the notes written by hand.

    With no sections asked for, the page is made again of what was found before.
    """
    sections = ("--sections", "fits", "restores-4", "footprints")
    printed, results = tiny(tmp_path, "--peers", "torch.save", *sections)
    for page in (printed, results):
        for row in ("no checkpoints", "Lightning AsyncCheckpointIO", "torch.load(mmap=True), copied in place"):
            assert row in page
        for figure in ("whole Trainer.fit, copy", "restore in place, verified", "peak memory above training"):
            assert figure in page
    assert (BENCHMARKS / "notes.md").read_text().strip() in results
    assert tiny(tmp_path, "--sections")[1] == results


def test_comparing_shows_ours_beside_what_people_do(tmp_path: Path) -> None:
    """Every way of comparing has its row, for files that differ or for ones that are the same."""
    printed, results = tiny(tmp_path, "--sections", "comparing-4")
    assert "does not work" not in printed
    for page in (printed, results):
        for row in ("safepoint diff, all changed", "safepoint diff --values, all changed", "safepoint diff, the same"):
            assert row in page
        for row in (
            "torch.equal, as a script, the same",
            "cmp, the same",
            "the same figures, float64, without the start",
        ):
            assert row in page
        assert "diff of two checkpoints, as a command" in page
