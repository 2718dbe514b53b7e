"""Storages and offsets beyond 4 GiB, where the zip format changes its fields."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.serialization import config

import safepoint
from safepoint import Checkpointer, keep, when


@pytest.mark.torture
def test_checkpoint_beyond_four_gigabytes_is_read_by_all(tmp_path: Path) -> None:
    """A storage of more than 4 GiB, and one behind it, verify and are read by torch (all ways), zipfile and unzip."""
    big = torch.zeros((1 << 32) + 4096, dtype=torch.uint8)
    big[-1] = 7
    state = {"notes": {"big": big, "behind": torch.arange(5)}}
    with Checkpointer(tmp_path, state=state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.step()
    path = tmp_path / "epoch=0-step=1.ckpt"
    assert safepoint.verify(path) == []
    for computed in (False, True):
        config.load.calculate_storage_offsets = computed
        try:
            loaded = torch.load(path, mmap=True, weights_only=True)["notes"]
        finally:
            config.load.calculate_storage_offsets = False
        assert int(loaded["big"][-1]) == 7
        assert torch.equal(loaded["behind"], torch.arange(5))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tq", str(path)], capture_output=True, check=False).returncode == 0
