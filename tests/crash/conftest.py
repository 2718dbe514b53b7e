"""Nothing shared but the places of what is killed here, and of what it writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def scripts() -> Path:
    """Return the directory of the scripts that train until they are killed."""
    return Path(__file__).parent / "scripts"


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a file system in memory, if there is one: only the order of steps is of interest there."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="safepoint-", dir=_MEMORY) as directory:
        yield Path(directory)
