"""Nothing shared but the place of the training scripts that are killed here."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def scripts() -> Path:
    """Return the directory of the scripts that train until they are killed."""
    return Path(__file__).parent / "scripts"
