"""A run that goes on from any of its checkpoints is, bit for bit, the run that was never interrupted: in Lightning."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_case as script
import pytest
import torch
from lightning_case import CASES, Case
from models import FRAMEWORKS, OLD_TREESPEC, Framework, differences

from safepoint.integrations.exactness import Exactness

pytestmark = [OLD_TREESPEC, pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")]

LIGHTNING = FRAMEWORKS[0]


@dataclass
class Run:
    """A run that came to its end: what it left, and the curve that it logged."""

    outcome: dict[str, Any]
    curve: dict[str, str]


def callbacks(framework: Framework, directory: Path) -> list[Any]:
    """Return callbacks that save at every step, at every epoch's end and at every validation's, and keep all."""
    every = {"save_top_k": -1, "filename": "{step}"}
    kind = framework.ModelCheckpoint
    return [
        kind(dirpath=directory / "batch", every_n_train_steps=1, **every),
        kind(dirpath=directory / "epoch", every_n_epochs=1, save_on_train_epoch_end=True, **every),
        kind(dirpath=directory / "validation", monitor="step", save_on_train_epoch_end=False, **every),
    ]


def run(framework: Framework, case: Case, directory: Path, checkpoint: Path | None = None, *others: Any) -> Run:
    """Run the script, from the beginning or from ``checkpoint``."""
    script.seed(case.seeds[checkpoint is not None])
    logger = script.curve(framework)
    fitted = script.trainer(framework, case, logger, *callbacks(framework, directory), *others)
    told = contextlib.nullcontext() if case.inexact is None else pytest.warns(UserWarning, match=case.inexact)
    with told:
        fitted.fit(script.module(framework, case), ckpt_path=checkpoint)
    return Run(script.outcome(fitted), logger.values)


def interrupted(framework: Framework, case: Case, directory: Path, *others: Any) -> tuple[Run, list[Path]]:
    """Return an undisturbed run, and the checkpoints that it left: it may have been interrupted after any of these."""
    whole = run(framework, case, directory, None, *others)
    found = sorted(directory.rglob("*.ckpt"), key=lambda path: (step_of(path), path.parent.name))
    return whole, [path for path in found if not ends_at_once(case, path)]


def step_of(path: Path) -> int:
    """Return the step at which a checkpoint was made."""
    return int(path.stem.partition("=")[2] or 0)


def ends_at_once(case: Case, path: Path) -> bool:
    """Tell whether the trainer finds nothing left to do, and leaves out what comes after the last step."""
    return path.parent.name == "batch" and step_of(path) == case.trainer.get("max_steps")


def unlike(whole: Run, resumed: Run, checkpoint: Path) -> list[str]:
    """Return in what the ``resumed`` run differs from the ``whole`` one: what it left, and all that it logged."""
    state = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]["epoch_loop.state_dict"]
    expected = {key: at for key, at in whole.curve.items() if int(key.split()[-1]) > state["_batches_that_stepped"]}
    missing = expected.keys() - resumed.curve.keys()
    other = {key for key, value in resumed.curve.items() if whole.curve.get(key) != value}
    return [*differences(whole.outcome, resumed.outcome), *sorted(missing), *sorted(other)]


def assert_exact(framework: Framework, case: Case, directory: Path, picked: Callable[[list[Path]], list[Path]]) -> None:
    """Assert that each resume from a checkpoint that is ``picked`` ends as the undisturbed run."""
    whole, checkpoints = interrupted(framework, case, directory / "whole")
    for number, checkpoint in enumerate(picked(checkpoints)):
        resumed = run(framework, case, directory / f"resumed {number}", checkpoint)
        assert unlike(whole, resumed, checkpoint) == [], checkpoint


def some(checkpoints: list[Path]) -> list[Path]:
    """Return one within the first epoch, one within the second, and one at an epoch's end."""
    at_ends = [path for path in checkpoints if path.parent.name == "epoch"]
    return [checkpoints[1], checkpoints[len(checkpoints) // 2 - 2], at_ends[len(at_ends) // 2]]


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_is_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    """Whatever the loader, the optimization, the precision and the rhythm of validations."""
    assert_exact(LIGHTNING, CASES[name], tmp_path, some)


def test_resumed_run_is_the_undisturbed_one_in_the_other_package(tmp_path: Path) -> None:
    """As with ``lightning.pytorch``, so with ``pytorch_lightning``."""
    assert_exact(FRAMEWORKS[1], CASES["half epochs"], tmp_path, some)


def test_any_moment_will_do(tmp_path: Path) -> None:
    """After each batch, the last of an epoch and of the fit among them, each validation and each epoch."""
    assert_exact(LIGHTNING, CASES["half epochs"], tmp_path, lambda checkpoints: checkpoints)


@pytest.mark.torture
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
@pytest.mark.parametrize("name", CASES)
def test_every_moment_of_every_case(framework: Framework, name: str, tmp_path: Path) -> None:
    """The whole matrix: each checkpoint that the run ever made."""
    assert_exact(framework, CASES[name], tmp_path, lambda checkpoints: checkpoints)


# What the comparison would see.

WITHOUT: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "all of it": lambda patch: patch.setattr(Exactness, "take", lambda *_: None),
    "the random state": lambda patch: patch.setattr(Exactness, "_put_back_random_state", lambda *_: None),
    "the position": lambda patch: patch.setattr(Exactness, "_seek", lambda self, _: set(self._positions)),
    "the measurements": lambda patch: patch.setattr("safepoint.integrations.tally.put_back", lambda *_: None),
}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before:UserWarning")
@pytest.mark.parametrize("what", WITHOUT)
def test_comparison_sees_what_is_missing(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a part is not put back, the runs are found to differ."""
    case = CASES["plain"]
    whole, checkpoints = interrupted(LIGHTNING, case, tmp_path / "whole")
    WITHOUT[what](monkeypatch)
    checkpoint = some(checkpoints)[0]
    assert unlike(whole, run(LIGHTNING, case, tmp_path / "resumed", checkpoint), checkpoint) != []
