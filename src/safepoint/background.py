"""Where every thread of the package is started: a named pool that begins with its first task and can be closed.

The threads are not daemons: the interpreter waits for what is still to be written when a program ends without close().
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Background:
    """At most ``workers`` threads named after ``name``; started by the next ``submit`` whenever there are none."""

    def __init__(self, name: str, workers: int = 1) -> None:
        self._name = f"safepoint-{name}"
        self._workers = workers
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``task`` in one of the threads, in the order of submission; here and at once, if none can be started.

        So it is where the interpreter is ending, or the system has no more threads to give: what is asked for has to be
        brought to its end all the same.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix=self._name)
        work = _Work(partial(task, *args, **kwargs))
        try:
            self._executor.submit(work)
        except RuntimeError:
            work()  # unless it was queued, as where the system refused a thread, and one that is there has taken it
        return work.future

    def close(self) -> None:
        """Wait for everything submitted, and end the threads."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None


def each(name: str, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what ``task`` returns for each of ``items``, in their order; as many as there are processors are at work.

    Few are taken ahead, so that an error, or whoever takes no more of them, waits for those only.
    """
    workers = os.cpu_count() or 1
    threads = Background(name, workers)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(threads.submit(task, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.close()


class _Work(Generic[T]):
    """A task that is done once, whoever comes to it first; ``future`` tells what came of it."""

    def __init__(self, task: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._undone = [task]

    def __call__(self) -> None:
        """Do the task, unless it is done or being done."""
        try:
            task = self._undone.pop()
        except IndexError:
            return
        try:
            self.future.set_result(task())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self.future.set_exception(error)


def interpreter_is_ending() -> bool:
    """Tell whether the program has come to its end, and only its threads are waited for: no new one starts then."""
    with ThreadPoolExecutor(1) as probe:
        try:
            probe.submit(int)
        except RuntimeError:
            return True
    return False
