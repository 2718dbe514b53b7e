"""Deferred staging in Lightning: the trainer's closure, weight averaging, validation, and never a torn checkpoint."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import OLD_TREESPEC, Framework, differences, fit
from torch.utils.data import DataLoader, TensorDataset

from safepoint import deferral, load, memory

WIDTH = 192
_WATCHED = ("state_dict", "optimizer_states", "current_model_state")
"""Where the weights are: with weight averaging, the live ones are in the last."""
pytestmark = OLD_TREESPEC


@pytest.fixture(autouse=True)
def background_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Slow the background copies down, and return their sizes."""
    copied: list[int] = []
    real = memory.copy

    def slow(target: int, source: int, size_bytes: int) -> None:
        if threading.current_thread().name.startswith("safepoint-staging"):
            copied.append(size_bytes)
            time.sleep(0.003)
        real(target, source, size_bytes)

    monkeypatch.setattr(memory, "copy", slow)
    return copied


def _module(framework: Framework, optimizer: str) -> Any:
    class Wide(framework.pl.LightningModule):  # type: ignore[misc, name-defined]
        """A layer that is large enough to be deferred."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(WIDTH, WIDTH)
            self.automatic_optimization = optimizer != "manual"
            self.stops_after = 0

        def on_train_batch_end(self, *_: Any) -> None:
            if self.stops_after and self.global_step == self.stops_after:
                self.trainer.should_stop = True

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.layer(batch[0]).square().mean()
            if not self.automatic_optimization:
                own = self.optimizers()
                own.zero_grad()
                self.manual_backward(loss)
                own.step()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.layer(batch[0]).square().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            if optimizer == "lbfgs":
                return torch.optim.LBFGS(self.parameters(), max_iter=2)
            return torch.optim.AdamW(self.parameters(), fused=optimizer == "fused")

    return Wide()


def _data() -> DataLoader[Any]:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(12, WIDTH)), batch_size=2)


def _fit(
    framework: Framework, directory: Path, optimizer: str, *callbacks: Any, stops_after: int = 0, **options: Any
) -> dict[str, Any]:
    """Fit with a checkpoint at every step; return what each must hold: a copy of what the trainer dumped for it."""
    truth: dict[str, Any] = {}
    checkpoint = framework.ModelCheckpoint(
        dirpath=directory, filename="{step}", every_n_train_steps=1, save_top_k=-1, staging="deferred"
    )

    class Watch(framework.pl.Callback):  # type: ignore[misc, name-defined]
        """Copy what is dumped, behind all other callbacks' part in it."""

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            truth[f"step={trainer.global_step}.ckpt"] = copy.deepcopy(
                {key: checkpoint[key] for key in _WATCHED if key in checkpoint}
            )

    torch.manual_seed(1)
    module = _module(framework, optimizer)
    module.stops_after = stops_after
    trainer = framework.pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, Watch(), checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, _data(), _data())
    assert checkpoint in trainer.callbacks
    assert not [callback for callback in trainer.callbacks if type(callback).__name__ == "Vanguard"]
    return truth


def _assert_whole(directory: Path, truth: dict[str, Any]) -> None:
    assert sorted(path.name for path in directory.iterdir()) == sorted(truth)
    for name, expected in truth.items():
        loaded = load(directory / name)
        assert differences(expected, {key: loaded[key] for key in expected}) == [], name


@pytest.mark.parametrize("optimizer", ["plain", "fused", "lbfgs", "manual"])
def test_deferred_checkpoint_of_a_fit_is_what_the_trainer_dumped(
    framework: Framework, tmp_path: Path, background_copies: list[int], optimizer: str
) -> None:
    """With the trainer's own closure or by hand, each checkpoint is the state at the end of its batch."""
    truth = _fit(framework, tmp_path / "ckpts", optimizer)
    assert len(truth) > 8
    assert background_copies
    _assert_whole(tmp_path / "ckpts", truth)


def test_deferred_copies_run_beside_forward_and_backward_in_a_fit(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer passes forward and backward to the optimizer as a closure: the copies go on until its end."""
    at: list[str] = []
    real = memory.copy

    def told(target: int, source: int, size_bytes: int) -> None:
        if threading.current_thread().name.startswith("safepoint-staging"):
            assert begun.wait(60)
            at.append("copied")
        real(target, source, size_bytes)

    begun = threading.Event()
    monkeypatch.setattr(memory, "copy", told)

    class Forward(framework.pl.Callback):  # type: ignore[misc, name-defined]
        """Let the copies go on only when a backward pass has ended, which would never come if it waited for them."""

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 1:
                at.append("backward")
                begun.set()

    truth = _fit(framework, tmp_path / "ckpts", "plain", Forward(), max_steps=3, max_epochs=1)
    assert at[:2] == ["backward", "copied"]
    _assert_whole(tmp_path / "ckpts", truth)


@pytest.mark.parametrize(
    "options",
    [{}, {"val_check_interval": 2}, {"accumulate_grad_batches": 2}, {"limit_val_batches": 0}, {"stops_after": 3}],
    ids=str,
)
def test_deferred_checkpoint_survives_weight_averaging(
    framework: Framework, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averaging exchanges the weights for validation, and for good at the end, unseen by any counter."""
    begin, hold_back = deferral.Deferral._copy, deferral.Deferral.hold_back
    may_begin = threading.Event()

    def at_the_worst_moment(copies: deferral.Deferral) -> None:
        may_begin.wait(60)
        begin(copies)

    def let_them_begin(copies: deferral.Deferral) -> None:
        may_begin.set()
        hold_back(copies)

    monkeypatch.setattr(deferral.Deferral, "_copy", at_the_worst_moment)
    monkeypatch.setattr(deferral.Deferral, "hold_back", let_them_begin)

    class WorstMoment(framework.pl.Callback):  # type: ignore[misc, name-defined]
        """Let the copies begin when the weights have been exchanged, unless a step needs them before."""

        def on_train_batch_start(self, *_: Any) -> None:
            may_begin.clear()

        def on_validation_batch_start(self, *_: Any) -> None:
            may_begin.set()
            time.sleep(0.02)

        def on_train_end(self, *_: Any) -> None:
            may_begin.set()
            time.sleep(0.02)

    def halfway(average: torch.Tensor, current: torch.Tensor, count: object) -> torch.Tensor:
        return 0.5 * average + 0.5 * current

    averaging = framework.pl.callbacks.WeightAveraging(avg_fn=halfway)
    truth = _fit(framework, tmp_path / "ckpts", "plain", averaging, WorstMoment(), **options)
    assert len(truth) >= 3
    assert all("current_model_state" in expected for expected in truth.values())
    _assert_whole(tmp_path / "ckpts", truth)


def test_deferred_staging_copies_at_once_where_no_batch_follows(
    framework: Framework, tmp_path: Path, background_copies: list[int]
) -> None:
    """At the end of an epoch other callbacks come next, which may change the weights: nothing is deferred there."""
    checkpoint = framework.ModelCheckpoint(dirpath=tmp_path / "ckpts", save_top_k=-1, staging="deferred")
    fit(framework, checkpoint, epochs=2)
    assert len(list((tmp_path / "ckpts").iterdir())) == 2
    assert background_copies == []
