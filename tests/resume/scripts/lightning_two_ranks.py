"""Train with two processes, from the beginning or from a checkpoint; each leaves its weights and random state."""

from __future__ import annotations

import random
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from safepoint.lightning import ModelCheckpoint


class Net(pl.LightningModule):
    """A net with dropout, which draws on each rank what that rank draws."""

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__()
        self.directory, self.start = directory, seed
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))

    def setup(self, stage: str) -> None:
        """Seed each rank differently."""
        warnings.simplefilter("ignore")
        torch.manual_seed(self.start + self.global_rank)
        random.seed(self.start + self.global_rank)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return something to minimise."""
        return self.layers(batch[0]).square().mean() + random.random()

    def on_fit_end(self) -> None:
        """Leave what must be the same."""
        found = {"weights": self.state_dict(), "torch": torch.get_rng_state(), "python": random.getstate()}
        torch.save(found, self.directory / f"rank{self.global_rank}")

    def configure_optimizers(self) -> Any:
        """Return Adam."""
        return torch.optim.Adam(self.parameters())


class Strategy(DDPStrategy):
    """Two processes that part before they end; left to the exit, gloo's threads at times abort the process."""

    def teardown(self) -> None:
        """Leave the group."""
        super().teardown()
        torch.distributed.destroy_process_group()


def main(directory: Path, seed: int, checkpoint: str | None) -> None:
    """Train two epochs of four batches a rank."""
    directory.mkdir()
    callback = ModelCheckpoint(dirpath=directory / "run", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy=Strategy(start_method="spawn"),
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    samples = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(samples), batch_size=4, shuffle=True)
    trainer.fit(Net(directory, seed), data, ckpt_path=checkpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
