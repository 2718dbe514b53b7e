"""What the tests of the Lightning drop-in share: both packages, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import lightning_utilities.core.rank_zero
import pytest
from models import FRAMEWORKS, Framework


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.name)
def framework(request: pytest.FixtureRequest) -> Framework:
    """Return the one and the other package."""
    found: Framework = request.param
    return found


@pytest.fixture
def told(framework: Framework) -> Iterator[list[str]]:
    """Return the list to which every info line of rank 0 is added.

    Both packages speak through one logger, that of whichever was imported last; so this does not go by name.
    """
    assert framework.pl is not None
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger: logging.Logger = lightning_utilities.core.rank_zero.log
    listener, level = Listener(), logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(listener)
    logger.setLevel(level)
