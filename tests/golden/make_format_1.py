"""Write the golden file of format version 1: run once, when the format was fixed; kept to show what is in it."""

from __future__ import annotations

import sys

import torch

from safepoint import Checkpointer, keep, when


def main(directory: str) -> None:
    """Save one small state: shared storage, views, several dtypes, plain values."""
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    state = {
        "tensors": {
            "weight": weight,
            "transposed": weight.t(),
            "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "empty": torch.empty(0),
            "flag": torch.tensor(True),  # noqa: FBT003 - a tensor of one boolean
        },
        "notes": {"name": "golden", "numbers": [1, 2.5, None]},
    }
    with Checkpointer(directory, state=state, save=when.every(epochs=1), keep=keep.all()) as checkpointer:
        checkpointer.step(train_loss=0.5)
        checkpointer.epoch_end(val_loss=0.25)


if __name__ == "__main__":
    main(sys.argv[1])
