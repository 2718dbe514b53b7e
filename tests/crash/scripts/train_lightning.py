"""Train without end with the Lightning drop-in and save at every step, until killed; `last` tells where to go on."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from safepoint.lightning import ModelCheckpoint

warnings.simplefilter("ignore")


class Model(pl.LightningModule):
    """A linear layer that says each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(500, 500)

    def on_train_start(self) -> None:
        """Say where training starts."""
        print("resumed", self.trainer.global_step, flush=True)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return something to minimise, and the loss that checkpoints are ranked by."""
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, whose state doubles the checkpoint."""
        return torch.optim.Adam(self.parameters())


def main(directory: str) -> None:
    """Train with the best two and the last kept; go on from the last if there is one."""
    torch.set_num_threads(1)
    checkpoint = ModelCheckpoint(dirpath=directory, monitor="loss", save_top_k=2, save_last=True, every_n_train_steps=1)
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 500)), batch_size=4)
    trainer.fit(Model(), data, ckpt_path="last" if (Path(directory) / "last.ckpt").exists() else None)


if __name__ == "__main__":
    main(sys.argv[1])
