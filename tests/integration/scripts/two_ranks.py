"""Train with two processes whose metrics differ and are not synchronised; print what rank 0's callback holds."""

from __future__ import annotations

import sys
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from safepoint.lightning import ModelCheckpoint

warnings.simplefilter("ignore")


class Model(pl.LightningModule):
    """A linear layer; the second rank sees the losses in another order of merit than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return something to minimise."""
        return self.layer(batch[0]).square().mean()

    def validation_step(self, _batch: list[torch.Tensor], _: int) -> None:
        """Log a scripted loss: rank 0 has its best in epoch 3, rank 1 in epoch 0."""
        losses = ((1.5, 1.2, 1.3, 0.98), (0.1, 0.2, 0.3, 0.4))[self.global_rank]
        self.log("val_loss", losses[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters())


class Strategy(DDPStrategy):
    """Two processes that part before they end; left to the exit, gloo's threads at times abort the process."""

    def teardown(self) -> None:
        """Leave the group."""
        super().teardown()
        torch.distributed.destroy_process_group()


def main(directory: str) -> None:
    """Train four epochs on two CPU processes."""
    checkpoint = ModelCheckpoint(
        dirpath=directory, monitor="val_loss", save_top_k=2, save_last=True, filename="{epoch}-{val_loss:.2f}"
    )
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=2,
        strategy=Strategy(start_method="spawn"),
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=8)
    trainer.fit(Model(), data, data)
    print("best", checkpoint.best_model_path)


if __name__ == "__main__":
    main(sys.argv[1])
