"""What the tests of resumed runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lives import Forker


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Start trainings without waiting for torch."""
    forker = Forker()
    yield forker
    forker.end()
