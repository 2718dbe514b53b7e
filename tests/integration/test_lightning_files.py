"""The files that the drop-in leaves: who can read them, what resumes from them, which names they get."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants import temporaries, whole_checkpoints
from models import (
    BATCHES_PER_EPOCH,
    NOT_EMPTY,
    OLD_TREESPEC,
    VAL_LOSSES,
    Framework,
    SlowStore,
    differences,
    fit,
    listing,
    loader,
    model,
    modulo_directory,
    shown,
    trainer,
)

import safepoint
from safepoint.catalog import Catalog

pytestmark = OLD_TREESPEC

WEIGHT = "state_dict.layer.weight"


def damage(path: Path) -> None:
    """Flip one bit in the middle of the layer's weight, and nothing else."""
    weight = torch.load(path, weights_only=True)["state_dict"]["layer.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    assert content.count(weight) == 1
    content[content.index(weight) + len(weight) // 2] ^= 1
    path.write_bytes(content)


def weights(fitted: Any) -> dict[str, torch.Tensor]:
    """Return the live weights of a trainer's module."""
    return dict(fitted.lightning_module.state_dict())


def start_of(framework: Framework) -> Any:
    """Return a callback that notes at which (epoch, step) training starts."""

    class Start(framework.pl.Callback):  # type: ignore[misc,name-defined]
        at: tuple[int, int] | None = None

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.at = self.at or (trainer.current_epoch, trainer.global_step)

    return Start()


# Who can read them.


@pytest.mark.parametrize("mmap", [False, True])
def test_file_is_read_by_torch_alone(framework: Framework, tmp_path: Path, mmap: bool) -> None:  # noqa: FBT001
    """torch.load reads it in its restricted mode, mapped or not, and gives the live weights."""
    fitted = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="a"), epochs=1)
    state = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=mmap)
    assert differences(weights(fitted), dict(state["state_dict"])) == []


def test_file_passes_zip_tests(framework: Framework, tmp_path: Path) -> None:
    """Python's zip reader finds every checksum right."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="a"), epochs=1)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        assert any(name.endswith("/data.pkl") for name in archive.namelist())


@pytest.mark.skipif(shutil.which("unzip") is None, reason="no unzip on this machine")
def test_file_passes_unzip(framework: Framework, tmp_path: Path) -> None:
    """So does the usual command."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="a"), epochs=1)
    done = subprocess.run(["unzip", "-t", tmp_path / "a.ckpt"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No errors detected" in done.stdout


# What resumes from them.


@NOT_EMPTY
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_either_class_resumes_from_the_file_of_the_other(framework: Framework, tmp_path: Path, first: str) -> None:
    """Half a training with one class and half with the other ends bit for bit as one training, records included."""
    kinds = {"ours": framework.ModelCheckpoint, "theirs": framework.original}
    arguments: dict[str, Any] = {"monitor": "val_loss", "save_top_k": 2, "filename": "{epoch}"}
    straight = fit(framework, framework.original(dirpath=tmp_path / "straight", **arguments))
    one = kinds.pop(first)(dirpath=tmp_path / "halves", **arguments)
    fit(framework, one, epochs=3)
    assert listing(tmp_path / "halves") == ["epoch=1.ckpt", "epoch=2.ckpt"]
    (kind,) = kinds.values()
    other, start = kind(dirpath=tmp_path / "halves", **arguments), start_of(framework)
    resumed = fit(framework, start, other, ckpt_path=tmp_path / "halves" / "epoch=2.ckpt")
    assert start.at == (3, 3 * BATCHES_PER_EPOCH)
    assert differences(weights(straight), weights(resumed)) == []
    assert differences(straight.optimizers[0].state_dict(), resumed.optimizers[0].state_dict()) == []
    assert shown(straight.checkpoint_callback) == shown(other)
    assert {"epoch=3.ckpt", "epoch=5.ckpt"} <= set(listing(tmp_path / "halves"))


@NOT_EMPTY
def test_files_of_the_original_count_in_the_top_k(framework: Framework, tmp_path: Path) -> None:
    """What Lightning's own class had kept is removed by the drop-in once it is superseded, and not before."""
    arguments: dict[str, Any] = {"monitor": "val_loss", "filename": "{epoch}"}
    fit(framework, framework.original(dirpath=tmp_path, save_last=True, **arguments), epochs=3)
    assert listing(tmp_path) == ["epoch=1.ckpt", "last.ckpt"]
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **arguments), ckpt_path=tmp_path / "last.ckpt")
    assert listing(tmp_path) == ["epoch=3.ckpt", "last.ckpt"]


@NOT_EMPTY
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_checkpoint_resumed_from_is_never_removed(framework: Framework, tmp_path: Path, kind: str) -> None:
    """A superseded best that the run came from stays, as with the framework's own class."""
    make = {"ours": framework.ModelCheckpoint, "theirs": framework.original}[kind]
    arguments: dict[str, Any] = {"monitor": "val_loss", "filename": "{epoch}"}
    fit(framework, make(dirpath=tmp_path, **arguments), epochs=2)
    fit(framework, make(dirpath=tmp_path, **arguments), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert listing(tmp_path) == ["epoch=1.ckpt", "epoch=3.ckpt"]


@NOT_EMPTY
def test_damaged_checkpoint_is_refused_by_path(framework: Framework, tmp_path: Path) -> None:
    """One flipped bit, which torch.load does not see, is an error that names the tensor; the module is untouched."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, save_last=True), epochs=1)
    path = tmp_path / "last.ckpt"
    damage(path)
    torch.load(path, weights_only=True)  # silent: this is what the test is about
    fresh = model(framework, seed=8)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    resumed = trainer(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="other"))
    with pytest.raises(safepoint.DamagedCheckpointError, match=WEIGHT) as caught:
        resumed.fit(fresh, loader(), loader(), ckpt_path=path)
    assert str(path) in str(caught.value)
    assert differences(before, dict(fresh.state_dict())) == []
    assert not (tmp_path / "other.ckpt").exists()


def test_damaged_checkpoint_is_not_tested(framework: Framework, tmp_path: Path) -> None:
    """trainer.test refuses it, too."""
    fitted = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="a"), epochs=1)
    damage(tmp_path / "a.ckpt")
    with pytest.raises(safepoint.DamagedCheckpointError, match=WEIGHT):
        fitted.test(ckpt_path="best", dataloaders=loader(), verbose=False)


@NOT_EMPTY
def test_damaged_last_falls_back_to_the_newest_sound_one(framework: Framework, tmp_path: Path) -> None:
    """fit(ckpt_path="last") warns, and goes on from the newest checkpoint that verifies."""
    arguments: dict[str, Any] = {"dirpath": tmp_path, "filename": "{epoch}", "save_top_k": -1, "save_last": True}
    fit(framework, framework.ModelCheckpoint(**arguments), epochs=3)
    damage(tmp_path / "last.ckpt")  # and with it epoch=2.ckpt, which is the same file
    start = start_of(framework)
    resumed = trainer(framework, start, framework.ModelCheckpoint(**arguments), epochs=4)
    with pytest.warns(UserWarning, match=f"was skipped: .*{WEIGHT}") as warned:
        resumed.fit(model(framework), loader(), loader(), ckpt_path="last")
    assert [name for name in ("last.ckpt", "epoch=2.ckpt") if any(name in str(w.message) for w in warned)] == [
        "last.ckpt",
        "epoch=2.ckpt",
    ]
    assert start.at == (2, 2 * BATCHES_PER_EPOCH)


@NOT_EMPTY
@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_cut_off_last_falls_back_to_the_newest_sound_one(framework: Framework, tmp_path: Path, writer: str) -> None:
    """A half-written ``last``, of this class or of the framework's own, does not stop a run either."""
    arguments: dict[str, Any] = {"dirpath": tmp_path, "filename": "{epoch}", "save_top_k": -1}
    fit(framework, framework.ModelCheckpoint(**arguments), epochs=2)
    kind = {"ours": framework.ModelCheckpoint, "theirs": framework.original}[writer]
    fit(framework, kind(dirpath=tmp_path / "cut", save_last=True), epochs=3)
    whole = (tmp_path / "cut" / "last.ckpt").read_bytes()
    shutil.rmtree(tmp_path / "cut")
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    start = start_of(framework)
    resumed = trainer(framework, start, framework.ModelCheckpoint(**arguments), epochs=3)
    with pytest.warns(UserWarning, match=r"last\.ckpt was skipped"):
        resumed.fit(model(framework), loader(), loader(), ckpt_path="last")
    assert start.at == (2, 2 * BATCHES_PER_EPOCH)


def test_last_without_any_checkpoint_is_a_fresh_start(framework: Framework, tmp_path: Path) -> None:
    """As in Lightning, ckpt_path="last" can be set before the first run: it only warns."""
    start = start_of(framework)
    first = trainer(framework, start, framework.ModelCheckpoint(dirpath=tmp_path, save_last=True), epochs=1)
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        first.fit(model(framework), loader(), loader(), ckpt_path="last")
    assert start.at == (0, 0)


@NOT_EMPTY
def test_resumed_run_keeps_its_identity_and_history(framework: Framework, tmp_path: Path) -> None:
    """The newest file tells of every checkpoint of the run, those removed before the interruption included."""
    arguments: dict[str, Any] = {"dirpath": tmp_path, "filename": "{epoch}", "monitor": "val_loss", "save_last": True}
    fit(framework, framework.ModelCheckpoint(**arguments), epochs=2)
    first = Catalog.of(tmp_path).runs()
    fit(framework, framework.ModelCheckpoint(**arguments), ckpt_path="last")
    catalog = Catalog.of(tmp_path)
    assert len(first) == 1
    assert first == catalog.runs()
    told = {fate.record.path.name: fate.kept for fate in catalog.history(first[0])}
    assert told == {"epoch=0.ckpt": False, "epoch=1.ckpt": False, "epoch=3.ckpt": True, "last.ckpt": True}


@NOT_EMPTY
def test_moved_directory_loses_no_checkpoint(framework: Framework, tmp_path: Path) -> None:
    """Resumed from a renamed directory, training goes on at the right step and removes nothing there."""
    arguments: dict[str, Any] = {"filename": "{epoch}", "save_top_k": -1, "save_last": True}
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path / "old", **arguments), epochs=2)
    (tmp_path / "old").rename(tmp_path / "new")
    start = start_of(framework)
    moved = framework.ModelCheckpoint(dirpath=tmp_path / "new", **arguments)
    resumed = trainer(framework, start, moved, epochs=3)
    resumed.fit(model(framework), loader(), loader(), ckpt_path="last")
    assert start.at == (2, 2 * BATCHES_PER_EPOCH)
    assert listing(tmp_path / "new") == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert not (tmp_path / "old").exists()


# Which names they get: each beside the framework's own class.


def both(framework: Framework, root: Path, run: Callable[[type[Any], Path], Any]) -> tuple[Any, Any]:
    """Return what ``run`` gives with the drop-in in ``ours`` and with the framework's own class in ``theirs``."""
    return run(framework.ModelCheckpoint, root / "ours"), run(framework.original, root / "theirs")


NAMES: dict[str, dict[str, Any]] = {
    "slash": {"monitor": "val/loss", "filename": "m-{val/loss:.2f}"},
    "slash by hand": {
        "monitor": "val/loss",
        "filename": "epoch{epoch:02d}-loss{val/loss:.2f}",
        "auto_insert_metric_name": False,
        "save_top_k": 2,
    },
    "subdirectory": {"monitor": "val/loss", "filename": "sub/{epoch}", "save_last": True},
    "every step": {"train_time_interval": timedelta(seconds=0), "save_top_k": -1},
    "every third step": {"every_n_train_steps": 3, "save_top_k": -1},
    "no trigger": {"every_n_train_steps": 0, "save_last": True},
    "no epoch": {"every_n_epochs": 0, "save_last": True},
    "monitored epoch": {"monitor": "epoch", "mode": "max", "save_top_k": 2},
    "constant": {"filename": "same", "save_top_k": -1},
    "constant best": {"filename": "same", "monitor": "val/loss", "save_top_k": 2},
    "no version": {"filename": "same", "monitor": "val/loss", "enable_version_counter": False},
    "link": {"save_last": "link", "save_top_k": -1},
}


@pytest.mark.parametrize("arguments", NAMES.values(), ids=NAMES.keys())
def test_names_are_those_of_the_original(framework: Framework, tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Directory and attributes are the same as with the framework's own class."""

    def run(kind: type[Any], directory: Path) -> tuple[list[str], dict[str, Any]]:
        callback = kind(dirpath=directory, **arguments)
        fit(framework, callback, metrics={"val/loss": VAL_LOSSES})
        return listing(directory), shown(callback)

    ours, theirs = both(framework, tmp_path, run)
    assert theirs == ours
    assert len(whole_checkpoints(tmp_path / "ours")) == len(ours[0])


@NOT_EMPTY
def test_foreign_file_of_the_same_name_is_never_touched(framework: Framework, tmp_path: Path) -> None:
    """The new checkpoint is called -v1, as in Lightning, and what was there keeps its bytes."""

    def run(kind: type[Any], directory: Path) -> tuple[list[str], dict[str, Any]]:
        directory.mkdir()
        for name in ("mine.ckpt", "last.ckpt"):
            (directory / name).write_bytes(b"foreign")
        callback = kind(dirpath=directory, filename="mine", save_last=True)
        fit(framework, callback, epochs=2)
        return listing(directory), shown(callback)

    ours, theirs = both(framework, tmp_path, run)
    assert theirs == ours
    assert listing(tmp_path / "ours") == ["last-v1.ckpt", "last.ckpt", "mine-v1.ckpt", "mine.ckpt"]
    for name in ("mine.ckpt", "last.ckpt"):
        assert (tmp_path / "ours" / name).read_bytes() == b"foreign"
    for name in ("mine-v1.ckpt", "last-v1.ckpt"):
        assert safepoint.verify(tmp_path / "ours" / name) == []


@NOT_EMPTY
def test_foreign_file_is_replaced_where_versions_are_off(framework: Framework, tmp_path: Path) -> None:
    """enable_version_counter=False overwrites, as in Lightning."""
    (tmp_path / "mine.ckpt").write_bytes(b"foreign")
    fit(
        framework,
        framework.ModelCheckpoint(dirpath=tmp_path, filename="mine", enable_version_counter=False),
        epochs=1,
    )
    assert [tmp_path / "mine.ckpt"] == whole_checkpoints(tmp_path)


def test_linked_last_is_a_relative_symlink(framework: Framework, tmp_path: Path) -> None:
    """save_last="link" points to the newest by name alone, so that the directory can be moved."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path / "a", filename="{epoch}", save_last="link"), epochs=3)
    last = tmp_path / "a" / "last.ckpt"
    assert last.is_symlink()
    assert last.readlink() == Path("epoch=2.ckpt")
    (tmp_path / "a").rename(tmp_path / "b")
    assert torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["epoch"] == 2


def test_linked_last_takes_nothing_from_the_top_k(framework: Framework, tmp_path: Path) -> None:
    """Whatever ``last`` pointed to before stays as long as it is among the best."""
    callback = framework.ModelCheckpoint(
        dirpath=tmp_path, filename="{epoch}", monitor="val_loss", save_top_k=3, save_last="link", blocking=True
    )
    fit(framework, callback)
    assert listing(tmp_path) == ["epoch=3.ckpt", "epoch=4.ckpt", "epoch=5.ckpt", "last.ckpt"]


def test_every_n_train_steps_saves_at_these_steps(framework: Framework, tmp_path: Path) -> None:
    """Every third optimizer step, across epochs, and the file holds that very step."""
    callback = framework.ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(framework, callback)
    steps = [3, 6, 9, 12]
    assert sorted(f"step={step}.ckpt" for step in steps) == [path.name for path in whole_checkpoints(tmp_path)]
    for step in steps:
        assert torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["global_step"] == step


def test_step_trigger_waits_for_a_metric_of_validation(framework: Framework, tmp_path: Path) -> None:
    """With a validation metric and a step trigger, a save that is due waits for validation and is never dropped."""
    callback = framework.ModelCheckpoint(
        dirpath=tmp_path, filename="{step}-{val_loss:.2f}", monitor="val_loss", every_n_train_steps=2, save_top_k=-1
    )
    fit(framework, callback, epochs=1)
    assert listing(tmp_path) == ["step=2-val_loss=1.50.ckpt"]


def test_train_time_interval_of_zero_saves_every_step(framework: Framework, tmp_path: Path) -> None:
    """An interval that has always passed saves at each step; one of an hour saves at none."""
    for name, interval in (("zero", timedelta(seconds=0)), ("hour", timedelta(hours=1))):
        callback = framework.ModelCheckpoint(
            dirpath=tmp_path / name, filename="{step}", train_time_interval=interval, save_top_k=-1
        )
        fit(framework, callback, epochs=2)
    assert listing(tmp_path / "zero") == [f"step={step}.ckpt" for step in (1, 2, 3, 4)]
    assert listing(tmp_path / "hour") == []


# Several callbacks, several fits, loggers.


def test_two_callbacks_do_not_touch_each_others_files(framework: Framework, tmp_path: Path) -> None:
    """In one directory, one keeps its best and the other all of its steps."""
    best = framework.ModelCheckpoint(dirpath=tmp_path, filename="best-{epoch}", monitor="val_loss")
    steps = framework.ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    fitted = fit(framework, best, steps)
    assert listing(tmp_path) == ["best-epoch=3.ckpt", "step=12.ckpt", "step=4.ckpt", "step=8.ckpt"]
    assert fitted.checkpoint_callback is best
    assert len(whole_checkpoints(tmp_path)) == 4
    assert torch.load(tmp_path / "step=12.ckpt", weights_only=True)["callbacks"].keys() == {
        best.state_key,
        steps.state_key,
    }


@NOT_EMPTY
def test_two_callbacks_resume_with_their_own_records(framework: Framework, tmp_path: Path) -> None:
    """Each finds its own state in the file, and goes on removing what it had kept, and only that."""

    def pair() -> tuple[Any, Any]:
        best = framework.ModelCheckpoint(dirpath=tmp_path, filename="best-{epoch}", monitor="val_loss")
        return best, framework.ModelCheckpoint(dirpath=tmp_path, filename="new-{epoch}", save_last=True)

    fit(framework, *pair(), epochs=3)
    assert listing(tmp_path) == ["best-epoch=1.ckpt", "last.ckpt", "new-epoch=2.ckpt"]
    best, newest = pair()
    fit(framework, best, newest, ckpt_path="last")
    assert listing(tmp_path) == ["best-epoch=3.ckpt", "last.ckpt", "new-epoch=5.ckpt"]
    assert best.best_model_path == str(tmp_path / "best-epoch=3.ckpt")
    assert newest.best_model_path == str(tmp_path / "new-epoch=5.ckpt")


def listening_logger(framework: Framework, root: Path) -> Any:
    """Return a logger that looks at what the callback names whenever it is told of a checkpoint."""

    class Listening(framework.pl.loggers.Logger):  # type: ignore[misc,name-defined]
        name = "listening"
        version = 0
        save_dir = str(root)

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []
            self.problems: list[str] = []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            pass

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            pass

        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            self.seen.append(Path(checkpoint_callback.best_model_path).name)
            for name in filter(None, (checkpoint_callback.best_model_path, checkpoint_callback.last_model_path)):
                self.problems += safepoint.verify(name) if Path(name).is_file() else [f"{name} is not there"]

    return Listening()


def test_logger_is_told_once_of_each_checkpoint(framework: Framework, tmp_path: Path) -> None:
    """after_save_checkpoint is called once a checkpoint, however many names that has, and all of them verify."""
    logger = listening_logger(framework, tmp_path)
    callback = framework.ModelCheckpoint(
        dirpath=tmp_path, filename="{epoch}", monitor="val_loss", save_last=True, blocking=True
    )
    fit(framework, callback, logger=logger)
    assert logger.problems == []
    assert logger.seen == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=3.ckpt"]


def test_logger_on_a_slow_disk_is_shown_only_what_is_there(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far training is ahead, what best_model_path names when a logger is told exists and verifies."""
    monkeypatch.setattr("safepoint.pipeline.LocalStore", SlowStore)
    logger = listening_logger(framework, tmp_path)
    callback = framework.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val_loss", save_last=True)
    fit(framework, callback, logger=logger)
    assert logger.problems == []
    assert logger.seen[-1] == "epoch=3.ckpt"


def test_logger_decides_the_directory_where_none_is_given(framework: Framework, tmp_path: Path) -> None:
    """dirpath=None is the first logger's directory, and without one the trainer's, as in Lightning."""
    callback = framework.ModelCheckpoint(filename="a")
    fit(framework, callback, epochs=1, logger=listening_logger(framework, tmp_path / "logs"))
    assert callback.best_model_path == str(tmp_path / "logs" / "listening" / "version_0" / "checkpoints" / "a.ckpt")
    callback = framework.ModelCheckpoint(filename="a")
    fit(framework, callback, epochs=1, default_root_dir=tmp_path)
    assert callback.best_model_path == str(tmp_path / "checkpoints" / "a.ckpt")
    assert len(whole_checkpoints(tmp_path)) == 2


@NOT_EMPTY
def test_relative_directory_is_where_it_was_at_the_start(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training that changes the working directory saves all into one, and resumes there; moved with it, too."""
    home, elsewhere, moved = tmp_path / "home", tmp_path / "elsewhere", tmp_path / "moved"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)

    class Leave(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            os.chdir(elsewhere)

    def callback() -> Any:
        return framework.ModelCheckpoint(filename="{epoch}", monitor="val_loss", save_top_k=2, save_last=True)

    first = callback()
    fit(framework, Leave(), first, epochs=3, default_root_dir="runs")
    assert first.dirpath == os.path.join("runs", "checkpoints")
    assert listing(home) == [f"runs/checkpoints/{name}.ckpt" for name in ("epoch=1", "epoch=2", "last")]
    fit(framework, Leave(), first, epochs=4, default_root_dir="runs", ckpt_path="last")
    for directory, epochs, best in ((home, 5, [3, 4]), (moved, 6, [3, 5])):
        if directory is moved:
            home.rename(moved)
        monkeypatch.chdir(directory)
        again = callback()
        fit(framework, Leave(), again, epochs=epochs, default_root_dir="runs", ckpt_path="last")
        here = directory / "runs" / "checkpoints"
        assert sorted(again.best_k_models) == [str(here / f"epoch={epoch}.ckpt") for epoch in best]
        assert [path.name for path in whole_checkpoints(here)] == [
            *(f"epoch={epoch}.ckpt" for epoch in best),
            "last.ckpt",
        ]
    assert listing(elsewhere) == []


def test_relative_names_of_the_original_are_gone_on_with(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own callback keeps relative paths in its state: what they name counts in the top k."""
    monkeypatch.chdir(tmp_path)
    arguments: dict[str, Any] = {"filename": "{epoch}", "monitor": "val_loss", "save_top_k": 1}
    fit(framework, framework.original(**arguments), epochs=4, default_root_dir="runs")
    ours = framework.ModelCheckpoint(**arguments)
    path = Path("runs", "checkpoints", "epoch=3.ckpt")
    with pytest.warns(UserWarning, match="exists and is not empty"):
        fit(framework, ours, epochs=6, default_root_dir="runs", ckpt_path=path)
    assert listing(tmp_path) == [str(path)]
    assert ours.best_model_path == str(tmp_path / path)


@NOT_EMPTY
def test_second_fit_of_one_trainer_goes_on(framework: Framework, tmp_path: Path) -> None:
    """A trainer whose max_epochs is raised keeps its records: what the first fit kept is superseded by the second."""

    def run(kind: type[Any], directory: Path) -> list[Any]:
        callback = kind(dirpath=directory, filename="{epoch}", monitor="val_loss", save_last=True)
        fitted = fit(framework, callback, epochs=3)
        first = listing(directory), shown(callback)
        fitted.fit_loop.max_epochs = 6
        fitted.fit(fitted.lightning_module, loader(), loader())
        return [first, listing(directory), shown(callback)]

    ours, theirs = both(framework, tmp_path, run)
    assert theirs == ours
    assert ours[1] == ["epoch=3.ckpt", "last.ckpt"]


@NOT_EMPTY
def test_callback_goes_on_in_another_trainer(framework: Framework, tmp_path: Path) -> None:
    """The records stay with the callback when it is handed to a new trainer, as in Lightning."""

    def run(kind: type[Any], directory: Path) -> list[Any]:
        callback = kind(dirpath=directory, filename="{epoch}", monitor="val_loss", save_top_k=2)
        fit(framework, callback, epochs=2)
        fit(framework, callback, epochs=1, metrics={"val_loss": [1.0]})
        return [listing(directory), shown(callback)]

    ours, theirs = both(framework, tmp_path, run)
    assert theirs == ours


@NOT_EMPTY
def test_callback_pickles_before_and_after_a_fit(framework: Framework, tmp_path: Path) -> None:
    """A copy shows what the callback showed, and goes on with its records as the callback itself would."""

    def run(kind: type[Any], directory: Path) -> list[Any]:
        before = kind(dirpath=directory, filename="{epoch}", monitor="val_loss", save_top_k=2)
        callback = pickle.loads(pickle.dumps(before))
        fit(framework, callback, epochs=2)
        copy = pickle.loads(pickle.dumps(callback))
        assert shown(callback) == shown(copy)
        assert callback.state_key == copy.state_key
        fit(framework, copy, epochs=1, metrics={"val_loss": [1.0]})
        return [listing(directory), shown(copy)]

    ours, theirs = both(framework, tmp_path, run)
    assert theirs == ours


def test_callback_pickles_during_a_fit(framework: Framework, tmp_path: Path) -> None:
    """A copy made in the middle of training has no thread in it and keeps the records."""
    callback = framework.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val_loss", blocking=True)

    class Copier(framework.pl.Callback):  # type: ignore[misc,name-defined]
        copies: list[Any] = []  # noqa: RUF012 - one instance

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.copies.append(pickle.loads(pickle.dumps(callback)))

    copier = Copier()
    fit(framework, copier, callback, epochs=3)
    assert [modulo_directory(copy.best_model_path) for copy in copier.copies] == ["", "epoch=0.ckpt", "epoch=1.ckpt"]
    assert all(os.path.exists(copier.copies[-1].best_model_path) for _ in copier.copies)


# Ends that are no ends.


def interrupted(framework: Framework, kind: type[Any], directory: Path, error: BaseException) -> Any:
    """Return the callback after a fit that ends with ``error`` in the second batch of the third epoch."""

    class Stop(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.current_epoch, batch_idx) == (2, 1):
                raise error

    callback = kind(dirpath=directory, monitor="val_loss", save_last=True, save_on_exception=True)
    with pytest.raises(type(error)):
        fit(framework, Stop(), callback)
    return callback


def test_exception_leaves_a_checkpoint_of_its_moment(framework: Framework, tmp_path: Path) -> None:
    """save_on_exception writes the very step at which training broke, under the names that Lightning gives."""

    def run(kind: type[Any], directory: Path) -> tuple[list[str], dict[str, Any]]:
        callback = interrupted(framework, kind, directory, ArithmeticError("broken on purpose"))
        return listing(directory), shown(callback)

    ours, theirs = both(framework, tmp_path, run)
    assert theirs == ours
    assert ours[0] == ["epoch=1-step=4.ckpt", "epoch=2-step=5.ckpt", "last.ckpt"]
    assert len(whole_checkpoints(tmp_path / "ours")) == 3
    assert torch.load(tmp_path / "ours" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert temporaries(tmp_path / "ours") == []


def test_fast_dev_run_leaves_nothing(framework: Framework, tmp_path: Path) -> None:
    """A dry run writes no checkpoint, not even a last one."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path / "a", save_last=True), fast_dev_run=True)
    assert not (tmp_path / "a").exists()


def test_validation_alone_leaves_nothing(framework: Framework, tmp_path: Path) -> None:
    """trainer.validate and the sanity check before training save nothing."""
    callback = framework.ModelCheckpoint(dirpath=tmp_path / "a", monitor="val_loss", save_last=True)
    trainer(framework, callback).validate(model(framework), loader(), verbose=False)
    assert not (tmp_path / "a").exists()
    callback = framework.ModelCheckpoint(dirpath=tmp_path / "b", filename="{step}", save_top_k=-1)
    fit(framework, callback, epochs=1, num_sanity_val_steps=1)
    assert listing(tmp_path / "b") == ["step=2.ckpt"]


def test_checkpoint_that_the_user_asks_for_is_durable_at_once(framework: Framework, tmp_path: Path) -> None:
    """``trainer.save_checkpoint``, during a fit and after it, replaces what is there and is whole when it returns."""
    path = tmp_path / "mine" / "x.ckpt"
    found: list[tuple[int, list[str]]] = []

    class Ask(framework.pl.Callback):  # type: ignore[misc,name-defined]
        """Save by hand."""

        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            """Save, and look at once."""
            trainer.save_checkpoint(path)
            found.append((Catalog.of(path.parent).records[0].step, safepoint.verify(path)))

    fitted = fit(framework, Ask(), framework.ModelCheckpoint(dirpath=tmp_path / "ours"), epochs=1)
    assert found == [(1, []), (2, [])]
    fitted.save_checkpoint(path, weights_only=True)
    assert safepoint.verify(path) == []
    assert Catalog.of(path.parent).records[0].reasons == ("trainer.save_checkpoint",)
    assert "optimizer_states" not in safepoint.load(path)
    assert listing(tmp_path / "ours") == ["epoch=0-step=2.ckpt"]


def test_plugin_of_a_strategy_pickles_after_a_fit(framework: Framework, tmp_path: Path) -> None:
    """What stands before the strategy's plugin arrives in another process as that plugin itself."""
    fitted = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path), epochs=1)
    plugin = fitted.strategy.checkpoint_io
    assert type(pickle.loads(pickle.dumps(plugin))) is type(plugin.configured)
