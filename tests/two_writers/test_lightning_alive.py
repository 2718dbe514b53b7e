"""The drop-in, and a run that is alive in another process."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, Framework, fit
from other_process import Start

from safepoint import RunAliveError

pytestmark = [OLD_TREESPEC, NOT_EMPTY, pytest.mark.filterwarnings("ignore:That run is alive:UserWarning")]


def weights(module: Any) -> torch.Tensor:
    """Return a copy of the weights of a scripted module."""
    found: torch.Tensor = module.layer.weight.detach().clone()
    return found


@pytest.mark.parametrize(
    ("framework", "resumed"), [(FRAMEWORKS[0], "last"), (FRAMEWORKS[1], "its path")], ids=["last", "path"]
)
def test_fit_refuses_a_run_that_another_process_saves(
    framework: Framework, tmp_path: Path, start: Start, impatient: None, resumed: str
) -> None:
    """Resuming raises before a weight has changed, and changes no file; once the other has ended, it goes on."""
    other = start(tmp_path, script="lightning_fit.py")
    path = "last" if resumed == "last" else tmp_path / "last.ckpt"
    listing = sorted(os.listdir(tmp_path))
    module, trainer = (
        models.model(framework),
        models.trainer(framework, framework.ModelCheckpoint(tmp_path, save_last=True)),
    )
    before = weights(module)
    with pytest.raises(RunAliveError, match=f"last.ckpt is held by process {other.pid}:"):
        trainer.fit(module, models.loader(), models.loader(), ckpt_path=path)
    assert torch.equal(weights(module), before)
    assert sorted(os.listdir(tmp_path)) == listing
    assert other.ask("") == "ended"
    trainer = models.trainer(framework, framework.ModelCheckpoint(tmp_path, save_last=True), epochs=4)
    trainer.fit(module, models.loader(), models.loader(), ckpt_path=path)
    assert trainer.current_epoch == 4


def test_fit_waits_for_the_last_checkpoint_of_a_process_that_ends(
    framework: Framework, tmp_path: Path, start: Start
) -> None:
    """A fit that ends while it is waited for is gone on with from what it saved at its end."""
    other = start(tmp_path, script="lightning_fit.py")
    epochs: list[int] = []

    class Epochs(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            epochs.append(trainer.current_epoch)

    threading.Timer(1, other.send, [""]).start()
    fit(framework, framework.ModelCheckpoint(tmp_path, save_last=True), Epochs(), epochs=4, ckpt_path="last")
    assert epochs == [3]


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_reading_a_living_run_is_never_refused(
    framework: Framework, tmp_path: Path, start: Start, impatient: None
) -> None:
    """Validating, testing and predicting with its checkpoints, and fits into other directories, go on."""
    start(tmp_path, script="lightning_fit.py")
    last = tmp_path / "last.ckpt"
    module = models.model(framework)
    trainer = models.trainer(framework, framework.ModelCheckpoint(tmp_path, save_last=True))
    trainer.validate(module, models.loader(), ckpt_path=last, verbose=False)
    elsewhere = models.trainer(framework, framework.ModelCheckpoint(tmp_path / "elsewhere", save_last=True), epochs=4)
    elsewhere.fit(module, models.loader(), models.loader(), ckpt_path=last)
    assert elsewhere.current_epoch == 4


def test_fresh_fit_is_told_of_a_living_run(framework: Framework, tmp_path: Path, start: Start) -> None:
    """A fit that goes on with nothing saves beside the living run, under other names, and is warned."""
    other = start(tmp_path, script="lightning_fit.py")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.warns(UserWarning, match=f"That run is alive: .* is held by process {other.pid},"):
        fit(framework, framework.ModelCheckpoint(tmp_path, save_last=True), epochs=3)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_second_fit_refuses_what_another_process_has_gone_on_with(
    framework: Framework, tmp_path: Path, start: Start, impatient: None
) -> None:
    """A trainer that fits again goes on with its run only if no other process has taken it over since."""
    module, trainer = models.model(framework), models.trainer(framework, framework.ModelCheckpoint(tmp_path), epochs=1)
    trainer.fit(module, models.loader(), models.loader())
    (path,) = tmp_path.iterdir()
    other = start(path, script="hold.py")
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(RunAliveError, match=f"held by process {other.pid}"):
        trainer.fit(module, models.loader(), models.loader())
    other.kill()
    trainer.fit(module, models.loader(), models.loader())
    assert trainer.current_epoch == 2


def test_fit_after_an_exception_refuses_what_another_process_has_gone_on_with(
    framework: Framework, tmp_path: Path, start: Start, impatient: None
) -> None:
    """It claims its run as after a fit that ended well, and still goes on with it once the other process has ended."""

    class BrokenError(Exception):
        pass

    class Breaking(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == models.BATCHES_PER_EPOCH:
                raise BrokenError

    callback = framework.ModelCheckpoint(tmp_path, filename="{step}")
    with pytest.raises(BrokenError):
        fit(framework, Breaking(), callback)
    (path,) = tmp_path.iterdir()
    other = start(path, script="hold.py")
    for _ in range(2):
        with pytest.raises(RunAliveError, match=f"held by process {other.pid}"):
            fit(framework, callback, epochs=2)
    assert list(tmp_path.iterdir()) == [path]
    other.kill()
    fit(framework, callback, epochs=2)
    assert os.listdir(tmp_path) == ["step=4.ckpt"]
