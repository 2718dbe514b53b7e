"""Train the digits with a plain PyTorch loop. Run it again after any interruption: it goes on where it was.

Usage: python examples/digits_loop.py DIRECTORY [EPOCHS]
"""

from __future__ import annotations

import sys
from itertools import islice

import torch
from digits import loaders, network
from torch.nn.functional import cross_entropy

from safepoint import Checkpointer, keep, when


@torch.no_grad()
def evaluate(model: torch.nn.Module, validation: torch.utils.data.DataLoader) -> dict[str, float]:
    """Return loss and accuracy over the validation images."""
    model.eval()
    images, labels = (torch.cat(part) for part in zip(*validation, strict=True))
    logits = model(images)
    model.train()
    accuracy = (logits.argmax(1) == labels).float().mean()
    return {"val_loss": cross_entropy(logits, labels).item(), "val_acc": accuracy.item()}


def main(directory: str, epochs: int) -> None:
    """Train, with a checkpoint every 20 steps and at every epoch's end."""
    torch.manual_seed(7)
    training, validation = loaders()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with Checkpointer(
        directory,
        state={"model": model, "optimizer": optimizer},
        save=when.every(steps=20) | when.every(epochs=1) | when.train_end(),
        keep=keep.best("val_loss", n=2, mode="min") | keep.latest(1),
    ) as checkpointer:
        progress = checkpointer.restore()
        if progress.path is not None:
            print(f"resumed at step {progress.step}, epoch {progress.epoch}, from {progress.path.name}", flush=True)
        for epoch in range(progress.epoch, epochs):
            done = progress.batch if epoch == progress.epoch else 0
            for images, labels in islice(training, done, None):
                loss = cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                checkpointer.step(train_loss=loss)
            metrics = evaluate(model, validation)
            checkpointer.epoch_end(**metrics)
            print(f"epoch {epoch}: val_loss {metrics['val_loss']:.3f}, val_acc {metrics['val_acc']:.1%}", flush=True)
    best = checkpointer.best("val_loss")
    print(f"best: {best.path.name}" if best else "nothing saved")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
