"""Frozen parameters left out of the checkpoints, and what is said of them when a checkpoint is loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants import whole_checkpoints
from models import NOT_EMPTY, OLD_TREESPEC, Framework, loader

from safepoint import Checkpointer, keep, load, reader, when

WIDTH = 256


def _model(seed: int = 0, *, backbone: int = 0) -> Any:
    """Return a frozen backbone, decided by ``backbone``, with a trained head and a buffer, decided by ``seed``."""
    torch.manual_seed(backbone)
    frozen = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False)
    torch.manual_seed(seed)
    head = torch.nn.Sequential(torch.nn.Linear(WIDTH, 2), torch.nn.BatchNorm1d(2))
    return torch.nn.ModuleDict({"backbone": frozen, "head": head})


def _checkpointer(directory: Path, model: Any) -> Checkpointer:
    optimizer = torch.optim.Adam(model["head"].parameters())
    model["head"](torch.randn(4, WIDTH)).square().mean().backward()
    optimizer.step()
    state = {"model": model, "optimizer": optimizer}
    return Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.all(), exclude_frozen=True)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    """Return a checkpoint without the backbone, and the model that it is of."""
    model = _model(1)
    with _checkpointer(tmp_path / "run", model) as saver:
        saver.step()
    (path,) = whole_checkpoints(tmp_path / "run")
    return path, model


def test_checkpoint_without_frozen_parameters_has_everything_else(saved: tuple[Path, Any]) -> None:
    """Trained parameters and buffers are in it, the frozen ones are not, and the file is as much smaller."""
    path, model = saved
    with pytest.warns(RuntimeWarning, match=r"2 frozen tensors \(such as 'model.backbone.weight'\) are not in it"):
        loaded = load(path)["model"]
    assert list(loaded) == [name for name in model.state_dict() if not name.startswith("backbone.")]
    assert path.stat().st_size < 4 * WIDTH * WIDTH
    assert list(reader.read_manifest(path).excluded) == ["model.backbone.weight", "model.backbone.bias"]


def test_restore_leaves_the_live_backbone_as_it_is(saved: tuple[Path, Any], caplog: pytest.LogCaptureFixture) -> None:
    """With the same backbone in place, the run goes on as it was; an info line says what was not in the file."""
    path, model = saved
    fresh = _model(2)
    with caplog.at_level(logging.INFO, "safepoint"), _checkpointer(path.parent, fresh) as saver:
        assert saver.restore().step == 1
    assert "2 frozen tensors are not in it, and stay as they are" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_restore_warns_of_another_backbone(saved: tuple[Path, Any]) -> None:
    """The trained part fits nothing but the backbone that it was trained on: another one is told by name."""
    path, _ = saved
    other = _model(2, backbone=5)
    before = other["backbone"].weight.clone()
    with _checkpointer(path.parent, other) as saver:
        match = r"2 of them \(such as 'backbone.weight'\) are not what they were"
        with pytest.warns(RuntimeWarning, match=match):
            saver.restore()
    assert torch.equal(other["backbone"].weight, before)


def test_restore_warns_of_a_model_that_lacks_what_was_left_out(saved: tuple[Path, Any]) -> None:
    """What is neither in the file nor in the model is told."""
    path, _ = saved
    bare = torch.nn.ModuleDict({"head": _model(2)["head"]})
    with (
        _checkpointer(path.parent, bare) as saver,
        pytest.warns(RuntimeWarning, match="not in it, and not in the model"),
    ):
        saver.restore()


def test_parameters_that_are_frozen_in_between_are_left_out_from_then_on(tmp_path: Path) -> None:
    """What needs no gradient at the moment of a save is what it leaves out."""
    model = _model(1)
    with _checkpointer(tmp_path, model) as saver:
        saver.step()
        first = saver.latest() or saver.save()
        saver.wait()
        model["head"][0].requires_grad_(requires_grad=False)
        saver.step()
        last = saver.save()
    assert first is not None
    assert "model.head.0.weight" in reader.read_manifest(last).excluded


def _lightning_module(framework: Framework, backbone: int) -> Any:
    class Tuned(framework.pl.LightningModule):  # type: ignore[misc, name-defined]
        """Train a small head on a frozen layer."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(backbone)
            self.backbone = torch.nn.Linear(4, WIDTH).requires_grad_(requires_grad=False)
            self.head = torch.nn.Linear(WIDTH, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.head(self.backbone(batch[0])).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.head.parameters())

    return Tuned()


def _fit(framework: Framework, directory: Path, module: Any, epochs: int, ckpt_path: Path | None = None) -> Any:
    checkpoint = framework.ModelCheckpoint(dirpath=directory, save_top_k=-1, exclude_frozen=True)
    trainer = framework.pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[checkpoint], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


@OLD_TREESPEC
@NOT_EMPTY
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch:UserWarning")
def test_fit_goes_on_from_a_checkpoint_without_the_backbone(
    framework: Framework, tmp_path: Path, told: list[str]
) -> None:
    """A trainer resumes strictly: the live backbone takes its place in what the trainer loads."""
    _fit(framework, tmp_path, _lightning_module(framework, 0), 1)
    (path,) = whole_checkpoints(tmp_path)
    module = _lightning_module(framework, 0)
    trainer = _fit(framework, tmp_path, module, 2, path)
    assert trainer.current_epoch == 2
    assert any("2 frozen tensors are not in it" in line for line in told)
    with pytest.warns(RuntimeWarning, match="exclude_frozen"):
        assert list(load(path)["state_dict"]) == ["head.weight", "head.bias"]


@OLD_TREESPEC
@NOT_EMPTY
def test_fit_warns_of_another_backbone(framework: Framework, tmp_path: Path) -> None:
    """Resumed with a backbone that was not the one, it says so."""
    _fit(framework, tmp_path, _lightning_module(framework, 0), 1)
    (path,) = whole_checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="are not what they were when it was saved"):
        _fit(framework, tmp_path, _lightning_module(framework, 9), 2, path)
