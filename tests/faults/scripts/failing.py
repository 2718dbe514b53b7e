"""Save once, then again under a limit for the size of files, and end as told: what a job may do that never asks."""

from __future__ import annotations

import resource
import sys
from typing import Literal

import torch

from safepoint import Checkpointer, keep, when

SIZE = 100_000


def main(directory: str, staging: Literal["copy", "deferred"], ending: str) -> None:
    """Let the second save fail, and end."""
    model = torch.nn.Linear(SIZE, 1)
    optimizer = torch.optim.SGD(model.parameters())
    state = {"model": model, "optimizer": optimizer}
    saver = Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.latest(1), staging=staging)
    saver.step()
    saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, resource.RLIM_INFINITY))
    if ending == "with":
        with saver:
            saver.step()
    elif ending == "error in with":
        with saver:
            saver.step()
            raise ZeroDivisionError
    else:
        saver.step()
    if ending == "close":
        saver.close()
    elif ending == "sys.exit":
        sys.exit(3)
    elif ending == "error":
        raise ZeroDivisionError
    print("end", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
