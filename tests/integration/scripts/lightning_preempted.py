"""Fit with Lightning until a signal comes; says ``start`` with the step, ``ready`` after some, ``finished``."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch

from safepoint.lightning import ModelCheckpoint

warnings.simplefilter("ignore")
_, way, directory = sys.argv


class Model(pl.LightningModule):
    """A linear layer; its steps take a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.is_signalled = False

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return something to minimise."""
        time.sleep(0.01)
        return self.layer(batch[0]).square().mean()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let Slurm's signal come in the middle of a save, if that is the way."""
        if way == "amidst" and not self.is_signalled:
            self.is_signalled = True
            signal.raise_signal(signal.SIGUSR1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters())


class Telling(pl.Callback):
    """Say how far it is."""

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Say where it begins."""
        print("start", trainer.global_step, flush=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Say that it has begun."""
        if trainer.global_step % 50 == 5:
            print("ready", flush=True)


torch.set_num_threads(1)
data = torch.utils.data.TensorDataset(torch.randn(20_000, 4))
steps = 5 if way == "amidst" else None
trainer = pl.Trainer(
    accelerator="cpu",
    devices=1,
    max_epochs=1,
    max_steps={"amidst": 6, "few": 50}.get(way, -1),
    default_root_dir=directory,
    callbacks=[
        Telling(),
        ModelCheckpoint(f"{directory}/run", every_n_train_steps=steps, save_on_exception=True, save_last=True),
    ],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=2))
print("finished", flush=True)
