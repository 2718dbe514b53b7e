"""Train without end in a plain loop and save at every step, until killed. Says what it resumed and what is durable."""

from __future__ import annotations

import sys

import torch

from safepoint import Checkpointer, keep, when

WIDTH = 700  # 2 MB of parameters and 4 MB of Adam state: long enough to be hit in mid-write


def main(directory: str) -> None:
    """Resume, say from where, and train; every parameter always equals the step at which it was saved."""
    torch.set_num_threads(1)
    model = torch.nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.Adam(model.parameters())
    with Checkpointer(
        directory,
        state={"model": model, "optimizer": optimizer},
        save=when.every(steps=1),
        keep=keep.latest(2) | keep.every(steps=50),
    ) as checkpointer:
        progress = checkpointer.restore()
        if progress.step:
            assert float(model.weight[0, 0]) == float(model.bias[-1]) == progress.step
        print("resumed", progress.step, flush=True)
        for step in range(progress.step + 1, sys.maxsize):
            optimizer.zero_grad()
            model(torch.ones(1, WIDTH)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight.fill_(step)
                model.bias.fill_(step)
            checkpointer.step()
            if step % 5 == 0:
                checkpointer.wait()
                print("durable", step, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
