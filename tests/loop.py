"""A tiny training whose every tensor is determined by the step, so that a checkpoint can be told by its content."""

from __future__ import annotations

from pathlib import Path

import torch

from safepoint import Checkpointer, keep, when


class Training:
    """A linear model with Adam; ``advance`` makes one real optimizer step."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(width, width), torch.nn.Dropout(0.1), torch.nn.Linear(width, 1)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)

    @property
    def state(self) -> dict[str, object]:
        """The objects to save and restore."""
        return {"model": self.model, "optimizer": self.optimizer}

    def advance(self) -> float:
        """Make one step on random data and return its loss."""
        loss = self.model(torch.randn(8, next(self.model.parameters()).shape[1])).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def weights(self) -> list[torch.Tensor]:
        """Return copies of all parameters and of the optimizer's state."""
        moments = [value for state in self.optimizer.state_dict()["state"].values() for value in state.values()]
        return [tensor.detach().clone() for tensor in (*self.model.parameters(), *moments)]


def equal(here: list[torch.Tensor], there: list[torch.Tensor]) -> bool:
    """Tell whether two lists of tensors are the same bit for bit."""
    return len(here) == len(there) and all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def best_and_latest(directory: Path) -> Path:
    """Let a run keep its best and its latest of four checkpoints in ``directory``, and return that."""
    training = Training()
    policy = keep.best("val_loss") | keep.latest()
    with Checkpointer(directory, state=training.state, save=when.every(epochs=1), keep=policy) as checkpointer:
        for loss in (0.5, 0.25, 0.75, 1.0):
            checkpointer.step(train_loss=training.advance())
            checkpointer.epoch_end(val_loss=loss)
            checkpointer.wait()  # so that a later one tells what its save cost
    return directory
