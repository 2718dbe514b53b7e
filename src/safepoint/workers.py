"""Worker processes of data loaders, which a signal for the run must not end.

A scheduler signals every process of a job. torch's workers answer SIGTERM by dying, and the training process then
raises an error in the middle of a step. So they are forked with the signals of the run masked, for as long as they
live. Two things that end them by SIGTERM are seen to here: ``terminate()`` sends SIGKILL, and at the interpreter's
exit, where ``multiprocessing`` waits for every worker it has terminated, they are told to end before.

Private names of others, each with a contract test: ``_workers`` and ``_shutdown_workers`` of a loader's iterator,
``_popen`` of a process.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, get_context, resource_tracker
from typing import Any

from safepoint.signals import held_from_children

_begun: weakref.WeakSet[Any] = weakref.WeakSet()


def begun(loader: Any, begin: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Return what ``begin`` returns, the iterator of ``loader``; the workers that it forks are left to the run alone.

    Only where a ``Checkpointer`` answers signals. Not covered are loaders that begin elsewhere, and workers that a fork
    server forks, which is not this process.
    """
    _start_what_is_shared(loader)
    with held_from_children() as is_held:
        iterator = begin()
    if is_held and (workers := getattr(iterator, "_workers", ())):
        for worker in workers:
            worker._popen.terminate = worker._popen.kill  # noqa: SLF001 - see above
        if not _begun:
            atexit.unregister(_end)
            atexit.register(_end)  # after multiprocessing's own, and so before it
        _begun.add(iterator)
    return iterator


def _start_what_is_shared(loader: Any) -> None:
    """Start the processes that ``multiprocessing`` starts besides, while nothing is masked: others use them, too.

    The first start of the resource tracker would also take the mask away.
    """
    method = (loader.multiprocessing_context or get_context()).get_start_method()
    if loader.num_workers and method != "fork":
        resource_tracker.ensure_running()
        if method == "forkserver":
            forkserver.ensure_running()


def _end() -> None:
    for iterator in tuple(_begun):
        iterator._shutdown_workers()  # noqa: SLF001 - see above
