"""Train the digits where the machine may be taken away at any moment: run it again, and it goes on where it was.

Usage: python examples/resume.py DIRECTORY [EPOCHS]
"""

from __future__ import annotations

import sys

import torch
from digits import loaders, network
from torch.nn.functional import cross_entropy

from safepoint import Checkpointer, keep, when


def main(directory: str, epochs: int) -> None:
    """Train; a checkpoint every 20 steps, and one as soon as a scheduler asks for the end."""
    torch.manual_seed(7)
    training, _ = loaders()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    with Checkpointer(
        directory,
        state={"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": training},
        save=when.every(steps=20) | when.preempted(grace_s=30) | when.train_end(),
        keep=keep.latest(2),
    ) as checkpointer:
        progress = checkpointer.restore()  # random generators and the loader's position included
        for epoch in range(progress.epoch, epochs):
            for images, labels in training:
                loss = cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                checkpointer.step(loss=loss)  # here the process ends if SIGTERM has come
            scheduler.step()
            checkpointer.epoch_end()
            print(f"epoch {epoch}: loss {loss.item():.6f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
