"""Tiny Lightning modules whose metrics follow a script, and short fits of them, for either of the two packages.

One package's modules and callbacks are strangers to the other, so that everything here takes a ``Framework``.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from safepoint.stores.local import LocalStore

BATCHES_PER_EPOCH = 2
VAL_LOSSES = (1.5, 1.2, 1.3, 0.98, 1.1, 1.05)

OLD_TREESPEC = pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")
"""Lightning's own data code asks torch about tree specs in the old way; for every test that fits."""
NOT_EMPTY = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
"""For tests that train into the same directory again, which is their point."""

PUBLIC = (
    "best_model_path",
    "best_model_score",
    "last_model_path",
    "best_k_models",
    "kth_best_model_path",
    "kth_value",
    "current_score",
)


class _Scripted:
    """Train one linear layer; log each metric at validation's end, by its script, one value an epoch."""

    def __init__(self, metrics: Mapping[str, Sequence[float]] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()  # type: ignore[attr-defined]
        self.metrics = {name: list(values) for name, values in (metrics or {}).items()}
        self.layer = torch.nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss that moves the weights."""
        loss = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss)  # type: ignore[attr-defined]
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log what the script says for this epoch."""
        for name, values in self.metrics.items():
            self.log(name, torch.tensor(values[self.current_epoch]))  # type: ignore[attr-defined]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log something that only these weights give."""
        self.log("weights", self.layer.weight.abs().sum())  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer that has state."""
        return torch.optim.Adam(self.parameters(), lr=0.01)  # type: ignore[attr-defined]


class Scripted(_Scripted, lightning.pytorch.LightningModule):
    """The module for ``lightning``."""


class ScriptedStandalone(_Scripted, pytorch_lightning.LightningModule):
    """The module for ``pytorch_lightning``."""


@dataclass(frozen=True)
class Framework:
    """One of the two packages: ``name`` of its module, of the adapter to it, and the class of its tiny modules."""

    name: str
    adapter: str
    module: type[Any]

    @property
    def pl(self) -> ModuleType:
        """The package itself."""
        return importlib.import_module(self.name)

    @property
    def ModelCheckpoint(self) -> type[Any]:  # noqa: N802 - it is a class
        """Safepoint's drop-in."""
        return importlib.import_module(self.adapter).ModelCheckpoint  # type: ignore[no-any-return]

    @property
    def original(self) -> type[Any]:
        """The framework's own class."""
        return importlib.import_module(f"{self.name}.callbacks").ModelCheckpoint  # type: ignore[no-any-return]

    @property
    def misconfiguration(self) -> type[Exception]:
        """The framework's own error about arguments."""
        return importlib.import_module(f"{self.name}.utilities.exceptions").MisconfigurationException  # type: ignore[no-any-return]


FRAMEWORKS = (
    Framework("lightning.pytorch", "safepoint.lightning", Scripted),
    Framework("pytorch_lightning", "safepoint.pytorch_lightning", ScriptedStandalone),
)


def loader() -> DataLoader[Any]:
    """Return the same few batches each time."""
    data = torch.randn(2 * BATCHES_PER_EPOCH, 4, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(data), batch_size=2)


def trainer(framework: Framework, *callbacks: Any, epochs: int = 6, **options: Any) -> Any:
    """Return a trainer on the CPU that says and writes nothing of its own."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return framework.pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), **{**quiet, **options})


def model(framework: Framework, metrics: Mapping[str, Sequence[float]] | None = None, *, seed: int = 7) -> Any:
    """Return a fresh module, by default with the usual ``val_loss``; the seed decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return framework.module({"val_loss": VAL_LOSSES} if metrics is None else metrics)


def fit(
    framework: Framework,
    *callbacks: Any,
    metrics: Mapping[str, Sequence[float]] | None = None,
    ckpt_path: str | Path | None = None,
    **options: Any,
) -> Any:
    """Fit a fresh module and return the trainer, which holds it as ``lightning_module``."""
    fitted = trainer(framework, *callbacks, **options)
    fitted.fit(model(framework, metrics), loader(), loader(), ckpt_path=ckpt_path)
    return fitted


def listing(directory: Path) -> list[str]:
    """Return the names of all files below ``directory``, sorted; none if it is not there."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())


def shown(callback: Any) -> dict[str, Any]:
    """Return the public attributes of a callback, comparable between directories."""
    return {name: modulo_directory(getattr(callback, name)) for name in PUBLIC}


def modulo_directory(value: Any) -> Any:
    """Return an attribute with file names in the place of paths, and with numbers in that of tensors."""
    if isinstance(value, dict):
        return {modulo_directory(key): modulo_directory(held) for key, held in value.items()}
    if isinstance(value, torch.Tensor):
        return repr(value)  # nan equals itself here, and the type counts
    return os.path.basename(value) if isinstance(value, str) and os.sep in value else value


def differences(expected: Any, actual: Any, where: str = "") -> list[str]:
    """Return the paths at which two nested states differ, in structure or in one bit."""
    if type(expected) is not type(actual):
        return [where]
    if isinstance(expected, torch.Tensor):
        return [] if expected.dtype == actual.dtype and torch.equal(expected, actual) else [where]
    if isinstance(expected, Mapping):
        if list(expected) != list(actual):
            return [f"{where}: keys {list(expected)} != {list(actual)}"]
        return [found for key in expected for found in differences(expected[key], actual[key], f"{where}.{key}")]
    if isinstance(expected, (list, tuple)):
        return differences(dict(enumerate(expected)), dict(enumerate(actual)), where)
    return [] if repr(expected) == repr(actual) else [where]  # repr: nan is nan


class SlowStore(LocalStore):
    """A disk that is slower than these epochs."""

    def write(self, *args: Any, **options: Any) -> int:
        """Take longer than an epoch, then write."""
        time.sleep(0.04)
        return super().write(*args, **options)
