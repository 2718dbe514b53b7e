"""Where every thread of the package is started: a named pool that begins with its first task and can be closed.

The threads are not daemons: the interpreter waits for what is still to be written when a program ends without close().
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Background:
    """At most ``workers`` threads named after ``name``; started by the next ``submit`` whenever there are none."""

    def __init__(self, name: str, workers: int = 1) -> None:
        self._name = f"safepoint-{name}"
        self._workers = workers
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``task`` in one of the threads, in the order of submission; at once, if the interpreter is ending.

        No thread starts any more then, and what one of ours is about has to be brought to its end all the same.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix=self._name)
        try:
            return self._executor.submit(task, *args, **kwargs)
        except RuntimeError:
            return _done_here(task, *args, **kwargs)

    def close(self) -> None:
        """Wait for everything submitted, and end the threads."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None


def _done_here(task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(task(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)
    return future


def interpreter_is_ending() -> bool:
    """Tell whether the program has come to its end, and only its threads are waited for: no new one starts then."""
    with ThreadPoolExecutor(1) as probe:
        try:
            probe.submit(int)
        except RuntimeError:
            return True
    return False
