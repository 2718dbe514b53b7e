"""What the tests of failing disks share: a watch for hangs, and one for what is left behind."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator

import leaks
import pytest
from loop import Training

from safepoint import Checkpointer, keep, when, writer

PATIENCE_S = 120


@pytest.fixture(scope="session", autouse=True)
def everything_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Save once: an unprivileged user may not read where Python is installed, nor may one who can open no file."""
    training = Training()
    with Checkpointer(
        tmp_path_factory.mktemp("first"), state=training.state, save=when.every(steps=1), keep=keep.all()
    ) as saver:
        training.advance()
        saver.step()
        saver.records()


@pytest.fixture(autouse=True)
def nothing_hangs(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """End everything, with the stacks of all threads, if a test waits for what never comes."""
    with capfd.disabled():
        terminal = os.dup(2)
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=terminal)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(terminal)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what may pass be tried again as often as ever, and at once: these faults last."""
    monkeypatch.setattr(writer, "RETRY_AFTER_S", tuple(0.001 for _ in writer.RETRY_AFTER_S))


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_hangs: None) -> Iterator[None]:
    """Compare the descriptors and threads before and after."""
    before = leaks.held()
    yield
    assert not leaks.left_since(before)
