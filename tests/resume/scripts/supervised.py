"""Train as anybody would whose machine may be taken away: run it again after any end, and it goes on.

``supervised.py DIRECTORY [WORKERS [BLOCKING]]``; ``DIRECTORY/log`` gets a line a step, before it is counted.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from safepoint import Checkpointer, keep, when
from safepoint.randomness import rng_state

EPOCHS = 6
STEPS_AN_EPOCH = 50
STEPS = EPOCHS * STEPS_AN_EPOCH
BATCH = 4
EVERY = 5
PAUSE_S = 0.004
"""A step takes at least so long."""


def data() -> TensorDataset:
    """Return what is learnt, the same in every life."""
    drawn = torch.Generator().manual_seed(5)
    points = torch.randn(STEPS_AN_EPOCH * BATCH, 6, generator=drawn)
    return TensorDataset(points, points.sum(1, keepdim=True).sin())


def main(directory: str, workers: int = 0, blocking: int = 1) -> None:
    """Train to the end, or until somebody says otherwise."""
    torch.set_num_threads(1)
    run = Path(directory)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS)
    loader = DataLoader(data(), BATCH, shuffle=True, num_workers=workers)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    log = os.open(run / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with Checkpointer(
        run / "run",
        state=state,
        save=when.every(steps=EVERY) | when.preempted(),
        keep=keep.latest(2),
        blocking=bool(blocking),
    ) as saver:
        progress = saver.restore()
        step = progress.step
        for _ in range(progress.epoch, EPOCHS):
            for points, targets in loader:
                noise = 0.01 * random.random() + 0.01 * np.random.random()
                loss = nn.functional.mse_loss(model(points + noise), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                step += 1
                os.write(log, f"{step} {loss.item().hex()}\n".encode())
                saver.step(loss=loss)
                time.sleep(PAUSE_S)
            saver.epoch_end()
    final = {name: target.state_dict() for name, target in state.items() if not isinstance(target, DataLoader)}
    torch.save({**final, "rng": rng_state(), "step": step}, run / "final")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
