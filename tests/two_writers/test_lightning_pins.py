"""The drop-in, and checkpoints that somebody pins while it trains: its top k goes on, and they stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants import whole_checkpoints
from models import NOT_EMPTY, OLD_TREESPEC, PUBLIC, Framework, fit
from other_process import Start
from pinned import command, pin

from safepoint.catalog import Catalog

pytestmark = [OLD_TREESPEC, NOT_EMPTY]
LOSSES = {"val_loss": (1.5, 1.2, 1.3, 0.98, 1.1, 0.9)}


def names(directory: Path) -> list[str]:
    """Return the names of the checkpoints in ``directory``, all of which must be whole."""
    return [path.name for path in whole_checkpoints(directory)]


def pinned(directory: Path) -> list[str]:
    """Return the names of those that are pinned."""
    return [record.path.name for record in Catalog.of(directory).records if record.pinned]


def at_epoch(framework: Framework, epoch: int, act: Callable[[], object]) -> Any:
    """Return a callback that acts at the beginning of an epoch, with all that was saved so far durable."""

    class Acting(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == epoch:
                trainer.checkpoint_callback._wait(trainer)
                act()

    return Acting()


def attributes(callback: Any) -> list[object]:
    """Return the public attributes, without the directory in their paths."""
    return [str(getattr(callback, name)).replace(str(callback.dirpath), "") for name in PUBLIC]


def test_pinned_checkpoint_of_a_living_fit_stays(tmp_path: Path, start: Start) -> None:
    """Pinned through ``last``, the checkpoint keeps its own name, and ``last`` goes on to the next one."""
    other = start(tmp_path, script="lightning_fit.py")
    told = command("pin", tmp_path / "last.ckpt")
    assert "epoch=1-step=4.ckpt is pinned" in told
    assert "last.ckpt is another name of it" in told
    assert other.ask("") == "ended"
    assert names(tmp_path) == ["epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt", "last.ckpt"]
    assert pinned(tmp_path) == ["epoch=1-step=4.ckpt"]
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "epoch=2-step=6.ckpt")


@pytest.mark.parametrize("top_k", [1, 2])
def test_pinned_checkpoint_stays_beside_the_top_k(tmp_path: Path, framework: Framework, top_k: int) -> None:
    """It has lost its place, as the attributes say, and is there; the others are those of a fit without pins."""

    def trained(directory: Path, *callbacks: Any) -> Any:
        callback = framework.ModelCheckpoint(directory, monitor="val_loss", save_top_k=top_k)
        fit(framework, callback, *callbacks, metrics=LOSSES)
        return callback

    plain, first = tmp_path / "plain", tmp_path / "run" / "epoch=0-step=2.ckpt"
    expected = trained(plain)
    found = trained(first.parent, at_epoch(framework, 1, lambda: pin(first)))
    assert attributes(found) == attributes(expected)
    assert names(first.parent) == sorted([first.name, *names(plain)])
    assert pinned(first.parent) == [first.name]


def test_pin_holds_for_the_fit_that_resumes(tmp_path: Path, framework: Framework) -> None:
    """Pinned between two fits, the best one stays when it is the best no more."""

    def trained(epochs: int, losses: Sequence[float], **options: Any) -> Any:
        callback = framework.ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
        fit(framework, callback, metrics={"val_loss": losses}, epochs=epochs, **options)
        return callback

    trained(2, (1.0, 2.0))
    command("pin", tmp_path / "epoch=0-step=2.ckpt")
    resumed = trained(4, (1.0, 2.0, 0.5, 0.4), ckpt_path="last")
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=3-step=8.ckpt", "last.ckpt"]
    assert list(resumed.best_k_models) == [str(tmp_path / "epoch=3-step=8.ckpt")]
    command("unpin", tmp_path / "epoch=0-step=2.ckpt")


def test_pinned_last_goes_on_under_another_name(tmp_path: Path, framework: Framework) -> None:
    """Where ``last`` is the only name of what is pinned; whoever resumes from ``last`` gets the newest."""
    last = tmp_path / "last.ckpt"
    callback = framework.ModelCheckpoint(tmp_path, save_top_k=0, save_last=True, every_n_train_steps=1)
    fit(framework, callback, at_epoch(framework, 1, lambda: command("pin", last)), epochs=3)
    assert names(tmp_path) == ["last-v1.ckpt", "last.ckpt"]
    assert pinned(tmp_path) == ["last-v1.ckpt"]
    assert torch.load(last)["global_step"] == 6
    assert torch.load(tmp_path / "last-v1.ckpt")["global_step"] == 2
    assert callback.last_model_path == str(last)
    resumed = fit(framework, callback, epochs=4, ckpt_path="last")
    assert resumed.global_step == 8
    assert names(tmp_path) == ["last-v1.ckpt", "last.ckpt"]


@pytest.mark.filterwarnings("ignore:.* is ranked by the validation of step:UserWarning")
def test_pinned_last_goes_on_under_another_name_where_it_becomes_a_link(tmp_path: Path, framework: Framework) -> None:
    """The second one is not the best, and so but the last; the third is both."""
    callback = framework.ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True, every_n_train_steps=2)
    act = at_epoch(framework, 2, lambda: pin(tmp_path / "last.ckpt"))
    fit(framework, callback, act, metrics={"val_loss": (1.0, 0.5, 0.4)}, epochs=3)
    assert names(tmp_path) == ["epoch=2-step=6.ckpt", "last-v1.ckpt", "last.ckpt"]
    assert pinned(tmp_path) == ["last-v1.ckpt"]
    assert torch.load(tmp_path / "last-v1.ckpt")["global_step"] == 4


@pytest.mark.parametrize("counts", [True, False], ids=["versions", "no versions"])
def test_name_without_numbers_is_not_taken_from_a_pinned_one(
    tmp_path: Path, framework: Framework, *, counts: bool
) -> None:
    """The next gets a version; where there are none, the pinned one does, for the name is to be overwritten."""
    callback = framework.ModelCheckpoint(tmp_path, filename="model", enable_version_counter=counts)
    fit(framework, callback, at_epoch(framework, 1, lambda: pin(tmp_path / "model.ckpt")), epochs=4)
    assert names(tmp_path) == ["model-v1.ckpt", "model.ckpt"]
    (kept,) = pinned(tmp_path)
    assert kept == ("model.ckpt" if counts else "model-v1.ckpt")
    assert torch.load(tmp_path / kept)["global_step"] == 2
    assert torch.load(callback.best_model_path)["global_step"] == 8


def test_pin_through_a_symbolic_last_is_one_of_what_it_shows(tmp_path: Path, framework: Framework) -> None:
    """With ``save_last="link"``."""
    callback = framework.ModelCheckpoint(tmp_path, monitor="val_loss", save_last="link")
    act = at_epoch(framework, 1, lambda: command("pin", tmp_path / "last.ckpt"))
    fit(framework, callback, act, metrics=LOSSES, epochs=2)
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt", "last.ckpt"]
    assert pinned(tmp_path) == ["epoch=0-step=2.ckpt"]


def test_callbacks_that_share_a_file_leave_what_is_pinned(tmp_path: Path, framework: Framework) -> None:
    """One file has a name for each; pinned is the name that was given, and what it shows is there."""
    best = framework.ModelCheckpoint(tmp_path, monitor="val_loss", filename="best-{epoch}")
    latest = framework.ModelCheckpoint(tmp_path, filename="latest-{epoch}")
    act = at_epoch(framework, 1, lambda: command("pin", tmp_path / "latest-epoch=0.ckpt"))
    fit(framework, best, latest, act, metrics=LOSSES, epochs=2)
    assert pinned(tmp_path) == ["latest-epoch=0.ckpt"]
    assert Catalog.of(tmp_path).fates[tmp_path / "latest-epoch=0.ckpt"].reason == "pinned"
    assert names(tmp_path) == ["best-epoch=1.ckpt", "latest-epoch=0.ckpt", "latest-epoch=1.ckpt"]
