"""Threads that are started, and threads that the system refuses: a task is done once, and its result comes."""

from __future__ import annotations

import threading

import pytest

from safepoint.background import Background, each


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


def test_each_yields_in_order_and_takes_few_ahead() -> None:
    """What is done at once comes out in the order in which it was asked for, and what is not asked for is not begun."""
    begun: list[int] = []

    def double(number: int) -> int:
        begun.append(number)
        return 2 * number

    done = each("test", double, range(100_000))
    assert [next(done) for _ in range(3)] == [0, 2, 4]
    done.close()
    assert len(begun) < 100
    assert list(each("test", double, range(500))) == list(range(0, 1000, 2))
    assert list(each("test", double, ())) == []


def test_each_raises_and_goes_no_further() -> None:
    """An error comes where its result would, and little is begun behind it."""
    begun: list[int] = []

    def fail(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError(number)
        return number

    with pytest.raises(ValueError, match="2"):
        list(each("test", fail, range(100_000)))
    assert len(begun) < 100
