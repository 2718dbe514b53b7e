"""Train with two processes, of which the first asks for a save at the third step."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from two_ranks import Model, Strategy

from safepoint import requests
from safepoint.lightning import ModelCheckpoint

warnings.simplefilter("ignore")


class Asking(pl.Callback):
    """Put the request there."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Ask in the first process, after the third step."""
        if trainer.global_step == 3 and trainer.is_global_zero:
            Path(str(trainer.checkpoint_callback.dirpath)).mkdir(exist_ok=True)
            requests.ask(Path(str(trainer.checkpoint_callback.dirpath)))


def main(directory: str) -> None:
    """Train 60 steps on two CPU processes."""
    data = torch.utils.data.TensorDataset(torch.ones(240, 4))
    trainer = pl.Trainer(
        max_steps=60,
        accelerator="cpu",
        devices=2,
        strategy=Strategy(start_method="spawn"),
        callbacks=[Asking(), ModelCheckpoint(dirpath=directory, every_n_epochs=100)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=2))


if __name__ == "__main__":
    main(sys.argv[1])
