"""The drop-in on disks that are full, fail or refuse, for real: what training hears, and what the callback shows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import leaks
import pytest
from disk_faults import FAILING_FSYNC, READ_ONLY_EXT4, Fault, filled
from file_systems import mounted
from injection import injected
from invariants import temporaries, whole_checkpoints
from models import FRAMEWORKS, OLD_TREESPEC, Framework, listing, loader, model, trainer

import safepoint

pytestmark = OLD_TREESPEC
FRAMEWORK = FRAMEWORKS[0]
Strike = Callable[[], AbstractContextManager[None]]


def _between(framework: Framework, strike: Strike, first: int, last: int) -> Any:
    """Return a callback that has the fault strike from the start of one epoch to that of another."""

    class Between(framework.pl.Callback):  # type: ignore[misc,name-defined]
        struck = ExitStack()

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch in (first, last):  # a disk in use is not remounted
                trainer.checkpoint_callback._run.pipeline.wait()
            if trainer.current_epoch == first:
                self.struck.enter_context(strike())
            if trainer.current_epoch == last:
                self.struck.close()

    return Between()


@contextlib.contextmanager
def fitting(directory: Path, strike: Strike, *, epochs: tuple[int, int] = (1, 3), **options: Any) -> Any:
    """Yield a callback and what fits with it, six epochs of which some are struck."""
    callback = FRAMEWORK.ModelCheckpoint(dirpath=directory, filename="{epoch}", **options)
    between = _between(FRAMEWORK, strike, *epochs)
    fitted = trainer(FRAMEWORK, between, callback)
    try:
        with between.struck:
            yield callback, lambda: fitted.fit(model(FRAMEWORK), loader(), loader())
    finally:
        callback.teardown(fitted, fitted.lightning_module, "fit")  # which Lightning does not call after an error


@pytest.fixture(params=[READ_ONLY_EXT4, FAILING_FSYNC], ids=lambda fault: fault.name.replace(" ", "-"))
def fault(request: pytest.FixtureRequest) -> Fault:
    """Return faults that strike however small the checkpoint is."""
    found: Fault = request.param
    return found


@pytest.mark.parametrize("blocking", [False, True], ids=["background", "blocking"])
def test_fit_raises_what_failed_and_shows_what_is_there(tmp_path: Path, fault: Fault, *, blocking: bool) -> None:
    """Training ends with the error and its cause; what was durable before is shown, whole, and alone."""
    with (
        fault.scene(tmp_path) as scene,
        fitting(scene.directory, scene.strike, monitor="val_loss", save_last=True, blocking=blocking) as (saver, fit),
    ):
        with pytest.raises(safepoint.SaveError, match=r"epoch=1\.ckpt was not saved") as caught:
            fit()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno in fault.errors
        assert listing(scene.directory) == ["epoch=0.ckpt", "last.ckpt"]
        assert saver.best_model_path == str(scene.directory / "epoch=0.ckpt")
        assert saver.last_model_path == str(scene.directory / "last.ckpt")
        assert len(whole_checkpoints(scene.directory)) == 2


def test_warned_fit_goes_on_and_saves_again(tmp_path: Path, fault: Fault) -> None:
    """With ``on_error="warn"`` two epochs are lost, each with a warning; the next ones are saved."""
    options: dict[str, Any] = {"monitor": "val_loss", "save_top_k": -1, "save_last": True, "on_error": "warn"}
    with (
        fault.scene(tmp_path) as scene,
        fitting(scene.directory, scene.strike, blocking=True, **options) as (saver, fit),
    ):
        with pytest.warns(RuntimeWarning, match="was not saved") as warned:
            fit()
        lost = [str(warning.message) for warning in warned if "was not saved" in str(warning.message)]
        assert [f"epoch={epoch}.ckpt was not saved" in told for epoch, told in enumerate(lost, 1)] == [True, True]
        saved = [*(f"epoch={epoch}.ckpt" for epoch in (0, 3, 4, 5)), "last.ckpt"]
        assert listing(scene.directory) == saved
        assert set(saver.best_k_models) == {str(scene.directory / name) for name in saved[:-1]}
        assert len(whole_checkpoints(scene.directory)) == len(saved)


@pytest.mark.filterwarnings("ignore:.* is saved, and the next will not fit:RuntimeWarning")
def test_full_disk_is_told_by_fit(tmp_path: Path) -> None:
    """A disk that fills up in the middle of training: the error, and every checkpoint from before."""
    with (
        mounted("tmpfs", tmp_path, options="size=4m") as disk,
        fitting(disk / "run", lambda: filled(disk), monitor="val_loss") as (_, fit),
    ):
        with pytest.raises(safepoint.SaveError, match=r"epoch=1\.ckpt was not saved: .*No space left"):
            fit()
        assert [path.name for path in whole_checkpoints(disk / "run")] == ["epoch=0.ckpt"]
        assert temporaries(disk / "run") == []


@pytest.mark.filterwarnings("ignore:While SaveError was handled")  # a further save may be on its way by then
def test_fit_that_failed_gives_everything_back(tmp_path: Path) -> None:
    """After ``fit`` has raised, no thread of ours is there, and no memory is held."""
    with fitting(tmp_path, lambda: injected({"fsync": "error=EIO"})) as (_, fit):
        before = leaks.held()
        with pytest.raises(safepoint.SaveError):
            fit()
        assert not leaks.left_since(before)


# The further name.


@pytest.mark.parametrize("save_last", [True, "link"])
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_last_that_cannot_be_moved_stays_where_it_was(tmp_path: Path, save_last: Any, on_error: str) -> None:
    """Where ``last.ckpt`` cannot be renamed into its place the one before stays, whole, and no hidden name."""
    last = tmp_path / "last.ckpt"
    with fitting(
        tmp_path,
        lambda: injected({"rename,renameat,renameat2": "error=EIO"}),
        save_top_k=-1,
        save_last=save_last,
        on_error=on_error,
        blocking=True,
    ) as (saver, fit):
        if on_error == "raise":
            with pytest.raises(safepoint.SaveError, match="Input/output error"):
                fit()
            assert os.path.samefile(last, tmp_path / "epoch=0.ckpt")
        else:
            with pytest.warns(RuntimeWarning, match="Input/output error"):
                fit()
            assert os.path.samefile(last, tmp_path / "epoch=5.ckpt")
        assert saver.last_model_path == str(last)
        assert temporaries(tmp_path) == []
        assert len(whole_checkpoints(tmp_path)) >= 2


def test_checkpoint_without_its_further_name_is_removed_by_the_policy(tmp_path: Path) -> None:
    """What was written under its first name, and not under its second, is not left there for ever."""
    with fitting(
        tmp_path,
        lambda: injected({"rename,renameat,renameat2": "error=EIO"}),
        save_last=True,
        on_error="warn",
        blocking=True,
    ) as (_, fit):
        with pytest.warns(RuntimeWarning, match="Input/output error"):
            fit()
        assert listing(tmp_path) == ["epoch=5.ckpt", "last.ckpt"]


def test_obsolete_checkpoint_that_cannot_be_removed_goes_later(tmp_path: Path) -> None:
    """A removal that fails is told once; the checkpoint goes with a later save, and nothing else does."""
    first = tmp_path / "epoch=0.ckpt"
    with fitting(
        tmp_path, lambda: injected({"unlink,unlinkat": "error=EIO"}, path=first), on_error="warn", blocking=True
    ) as (saver, fit):
        with pytest.warns(RuntimeWarning, match=r"is saved, but epoch=0\.ckpt could not be removed") as warned:
            fit()
        assert len([each for each in warned if "could not be removed" in str(each.message)]) == 2
        assert listing(tmp_path) == ["epoch=5.ckpt"]
        assert saver.best_model_path == str(tmp_path / "epoch=5.ckpt")
