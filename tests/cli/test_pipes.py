"""The commands in a pipe that nobody reads to its end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from commands import COMMAND, environment


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory of two files of ``torch.save``."""
    for name in ("a.pt", "b.pt"):
        torch.save({"weight": torch.ones(3), "epoch": 1, "val_loss": 0.5}, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["ls", "."],
        ["show", "a.pt"],
        ["verify", "."],
        ["diff", "a.pt", "b.pt"],
        ["scan", "."],
        ["latest", "."],
        ["best", ".", "--metric", "val_loss"],
        ["export", "a.pt", "--to", "torch", "-o", "c.pt"],
        ["ls", ".", "--json"],
    ],
    ids=" ".join,
)
def test_command_whose_reader_is_gone_gives_no_answer(directory: Path, command: list[str]) -> None:
    """It ends by SIGPIPE and says nothing: 1 would be taken for "damaged", "differs" or "unsafe"."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, *command], stdout=write, stderr=subprocess.PIPE, check=False, cwd=directory, env=environment({})
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
