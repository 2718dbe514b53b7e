"""``safepoint verify`` on damaged files: what it prints of each, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import spoil
import torch
from loop import Training
from nets import flip

from safepoint import Checkpointer, keep, when


def verify(*paths: Path) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint verify`` with its output piped."""
    command = [str(Path(sys.executable).with_name("safepoint")), "verify", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a directory with seven checkpoints."""
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        for _ in range(7):
            training.advance()
            checkpointer.step()
    return tmp_path


def test_verify_tells_of_every_file_though_the_first_is_damaged(run: Path) -> None:
    """Each damaged file has its line, with the tensor where it is one, each sound one too; the exit code is 1."""
    paths = [run / f"epoch=0-step={step}.ckpt" for step in range(1, 8)]
    flip(paths[0], "model.0.weight")
    flip(paths[1], "optimizer.state.1.exp_avg")
    flip(paths[2], "pickle")
    spoil.put(paths[3], paths[3].read_bytes()[:-1])
    spoil.put(paths[4], paths[4].read_bytes() + b"\0")
    spoil.put(paths[5], b"")
    torch.save({}, run / "foreign.ckpt")
    size_bytes = paths[4].stat().st_size
    result = verify(run)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    for path, told in (
        (paths[0], "tensor 'model.0.weight' does not match its digest"),
        (paths[1], "tensor 'optimizer.state.1.exp_avg' does not match its digest"),
        (paths[2], "the structure of the state (data.pkl) does not match its digest"),
        (paths[4], f"it has {size_bytes} bytes where {size_bytes - 1} are accounted for"),
        (paths[6], "sound"),
        (run / "foreign.ckpt", "sound: all match their CRC-32"),
    ):
        assert f"{path}: {told}" in lines
    for path, beginning in ((paths[3], "no whole zip archive"), (paths[5], "it is empty")):
        assert sum(line.startswith(f"{path}: {beginning}") for line in lines) == 1
    assert lines[-1] == "6 of 8 not sound"
    assert result.stderr == ""


@pytest.mark.parametrize("sound", [True, False])
def test_verify_of_files_ends_with_what_they_are(run: Path, *, sound: bool) -> None:
    """Several files by name: 0 if all are sound, 1 if one is not, whichever it is."""
    paths = sorted(run.iterdir())
    if not sound:
        flip(paths[-1], "model.2.bias")
    result = verify(*paths)
    assert result.returncode == (0 if sound else 1)
    assert result.stdout.splitlines()[-1] == ("all 7 sound" if sound else "1 of 7 not sound")
