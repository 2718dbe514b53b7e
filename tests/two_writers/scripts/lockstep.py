"""Save under the names that others choose, too, at every step; say which checkpoints are durable, and which failed."""

from __future__ import annotations

import sys
import warnings

import torch

from safepoint import Checkpointer, keep, when


def main(directory: str, steps: int, own: int) -> None:
    """Wait to be told to begin; every parameter equals ``own``."""
    torch.set_num_threads(1)
    model = torch.nn.Linear(30, 30)
    torch.nn.init.constant_(model.weight, own)
    print("ready", flush=True)
    sys.stdin.readline()
    with (
        warnings.catch_warnings(record=True) as told,
        Checkpointer(
            directory, state={"model": model}, save=when.every(steps=1), keep=keep.latest(steps), on_error="warn"
        ) as checkpointer,
    ):
        warnings.simplefilter("always")
        for _ in range(steps):
            checkpointer.step()
        checkpointer.wait()
        saved = [stats.path for stats in checkpointer.stats()]
    failed = [str(warning.message) for warning in told if "was not saved" in str(warning.message)]
    assert all("another run, or somebody, has put a file there" in message for message in failed), failed
    for path in saved:
        print(path, flush=True)
    print("failed", len(failed), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
