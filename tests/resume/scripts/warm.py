"""Train a few epochs from another run's weights; die once, where a variable says so. Knows nothing of restarts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from loop import Training

from safepoint import Checkpointer, keep, when

EPOCHS, STEPS = 3, 4


def main(directory: str, other: str) -> None:
    """Train, and print where it started."""
    torch.set_num_threads(1)
    training = Training(seed=7)
    with Checkpointer(
        directory,
        state=training.state,
        save=when.every(steps=2),
        keep=keep.all(),
        blocking=True,
        resume_from=f"{other}@best:loss",
    ) as checkpointer:
        progress = checkpointer.restore(only=["model"])
        print(f"step {progress.step}, restored {', '.join(progress.report.restored)}", flush=True)
        done = progress.batch
        for _ in range(progress.epoch, EPOCHS):
            for _ in range(done, STEPS):
                checkpointer.step(loss=training.advance())
                die_once(Path(directory), training)
            done = 0
            checkpointer.epoch_end()


def die_once(directory: Path, training: Training) -> None:
    """Die at the seventh step of the first process: in the second epoch, with a step that no checkpoint has."""
    steps = next(iter(training.optimizer.state.values()))["step"]
    mark = directory.parent / "died"
    if steps == 7 and os.environ.get("DIE") and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
