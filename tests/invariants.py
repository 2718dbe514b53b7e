"""What must hold of a checkpoint directory at every moment, also after a crash: one function, used everywhere."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

import safepoint
from safepoint.naming import TEMPORARY_PREFIX


def whole_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints in ``directory``, after asserting that there is nothing else and that each is whole.

    Whole: Safepoint verifies it, a plain zip reader finds no error, and PyTorch's restricted loader reads it. Hidden
    temporaries of a writer that was killed are allowed: the next run cleans them.
    """
    found: list[Path] = []
    for path in sorted(directory.rglob("*")) if directory.exists() else []:
        if path.is_dir() or path.name.startswith(TEMPORARY_PREFIX):
            continue
        assert path.suffix == ".ckpt", f"{path} is no checkpoint and no temporary"
        assert safepoint.verify(path) == [], path
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, path
        torch.load(path, weights_only=True)
        found.append(path)
    return found


def temporaries(directory: Path) -> list[Path]:
    """Return the temporaries that lie in ``directory``."""
    return sorted(path for path in directory.rglob(f"{TEMPORARY_PREFIX}*"))
