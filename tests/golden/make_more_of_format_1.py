"""Write the further golden files of format version 1: run once, kept to show what is in each, and run again by a test.

Together they use everything that the format has: see ``WRITERS``. ``format-1.ckpt`` is older, and not among them.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from safepoint import Checkpointer, keep, when
from safepoint.lightning import ModelCheckpoint


class Module(pl.LightningModule):
    """A linear layer behind a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(requires_grad=False)
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss."""
        loss = self.layer(self.frozen(batch[0])).square().mean()
        self.log("loss", loss)
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log a metric whose value is known."""
        self.log("val_loss", torch.tensor(0.25 * (1 + self.current_epoch)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer with state."""
        return torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9)


def tensors() -> dict[str, Any]:
    """Return tensors of which the manifest tells everything, below keys that are not all ASCII."""
    base = torch.arange(12, dtype=torch.float32)
    return {
        "whole": base,
        "view": base[2:6],
        "strided": base.view(3, 4).t()[::2],
        "scalar": torch.tensor(3.5),
        "no elements": torch.empty(0, 3),
        "bfloat16": torch.tensor([1.5, -2.0, math.inf], dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j, -0.5j], dtype=torch.complex64),
        "float8": torch.tensor([0.5, 1.0]).to(torch.float8_e4m3fn),
        "booleans": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "Größe ☃": torch.tensor([7]),
        "nested": [{"deep": (torch.tensor([1, 2]),)}],
        "plain": {"名": "golden", "numbers": [1, 2.5, None, True]},
    }


def kinds() -> dict[str, Any]:
    """Return tensors that are more than a place on a storage, or less."""
    scale, zero = torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([0, 1])
    return {
        "conjugated": torch.tensor([1 + 2j, -0.5j], dtype=torch.complex64).conj(),
        "quantised": torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8),
        "quantised by channel": torch.quantize_per_channel(torch.ones(2, 2), scale, zero, 0, torch.quint8),
        "sparse": torch.eye(3).to_sparse(),
        "sparse rows": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(2, 3, device="meta"),
    }


def objects() -> dict[str, Any]:
    """Return objects of classes that PyTorch does not hold for safe."""
    return {"fraction": Fraction(1, 3), "arguments": Namespace(name="golden", tensor=torch.arange(3))}


def model() -> torch.nn.Sequential:
    """Return a model whose first layer is frozen."""
    made = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    made[0].requires_grad_(requires_grad=False)
    return made


def write_state(directory: Path, **state: Any) -> Path:
    """Save ``state``, and nothing before."""
    with Checkpointer(directory, state=state, save=when.train_end(), keep=keep.all()) as checkpointer:
        return checkpointer.save()


def write_history(directory: Path) -> Path:
    """Save a pinned checkpoint whose history tells of kept and removed ones, and of metrics that JSON has no word for.

    All were staged behind the next step.
    """
    live = model()
    optimizer = torch.optim.SGD(live[1].parameters(), momentum=0.5)
    policy = keep.best("val_loss") | keep.latest()
    state = {"model": live, "optimizer": optimizer}
    options: dict[str, Any] = {"save": when.every(epochs=1), "keep": policy, "staging": "deferred"}
    with Checkpointer(directory, state=state, **options) as checkpointer:
        for loss in (math.nan, 0.5, math.inf, -math.inf, 0.75):
            live(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            checkpointer.step()
            checkpointer.epoch_end(val_loss=loss)
        checkpointer.attach(5, late=0.125)
        checkpointer.wait()
        checkpointer.step(**{"Präzision ✓": 1, "not a number": math.nan, "below": -math.inf})
        return checkpointer.save(pinned=True)


def write_frozen(directory: Path) -> Path:
    """Save a model whose frozen part is left out."""
    options: dict[str, Any] = {"save": when.train_end(), "keep": keep.all(), "exclude_frozen": True}
    with Checkpointer(directory, state={"model": model()}, **options) as checkpointer:
        checkpointer.step(loss=2)
        return checkpointer.save()


def fit(directory: Path, epochs: int, ckpt_path: Path | None = None) -> pl.Trainer:
    """Fit with the drop-in, and return the trainer."""
    data = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=1)
    options: dict[str, Any] = {"save_top_k": -1, "save_last": True, "every_n_train_steps": 3, "blocking": True}
    callback = ModelCheckpoint(directory, "{step}", monitor="val_loss", **options)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[callback], num_sanity_val_steps=0, **quiet)
    trainer.fit(Module(), data, data, ckpt_path=ckpt_path)
    return trainer


def write_lightning(directory: Path) -> Path:
    """Save by the drop-in: in mid-epoch, so that the metric is of an earlier step, and as ``last``, by another name."""
    fit(directory, epochs=2)
    return directory / "last.ckpt"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "tensors": lambda directory: write_state(directory, tensors=tensors()),
    "kinds": lambda directory: write_state(directory, kinds=kinds()),
    "trusted": lambda directory: write_state(directory, objects=objects()),
    "history": write_history,
    "frozen": write_frozen,
    "lightning": write_lightning,
}
"""What each file is called in the middle of ``format-1-....ckpt``, and what writes it."""


def written(name: str, directory: Path) -> Path:
    """Write the file called ``name`` below ``directory``, from the same random state each time."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and Lightning's remarks on what is quantised, small or old
        return WRITERS[name](directory)


def main(target: str) -> None:
    """Write all files into ``target``."""
    for name in WRITERS:
        with tempfile.TemporaryDirectory() as directory:
            written(name, Path(directory)).rename(Path(target) / f"format-1-{name}.ckpt")


if __name__ == "__main__":
    main(sys.argv[1])
