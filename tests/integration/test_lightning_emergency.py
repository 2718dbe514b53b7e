"""Emergency checkpoints in Lightning: wherever the exception comes from, what is there, and what is gone on from."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from invariants import whole_checkpoints
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, Framework
from torch.utils.data import DataLoader, Dataset

import safepoint
from safepoint.catalog import Catalog
from safepoint.records import Record

MID_EPOCH = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
BEFORE_VALIDATION = pytest.mark.filterwarnings("ignore:.* saves nothing until the first validation:UserWarning")
OTHER_DATA = pytest.mark.filterwarnings("ignore:The training data is not what it was:UserWarning")
pytestmark = [OLD_TREESPEC, NOT_EMPTY, MID_EPOCH, BEFORE_VALIDATION, OTHER_DATA]
LOSSES = {"val_loss": (1.5, 1.2, 1.0, 0.5)}
LIGHTNING, STANDALONE = FRAMEWORKS
ONLY_LIGHTNING = pytest.mark.parametrize("framework", [LIGHTNING], ids=["lightning.pytorch"])
FIRST = "epoch=0-step=2.ckpt"


class BrokenError(Exception):
    """What goes wrong here."""


class Broken(Dataset[torch.Tensor]):
    """Cannot read the last of its examples."""

    def __len__(self) -> int:
        """Return more than it can give."""
        return 8

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        """Return an example, or raise."""
        if index == 7:
            raise BrokenError
        return [torch.ones(4)]


class Mended(Broken):
    """Can."""

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        """Return an example."""
        return super().__getitem__(0)


class Halfway(torch.optim.SGD):
    """Breaks in its fourth step, when it has updated the first parameter."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        """Update, or break in between."""
        self.steps += 1
        if self.steps < 4:
            return super().step(closure)
        closure()
        self.param_groups[0]["params"][0].data.zero_()
        raise BrokenError


def press_ctrl_c(*_: object) -> None:
    """Send what Ctrl-C sends."""
    os.kill(os.getpid(), signal.SIGINT)


def fail(*_: object) -> None:
    """Raise."""
    raise BrokenError


def spoil(number: float) -> Callable[[Any], None]:
    """Return what puts ``number`` into the weights, and raises."""

    def act(module: Any) -> None:
        module.layer.bias.data[1] = number
        raise BrokenError

    return act


def stop(framework: Framework, hook: str, act: Callable[[Any], None] = fail, *, epoch: int = 1, at: int = 2) -> Any:
    """Return a callback that does ``act`` when it comes to ``hook`` in ``epoch``, at its ``at``-th batch."""
    calls: list[int] = []

    def come(_: Any, trainer: Any, module: Any, *arguments: Any) -> None:
        if trainer.current_epoch == epoch and not trainer.sanity_checking:
            calls.append(1)
            if "batch" not in hook or len(calls) == at:
                act(module)

    return type("Stop", (framework.pl.Callback,), {hook: come})()


def failing(framework: Framework, method: str, act: Callable[[Any], None] = fail) -> Any:
    """Return a module that fails in the second call of ``method`` in the second epoch."""
    calls: list[int] = []

    def come(self: Any, batch: Any, batch_idx: int) -> Any:
        calls.append(self.current_epoch)
        if calls.count(1) == 2:
            act(self)
        return getattr(framework.module, method)(self, batch, batch_idx)

    return type("Failing", (framework.module,), {method: come})(LOSSES)


def checkpoint(framework: Framework, directory: Path, **options: Any) -> Any:
    """Return the drop-in: the best, the last, and what an exception leaves."""
    usual = {"monitor": "val_loss", "save_last": True, "save_on_exception": True}
    return framework.ModelCheckpoint(directory, **{**usual, **options})


def fit(
    framework: Framework,
    *callbacks: Any,
    module: Any = None,
    loader: Any = None,
    epochs: int = 3,
    ckpt_path: str | Path | None = None,
) -> BaseException | None:
    """Fit, and return what came out of it."""
    trainer = models.trainer(framework, *callbacks, epochs=epochs)
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module or models.model(framework, LOSSES), loader or models.loader(), models.loader(), ckpt_path=ckpt_path
        )
    except BaseException as error:  # noqa: BLE001 - it is the result
        return error
    finally:
        signal.signal(signal.SIGINT, before)  # which the trainer takes away
    return None


def names(directory: Path) -> list[str]:
    """Return the names of what is there, sorted, all of it sound."""
    return [path.name for path in whole_checkpoints(directory)]


def records(directory: Path) -> dict[str, Record]:
    """Return the records of what is there, by name, oldest first."""
    return {record.path.name: record for record in Catalog.of(directory).records}


def step_of(path: str | Path) -> Any:
    """Return the step of the state at ``path``."""
    return safepoint.load(path)["global_step"]


HOOKS = {
    "on_train_batch_start": 3,
    "on_train_batch_end": 4,
    "on_validation_batch_end": 4,
    "on_validation_end": 4,
    "on_train_epoch_end": 4,
}


@pytest.mark.parametrize("hook", HOOKS)
@ONLY_LIGHTNING
def test_error_in_another_callback_leaves_a_checkpoint(framework: Framework, tmp_path: Path, hook: str) -> None:
    """In whichever hook it is raised, and wherever the callback stands in the list."""
    for place in (0, 1):
        directory = tmp_path / str(place)
        callback = checkpoint(framework, directory)
        callbacks = [callback]
        callbacks.insert(place, stop(framework, hook))
        error = fit(framework, *callbacks)
        assert type(error) is BrokenError
        assert_is_gone_on_from(framework, directory, callback, f"epoch=1-step={HOOKS[hook]}.ckpt", "BrokenError")


def assert_is_gone_on_from(
    framework: Framework,
    directory: Path,
    callback: Any,
    name: str,
    kind: str,
    *,
    loader: Any = None,
    ends: int = 6,
) -> None:
    """Assert that ``name`` is the last, marked, nobody's best, and what a run goes on from, with no batch left out."""
    assert names(directory) == sorted([FIRST, name, "last.ckpt"])
    found = records(directory)
    assert (found[FIRST].emergency, found[name].emergency, found["last.ckpt"].emergency) == ("", kind, kind)
    assert {record.flaw for record in found.values()} == {""}
    assert found[name].reasons == (f"exception: {kind}",)
    assert models.shown(callback) == {
        **models.shown(callback),
        "best_model_path": FIRST,
        "best_model_score": repr(torch.tensor(1.5)),
        "best_k_models": {FIRST: repr(torch.tensor(1.5))},
        "last_model_path": "last.ckpt",
    }
    assert (step_of(directory / FIRST), step_of(directory / "last.ckpt")) == (2, found[name].step)
    again = checkpoint(framework, directory)
    assert fit(framework, again, loader=loader, ckpt_path="last") is None
    assert step_of(again.last_model_path) == ends
    assert Path(again.best_model_path).exists()
    assert name in names(directory)


@pytest.mark.parametrize(
    ("source", "step"),
    [("training_step", 3), ("validation_step", 4), ("ctrl-c", 3), ("loader", 5), ("worker", 5)],
)
@ONLY_LIGHTNING
def test_exception_leaves_a_checkpoint(framework: Framework, tmp_path: Path, source: str, step: int) -> None:
    """Errors of the module, of its data, also in another process, and Ctrl-C."""
    callback = checkpoint(framework, tmp_path)
    if source in ("loader", "worker"):
        assert fit(framework, callback, epochs=1) is None
        workers = {} if source == "loader" else {"num_workers": 2, "persistent_workers": True}
        loader: Any = DataLoader(Broken(), batch_size=2, **workers)
        callback = checkpoint(framework, tmp_path)
        error = fit(framework, callback, loader=loader, ckpt_path="last")
        assert type(error) is BrokenError
        name = next(name for name, record in records(tmp_path).items() if record.emergency and name != "last.ckpt")
        assert records(tmp_path)[name].step > 2
    elif source == "ctrl-c":
        error = fit(framework, callback, module=failing(framework, "training_step", press_ctrl_c))
        assert type(error) is SystemExit  # Lightning's answer to it
        assert type(error.__context__) is KeyboardInterrupt
        name = f"epoch=1-step={step}.ckpt"
    else:
        error = fit(framework, callback, module=failing(framework, source))
        assert type(error) is BrokenError
        name = f"epoch=1-step={step}.ckpt"
    kind = "KeyboardInterrupt" if source == "ctrl-c" else "BrokenError"
    mended = DataLoader(Mended(), batch_size=2) if source in ("loader", "worker") else None
    assert_is_gone_on_from(
        framework, tmp_path, callback, name, kind, loader=mended, ends=6 if mended is None else 2 + 4 + 4
    )


def test_exception_comes_out_as_it_is(framework: Framework, tmp_path: Path) -> None:
    """The very object that was raised, in both packages; and what it leaves is marked in both."""
    raised = BrokenError("on purpose")

    def act(_: Any) -> None:
        raise raised

    callback = checkpoint(framework, tmp_path)
    assert fit(framework, stop(framework, "on_train_batch_start", act), callback) is raised
    assert_is_gone_on_from(framework, tmp_path, callback, "epoch=1-step=3.ckpt", "BrokenError")


@ONLY_LIGHTNING
def test_error_behind_the_save_of_its_step_leaves_that(framework: Framework, tmp_path: Path) -> None:
    """A checkpoint callback that comes after ours and fails: the step is saved already, as an ordinary one."""
    behind = type("Behind", (framework.pl.callbacks.Checkpoint,), {"on_train_epoch_end": lambda *_: fail()})()
    callback = checkpoint(framework, tmp_path)
    assert type(fit(framework, callback, behind)) is BrokenError
    assert names(tmp_path) == [FIRST, "last.ckpt"]
    assert {record.emergency for record in records(tmp_path).values()} == {""}


@ONLY_LIGHTNING
def test_interrupted_update_is_not_the_last(framework: Framework, tmp_path: Path) -> None:
    """An error in an optimizer's step leaves a checkpoint to look at, beside the last good one."""

    class Module(framework.module):  # type: ignore[misc,name-defined]
        def configure_optimizers(self) -> Any:
            return Halfway(self.parameters(), lr=0.01)

    callback = checkpoint(framework, tmp_path)
    assert type(fit(framework, callback, module=Module(LOSSES))) is BrokenError
    assert_is_not_the_last(tmp_path, callback, "epoch=1-step=3.ckpt", "Halfway was interrupted in its step")


def assert_is_not_the_last(directory: Path, callback: Any, name: str, flaw: str) -> None:
    """Assert that ``name`` is there with its ``flaw``, and that nothing else has changed."""
    assert names(directory) == sorted([FIRST, name, "last.ckpt"])
    found = records(directory)
    assert [(record.emergency, record.flaw) for record in (found[FIRST], found["last.ckpt"])] == [("", ""), ("", "")]
    assert (found[name].emergency, found[name].flaw) == ("BrokenError", flaw)
    assert (step_of(directory / FIRST), step_of(directory / "last.ckpt")) == (2, 2)
    assert callback.last_model_path == str(directory / "last.ckpt")
    assert callback.best_model_path == str(directory / FIRST)
    assert safepoint.load(directory / name)["global_step"] == found[name].step


@pytest.mark.parametrize("save_last", [True, "link"])
@ONLY_LIGHTNING
def test_nan_is_not_the_last(framework: Framework, tmp_path: Path, save_last: Any) -> None:
    """A state with NaN in it is there to look at; ``"last"`` is the one before, from where a run goes on."""
    callback = checkpoint(framework, tmp_path, save_last=save_last)
    fit(framework, callback, stop(framework, "on_train_batch_start", spoil(math.nan)))
    bad = "epoch=1-step=3.ckpt"
    assert_is_not_the_last(tmp_path, callback, bad, "state_dict.layer.bias holds NaN")
    again = checkpoint(framework, tmp_path, save_last=save_last)
    assert fit(framework, again, ckpt_path="last") is None
    assert step_of(again.last_model_path) == 6
    assert bad in names(tmp_path)


@ONLY_LIGHTNING
def test_nan_in_an_optimizer_is_a_flaw_and_infinity_is_none(framework: Framework, tmp_path: Path) -> None:
    """What the optimizers hold is looked at, if it is saved; infinities are numbers."""

    def act(module: Any) -> None:
        module.optimizers().state[module.layer.weight]["exp_avg"][0, 0] = math.nan
        raise BrokenError

    for directory, then, options in (
        ("optimizer", act, {}),
        ("weights", act, {"save_weights_only": True}),
        ("infinity", spoil(-math.inf), {}),
    ):
        callback = checkpoint(framework, tmp_path / directory, **options)
        fit(framework, callback, stop(framework, "on_train_batch_start", then))
    flaws = {directory.name: records(directory)["epoch=1-step=3.ckpt"].flaw for directory in tmp_path.iterdir()}
    assert flaws == {"optimizer": "optimizer_states.0.state.0.exp_avg holds NaN", "weights": "", "infinity": ""}


@ONLY_LIGHTNING
def test_last_passes_over_what_has_a_flaw(framework: Framework, tmp_path: Path) -> None:
    """Where what is called last is damaged, a flawed one is no better; with nothing else there it is an error."""
    callback = checkpoint(framework, tmp_path)
    fit(framework, callback, stop(framework, "on_train_batch_start", spoil(math.nan)))
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").write_bytes((tmp_path / FIRST).read_bytes()[:-9000])
    flawed = (
        r"step=3.ckpt was skipped: it was saved at an exception \(BrokenError\), and state_dict.layer.bias holds NaN"
    )
    found: list[int] = []
    look = stop(framework, "on_train_batch_start", lambda module: found.append(module.trainer.global_step), at=1)
    with pytest.warns(UserWarning, match="last.ckpt was skipped"), pytest.warns(UserWarning, match=flawed):
        fit(framework, look, checkpoint(framework, tmp_path), ckpt_path="last")
    assert found == [2]
    for path in tmp_path.iterdir():
        if not records(tmp_path).get(path.name, Record(path, 0, 0, {}, 0, 0, ())).flaw and path.name != "last.ckpt":
            path.unlink()
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "epoch=1-step=3.ckpt").read_bytes()[:-9000])
    with pytest.warns(UserWarning, match="was skipped"):
        error = fit(framework, checkpoint(framework, tmp_path), ckpt_path="last")
    assert type(error) is safepoint.RestoreError
    assert "can be gone on from" in str(error)
    assert "Give another ckpt_path=" in str(error)
    with pytest.raises(safepoint.DamagedCheckpointError, match="No checkpoint beside it is sound"):
        raise fit(framework, checkpoint(framework, tmp_path), ckpt_path=tmp_path / "last.ckpt") or AssertionError


@pytest.mark.parametrize("number", [0.0, math.nan], ids=["sound", "flawed"])
@ONLY_LIGHTNING
def test_emergency_takes_no_file_s_place(framework: Framework, tmp_path: Path, number: float) -> None:
    """With ``enable_version_counter=False``, too, where it would have the best one's name, which has a score."""
    callback = checkpoint(framework, tmp_path, filename="best", enable_version_counter=False, save_last=None)
    fit(framework, callback, stop(framework, "on_train_batch_start", spoil(number)))
    assert names(tmp_path) == ["best-v1.ckpt", "best.ckpt"]
    assert [record.step for record in records(tmp_path).values()] == [2, 3]
    assert callback.best_model_path == str(tmp_path / "best.ckpt")
    assert step_of(callback.best_model_path) == 2


@ONLY_LIGHTNING
def test_emergency_is_saved_though_its_name_has_not_been_measured(framework: Framework, tmp_path: Path) -> None:
    """A template that names a metric of the validation gives way to the default before the first one."""
    callback = checkpoint(framework, tmp_path, filename="{epoch}-{val_loss:.2f}", save_last=None)
    fit(framework, callback, stop(framework, "on_train_batch_start", epoch=0))
    assert names(tmp_path) == ["epoch=0-step=1.ckpt"]


@ONLY_LIGHTNING
def test_where_nothing_was_trained_nothing_is_saved(framework: Framework, tmp_path: Path) -> None:
    """Not at step 0, not in the sanity check, not behind a resume before the next step, not in a test."""
    fit(framework, checkpoint(framework, tmp_path), stop(framework, "on_train_batch_start", epoch=0, at=1))
    fit(framework, checkpoint(framework, tmp_path), stop(framework, "on_train_start", epoch=0))
    assert names(tmp_path) == []
    callback = checkpoint(framework, tmp_path)
    assert fit(framework, callback, epochs=1) is None
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    for hook, options in (("on_train_batch_start", {"at": 1}), ("on_train_start", {}), ("on_fit_start", {"epoch": 0})):
        assert (
            type(
                fit(framework, checkpoint(framework, tmp_path), stop(framework, hook, **options), ckpt_path="last")  # type: ignore[arg-type]
            )
            is BrokenError
        )
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before


@ONLY_LIGHTNING
def test_dry_run_saves_nothing(framework: Framework, tmp_path: Path) -> None:
    """What ``fast_dev_run`` trains is for nobody."""
    broken = stop(framework, "on_train_batch_end", epoch=0)
    trainer = models.trainer(framework, checkpoint(framework, tmp_path), broken, fast_dev_run=3)
    with pytest.raises(BrokenError):
        trainer.fit(models.model(framework, LOSSES), models.loader(), models.loader())
    assert trainer.global_step == 2
    assert names(tmp_path) == []


@ONLY_LIGHTNING
def test_half_a_resume_is_not_saved(framework: Framework, tmp_path: Path) -> None:
    """A run whose optimizer does not fit has other weights and a step by then: the last good one is left alone."""
    fit(framework, checkpoint(framework, tmp_path), epochs=1)

    class Module(framework.module):  # type: ignore[misc,name-defined]
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam([{"params": [each]} for each in self.parameters()])

    before = {path: path.stat().st_ino for path in tmp_path.iterdir() if path.is_file()}
    callback = checkpoint(framework, tmp_path / "other")
    assert fit(framework, callback, epochs=1) is None
    for each in (checkpoint(framework, tmp_path), callback):
        error = fit(framework, each, module=Module(), ckpt_path=tmp_path / "last.ckpt")
        assert type(error) is ValueError
    assert names(tmp_path / "other") == [FIRST, "last.ckpt"]
    assert {path: path.stat().st_ino for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("function", ["test", "validate"])
@ONLY_LIGHTNING
def test_error_outside_of_a_fit_saves_nothing(framework: Framework, tmp_path: Path, function: str) -> None:
    """Whatever a fit before it has left unsaved: testing trains nothing."""
    callback = checkpoint(framework, tmp_path, save_last=None, every_n_epochs=9)
    broken = stop(framework, "on_test_batch_start" if function == "test" else "on_validation_batch_start", at=1)
    trainer = models.trainer(framework, callback, broken, epochs=1)
    module = models.model(framework)
    trainer.fit(module, models.loader(), models.loader())
    assert trainer.global_step == 2
    with pytest.raises(BrokenError):
        getattr(trainer, function)(module, models.loader(), verbose=False)
    assert names(tmp_path) == []


@ONLY_LIGHTNING
def test_emergency_goes_by_no_later_save(framework: Framework, tmp_path: Path) -> None:
    """It is outside of the top k: the run that goes on from it neither removes it nor counts it."""
    callback = checkpoint(framework, tmp_path, save_last=None, monitor=None)
    fit(framework, callback, stop(framework, "on_train_batch_start"))
    emergency = tmp_path / "epoch=1-step=3.ckpt"
    assert names(tmp_path) == [FIRST, emergency.name]
    again = checkpoint(framework, tmp_path, save_last=None, monitor=None)
    assert fit(framework, again, ckpt_path=emergency, epochs=4) is None
    assert names(tmp_path) == [emergency.name, "epoch=3-step=8.ckpt"]
    assert again.best_model_path == str(tmp_path / "epoch=3-step=8.ckpt")
