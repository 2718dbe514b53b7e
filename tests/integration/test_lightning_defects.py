"""Defects of the original that the drop-in does not have: each test shows both, side by side where both run.

The numbers are those of the table in docs/lightning.md. Number 3 is in ``test_lightning_bad_input`` (full disks) and
``tests/crash``, number 10 in ``test_lightning_ranks``.
"""

from __future__ import annotations

import os
import shutil
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from models import NOT_EMPTY, OLD_TREESPEC, Framework, fit, listing, loader, model, trainer

from safepoint.catalog import Catalog
from safepoint.errors import MissingMetricError

pytestmark = [OLD_TREESPEC, NOT_EMPTY]


def both(framework: Framework) -> tuple[type[Any], type[Any]]:
    """Return the original class and ours."""
    return framework.original, framework.ModelCheckpoint


def warned(run: Any) -> list[str]:
    """Run, and return the warnings about checkpoints that came."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught if "ModelCheckpoint(" in str(warning.message)]


def test_1_step_trigger_with_a_validation_metric_saves(framework: Framework, tmp_path: Path) -> None:
    """``every_n_train_steps`` with a metric of validation, for one epoch: nothing there, a checkpoint here."""
    for kind, directory in zip(both(framework), (tmp_path / "theirs", tmp_path / "ours"), strict=True):
        fit(framework, kind(dirpath=directory, every_n_train_steps=2, monitor="val_loss"), epochs=1)
    assert listing(tmp_path / "theirs") == []
    assert listing(tmp_path / "ours") == ["epoch=0-step=2.ckpt"]


def _manual(framework: Framework) -> Any:
    """Return a module that optimises by hand and keeps old weights in ``saved_models``."""

    class Manual(framework.module):  # type: ignore[misc,name-defined]
        """Optimise by hand."""

        def __init__(self) -> None:
            super().__init__({"val_loss": (1.0,) * 9})
            self.automatic_optimization = False
            self.saved_models: dict[int, Any] = {}

        def training_step(self, batch: Any, batch_idx: int) -> None:
            """Move the weights, and remember what they were."""
            self.saved_models[batch_idx] = {k: v.detach().clone() for k, v in self.layer.state_dict().items()}
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch[0]).square().mean())
            optimizer.step()

    return Manual()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:Using ModelCheckpoint with manual")
def test_2_manual_optimization_saves_in_time_and_what_is_there(framework: Framework, tmp_path: Path) -> None:
    """Under manual optimisation: the time trigger is ignored there, and other weights than the model's are saved."""
    for kind, directory in zip(both(framework), (tmp_path / "theirs", tmp_path / "ours"), strict=True):
        timed = kind(dirpath=directory / "timed", train_time_interval=timedelta(0))
        stepped = kind(dirpath=directory / "stepped", every_n_train_steps=2)
        module = _manual(framework)
        trainer(framework, timed, stepped, epochs=1, limit_val_batches=0).fit(module, loader())
        saved = torch.load(stepped.best_model_path, weights_only=False)["state_dict"]["layer.weight"]
        same = torch.equal(saved, module.layer.weight)
        assert (bool(listing(directory / "timed")), same) == (
            (False, False) if kind is framework.original else (True, True)
        )


def test_4_misspelt_metric_in_a_filename_is_an_error(framework: Framework, tmp_path: Path) -> None:
    """A template that names no metric: a file called ``...=0.00`` there, an error that names the right one here."""
    original, ours = both(framework)
    template = "{val_losss:.2f}"
    fit(framework, original(dirpath=tmp_path / "theirs", filename=template), epochs=1)
    assert listing(tmp_path / "theirs") == ["val_losss=0.00.ckpt"]
    with pytest.raises(framework.misconfiguration, match="Did you mean 'val_loss'") as caught:
        fit(framework, ours(dirpath=tmp_path / "ours", filename=template), epochs=1)
    assert isinstance(caught.value.__cause__, MissingMetricError)
    assert listing(tmp_path / "ours") == []


def test_5_nan_is_not_the_best(framework: Framework, tmp_path: Path) -> None:
    """NaN, and then a real value, however bad: NaN stays the best there, the real value is the best here."""
    scores = {"val_loss": (float("nan"), float("inf"), float("inf"))}
    best = []
    for kind in both(framework):
        callback = kind(dirpath=tmp_path / kind.__module__, monitor="val_loss", save_top_k=2, filename="{epoch}")
        fit(framework, callback, epochs=2, metrics=scores)
        best.append(Path(callback.best_model_path).name)
    assert best == ["epoch=0.ckpt", "epoch=1.ckpt"]


def _inodes(directory: Path) -> int:
    return len({path.stat().st_ino for path in directory.iterdir()})


def test_6_one_step_is_written_once(framework: Framework, tmp_path: Path) -> None:
    """Two monitors and a ``last``: three files there, one with three names here; each is its owner's."""
    metrics = {"a": (1.0, 2.0), "b": (1.0, 2.0)}
    for kind, directory in zip(both(framework), (tmp_path / "theirs", tmp_path / "ours"), strict=True):
        callbacks = [
            kind(dirpath=directory, monitor="a", filename="{epoch}-{a}", save_last=True),
            kind(dirpath=directory, monitor="b", filename="{epoch}-{b}"),
        ]
        fit(framework, *callbacks, metrics=metrics, epochs=1)
        assert listing(directory) == ["epoch=0-a=1.0.ckpt", "epoch=0-b=1.0.ckpt", "last.ckpt"]
    assert (_inodes(tmp_path / "theirs"), _inodes(tmp_path / "ours")) == (3, 1)
    assert len({record.run for record in Catalog.of(tmp_path / "ours").records}) == 1


def test_6_one_write_has_the_state_of_every_callback(framework: Framework, tmp_path: Path) -> None:
    """In a file that several share, each callback finds its own newest state, and goes on from it."""
    metrics = {"a": (1.0, 0.5, 0.7), "b": (1.0, 2.0, 0.1)}

    def callbacks() -> list[Any]:
        return [framework.ModelCheckpoint(dirpath=tmp_path, monitor=m, filename=f"{{epoch}}-{m}") for m in "ab"]

    fit(framework, *callbacks(), metrics=metrics, epochs=2)
    assert listing(tmp_path) == ["epoch=0-b.ckpt", "epoch=1-a.ckpt"]
    again = callbacks()
    fit(framework, *again, metrics=metrics, epochs=3, ckpt_path=tmp_path / "epoch=1-a.ckpt")
    assert [Path(callback.best_model_path).name for callback in again] == ["epoch=1-a.ckpt", "epoch=2-b.ckpt"]
    assert listing(tmp_path) == ["epoch=1-a.ckpt", "epoch=2-b.ckpt"]


def test_6_callbacks_with_different_options_are_one_run(framework: Framework, tmp_path: Path) -> None:
    """Each finds its best again, whichever's checkpoint the run is resumed from; in a second resumed run, too."""

    def callbacks() -> list[Any]:
        return [
            framework.ModelCheckpoint(tmp_path, "best-{epoch}", monitor="val_loss", verify_after_write=True),
            framework.ModelCheckpoint(tmp_path, "step-{step}", every_n_train_steps=1),
        ]

    metrics = {"val_loss": (0.1, 0.5, 0.9, 0.8)}
    for epochs in (2, 3, 4):
        best, newest = callbacks()
        path = tmp_path / f"step-step={2 * epochs - 2}.ckpt" if epochs > 2 else None
        fit(framework, best, newest, metrics=metrics, epochs=epochs, ckpt_path=path)
        assert Path(best.best_model_path).name == "best-epoch=0.ckpt"
        assert [name for name in listing(tmp_path) if name.startswith("best")] == ["best-epoch=0.ckpt"]
    assert len({record.run for record in Catalog.of(tmp_path).records}) == 1


def test_6_a_hook_that_is_overridden_loses_nothing(framework: Framework, tmp_path: Path) -> None:
    """A callback that comes last and never calls our hook holds nobody's checkpoint up."""

    class Silent(framework.ModelCheckpoint):  # type: ignore[misc,name-defined]
        """Do nothing at the end of an epoch."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Do nothing."""

    first = framework.ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1)
    fit(framework, first, Silent(dirpath=tmp_path, every_n_epochs=2), epochs=2)
    saved = {name: torch.load(tmp_path / name, weights_only=False)["global_step"] for name in listing(tmp_path)}
    assert saved == {"step=2.ckpt": 2, "step=4.ckpt": 4}


def test_6_an_error_of_a_later_callback_loses_nothing(framework: Framework, tmp_path: Path) -> None:
    """What one callback has decided to save is written although the next one raises at the same moment."""
    good = framework.ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1)
    bad = framework.ModelCheckpoint(dirpath=tmp_path, filename="{nonsense}", every_n_epochs=2, save_top_k=-1)
    with pytest.raises(framework.misconfiguration, match="nonsense"):
        fit(framework, good, bad, epochs=3)
    assert listing(tmp_path) == ["epoch=1-step=4.ckpt"]


def test_6_a_failed_write_shows_in_every_callback(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the one file of several callbacks cannot be staged, all of them show what they showed before."""

    class Unpicklable(framework.module):  # type: ignore[misc,name-defined]
        """Put something into the second checkpoint that cannot be saved."""

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            """Spoil it."""
            if self.current_epoch == 1:
                checkpoint["bad"] = (number for number in range(3))

    callbacks = [framework.ModelCheckpoint(dirpath=tmp_path, monitor=m, save_top_k=-1) for m in (None, "val_loss")]
    fitted = trainer(framework, *callbacks, epochs=3)
    with pytest.raises(Exception, match="cannot be pickled"):
        fitted.fit(Unpicklable({"val_loss": (1.0, 1.0, 1.0)}), loader(), loader())
    shown = [Path(callback.best_model_path).name for callback in callbacks]
    assert shown == ["epoch=0-step=2.ckpt", "epoch=0-step=2-v1.ckpt"]
    assert listing(tmp_path) == sorted(shown)


def test_7_last_is_what_is_called_so(framework: Framework, tmp_path: Path) -> None:
    """A file whose name begins with "last", and is younger, is resumed from there; the last checkpoint here."""
    for kind, directory in zip(both(framework), (tmp_path / "theirs", tmp_path / "ours"), strict=True):
        fit(framework, kind(dirpath=directory, save_last=True, filename="{epoch}", save_top_k=-1), epochs=2)
        shutil.copy(directory / "epoch=0.ckpt", directory / "lastly-good.ckpt")
        os.utime(directory / "lastly-good.ckpt", (2e9, 2e9))
        resumed = fit(framework, kind(dirpath=directory, save_last=True), epochs=2, ckpt_path="last")
        expected = "lastly-good.ckpt" if kind is framework.original else "last.ckpt"
        assert Path(resumed.ckpt_path).name == expected


def test_7_last_has_the_extension_that_was_chosen(framework: Framework, tmp_path: Path) -> None:
    """``FILE_EXTENSION`` changed: ``last`` is found under it."""

    class Other(framework.ModelCheckpoint):  # type: ignore[misc,name-defined]
        """Call files otherwise."""

        FILE_EXTENSION = ".pt"

    fit(framework, Other(dirpath=tmp_path, save_last=True), epochs=1)
    resumed = fit(framework, Other(dirpath=tmp_path, save_last=True), epochs=1, ckpt_path="last")
    assert Path(resumed.ckpt_path).name == "last.pt"


def test_8_moved_directory_keeps_its_top_k(framework: Framework, tmp_path: Path) -> None:
    """A directory that was renamed between two runs: the old best is left lying there, and counts here."""
    left = []
    for kind in both(framework):
        home = tmp_path / kind.__module__
        arguments = {"monitor": "val_loss", "filename": "{epoch}", "save_last": True}
        fit(framework, kind(dirpath=home / "a", **arguments), epochs=1, metrics={"val_loss": (1.0, 0.5)})
        (home / "a").rename(home / "b")
        callback = kind(dirpath=home / "b", **arguments)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The dirpath has changed")
            fit(framework, callback, epochs=2, metrics={"val_loss": (1.0, 0.5)}, ckpt_path=home / "b" / "last.ckpt")
        left.append([name for name in listing(home / "b") if not name.startswith("last")])
    assert left == [["epoch=0.ckpt", "epoch=1.ckpt"], ["epoch=1.ckpt"]]


def test_8_another_directory_starts_anew(framework: Framework, tmp_path: Path) -> None:
    """A directory that was chosen, not moved, holds nothing of the old one, and nothing there is touched."""
    first = framework.ModelCheckpoint(dirpath=tmp_path / "a", monitor="val_loss")
    fit(framework, first, epochs=1)
    callback = framework.ModelCheckpoint(dirpath=tmp_path / "b", monitor="val_loss")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        fit(framework, callback, epochs=2, ckpt_path=first.best_model_path)
    assert (listing(tmp_path / "a"), listing(tmp_path / "b")) == (["epoch=0-step=2.ckpt"], ["epoch=1-step=4.ckpt"])


def test_9_there_is_a_last_at_every_moment(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linked ``last`` is taken away before the next is made there; here it is replaced in one step."""
    gone: list[str] = []
    for name in ("remove", "unlink"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, real=real, **o: (gone.append(Path(path).name), real(path, **o))[1])
    counts = []
    for kind in both(framework):
        gone.clear()
        fit(framework, kind(dirpath=tmp_path / kind.__module__, save_last="link", save_top_k=-1), epochs=3)
        counts.append(gone.count("last.ckpt"))
    assert counts == [2, 0]


def test_11_stale_metric_is_told(framework: Framework, tmp_path: Path) -> None:
    """A save in mid-epoch that is ranked by an earlier validation: silence there, one warning and a note here."""
    said = []
    for kind in both(framework):
        callback = kind(
            dirpath=tmp_path / kind.__module__,
            monitor="val_loss",
            every_n_train_steps=1,
            save_top_k=-1,
            filename="{step}",
        )
        said.append(warned(lambda callback=callback: fit(framework, callback, epochs=3)))
    assert said[0] == []
    (message,) = said[1]
    assert "step 3 is ranked by the validation of step 2" in message
    records = {r.step: dict(r.measured_at) for r in Catalog.of(tmp_path / framework.ModelCheckpoint.__module__).records}
    assert {step: at for step, at in records.items() if at} == {
        step: {"val_loss": validated} for step, validated in ((3, 2), (4, 2), (5, 4), (6, 4))
    }
    best = Catalog.of(tmp_path / framework.ModelCheckpoint.__module__).best("val_loss")
    assert best is not None
    assert best.step == 2


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val_acc", "min"), ("val/accuracy", "min"), ("val_loss", "max"), ("test.MAE", "max")]
)
def test_12_mode_that_contradicts_its_metric_is_told(framework: Framework, monitor: str, mode: str) -> None:
    """The worst by accuracy are kept in silence there; here a warning names the other mode."""
    original, ours = both(framework)
    assert warned(lambda: original(monitor=monitor, mode=mode)) == []
    (message,) = warned(lambda: ours(monitor=monitor, mode=mode))
    assert f"mode={'max' if mode == 'min' else 'min'!r}" in message


@pytest.mark.parametrize(("monitor", "mode"), [("val_acc", "max"), ("loss", "min"), ("x", "max"), ("acc_loss", "max")])
def test_12_mode_that_may_be_meant_is_not_remarked(framework: Framework, monitor: str, mode: str) -> None:
    """No warning where name and mode agree, and none where the name says nothing, or both."""
    assert warned(lambda: framework.ModelCheckpoint(monitor=monitor, mode=mode)) == []


def test_12_misspelt_monitor_is_told_before_training(framework: Framework, tmp_path: Path) -> None:
    """A ``monitor`` that is nearly the name of a metric is told of in the sanity check, before the first step."""
    steps: list[int] = []

    class Watch(framework.pl.Callback):  # type: ignore[misc,name-defined]
        """Note the steps made."""

        def on_train_batch_end(self, *arguments: Any) -> None:
            """Note one."""
            steps.append(1)

    fitted = trainer(
        framework,
        Watch(),
        framework.ModelCheckpoint(dirpath=tmp_path, monitor="val_los"),
        epochs=1,
        num_sanity_val_steps=1,
    )
    with (
        warnings.catch_warnings(),
        pytest.raises(UserWarning, match=r"'val_loss'\. Is that what is meant"),
    ):
        warnings.filterwarnings("error", ".*no such metric")
        fitted.fit(model(framework), loader(), loader())
    assert steps == []
