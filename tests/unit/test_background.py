"""Threads that are started, and threads that the system refuses: a task is done once, and its result comes."""

from __future__ import annotations

import threading

import pytest

from safepoint.background import Background


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread start, as where a control group or a user has as many as are allowed."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_task_is_done_once_where_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done at once, and not again when threads can be started later, though it lies in their queue."""
    done: list[str] = []
    background = Background("test")
    with monkeypatch.context() as patch:
        refuse(patch)
        assert background.submit(done.append, "first").done()
    background.submit(done.append, "second").result(timeout=10)
    background.close()
    assert done == ["first", "second"]


def test_error_of_a_task_comes_out_where_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The future has it, as from a thread."""
    refuse(monkeypatch)
    future = Background("test").submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        future.result(timeout=10)


def test_task_is_left_to_the_thread_that_has_taken_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads one is there and the other refused: whoever comes first does it, and the result is one."""
    done: list[int] = []
    background = Background("test", workers=2)
    gate = threading.Event()
    running = background.submit(gate.wait, 10)
    with monkeypatch.context() as patch:
        refuse(patch)
        futures = [background.submit(done.append, number) for number in range(20)]
    gate.set()
    for future in (running, *futures):
        future.result(timeout=10)
    background.close()
    assert sorted(done) == list(range(20))
