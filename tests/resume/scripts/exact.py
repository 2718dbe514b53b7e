"""Train in one of the ``cases``: a plain loop as anybody writes it, which may kill itself at a moment.

The moments (``Moments``) are what a loop goes through: a backward pass, an optimizer's step, a step's bookkeeping, a
validation batch, an epoch's end. A life that is resumed is seeded otherwise than the first: whatever a checkpoint does
not hold shows.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
import torch
from cases import CASES, Training

from safepoint import Checkpointer, keep
from safepoint.randomness import rng_state, set_rng_state


class Moments:
    """Count the moments of a life, and end it at one of them."""

    def __init__(self, last: int | str | None) -> None:
        self.count = 0
        self._last = last

    def __call__(self, name: str = "") -> None:
        """Live through one, which may have a name."""
        self.count += 1
        if self._last in {self.count, name}:
            os.kill(os.getpid(), signal.SIGKILL)


class Log:
    """A file to which every life appends."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, what: str, *values: float) -> None:
        """Append a line, at once."""
        os.write(self._file, f"{what} {' '.join(value.hex() for value in values)}\n".encode())


def seed_all(seed: int) -> None:
    """Seed every global generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def live(case: str, directory: str, *, kill: int | str | None = None, mutation: str = "") -> None:
    """Train to the end, or until the moment ``kill``."""
    torch.set_num_threads(1)
    run = Path(directory)
    seed_all(1 + 1000 * (run / "run").exists() * len(list((run / "run").glob("*.ckpt"))))
    moments = Moments(kill)
    training = CASES[case](moments)
    progress = train(training, run, mutation)
    (run / "moments").write_text(str(moments.count))
    torch.save(
        {
            "step": progress,
            "rng": rng_state(),
            **{name: final(target) for name, target in training.state.items() if "loader" not in name},
        },
        run / "final",
    )


def train(training: Training, run: Path, mutation: str) -> int:
    """Train, and return how many steps were made."""
    log, moments = Log(run / "log"), training.moments
    with Checkpointer(
        run / "run",
        state=training.state,
        save=training.save,
        keep=keep.latest(2),
        **training.options,
    ) as saver:
        progress = restored(saver, mutation)
        step = progress.step
        moments()
        for epoch in range(progress.epoch, training.epochs):
            training.begin(epoch)
            losses: list[float] = []
            for batch in training.batches():
                loss, is_step = training.advance(batch)
                losses.append(loss)
                if is_step:
                    step += 1
                    log(f"step={step}", *losses)
                    losses = []
                    moments()
                    saver.step(loss=loss)
                    moments()
            metrics = training.end(epoch)
            log(f"epoch={epoch}", *metrics.values(), *losses)
            moments()
            saver.epoch_end(**metrics)
            moments("epoch end")
    return step


def restored(saver: Checkpointer, mutation: str) -> Any:
    """Restore, or all but what ``mutation`` says."""
    before = rng_state()
    progress = saver.restore(except_=[mutation] if mutation in {"optimizer", "loader"} else None)
    if mutation == "rng":
        set_rng_state(before)
    return progress


def final(target: Any) -> Any:
    """Return what an object has come to."""
    if hasattr(target, "state_dict"):
        return target.state_dict()
    if isinstance(target, torch.Generator):
        return target.get_state()
    if isinstance(target, random.Random):
        return target.getstate()
    return str(target.bit_generator.state) if isinstance(target, np.random.Generator) else target


if __name__ == "__main__":
    live(sys.argv[1], sys.argv[2])
