"""What a training step pays while no save is due: Safepoint beside Lightning's own callback, in one run.

Every hook is called inside a real ``Trainer.fit``, ours and theirs in turn, many rounds of many calls; a row shows the
median over the rounds and its ratio to the peer. Machines are shared and noisy: compare the ratios.

Run: ``python benchmarks/step_cost.py [--rounds 200] [--calls 500]``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint as Original

from safepoint import Checkpointer, keep, when
from safepoint.lightning import ModelCheckpoint

TRIGGERS: dict[str, dict[str, Any]] = {
    "every epoch (the default)": {},
    "every_n_train_steps": {"every_n_train_steps": 10**9},
    "every_n_train_steps, monitor": {"every_n_train_steps": 10**9, "monitor": "val_loss"},
    "train_time_interval": {"train_time_interval": timedelta(days=1)},
}
POLICIES = {
    "when.every(steps=)": when.every(steps=10**9),
    "four policies joined": when.every(steps=10**9)
    | when.every(minutes=600)
    | when.at_risk(minutes=600)
    | when.train_end(),
}


class Tiny(pl.LightningModule):  # type: ignore[misc]
    """Do as little as a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss, logged as usual."""
        loss = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Theirs(Original):  # type: ignore[misc]
    """The original, under a name of its own: a trainer takes no two stateful callbacks of one name."""


class Bench(pl.Callback):  # type: ignore[misc]
    """In the middle of the first epoch, call the hooks of ``callbacks`` in turn."""

    def __init__(self, callbacks: list[Any], rounds: int, calls: int) -> None:
        self.callbacks, self.rounds, self.calls = callbacks, rounds, calls
        self.medians_s: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure, once."""
        if batch_idx == 1:
            hooks = [lambda c=c: c.on_train_batch_end(trainer, pl_module, outputs, batch, 1) for c in self.callbacks]
            self.medians_s = medians_s(hooks, self.rounds, self.calls)


def medians_s(actions: list[Callable[[], None]], rounds: int, calls: int) -> list[float]:
    """Return the median seconds of one call of each action; every round calls each of them ``calls`` times."""
    rows: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, row in zip(actions, rows, strict=True):
            began = time.perf_counter()
            for _ in range(calls):
                action()
            row.append((time.perf_counter() - began) / calls)
    return [statistics.median(row) for row in rows]


def lightning_hooks(directory: Path, arguments: dict[str, Any], rounds: int, calls: int) -> tuple[float, float]:
    """Return the seconds of one ``on_train_batch_end`` with nothing due: theirs and ours."""
    callbacks = [Theirs(dirpath=directory / "a", **arguments), ModelCheckpoint(dirpath=directory / "b", **arguments)]
    bench = Bench(callbacks, rounds, calls)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 1)))
    pl.Trainer(max_steps=3, callbacks=[bench, *callbacks], **quiet).fit(Tiny(), data)
    theirs, ours = bench.medians_s
    return theirs, ours


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=500)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        print(f"{'on_train_batch_end, nothing due':34}{'Lightning':>12}{'Safepoint':>12}{'ratio':>8}")
        for label, arguments in TRIGGERS.items():
            theirs, ours = lightning_hooks(directory / label, arguments, options.rounds, options.calls)
            print(f"{label:34}{theirs * 1e6:9.2f} us{ours * 1e6:9.2f} us{ours / theirs:8.2f}")
        print(f"\n{'Checkpointer.step, nothing due':34}{'':12}{'Safepoint':>12}")
        loss = torch.tensor(0.5)
        for label, policy in POLICIES.items():
            model = torch.nn.Linear(1, 1)
            with Checkpointer(
                directory / "loop" / label, state={"model": model}, save=policy, keep=keep.all()
            ) as saver:
                plain, logging = medians_s(
                    [saver.step, lambda saver=saver: saver.step(loss=loss)], options.rounds, options.calls
                )
            print(f"{label:46}{plain * 1e6:9.2f} us")
            print(f"{label + ', with a metric':46}{logging * 1e6:9.2f} us")


if __name__ == "__main__":
    main()
