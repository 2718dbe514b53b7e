"""Train the digits with Lightning; the one changed line is the import of ModelCheckpoint.

Usage: python examples/digits_lightning.py DIRECTORY [EPOCHS]
"""

from __future__ import annotations

import sys

import lightning.pytorch as pl
import torch
from digits import loaders, network
from torch.nn.functional import cross_entropy

from safepoint.lightning import ModelCheckpoint


class Digits(pl.LightningModule):
    """A classifier that logs its validation loss and accuracy."""

    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = network()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of one batch."""
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Log loss and accuracy."""
        images, labels = batch
        logits = self.network(images)
        self.log("val_loss", cross_entropy(logits, labels))
        self.log("val_acc", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])


def main(directory: str, epochs: int) -> None:
    """Train, keep the best two and the last, and load the best."""
    pl.seed_everything(7)
    checkpoint = ModelCheckpoint(
        dirpath=directory,
        filename="digits-{epoch}-{val_loss:.3f}",
        monitor="val_loss",
        mode="min",
        save_top_k=2,
        save_last=True,
        verbose=True,
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training, validation = loaders()
    trainer.fit(Digits(), training, validation)
    (best,) = trainer.validate(ckpt_path="best", dataloaders=validation, verbose=False)
    print(f"The best, loaded back: val_loss {best['val_loss']:.3f}, val_acc {best['val_acc']:.1%}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8)
