"""What the drop-in refuses and how it fails: early, in words, in both error families, and without touching the disk."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from invariants import temporaries, whole_checkpoints
from models import NOT_EMPTY, OLD_TREESPEC, Framework, fit, listing, loader, model, shown, trainer

import safepoint
from safepoint.stores.local import LocalStore

pytestmark = OLD_TREESPEC

HOUR = timedelta(hours=1)

# Each with what its message must hold: the argument as it was given, and what to give instead.
ARGUMENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mode": ({"monitor": "val_loss", "mode": "lowest"}, ("mode='lowest'", "'min'", "'max'")),
    "save_top_k below -1": ({"save_top_k": -2}, ("save_top_k=-2", "-1 to keep all")),
    "save_top_k no number": ({"save_top_k": "3"}, ("save_top_k='3'", "-1 to keep all")),
    "save_top_k half": ({"monitor": "val_loss", "save_top_k": 1.5}, ("save_top_k=1.5",)),
    "best of what": ({"save_top_k": 3, "monitor": None}, ("save_top_k=3", "monitor=None", "monitor='val_loss'")),
    "steps and epochs": (
        {"every_n_train_steps": 5, "every_n_epochs": 2},
        ("every_n_train_steps=5", "every_n_epochs=2", "contradict", "give one"),
    ),
    "steps and time": (
        {"every_n_train_steps": 5, "train_time_interval": HOUR},
        ("every_n_train_steps=5", "train_time_interval=", "contradict"),
    ),
    "time and epochs": (
        {"train_time_interval": HOUR, "every_n_epochs": 2},
        ("train_time_interval=", "every_n_epochs=2", "contradict"),
    ),
    "all triggers": (
        {"every_n_train_steps": 5, "train_time_interval": HOUR, "every_n_epochs": 2},
        ("every_n_train_steps=5", "train_time_interval=", "every_n_epochs=2", "contradict"),
    ),
    "negative steps": ({"every_n_train_steps": -1}, ("every_n_train_steps=-1", "1 or more")),
    "negative epochs": ({"every_n_epochs": -1}, ("every_n_epochs=-1", "1 or more")),
    "half an epoch": ({"every_n_epochs": 0.5}, ("every_n_epochs=0.5", "whole number")),
    "seconds": ({"train_time_interval": 60}, ("train_time_interval=60", "timedelta")),
    "save_last": ({"save_last": "sometimes"}, ("save_last='sometimes'", "True, False or 'link'")),
    "filename above": ({"filename": "../x"}, ("filename='../x'", "leave the directory")),
    "filename above, deep": ({"filename": "a/{epoch}/../../../x"}, ("filename=", "leave the directory")),
    "filename absolute": ({"filename": "/x"}, ("filename='/x'", "leave the directory")),
    "filename malformed": ({"filename": "{epoch"}, ("filename='{epoch'", "malformed")),
    "filename unnamed": ({"filename": "{}"}, ("filename='{}'", "plain name")),
    "filename a directory": ({"filename": "{epoch}/"}, ("filename=", "not the name of a file")),
    "filename of a temporary": ({"filename": ".safepoint-{epoch}"}, ("filename=", "rename it")),
    "staging": ({"staging": "nonsense"}, ("staging='nonsense'", "'copy'")),
    "on_error": ({"on_error": "nonsense"}, ("on_error='nonsense'", "'raise'", "'warn'")),
    "max_images": ({"max_images": 0}, ("max_images=0",)),
    "bucket": ({"dirpath": "s3://x"}, ("dirpath='s3://x'", "local")),
}


def check_family(framework: Framework, error: BaseException) -> None:
    """Assert that whoever catches Safepoint's errors or the framework's own catches this one."""
    assert isinstance(error, safepoint.SafepointError)
    assert isinstance(error, safepoint.ConfigurationError)
    assert isinstance(error, framework.misconfiguration)


@pytest.mark.parametrize(("arguments", "said"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_argument_is_refused_at_once(
    framework: Framework,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    said: tuple[str, ...],
) -> None:
    """The constructor names the argument, its value and what to give instead; nothing is made on disk."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(framework.misconfiguration) as caught:
        framework.ModelCheckpoint(**{"dirpath": tmp_path / "ckpts", **arguments})
    check_family(framework, caught.value)
    assert [words for words in said if words not in str(caught.value)] == [], str(caught.value)
    assert list(tmp_path.iterdir()) == []


# What only training shows.


@pytest.mark.filterwarnings("ignore:.*validation logs no such metric:UserWarning")  # see test_lightning_defects
@pytest.mark.parametrize("arguments", [{}, {"every_n_train_steps": 1}], ids=["epochs", "steps"])
def test_monitor_that_is_not_logged_is_an_error_that_names_what_is(
    framework: Framework, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """Once validation has run, a misspelt monitor ends the run in words instead of saving nothing for ever."""
    callback = framework.ModelCheckpoint(dirpath=tmp_path / "ckpts", monitor="val_los", **arguments)
    with pytest.raises(framework.misconfiguration) as caught:
        fit(framework, callback, epochs=2)
    check_family(framework, caught.value)
    for words in ("monitor='val_los'", "'val_loss'", "'train_loss'", "self.log('val_los', value)"):
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")  # on purpose
def test_monitor_without_validation_is_an_error_that_names_what_is(framework: Framework, tmp_path: Path) -> None:
    """Where no validation runs at all, a validation metric will never come: that is said, too."""
    fitted = trainer(framework, framework.ModelCheckpoint(dirpath=tmp_path / "ckpts", monitor="val_loss"), epochs=1)
    with pytest.raises(framework.misconfiguration, match="'train_loss'") as caught:
        fitted.fit(model(framework), loader())
    check_family(framework, caught.value)
    assert list(tmp_path.iterdir()) == []


def test_filename_with_an_unknown_metric_is_an_error_that_names_what_is(framework: Framework, tmp_path: Path) -> None:
    """Lightning writes 0 for a misspelt metric; here it is an error, and no directory is made."""
    callback = framework.ModelCheckpoint(dirpath=tmp_path / "ckpts", filename="{epoch}-{val_los:.2f}")
    with pytest.raises(framework.misconfiguration) as caught:
        fit(framework, callback, epochs=1)
    check_family(framework, caught.value)
    for words in ("'val_los'", "filename='{epoch}-{val_los:.2f}'", "'val_loss'", "'epoch'", "'step'"):
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_filename_with_an_impossible_format_is_an_error(framework: Framework, tmp_path: Path) -> None:
    """A format that does not fit the value is named together with the value."""
    callback = framework.ModelCheckpoint(dirpath=tmp_path / "ckpts", filename="{val_loss:d}")
    with pytest.raises(framework.misconfiguration, match=r"filename='\{val_loss:d\}'.*1\.5.*'d'") as caught:
        fit(framework, callback, epochs=1)
    check_family(framework, caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_dirpath_that_is_a_file_is_refused_before_training(framework: Framework, tmp_path: Path, below: str) -> None:
    """A file in the place of the directory, or above it, is named and keeps its content."""
    file = tmp_path / "ckpts"
    file.write_text("precious")
    fitted = trainer(framework, framework.ModelCheckpoint(dirpath=file / below), epochs=1)
    with pytest.raises(framework.misconfiguration, match=rf"{file} is a file; give a directory") as caught:
        fitted.fit(model(framework), loader(), loader())
    check_family(framework, caught.value)
    assert fitted.global_step == 0
    assert file.read_text() == "precious"
    assert listing(tmp_path) == ["ckpts"]


AS_NOBODY = """
import os, sys
from models import FRAMEWORKS, fit, loader, model, trainer
framework = next(f for f in FRAMEWORKS if f.name == sys.argv[1])
fit(framework, framework.ModelCheckpoint(dirpath=sys.argv[2]), epochs=1)  # imports what else there is to import
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
for directory in sys.argv[3:]:
    fitted = trainer(framework, framework.ModelCheckpoint(dirpath=directory), epochs=1)
    try:
        fitted.fit(model(framework), loader(), loader())
    except Exception as error:
        print("refused" if isinstance(error, framework.misconfiguration) else "broken", fitted.global_step, error)
"""


def test_dirpath_that_is_not_writable_is_refused_before_training(framework: Framework) -> None:
    """A directory that this user may not write to, or not even look into, is named before the first step."""
    # Not tmp_path: each pytest session on this machine makes the directory above it private again.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        closed, dark = root / "closed", root / "dark"
        for directory, mode in ((closed, 0o555), (dark, 0o000)):
            directory.mkdir()
            directory.chmod(mode)
        command = [sys.executable, "-c", AS_NOBODY, framework.name, root / "open", closed, closed / "below", dark / "a"]
        environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
        lines = done.stdout.splitlines()
        assert f"refused 0 dirpath='{closed}': {closed} is not writable; change its mode." in lines, done.stderr
        assert f"refused 0 dirpath='{closed / 'below'}': {closed} is not writable; change its mode." in lines
        assert any(line.startswith(f"refused 0 dirpath='{dark / 'a'}'") for line in lines), done.stdout
        dark.chmod(0o700)
        assert listing(closed) == listing(dark) == []


def test_state_that_cannot_be_saved_is_an_error_in_the_hook(framework: Framework, tmp_path: Path) -> None:
    """What no safe loader could read is refused while the state is captured; nothing is shown as saved."""

    class Unsafe(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            if trainer.current_epoch == 1:
                checkpoint["unsafe"] = lambda: 0

    callback = framework.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val_loss", save_last=True)
    with pytest.raises(safepoint.CaptureError, match=r"cannot be pickled: .*lambda.*Take it out"):
        fit(framework, Unsafe(), callback)
    assert listing(tmp_path) == ["epoch=0.ckpt", "last.ckpt"]
    assert shown(callback)["best_model_path"] == "epoch=0.ckpt"
    assert shown(callback)["best_model_score"] == "tensor(1.5000)"
    assert len(whole_checkpoints(tmp_path)) == 2


def test_constructor_takes_no_unknown_argument(framework: Framework, tmp_path: Path) -> None:
    """A misspelt option is Python's own TypeError."""
    with pytest.raises(TypeError, match="save_topk"):
        framework.ModelCheckpoint(dirpath=tmp_path, save_topk=3)


# A disk that fails under the training.


class Fault:
    """What goes wrong: the ``nth`` call of ``operation``, and all after it if ``lasting``.

    Writing takes ``delay_s``, and nothing goes wrong while ``gate`` is closed.
    """

    def __init__(self, operation: str, nth: int, *, lasting: bool = False, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.operation = operation
        self.nth = nth
        self.lasting = lasting
        self.calls = 0
        self.removed: list[str] = []
        self.happened = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def strike(self, operation: str) -> None:
        """Raise if it is time to."""
        if operation != self.operation:
            return
        self.calls += 1
        if self.calls == self.nth or (self.lasting and self.calls > self.nth):
            assert self.gate.wait(10)
            self.happened.set()
            raise OSError(errno.ENOSPC, "No space left on device")


def break_disk(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Let every store that a run makes from now on suffer ``fault``."""

    class FaultyStore(LocalStore):
        def write(self, name: str, chunks: Iterable[bytes | memoryview], size_bytes: int, **options: Any) -> int:
            time.sleep(fault.delay_s)
            fault.strike("write")
            return super().write(name, chunks, size_bytes, **options)

        def link(self, target: str, name: str, **options: Any) -> None:
            fault.strike("link")
            super().link(target, name, **options)

        def remove(self, name: str, **options: Any) -> bool:
            fault.strike("remove")
            fault.removed.append(name)
            return super().remove(name, **options)

    monkeypatch.setattr("safepoint.pipeline.LocalStore", FaultyStore)


def test_failed_save_is_raised_at_the_next_hook(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch after a failure in the background ends training, with the original error as the cause."""
    fault = Fault("write", 2)
    fault.gate.clear()
    break_disk(monkeypatch, fault)

    class Wait(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 2:
                fault.gate.set()
                assert fault.happened.wait(5)
                time.sleep(0.2)  # until the writer has handed in its outcome

    callback = framework.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val_loss")
    fitted = trainer(framework, Wait(), callback)
    with pytest.raises(safepoint.SaveError, match=r"epoch=1\.ckpt was not saved: .*No space left") as caught:
        fitted.fit(model(framework), loader(), loader())
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert fitted.global_step == 5
    assert fault.removed == []
    assert [tmp_path / "epoch=0.ckpt"] == whole_checkpoints(tmp_path)
    assert temporaries(tmp_path) == []
    assert shown(callback)["best_model_path"] == "epoch=0.ckpt"
    assert shown(callback)["best_k_models"] == {"epoch=0.ckpt": "tensor(1.5000)"}


def test_failed_save_is_raised_in_its_own_hook_if_blocking(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocking=True not one more batch is trained."""
    fault = Fault("write", 2)
    break_disk(monkeypatch, fault)
    callback = framework.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val_loss", blocking=True)
    fitted = trainer(framework, callback)
    with pytest.raises(safepoint.SaveError) as caught:
        fitted.fit(model(framework), loader(), loader())
    assert isinstance(caught.value.__cause__, OSError)
    assert fitted.global_step == 4
    assert fault.removed == []
    assert listing(tmp_path) == ["epoch=0.ckpt"]
    assert shown(callback)["best_model_path"] == "epoch=0.ckpt"


@pytest.mark.parametrize("delay_s", [0.0, 0.1], ids=["usual", "slow"])
def test_failure_of_the_final_save_is_raised_by_fit(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_s: float
) -> None:
    """Where no hook follows, fit itself does not return as if all were well; what is there is still shown."""
    fault = Fault("write", 2, delay_s=delay_s)
    break_disk(monkeypatch, fault)
    callback = framework.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_last=True)
    with pytest.raises(safepoint.SaveError, match=r"epoch=1\.ckpt was not saved"):
        fit(framework, callback, epochs=2)
    assert listing(tmp_path) == ["epoch=0.ckpt", "last.ckpt"]
    assert callback.best_model_path == str(tmp_path / "epoch=0.ckpt")
    assert callback.last_model_path == str(tmp_path / "last.ckpt")
    assert len(whole_checkpoints(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore:.* is not there any more, and with it:RuntimeWarning")
def test_directory_that_vanishes_is_an_error_with_its_cause(framework: Framework, tmp_path: Path) -> None:
    """A directory that was replaced by a file in the middle of training is found out at once, not at the end."""
    directory = tmp_path / "ckpts"

    class Vandal(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                shutil.rmtree(directory)
                directory.write_text("precious")

    callback = framework.ModelCheckpoint(dirpath=directory, monitor="val_loss", blocking=True)
    with pytest.raises(safepoint.SaveError) as caught:
        fit(framework, Vandal(), callback)
    assert isinstance(caught.value.__cause__, OSError)
    assert directory.read_text() == "precious"


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "background"])
@pytest.mark.parametrize("operation", ["write", "link", "remove"])
def test_warned_failure_lets_training_go_on(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, *, blocking: bool
) -> None:
    """With on_error="warn" the run ends normally, and every path shown at the end is a whole checkpoint."""
    fault = Fault(operation, 2)
    break_disk(monkeypatch, fault)
    callback = framework.ModelCheckpoint(
        dirpath=tmp_path,
        filename="{epoch}",
        monitor="val_loss",
        save_top_k=2,
        save_last=True,
        on_error="warn",
        blocking=blocking,
    )
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        fitted = fit(framework, callback)
    assert fitted.global_step == 12
    named = {callback.best_model_path, callback.last_model_path, callback.kth_best_model_path, *callback.best_k_models}
    there = {str(path) for path in whole_checkpoints(tmp_path)}
    assert "" not in named
    assert named <= there
    assert callback.best_model_path == str(tmp_path / "epoch=3.ckpt")
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.05], ids=["usual", "slow"])
def test_disk_that_stays_full_shows_nothing_that_is_not_there(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_s: float
) -> None:
    """If only the first save succeeds, it is what the attributes show at the end, and nothing was removed."""
    fault = Fault("write", 2, lasting=True, delay_s=delay_s)
    break_disk(monkeypatch, fault)
    callback = framework.ModelCheckpoint(
        dirpath=tmp_path, filename="{epoch}", monitor="val_loss", save_last=True, on_error="warn"
    )
    with pytest.warns(RuntimeWarning, match="was not saved"):
        fit(framework, callback)
    assert fault.removed == []
    assert listing(tmp_path) == ["epoch=0.ckpt", "last.ckpt"]
    assert shown(callback)["best_model_path"] == "epoch=0.ckpt"
    assert shown(callback)["best_model_score"] == "tensor(1.5000)"
    assert shown(callback)["last_model_path"] == "last.ckpt"


def test_failed_save_leaves_no_kth_best_behind(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer than k checkpoints there is no kth best, as before the kth was saved."""
    break_disk(monkeypatch, Fault("write", 2, lasting=True))
    callback = framework.ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=2, on_error="warn")
    with pytest.warns(RuntimeWarning, match="was not saved"):
        fit(framework, callback, epochs=3)
    assert listing(tmp_path) == ["epoch=0.ckpt"]
    assert shown(callback)["best_k_models"] == {"epoch=0.ckpt": "tensor(1.5000)"}
    assert (callback.kth_best_model_path, callback.kth_value) == ("", float("inf"))


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "background"])
@pytest.mark.parametrize("trigger", ["every_n_train_steps", "every_n_epochs"])
def test_warned_failure_at_the_last_step_is_made_good_at_the_end(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trigger: str, *, blocking: bool
) -> None:
    """What has failed counts as not saved: the last state of the training is saved all the same."""
    break_disk(monkeypatch, Fault("write", 1))
    every = {"every_n_train_steps": 4, "every_n_epochs": 2}[trigger]
    callback = framework.ModelCheckpoint(
        tmp_path, "{step}", save_last=True, on_error="warn", blocking=blocking, **{trigger: every}
    )
    with pytest.warns(RuntimeWarning, match="was not saved"):
        fit(framework, callback, epochs=2)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["last.ckpt", "step=4.ckpt"]
    assert callback.best_model_path == str(tmp_path / "step=4.ckpt")
    assert callback.last_model_path == str(tmp_path / "last.ckpt")


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_step_whose_save_failed_is_saved_on_an_exception(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    """Even if nobody has heard of the failure when the exception comes."""
    fault = Fault("write", 2, delay_s=0.05)
    break_disk(monkeypatch, fault)

    class Stop(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                raise ZeroDivisionError

    callback = framework.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_exception=True, on_error=on_error
    )
    with pytest.raises(ZeroDivisionError), pytest.warns(Warning, match="step=2.ckpt was not saved"):
        fit(framework, callback, Stop())
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step=1.ckpt", "step=2.ckpt"]


def test_late_failure_does_not_hide_that_the_next_step_is_saved(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that failed before the last is no reason to save the last step twice."""
    break_disk(monkeypatch, Fault("write", 2, delay_s=0.05))
    callback = framework.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, on_error="warn", max_images=9
    )
    with pytest.warns(RuntimeWarning, match="step=2.ckpt was not saved"):
        fit(framework, callback, epochs=2)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step=1.ckpt", "step=3.ckpt", "step=4.ckpt"]


def test_disk_that_is_full_from_the_start_shows_no_path_at_all(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no save succeeds, the attributes are those of a fresh callback."""
    break_disk(monkeypatch, Fault("write", 1, lasting=True))
    arguments: dict[str, Any] = {"dirpath": tmp_path, "monitor": "val_loss", "save_last": True, "on_error": "warn"}
    callback = framework.ModelCheckpoint(**arguments)
    with pytest.warns(RuntimeWarning, match="was not saved"):
        fit(framework, callback, epochs=2)
    expected = shown(framework.ModelCheckpoint(**arguments))
    actual = shown(callback)
    del expected["current_score"], actual["current_score"]  # what was measured, saved or not
    assert expected == actual
    assert listing(tmp_path) == []


@NOT_EMPTY
def test_run_goes_on_after_a_failure(framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk was mended, ckpt_path="last" goes on from what was durable."""
    arguments: dict[str, Any] = {"dirpath": tmp_path, "filename": "{epoch}", "monitor": "val_loss", "save_last": True}
    with monkeypatch.context() as broken:
        break_disk(broken, Fault("write", 2))
        with pytest.raises(safepoint.SaveError):
            fit(framework, framework.ModelCheckpoint(**arguments))
    callback = framework.ModelCheckpoint(**arguments)
    fit(framework, callback, ckpt_path="last")
    assert shown(callback)["best_model_path"] == "epoch=3.ckpt"
    assert "epoch=3.ckpt" in listing(tmp_path)
    assert callback.last_model_path in {str(path) for path in whole_checkpoints(tmp_path)}
