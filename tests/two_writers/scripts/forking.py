"""Fork at a bad moment of a write, and tell whether the child keeps the checkpoint when its parent lets go.

Without torch, and so with no threads but ours: a fork copies whatever locks others hold.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from safepoint.stores import lease, local

children: list[int] = []


def fork() -> None:
    """Fork a child that lives on, and return once it runs."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, b"!")
        time.sleep(600)
        os._exit(0)
    children.append(child)
    os.read(read, 1)
    os.close(read)
    os.close(write)


class Held(lease.Held):
    """A lease of ours around which things happen."""

    def __init__(self, opened: Callable[[], int]) -> None:
        def slowly() -> int:
            descriptor = opened()
            if MOMENT == "opened":
                threading.Thread(target=fork).start()
                time.sleep(0.2)  # time for the fork, if nothing holds it up
            return descriptor

        super().__init__(slowly)

    def lock(self, operation: int = fcntl.LOCK_EX) -> bool:
        """Lock, and fork after that."""
        locked = super().lock(operation)
        if MOMENT == "locked":
            fork()
        return locked


MOMENT = sys.argv[2]
local.Held = Held  # type: ignore[misc]
directory = Path(sys.argv[1])
store = local.LocalStore(directory)
for name in ("a.ckpt", "b.ckpt"):
    store.write(name, [b"data"], 4, replace=False)
held = lease.is_held_here(directory / "b.ckpt")
store.let_go()
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join()
try:
    kept = [name for name in ("a.ckpt", "b.ckpt") if lease.is_held_elsewhere(directory / name)]
    print(len(children) > 0, held, kept, flush=True)
finally:
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
