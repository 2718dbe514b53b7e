"""The same callback after a fit that ended in an exception: it goes on as after one that ended well."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from models import NOT_EMPTY, OLD_TREESPEC, Framework

from safepoint import load, memory

pytestmark = [OLD_TREESPEC, NOT_EMPTY]
LARGE = 192
"""The width of a layer that is large enough to be deferred."""


class BrokenError(Exception):
    """What ends the fits here."""


def breaking(framework: Framework, at_step: int) -> Any:
    """Return a callback that raises once, before the batch after ``at_step``."""

    class Breaking(framework.pl.Callback):  # type: ignore[misc,name-defined]
        raised = False

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == at_step and not self.raised:
                self.raised = True
                raise BrokenError

    return Breaking()


def broken_fit(framework: Framework, *callbacks: Any, at_step: int, **options: Any) -> Any:
    """Fit until ``at_step``, where it ends in an exception; return the trainer."""
    trainer = models.trainer(framework, breaking(framework, at_step), *callbacks, **options)
    with pytest.raises(BrokenError):
        trainer.fit(models.model(framework), models.loader(), models.loader())
    return trainer


def test_deferred_checkpoint_is_whole_in_the_fit_after_an_exception(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are exchanged at the epoch's end are in no checkpoint, whichever trainer it is."""
    real = memory.copy

    def slow(target: int, source: int, size_bytes: int) -> None:
        if threading.current_thread().name.startswith("safepoint-staging"):
            time.sleep(0.003)
        real(target, source, size_bytes)

    monkeypatch.setattr(memory, "copy", slow)

    class Module(framework.module):  # type: ignore[misc,name-defined]
        """Skip the rest of the epoch after the first batch."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Sequential(torch.nn.Linear(4, LARGE), torch.nn.Linear(LARGE, LARGE))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 1 else None

    class Exchange(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            for parameter in pl_module.parameters():
                parameter.data.fill_(777.0)

    callback = framework.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, staging="deferred")
    ended = broken_fit(framework, Exchange(), callback, at_step=0)
    fitted = models.trainer(framework, Exchange(), callback, epochs=1, limit_val_batches=0)
    data = torch.utils.data.DataLoader(models.loader().dataset, batch_size=1)
    fitted.fit(Module(), data, models.loader())
    (path,) = tmp_path.iterdir()
    assert not any((weights == 777.0).any() for weights in load(path)["state_dict"].values())
    for trainer in (ended, fitted):
        assert [type(one).__name__ for one in trainer.callbacks].count("Vanguard") == 0


def test_callbacks_that_share_a_pipeline_end_one_after_another(framework: Framework, tmp_path: Path) -> None:
    """Each saves what it is to on an exception, goes on in the next fit, and a late teardown() changes nothing."""
    before = set(threading.enumerate())  # what other tests have left
    callbacks = [
        framework.ModelCheckpoint(tmp_path, f"{name}-{{step}}", every_n_train_steps=every, save_on_exception=True)
        for name, every in (("a", 2), ("b", 4))
    ]
    ended = broken_fit(framework, *callbacks, at_step=3)
    for callback in callbacks:
        callback.teardown(ended, ended.lightning_module, "fit")
    assert models.listing(tmp_path) == ["a-step=2.ckpt", "a-step=3.ckpt", "b-step=3.ckpt"]
    models.fit(framework, *callbacks, epochs=2)
    assert models.listing(tmp_path) == ["a-step=3.ckpt", "a-step=4.ckpt", "b-step=3.ckpt", "b-step=4.ckpt"]
    new = set(threading.enumerate()) - before
    assert not [thread.name for thread in new if thread.name.startswith("safepoint")]
