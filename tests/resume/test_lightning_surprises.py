"""What comes between a save and a resume in Lightning, and must not be taken for either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from models import FRAMEWORKS, OLD_TREESPEC, Framework
from torch.utils.data import DataLoader, TensorDataset

import safepoint
from safepoint.catalog import Catalog

pytestmark = [OLD_TREESPEC, pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")]
LIGHTNING = FRAMEWORKS[0]


class Sized(LIGHTNING.module):  # type: ignore[misc,name-defined]
    """A module whose batches have a size that can be tried out."""

    def __init__(self) -> None:
        super().__init__({})
        self.batch_size = 2

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the data, in random order."""
        return DataLoader(TensorDataset(torch.randn(26, 4)), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a batch to validate with."""
        return models.loader()


def found_size(directory: Path | None) -> tuple[list[float], float]:
    """Train with a size that was found by trying; return the weights, and what is drawn next."""
    torch.manual_seed(1)
    callbacks = [] if directory is None else [LIGHTNING.ModelCheckpoint(directory)]
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=1)
    fit = models.trainer(LIGHTNING, finder, *callbacks, epochs=1, enable_checkpointing=directory is not None)
    module = Sized()
    fit.fit(module)
    return torch.cat([p.detach().flatten() for p in module.parameters()]).tolist(), float(torch.rand(1))


@pytest.mark.filterwarnings("ignore::UserWarning")  # the finder's own remarks
def test_tuner_is_no_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tuner saves and loads again in the midst of a fit puts nothing of a run back."""
    monkeypatch.chdir(tmp_path)  # where the finder leaves its own file if it has no checkpoint directory
    assert found_size(tmp_path / "ours") == found_size(None)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_metrics_from_before_the_resume(framework: Framework, tmp_path: Path) -> None:
    """A save before the first validation of a resumed run says when its metrics were measured, and can be read."""
    callbacks = [
        framework.ModelCheckpoint(tmp_path, "s{step}", every_n_train_steps=1, save_top_k=-1, save_last=True),
        framework.ModelCheckpoint(tmp_path, "e{epoch}-{step}", save_top_k=-1, save_last=True),
    ]
    models.fit(framework, *callbacks, epochs=1, num_sanity_val_steps=2)
    again = [
        framework.ModelCheckpoint(tmp_path, "s{step}", every_n_train_steps=1, save_top_k=-1, save_last=True),
        framework.ModelCheckpoint(tmp_path, "e{epoch}-{step}", save_top_k=-1, save_last=True),
    ]
    models.fit(framework, *again, epochs=2, ckpt_path="last", num_sanity_val_steps=2)
    catalog = Catalog.of(tmp_path)
    assert catalog.unreadable == {}
    assert all(safepoint.verify(record.path) == [] for record in catalog.records)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_warm_start_that_is_started_again(framework: Framework, tmp_path: Path) -> None:
    """A ``last.ckpt`` that an earlier start from the same checkpoint has left is another run's, and stays."""
    first = framework.ModelCheckpoint(tmp_path / "0", every_n_train_steps=1, save_top_k=-1, save_last=True)
    models.fit(framework, first, epochs=1)
    source = first.best_model_path
    for _ in range(2):
        callback = framework.ModelCheckpoint(tmp_path / "x", every_n_train_steps=1, save_top_k=-1, save_last=True)
        models.fit(framework, callback, epochs=2, ckpt_path=source)
    assert {"last.ckpt", "last-v1.ckpt"} <= set(models.listing(tmp_path / "x"))
    assert Catalog.of(tmp_path / "x").unreadable == {}
