"""What the tests of two writers share: other processes, Lightning, and no patience."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from models import FRAMEWORKS, Framework
from other_process import Other, Start

from safepoint import claim


@pytest.fixture
def start() -> Iterator[Start]:
    """Return what starts another process, once that is ready; it ends with the test."""
    others: list[Other] = []

    def started(*arguments: object, script: str = "plain.py") -> Other:
        others.append(Other(script, *arguments))
        assert others[-1].answer() == "ready"
        return others[-1]

    yield started
    for other in others:
        other.end()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody's end be waited for in this process: a test knows that the other goes on."""
    monkeypatch.setattr(claim, "WAIT_S", 0.0)


@pytest.fixture
def framework() -> Framework:
    """Return one of the two packages: what is tried here is the body that both share."""
    return FRAMEWORKS[0]
