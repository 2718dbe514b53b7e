"""A whole ``Trainer.fit`` with the best two and the last saved at every epoch's end: figure 5.

Each fit runs in a process of its own, interleaved with the others; time is that of ``fit`` alone. The validation loss
falls from epoch to epoch, so that each is among the best two.
"""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from contender import sync
from estimates import Samples, estimate, paired, values
from harness import Entry, Figures, Measured, interleave
from lightning.pytorch.callbacks import ModelCheckpoint as Original
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from ours import MODES
from processes import in_fresh_process, peak_bytes
from report import Report, Table, at_most, median, spread
from states import Network

import safepoint
from safepoint.lightning import ModelCheckpoint

_BASELINE = "no checkpoints"


@dataclass(frozen=True, slots=True)
class Case:
    """The training: 64 million parameters with AdamW, about 14 s on two free cores, unless a test asks for less."""

    width: int = 2048
    layers: int = 15
    batch: int = 64
    steps: int = 5
    epochs: int = 4


_WARM_UP = Case(width=8, layers=1, batch=1, steps=1, epochs=1)
"""Fitted first in every process, so that what torch and Lightning import late is not in the measured fit."""


class Module(pl.LightningModule):  # type: ignore[misc]
    """The network, with a validation loss that falls."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.network = Network(case.width, case.layers)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss."""
        return self.network(batch[0]).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log what the checkpoints are ranked by."""
        self.network(batch[0])
        self.log("val_loss", 1.0 / (self.current_epoch + 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


def fit(name: str, case: Case, directory: Path) -> Figures:
    """Run one fit in this process; return its seconds, those of an fsync of what it left, and its peak memory."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    _trainer(_BASELINE, case, directory).fit(Module(_WARM_UP), *_loaders(_WARM_UP))
    loaders, module, trainer = _loaders(case), Module(case), _trainer(name, case, directory)
    began = time.perf_counter()
    trainer.fit(module, *loaders)
    fitted = time.perf_counter()
    sync(directory)
    synced = time.perf_counter()
    _check(name, case, directory)
    shutil.rmtree(directory)
    return {"fit_s": fitted - began, "fsync_s": synced - fitted, "peak_bytes": float(peak_bytes())}


def _loaders(case: Case) -> tuple[Any, Any]:
    """Return a loader of an epoch's batches, and one of a single batch to validate with."""
    rows = [case.batch * case.steps, case.batch]
    sets = [torch.utils.data.TensorDataset(torch.randn(count, case.width)) for count in rows]
    train, validation = (torch.utils.data.DataLoader(each, batch_size=case.batch) for each in sets)
    return train, validation


def _trainer(name: str, case: Case, directory: Path) -> Any:
    wanted: dict[str, Any] = {"dirpath": directory, "monitor": "val_loss", "save_top_k": 2, "save_last": True}
    callbacks: list[Any] = []
    if name.startswith("Lightning"):
        callbacks = [Original(**wanted)]
    elif name.startswith("Safepoint"):
        callbacks = [ModelCheckpoint(**wanted, **_staging(name))]
    return pl.Trainer(
        max_epochs=case.epochs,
        accelerator="cpu",
        callbacks=callbacks,
        plugins=[AsyncCheckpointIO()] if "Async" in name else [],
        enable_checkpointing=bool(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _staging(name: str) -> dict[str, str]:
    return {"staging": name.partition(", ")[2]}


def _check(name: str, case: Case, directory: Path) -> None:
    """Raise unless the fit left the best two and the last, whole."""
    files = sorted(directory.glob("*.ckpt"))
    if len(files) != (0 if name == _BASELINE else 3):
        raise AssertionError(f"{name} left {[file.name for file in files]}; the best two and the last were asked for.")
    least_bytes = 3 * 4 * case.layers * case.width**2
    for file in files:
        if file.stat().st_size < least_bytes:
            raise AssertionError(f"{name} left {file.name} of {file.stat().st_size} bytes; the state is larger.")
        if name.startswith("Safepoint") and (problems := safepoint.verify(file)):
            raise AssertionError(f"{name} left {file.name}, which does not verify: {problems}")


def run(case: Case, directory: Path, rounds: int, every: int) -> Report:
    """Measure all fits; Lightning's take part in every ``every``-th round."""
    names = [_BASELINE, *(f"Safepoint, {mode}" for mode in MODES)]
    peers = ["Lightning ModelCheckpoint", "Lightning AsyncCheckpointIO"]
    entries = {
        name: Entry(
            partial(in_fresh_process, fit, name, case, directory / "fit"), every if name in peers else 1, name in peers
        )
        for name in (*names, *peers)
    }
    return _report(interleave(entries, rounds, warm_up=False), case, rounds)


def _report(measured: Measured, case: Case, rounds: int) -> Report:
    samples = measured.samples
    millions = case.layers * (case.width**2 + case.width) / 1e6
    title = f"Trainer.fit, {millions:.0f}M parameters, AdamW, {case.epochs} epochs, best 2 and last at every epoch"
    report = Report(title, rounds, measured.load, failures=measured.failures)
    report.tables.append(
        Table(
            title,
            ["", "rounds", "fit, s", "to no checkpoints", "fsync afterwards, s", "peak memory, GiB"],
            [_row(samples, name) for name in samples],
            [
                "Peak memory: the resident set's high-water mark, shared memory included; one process, no children.",
                "Lightning does not fsync: what an fsync of all files would take after the fit is shown beside it.",
            ],
        )
    )
    for mode in MODES:
        ratio = estimate(_to_baseline(samples, f"Safepoint, {mode}"))
        beside = ", ".join(f"{name} {median(values(samples, name, 'fit_s')).median:.1f} s" for name in samples)
        report.targets.append(at_most(f"whole Trainer.fit, {mode}", 1.08, "x the fit without", ratio, beside))
    return report


def _to_baseline(samples: Samples, name: str) -> list[float]:
    return paired(values(samples, name, "fit_s"), values(samples, _BASELINE, "fit_s"))


def _row(samples: Samples, name: str) -> list[str]:
    columns = {figure: list(values(samples, name, figure).values()) for figure in ("fit_s", "fsync_s", "peak_bytes")}
    peak = max(columns["peak_bytes"]) / 2**30
    ratio = spread(estimate(_to_baseline(samples, name)))
    return [
        name,
        str(len(columns["fit_s"])),
        spread(estimate(columns["fit_s"]), digits=2),
        ratio,
        spread(estimate(columns["fsync_s"]), digits=2),
        f"{peak:.2f}",
    ]
