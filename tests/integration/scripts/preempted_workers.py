"""Train, at the module's own level, on a loader with two workers; say their numbers once they have begun to work."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from safepoint import Checkpointer, keep, when

_, way, directory = sys.argv


class Items(Dataset[torch.Tensor]):
    """Items that take a moment; after some, with ``hung``, those of the second worker take for ever."""

    def __len__(self) -> int:
        """Return how many there are."""
        return 100_000

    def __getitem__(self, index: int) -> torch.Tensor:
        """Take a moment."""
        time.sleep(600 if way == "hung" and index == 7 else 0.01)
        return torch.ones(4)


torch.set_num_threads(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader: DataLoader[Any] = DataLoader(Items(), batch_size=2, num_workers=2, persistent_workers=way == "persistent")
state: dict[str, object] = {"model": model, "optimizer": optimizer}
if way != "outside":
    state["loader"] = loader
with Checkpointer(directory, state=state, save=when.preempted(), keep=keep.all()) as saver:
    saver.restore()
    iterator = iter(loader)
    pids = [worker.pid for worker in vars(iterator).get("_inner", iterator)._workers]
    for step, batch in enumerate(iterator):
        model(batch).sum().backward()
        optimizer.step()
        saver.step()
        if step == 1:
            print(*pids, flush=True)
