"""A Lightning training script of many kinds, and everything in it that a resumed run must have in common with it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchmetrics
from models import Framework
from torch.utils.data import DataLoader, Dataset, IterableDataset, random_split
from torchdata.stateful_dataloader import StatefulDataLoader

SAMPLES = 40


class Noisy(Dataset[torch.Tensor]):
    """Samples that are augmented at random, with every generator there is."""

    def __init__(self, *, noise: bool = True) -> None:
        self.data = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(3))
        self.noise = noise

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        if not self.noise:
            return self.data[index]
        return self.data[index] + 0.1 * (torch.rand(4) + random.random() + float(np.random.rand()))


class Stream(IterableDataset[torch.Tensor]):
    """Samples in a fixed order."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from Noisy(noise=False).data


class Batches:
    """Batches in a fixed order, from an object that is no ``DataLoader``; with a length, or without."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from Noisy().data.split(6)


class Counted(Batches):
    """The same, with a length."""

    def __len__(self) -> int:
        return 7


@dataclass(frozen=True)
class Case:
    """A way to train: the loader, the arguments of the trainer, how the module optimizes, what draws.

    ``seeds``: with which numbers the script is seeded, first and when it is resumed. ``inexact``: the warning that a
    position cannot be saved exactly, where it nevertheless is.
    """

    loader: Callable[[], Any]
    trainer: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = "step"
    manual: bool = False
    validates: bool = True
    epochs: int = 3
    draws_in_hooks: bool = False
    seeds: tuple[int, int] = (1, 2)
    inexact: str | None = None


def ordinary(workers: int = 0, *, noise: bool | None = None, batch_size: int = 6, **options: Any) -> DataLoader[Any]:
    """Return what scripts write; noise is left out where workers draw it."""
    dataset = Noisy(noise=not workers if noise is None else noise)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=workers, **options)


def stateful(workers: int = 0) -> Any:
    """Return torchdata's loader."""
    return StatefulDataLoader(Noisy(noise=not workers), batch_size=6, shuffle=True, num_workers=workers)


CASES: dict[str, Case] = {
    "plain": Case(ordinary),
    "no validation": Case(ordinary, validates=False),
    "hooks draw": Case(ordinary, {"num_sanity_val_steps": 0}, draws_in_hooks=True),
    "workers": Case(lambda: ordinary(2)),
    "persistent workers": Case(lambda: ordinary(2, persistent_workers=True)),
    "accumulation": Case(ordinary, {"accumulate_grad_batches": 3}),
    "clipping": Case(ordinary, {"gradient_clip_val": 0.1}, scheduler="epoch"),
    "bf16": Case(ordinary, {"precision": "bf16-mixed"}),
    "manual": Case(ordinary, manual=True),
    "plateau": Case(ordinary, scheduler="plateau"),
    "plateau by step": Case(ordinary, scheduler="plateau by step"),
    "half epochs": Case(ordinary, {"val_check_interval": 0.5}),
    "every second epoch": Case(ordinary, {"check_val_every_n_epoch": 2}),
    "every 5 batches": Case(ordinary, {"val_check_interval": 5, "check_val_every_n_epoch": None}),
    "limit": Case(ordinary, {"limit_train_batches": 4}),
    "max steps": Case(ordinary, {"max_steps": 17, "max_epochs": -1}, validates=False),
    "max steps, validation": Case(ordinary, {"max_steps": 17, "max_epochs": -1}),
    "stateful": Case(stateful),
    "stateful workers": Case(lambda: stateful(2)),
    "own generator": Case(lambda: ordinary(generator=torch.Generator().manual_seed(5))),
    "own generator, workers": Case(lambda: ordinary(2, generator=torch.Generator().manual_seed(5))),
    "iterable": Case(lambda: DataLoader(Stream(), batch_size=6), inexact="its Stream is iterable"),
    "no loader of torch": Case(Counted, inexact="Counted is no DataLoader"),
    "no length": Case(Batches, inexact="Batches is no DataLoader"),
    "two loaders": Case(lambda: {"a": ordinary(), "b": ordinary(batch_size=12)}),
    "reloaded": Case(ordinary, {"reload_dataloaders_every_n_epochs": 1}),
    "random split": Case(
        lambda: DataLoader(random_split(Noisy(), [30, 10])[0], batch_size=6, shuffle=True), seeds=(1, 1)
    ),
}


class _Net:
    """A net with dropout that logs what happens; ``shown`` holds what hooks drew."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.automatic_optimization = not case.manual
        self.first = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3))
        self.second = torch.nn.Linear(8, 1)
        self.mean = torchmetrics.MeanMetric()

    def train_dataloader(self) -> Any:
        return self.case.loader()

    def val_dataloader(self) -> Any:
        return DataLoader(Noisy(), batch_size=10)

    def on_train_start(self) -> None:
        if self.case.draws_in_hooks:
            torch.rand(3)

    def on_train_epoch_start(self) -> None:
        if self.case.draws_in_hooks:
            torch.rand(3)

    def on_validation_epoch_end(self) -> None:
        if self.case.draws_in_hooks:
            random.random()

    def _loss(self, batch: Any) -> torch.Tensor:
        if isinstance(batch, dict):
            batch = torch.cat([batch["a"], batch["b"]])
        return self.second(self.first(batch)).square().mean() + 0.01 * torch.rand(())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        loss = self._loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=6)
        self.mean(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True, batch_size=6)
        if not self.case.manual:
            return loss
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self._loss(batch))
            optimizer.step()
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch) + random.random())

    def configure_optimizers(self) -> Any:
        if self.case.manual:
            made = [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.first, self.second)]
            return made, [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in made]
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        if self.case.scheduler.startswith("plateau"):
            by_step = self.case.scheduler.endswith("step")
            found = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            monitor = "loss" if by_step or not self.case.validates else "val_loss"
            interval = "step" if by_step else "epoch"
            return [optimizer], [{"scheduler": found, "monitor": monitor, "interval": interval}]
        found = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": found, "interval": self.case.scheduler}]


def module(framework: Framework, case: Case) -> Any:
    """Return a fresh module of either package."""
    base = framework.pl.LightningModule
    hooks = () if case.validates else ("val_dataloader", "validation_step")
    unvalidated = {name: getattr(base, name) for name in hooks}
    return type("Net", (_Net, base), unvalidated)(case)


def curve(framework: Framework, path: Path | None = None) -> Any:
    """Return a logger that keeps every value by step and name, and appends it to ``path``."""

    class Curve(framework.pl.loggers.logger.Logger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.values: dict[str, float] = {}

        name = property(lambda self: "curve")
        version = property(lambda self: 0)

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            found = {f"{name} at {step}": float(value).hex() for name, value in metrics.items()}
            self.values |= found
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(found) + "\n")

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            pass

    return Curve()


def trainer(framework: Framework, case: Case, logger: Any, *callbacks: Any) -> Any:
    """Return a quiet trainer on the CPU."""
    return framework.pl.Trainer(
        **{
            "max_epochs": case.epochs,
            "accelerator": "cpu",
            "logger": logger,
            "callbacks": list(callbacks),
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 1,
            **case.trainer,
        }
    )


def seed(number: int) -> None:
    """Seed every generator."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def outcome(fitted: Any) -> dict[str, Any]:
    """Return what must be equal: weights, optimizers, schedulers, random state, progress."""
    net = fitted.lightning_module
    return {
        "weights": net.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in fitted.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in fitted.lr_scheduler_configs],
        "random": (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()),
        "progress": (fitted.global_step, fitted.current_epoch, fitted.fit_loop.epoch_loop._batches_that_stepped),
    }
