"""What cannot be put back exactly in Lightning is named, and what is forged is refused; and what belongs to whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_case as script
import pytest
import torch
from lightning_case import CASES, Case
from models import FRAMEWORKS, OLD_TREESPEC, differences
from test_lightning_exact import run, unlike

from safepoint.errors import CheckpointError
from safepoint.integrations.exactness import KEY, Exactness
from safepoint.loaders import Position

pytestmark = [OLD_TREESPEC, pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")]

LIGHTNING = FRAMEWORKS[0]
SHORT = Case(script.ordinary, {"limit_train_batches": 4}, epochs=1, validates=False)


def by_hand(at: Callable[[Any], bool], hook: str = "on_train_batch_end") -> Any:
    """Return a callback of the user's that saves once, at the first ``hook`` where ``at`` says so, as ``by-hand``."""

    class ByHand(LIGHTNING.pl.Callback):  # type: ignore[misc,name-defined]
        saved: Path | None = None

    def save(self: Any, trainer: Any, *_: Any) -> None:
        if self.saved is None and at(trainer):
            self.saved = Path(trainer.checkpoint_callback.dirpath).parent / "by-hand.ckpt"
            trainer.save_checkpoint(self.saved)

    setattr(ByHand, hook, save)
    return ByHand()


def saved_by_hand(case: Case, directory: Path, at: Callable[[Any], bool], hook: str = "on_train_batch_end") -> Any:
    """Return an undisturbed run, and a checkpoint that was saved in it by hand."""
    callback = by_hand(at, hook)
    whole = run(LIGHTNING, case, directory / "whole", None, callback)
    assert callback.saved is not None
    return whole, callback.saved


def test_gradients_that_wait_are_saved(tmp_path: Path) -> None:
    """A checkpoint amid accumulated batches has their gradients; one at the optimizer's step has none."""
    case = CASES["accumulation"]
    whole, checkpoint = saved_by_hand(case, tmp_path, lambda trainer: trainer.fit_loop.total_batch_idx == 8)
    assert torch.load(checkpoint, weights_only=True)[KEY]["gradients"] != {}
    assert torch.load(tmp_path / "whole" / "batch" / "step=1.ckpt", weights_only=True)[KEY]["gradients"] == {}
    resumed = run(LIGHTNING, case, tmp_path / "resumed", checkpoint)
    assert differences(whole.outcome, resumed.outcome) == []


def test_checkpoint_between_epochs_begins_the_next(tmp_path: Path) -> None:
    """What is saved when an epoch starts is gone on from as exactly."""
    whole, checkpoint = saved_by_hand(
        CASES["plain"], tmp_path, lambda trainer: trainer.current_epoch == 1, "on_train_epoch_start"
    )
    assert torch.load(checkpoint, weights_only=True)[KEY]["moment"] == "between"
    assert unlike(whole, run(LIGHTNING, CASES["plain"], tmp_path / "resumed", checkpoint), checkpoint) == []


def test_checkpoint_within_a_validation_validates_again(tmp_path: Path) -> None:
    """The batch before it is not trained on again, and the validation is whole."""
    whole, checkpoint = saved_by_hand(
        CASES["plain"], tmp_path, lambda trainer: trainer.current_epoch == 1, "on_validation_batch_end"
    )
    assert torch.load(checkpoint, weights_only=True)[KEY]["moment"] == "validating"
    resumed = run(LIGHTNING, CASES["plain"], tmp_path / "resumed", checkpoint)
    assert "val_loss at 13" in resumed.curve
    assert resumed.outcome["progress"] == whole.outcome["progress"]


def edited(monkeypatch: pytest.MonkeyPatch, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Let ``edit`` change what was saved before it is taken, as if it had been saved so."""
    take = Exactness.take

    def other(self: Exactness, checkpoint: Any, trainer: Any) -> None:
        edit(checkpoint[KEY])
        take(self, checkpoint, trainer)

    monkeypatch.setattr(Exactness, "take", other)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "other processes": (lambda saved: saved.update(world_size=2), "saved by 2 processes, and 1 go on"),
    "one process alone": (lambda saved: saved.update(ranks={}), "saved after an exception, by one process"),
    "another dataset": (
        lambda saved: saved["ranks"][0]["positions"][0].update(length=41),
        "has 40 samples here, and had 41",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_cannot_be_put_back_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes, other data: training goes on, and a warning says what is not as it was."""
    run(LIGHTNING, SHORT, tmp_path / "whole")
    edit, told = EDITS[name]
    edited(monkeypatch, edit)
    with pytest.warns(UserWarning, match=told):
        run(LIGHTNING, SHORT, tmp_path / "resumed", tmp_path / "whole" / "batch" / "step=2.ckpt")


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "moment": lambda saved: saved.update(moment="never"),
    "ranks": lambda saved: saved.update(ranks=[]),
    "rank": lambda saved: saved.update(ranks={0: 1}),
    "size": lambda saved: saved.update(world_size="1"),
    "random": lambda saved: saved["ranks"][0].update(random={"python": 1}),
    "position": lambda saved: saved["ranks"][0]["positions"][0].update(batches=-1),
    "tally": lambda saved: saved["ranks"][0].update(tally={}),
    "logged": lambda saved: saved["ranks"][0]["tally"]["logged"].update(x={"meta": {}, "parts": {}}),
    "metric": lambda saved: saved["ranks"][0]["tally"]["metrics"].update(x={"count": 1, "state": {"a": 1}}),
    "metrics": lambda saved: saved.update(metrics={"a": 1}),
    "gradients": lambda saved: saved.update(gradients=[]),
    "lacking": lambda saved: saved.pop("metrics"),
}


def test_forged_states_are_refused(tmp_path: Path) -> None:
    """Each part that is not of its kind is an error, before anything is put back."""
    run(LIGHTNING, SHORT, tmp_path)
    path = tmp_path / "batch" / "step=2.ckpt"

    class Fitting:
        class state:  # noqa: N801 - as the trainer's
            fn = "fit"

        callbacks: tuple[Any, ...] = ()

    for name, forge in FORGED.items():
        checkpoint = torch.load(path, weights_only=True)
        forge(checkpoint[KEY])
        with pytest.raises(CheckpointError, match=f"{KEY}.*is not what was saved there"):
            Exactness(LIGHTNING.pl.Callback, print).take(checkpoint, Fitting())
            pytest.fail(f"{name} was taken")


def test_loaders_are_the_users_again(tmp_path: Path) -> None:
    """After the fit a loader has the class that it had, and the trainer's list no callback of ours but those given."""
    loader = script.ordinary()
    case = Case(lambda: loader, {"limit_train_batches": 4}, epochs=1, validates=False)
    run(LIGHTNING, case, tmp_path / "whole")
    assert type(loader) is torch.utils.data.DataLoader
    run(LIGHTNING, case, tmp_path / "resumed", tmp_path / "whole" / "epoch" / "step=4.ckpt")
    assert type(loader) is torch.utils.data.DataLoader
    assert not [name for name in vars(loader) if "safepoint" in name]


def test_only_a_fit_takes_what_is_for_a_resume(tmp_path: Path) -> None:
    """What test() and validate() load leaves the random state alone."""
    run(LIGHTNING, SHORT, tmp_path)
    fitted = script.trainer(LIGHTNING, SHORT, script.curve(LIGHTNING))
    checkpoint = torch.load(tmp_path / "batch" / "step=2.ckpt", weights_only=True)
    before = torch.get_rng_state()
    for name in ("TESTING", "VALIDATING"):
        fitted.state.fn = getattr(LIGHTNING.pl.trainer.states.TrainerFn, name)
        exactness = Exactness(LIGHTNING.pl.Callback, print)
        exactness.take(checkpoint, fitted)
        exactness.at_train_start(fitted)
        exactness.at_fit_end(fitted)
    assert torch.equal(torch.get_rng_state(), before)


def test_hooks_that_draw_before_the_first_batch_are_known() -> None:
    """A position tells when the first index was drawn, and not when the iteration was asked for."""
    loader = script.ordinary(noise=False)
    position = Position(loader)
    iteration = iter(loader)
    torch.rand(3)
    first, second = next(iteration), next(iteration)
    saved = position.state_dict() | {"batches": 1}
    again = script.ordinary(noise=False)
    Position(again).load_state_dict(saved)
    assert not torch.equal(first, second)
    del iteration, position
    followed = Position(again)
    followed.load_state_dict(saved)
    assert torch.equal(next(iter(again)), second)
