"""Emergency checkpoints of a plain loop: wherever the exception comes from, what stays, and what is gone on from."""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants import whole_checkpoints
from loop import Training, equal
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

import safepoint
from safepoint import Checkpointer, keep, when
from safepoint.catalog import Catalog
from safepoint.cli.app import app
from safepoint.keep import PreservationPolicy
from safepoint.records import Record
from safepoint.when import SavePolicy

EVERY = when.every(epochs=1) | when.exception()


class BrokenError(Exception):
    """What goes wrong here."""


class Broken(Dataset[torch.Tensor]):
    """Cannot read its third example."""

    def __len__(self) -> int:
        """Return more than it can give."""
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return an example, or raise."""
        if index == 2:
            raise BrokenError
        return torch.ones(8, 4)


class Halfway(torch.optim.SGD):
    """Breaks in its second step, when it has updated the first parameter."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        """Update, or break in between."""
        self.steps += 1
        if self.steps < 2:
            return super().step(closure)
        self.param_groups[0]["params"][0].data.zero_()
        raise BrokenError


def saver(directory: Path, training: Training, save: SavePolicy = EVERY, **options: Any) -> Checkpointer:
    """Return a checkpointer of ``training`` that keeps the best, unless told otherwise."""
    return Checkpointer(directory, state=training.state, save=save, **{"keep": keep.best("loss"), **options})


def epoch(training: Training, checkpointer: Checkpointer, loss: float = 1.0) -> None:
    """Train an epoch of two steps, which is saved."""
    for _ in range(2):
        training.advance()
        checkpointer.step()
    checkpointer.epoch_end(loss=loss)


def names(directory: Path) -> list[str]:
    """Return the names of what is there, sorted, all of it sound."""
    return [path.name for path in whole_checkpoints(directory)]


def records(directory: Path) -> dict[str, Record]:
    """Return the records of what is there, by name, oldest first."""
    return {record.path.name: record for record in Catalog.of(directory).records}


def interrupted(directory: Path, training: Training, break_it: Callable[[], object], **options: Any) -> BaseException:
    """Train an epoch and a step of the next, break, and return the error that came out of the block."""
    error = None
    try:
        with saver(directory, training, **options) as checkpointer:
            epoch(training, checkpointer)
            training.advance()
            checkpointer.step()
            break_it()
    except BaseException as caught:  # noqa: BLE001 - it is the result
        error = caught
    assert error is not None
    return error


def spoiled(training: Training, number: float = math.nan) -> Callable[[], None]:
    """Return what puts ``number`` into the weights, and raises."""

    def spoil() -> None:
        training.model[2].bias.data[0] = number
        raise BrokenError

    return spoil


def press_ctrl_c() -> None:
    """Send what Ctrl-C sends."""
    os.kill(os.getpid(), signal.SIGINT)


def step_of_training(training: Training) -> Callable[[], object]:
    """Return a step that fails: the input is none of the model's."""
    return lambda: training.model(torch.ones(8, 3))


def validation(training: Training) -> Callable[[], object]:
    """Return a validation that fails."""

    def validate() -> None:
        training.model.eval()
        with torch.inference_mode():
            training.model(torch.ones(8, 3))

    return validate


SOURCES: dict[str, tuple[type[BaseException], Callable[[Training], Callable[[], object]]]] = {
    "ctrl-c": (KeyboardInterrupt, lambda _: press_ctrl_c),
    "training step": (RuntimeError, step_of_training),
    "validation": (RuntimeError, validation),
    "data loader": (BrokenError, lambda _: lambda: list(DataLoader(Broken()))),
    "worker": (BrokenError, lambda _: lambda: list(DataLoader(Broken(), num_workers=2))),
}


@pytest.mark.parametrize("source", SOURCES)
def test_exception_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, source: str) -> None:
    """It is marked, is the state of that moment, is not in the way of the others, and is restored."""
    kind, break_it = SOURCES[source]
    training = Training()
    error = interrupted(tmp_path, training, break_it(training))
    assert type(error) is kind
    assert not getattr(error, "__notes__", [])
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=1-step=3-exception.ckpt"]
    found = records(tmp_path)
    assert [(record.emergency, record.flaw) for record in found.values()] == [("", ""), (kind.__name__, "")]
    assert found["epoch=1-step=3-exception.ckpt"].reasons == (f"exception: {kind.__name__}",)
    again = Training(seed=1)
    with saver(tmp_path, again) as checkpointer:
        progress = checkpointer.restore()
        assert (progress.step, progress.epoch, progress.batch) == (3, 1, 1)
        assert equal(training.weights(), again.weights())
        latest, best = checkpointer.latest(), checkpointer.best("loss")
        assert latest is not None
        assert latest.path == progress.path
        assert best is not None
        assert best.path.name == "epoch=0-step=2.ckpt"


def test_exception_comes_out_as_it_is(tmp_path: Path) -> None:
    """The very object that was raised, whatever is saved."""
    raised = BrokenError("on purpose")

    def fail() -> None:
        raise raised

    assert interrupted(tmp_path, Training(), fail) is raised


def test_exception_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    """There is nothing that another start would not give."""
    with pytest.raises(BrokenError), saver(tmp_path, Training()):
        raise BrokenError
    assert names(tmp_path) == []


def test_interrupted_update_is_no_state_to_go_on_from(tmp_path: Path) -> None:
    """An error in an optimizer's step leaves half an update: it is saved to be looked at, and is not restored."""
    training = Training()
    training.optimizer = Halfway(training.model.parameters(), lr=0.01)  # type: ignore[assignment]
    with pytest.raises(BrokenError), saver(tmp_path, training, when.every(steps=1) | when.exception()) as checkpointer:
        training.advance()
        checkpointer.step(loss=1.0)
        checkpointer.epoch_end()
        training.advance()
    assert names(tmp_path) == ["epoch=0-step=1-exception.ckpt", "epoch=0-step=1.ckpt"]
    flaw = records(tmp_path)["epoch=0-step=1-exception.ckpt"].flaw
    assert flaw == "Halfway was interrupted in its step"
    with (
        saver(tmp_path, training) as checkpointer,
        pytest.warns(RuntimeWarning, match=r"exception.ckpt is not gone on from: .* Halfway was interrupted"),
    ):
        assert checkpointer.restore().path == tmp_path / "epoch=0-step=1.ckpt"


def test_nan_is_saved_and_not_gone_on_from(tmp_path: Path) -> None:
    """The state with NaN in it is there to be looked at; the last good one is restored, and stays the latest."""
    training = Training()
    interrupted(tmp_path, training, spoiled(training))
    bad = tmp_path / "epoch=1-step=3-exception.ckpt"
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", bad.name]
    assert records(tmp_path)[bad.name].flaw == "model.2.bias holds NaN"
    assert safepoint.load(bad)["model"]["2.bias"].isnan().all()
    again = Training()
    with saver(tmp_path, again, keep=keep.latest()) as checkpointer:
        with pytest.warns(RuntimeWarning) as told:
            assert checkpointer.restore().step == 2
        (warning,) = told
        assert str(warning.message) == (
            f"{bad} is not gone on from: it was saved at an exception (BrokenError), and model.2.bias holds NaN. "
            "safepoint.load() reads it."
        )
        assert not any(weights.isnan().any() for weights in again.weights())
        latest = checkpointer.latest()
        assert latest is not None
        assert latest.path.name == "epoch=0-step=2.ckpt"
        assert checkpointer.explain(bad) == (
            f"{bad.name} is kept: saved at an exception (BrokenError), until the run saves again. It is not gone on "
            "from: model.2.bias holds NaN."
        )
        epoch(again, checkpointer)
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"]


def test_nan_in_the_optimizer_is_a_flaw_and_infinity_is_none(tmp_path: Path) -> None:
    """What the optimizer holds counts, what a plain value is does not, and masks are full of infinities."""
    training = Training()

    def spoil() -> None:
        training.optimizer.state[training.model[0].weight]["exp_avg"][0, 0] = math.nan
        raise BrokenError

    interrupted(tmp_path / "a", training, spoil)
    assert list(records(tmp_path / "a").values())[-1].flaw == "optimizer.state.0.exp_avg holds NaN"
    training = Training()
    with (
        pytest.raises(BrokenError),
        Checkpointer(
            tmp_path / "b",
            state={**training.state, "mine": {"loss": torch.tensor(math.nan)}},
            save=EVERY,
            keep=keep.all(),
        ) as checkpointer,
    ):
        training.advance()
        checkpointer.step()
        spoiled(training, -math.inf)()
    assert [record.flaw for record in records(tmp_path / "b").values()] == [""]


def test_flawed_ones_alone_are_an_error(tmp_path: Path) -> None:
    """Nobody starts afresh, or with NaN, without saying so; the error says how to read them all the same."""
    training = Training()
    interrupted(tmp_path, training, spoiled(training), save=when.exception())
    with saver(tmp_path, Training()) as checkpointer:
        with pytest.raises(safepoint.RestoreError) as caught:
            checkpointer.restore()
        assert checkpointer.latest() is None
    assert str(caught.value) == (
        f"no checkpoint in {tmp_path} can be gone on from; tried:\n"
        f"  {tmp_path}/epoch=1-step=3-exception.ckpt: it was saved at an exception (BrokenError), and model.2.bias "
        "holds NaN\n"
        "Give another directory, or move these files away to start afresh. safepoint.load() reads those that were "
        "saved at an exception."
    )


def test_damaged_and_flawed_ones_are_both_passed_over(tmp_path: Path) -> None:
    """Each is told with what is wrong with it, and what is older than both is restored."""
    training = Training()
    interrupted(tmp_path, training, spoiled(training), keep=keep.all())
    with saver(tmp_path, training, keep=keep.all()) as checkpointer, pytest.warns(RuntimeWarning, match="not gone on"):
        checkpointer.restore()
        epoch(training, checkpointer)
        training.advance()
        checkpointer.step()
        damaged = checkpointer.save()
    damaged.write_bytes(damaged.read_bytes()[:-9000] + bytes(9000))
    (tmp_path / "epoch=1-step=4.ckpt").unlink()
    training.model[2].bias.data[0] = 0.0
    with saver(tmp_path, training) as checkpointer, pytest.warns(RuntimeWarning, match="was skipped and left alone"):
        assert checkpointer.restore().path == tmp_path / "epoch=0-step=2.ckpt"


def test_signal_that_ends_the_run_makes_a_broken_state_no_better(tmp_path: Path) -> None:
    """Where both come at once, what is saved before the end is marked as what the exception has left."""
    training = Training()

    def break_it() -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        spoiled(training)()

    interrupted(tmp_path, training, break_it, save=EVERY | when.preempted(signals=["SIGUSR2"]), keep=keep.latest())
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=1-step=3-preempted.ckpt"]
    found = records(tmp_path)["epoch=1-step=3-preempted.ckpt"]
    assert (found.emergency, found.flaw) == ("BrokenError", "model.2.bias holds NaN")
    with (
        pytest.raises(safepoint.Preempted),
        saver(tmp_path / "a", training, when.preempted(signals=["SIGUSR2"])) as checkpointer,
    ):
        os.kill(os.getpid(), signal.SIGUSR2)
        checkpointer.step()
    assert [(record.emergency, record.flaw) for record in records(tmp_path / "a").values()] == [("", "")]


def test_end_that_was_asked_for_is_no_emergency(tmp_path: Path) -> None:
    """Of two checkpointers, the one that only hears of it by what the other raises saves an ordinary checkpoint."""
    policy = when.preempted(signals=["SIGUSR2"])
    one, other = saver(tmp_path / "a", Training(), policy), saver(tmp_path / "b", Training(), policy)
    with pytest.raises(safepoint.Preempted), one, other:
        one.step()
        other.step()
        os.kill(os.getpid(), signal.SIGUSR2)
        other.epoch_end()
    assert [record.emergency for at in ("a", "b") for record in records(tmp_path / at).values()] == ["", ""]


@pytest.mark.parametrize("pick", ["latest", "best:loss", "best:loss:max"])
def test_another_run_starts_from_no_flaw_and_from_no_emergency_as_the_best(tmp_path: Path, pick: str) -> None:
    """``resume_from=`` passes over the same checkpoints, and ranks the same."""
    training = Training()
    interrupted(tmp_path / "a", training, press_ctrl_c)
    with saver(tmp_path / "a", training) as checkpointer:
        checkpointer.restore()
        checkpointer.attach(3, loss=9.0 if pick.endswith("max") else 0.0)
        with pytest.raises(BrokenError), checkpointer:
            training.advance()
            checkpointer.step()
            spoiled(training)()
    again = Training()
    with saver(tmp_path / "b", again, resume_from=f"{tmp_path / 'a'}@{pick}") as checkpointer:
        if pick == "latest":
            with pytest.warns(RuntimeWarning, match="is not gone on from"):
                assert checkpointer.restore().step == 3
        else:
            assert checkpointer.restore().step == 2


# What stays, and what goes.


@pytest.mark.parametrize("policy", [keep.latest(2), keep.best("loss"), keep.within(gigabytes=1), keep.every(steps=2)])
@pytest.mark.parametrize("number", [0.0, math.nan], ids=["sound", "flawed"])
def test_emergency_evicts_nothing(tmp_path: Path, policy: PreservationPolicy, number: float) -> None:
    """Whatever the policy, what was there before is there after it, and the newest of these is not given up later."""
    training = Training()
    with saver(tmp_path, training, keep=policy) as checkpointer:
        for loss in (1.0, 2.0, 3.0):
            epoch(training, checkpointer, loss)
    before = names(tmp_path)
    assert "epoch=2-step=6.ckpt" in before
    with pytest.raises(BrokenError), saver(tmp_path, training, keep=policy) as checkpointer:
        checkpointer.restore()
        training.advance()
        checkpointer.step()
        spoiled(training, number)()
    assert names(tmp_path) == [*before, "epoch=3-step=7-exception.ckpt"]


def test_emergency_checkpoint_goes_when_its_run_has_saved_again(tmp_path: Path) -> None:
    """Not where the run was resumed from it, in the very process that was; in the next, which goes on from a later."""
    training = Training()
    interrupted(tmp_path, training, press_ctrl_c)
    emergency = "epoch=1-step=3-exception.ckpt"
    with saver(tmp_path, training, keep=keep.latest()) as checkpointer:
        checkpointer.restore()
        epoch(training, checkpointer)
        assert checkpointer.explain(emergency) == f"{emergency} is kept: the run was resumed from it."
    assert names(tmp_path) == [emergency, "epoch=1-step=5.ckpt"]
    with saver(tmp_path, training, keep=keep.latest() | keep.every(steps=5)) as checkpointer:
        assert checkpointer.restore().step == 5
        epoch(training, checkpointer)
        told = checkpointer.explain(emergency)
    assert told == (
        f"{emergency} was removed: it was saved at an exception, and the run has saved again since. To stay, it would "
        "have taken a copy of it under another name."
    )
    assert names(tmp_path) == ["epoch=1-step=5.ckpt", "epoch=2-step=7.ckpt"]


def test_emergency_is_never_the_best(tmp_path: Path) -> None:
    """Though it is measured later, and best of all."""
    training = Training()
    interrupted(tmp_path, training, press_ctrl_c)
    with saver(tmp_path, training) as checkpointer:
        checkpointer.restore()
        checkpointer.attach(3, loss=0.0)
        epoch(training, checkpointer, 2.0)
        checkpointer.wait()
        best = checkpointer.best("loss")
        assert best is not None
        assert best.path.name == "epoch=0-step=2.ckpt"
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "epoch=1-step=3-exception.ckpt", "epoch=1-step=5.ckpt"]


def test_emergency_supersedes_no_ordinary_checkpoint_of_its_step(tmp_path: Path) -> None:
    """The epoch's end is no step, but the run has moved on; what was saved at the step stays."""
    training = Training()
    policy = when.every(steps=1) | when.exception()
    with pytest.raises(BrokenError), saver(tmp_path, training, policy, keep=keep.latest()) as checkpointer:
        training.advance()
        checkpointer.step()
        checkpointer.epoch_end()
        spoiled(training)()
    assert names(tmp_path) == ["epoch=0-step=1-exception.ckpt", "epoch=0-step=1.ckpt"]


def test_flawed_emergency_takes_the_place_of_no_sound_one(tmp_path: Path) -> None:
    """Of one step and epoch, a sound one is not replaced by one with a flaw, but a flawed one by the next."""
    training = Training()
    with pytest.raises(KeyboardInterrupt), saver(tmp_path, training, when.exception()) as checkpointer:
        training.advance()
        checkpointer.step()
        press_ctrl_c()
    for _ in range(2):
        again = Training()
        with pytest.raises(BrokenError), saver(tmp_path, again, when.exception()) as checkpointer:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the flawed one
                assert checkpointer.restore().path == tmp_path / "epoch=0-step=1-exception.ckpt"
            checkpointer.epoch_end()
            spoiled(again)()
    assert names(tmp_path) == ["epoch=0-step=1-exception-v1.ckpt", "epoch=0-step=1-exception.ckpt"]
    assert [record.flaw for record in records(tmp_path).values()] == ["", "model.2.bias holds NaN"]


def test_list_shows_what_is_wrong(tmp_path: Path) -> None:
    """``safepoint ls`` says what a checkpoint was saved for, and why nobody goes on from it."""
    training = Training()
    interrupted(tmp_path, training, spoiled(training))
    shown = " ".join(CliRunner().invoke(app, ["ls", str(tmp_path)], env={"COLUMNS": "300"}).output.split())
    assert "saved at an exception (BrokenError), until the run saves again; not gone on from: model.2.bias" in shown
