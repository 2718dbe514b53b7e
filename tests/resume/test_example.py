"""The example that users copy does what it says."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from lives import differences

import safepoint
from safepoint.catalog import Catalog

EXAMPLE = Path(__file__).parents[2] / "examples" / "resume.py"
EPOCHS = 10


def begun(directory: Path) -> subprocess.Popen[str]:
    """Start it."""
    command = [sys.executable, str(EXAMPLE), str(directory), str(EPOCHS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def newest(directory: Path) -> object:
    """Return what its last checkpoint holds."""
    record = Catalog.of(directory).latest()
    assert record is not None
    return safepoint.load(record.path)


def test_resume(tmp_path: Path) -> None:
    """Told to end and run again, it prints the same losses as if it had not been, and ends with the same state."""
    undisturbed = begun(tmp_path / "undisturbed").communicate()[0].splitlines()
    assert len(undisturbed) == EPOCHS
    process = begun(tmp_path / "run")
    assert process.stdout is not None
    printed = [process.stdout.readline().rstrip()]
    process.terminate()
    printed += process.communicate()[0].splitlines()
    assert process.returncode == 128 + signal.SIGTERM
    again = begun(tmp_path / "run").communicate()[0].splitlines()
    assert again
    assert printed + again == undisturbed
    unseeded = {".safepoint.rng.python", ".safepoint.rng.numpy"}
    assert set(differences(newest(tmp_path / "run"), newest(tmp_path / "undisturbed"))) <= unseeded
