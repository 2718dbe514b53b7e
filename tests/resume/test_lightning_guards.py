"""What guards an exact resume in Lightning: what is told, made up, refused, and gone on without, in both packages."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_case as script
import pytest
import torch
import torchmetrics
from lightning_case import Case
from models import FRAMEWORKS, OLD_TREESPEC, Framework, differences
from test_lightning_exact import Run, unlike

from safepoint.errors import CheckpointError
from safepoint.integrations.exactness import KEY

pytestmark = [
    OLD_TREESPEC,
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name),
]

SHORT = Case(script.ordinary, {"limit_train_batches": 4}, epochs=2, validates=False)
NOT_EXACTLY = "cannot be resumed from exactly"


@dataclass
class Trained(Run):
    """A run that came to its end, and its trainer."""

    trainer: Any


def train(
    case: Case, framework: Framework, *callbacks: Any, checkpoint: Path | None = None, net: Any = None
) -> Trained:
    """Run the script, or ``net``, from the beginning or from ``checkpoint``."""
    script.seed(2 if checkpoint else 1)
    fitted = script.trainer(framework, case, script.curve(framework), *callbacks)
    fitted.fit(net or script.module(framework, case), ckpt_path=checkpoint)
    return Trained(script.outcome(fitted), fitted.logger.values, fitted)


def by_step(framework: Framework, directory: Path) -> Any:
    """Return a callback that saves after each batch with a step, and keeps all."""
    return framework.ModelCheckpoint(directory, "{step}", every_n_train_steps=1, save_top_k=-1)


def by_epoch(framework: Framework, directory: Path) -> Any:
    """Return a callback that saves at the end of each epoch, and keeps all."""
    return framework.ModelCheckpoint(directory, "{step}", save_top_k=-1, save_on_train_epoch_end=True)


def by_hand(framework: Framework, path: Path, hook: str, at: Callable[[Any], bool] = lambda _: True) -> Any:
    """Return a callback of the user's that saves as ``path`` at ``hook``, where ``at`` says so."""

    def save(_: Any, trainer: Any, *__: Any) -> None:
        if at(trainer):
            trainer.save_checkpoint(path)

    return type("ByHand", (framework.pl.Callback,), {hook: save})()


def told(caught: list[warnings.WarningMessage], text: str) -> int:
    """Return how many warnings say ``text``."""
    return sum(text in str(warning.message) for warning in caught)


# A callback that does something at an epoch's start.

AVERAGED = Case(script.ordinary, {"limit_train_batches": 4}, epochs=4, scheduler="epoch", validates=False)


def averaging(framework: Framework) -> Any:
    """Return a callback of a class below the framework's, as users write them."""
    base = importlib.import_module(f"{framework.name}.callbacks").StochasticWeightAveraging
    return type("Averaging", (base,), {})(swa_lrs=0.05, swa_epoch_start=2)


def test_averaging_is_named_within_an_epoch(framework: Framework, tmp_path: Path) -> None:
    """It is told once, when the first checkpoint within an epoch is made."""
    with pytest.warns(UserWarning, match="StochasticWeightAveraging sets its schedule") as caught:
        train(AVERAGED, framework, by_step(framework, tmp_path), averaging(framework))
    assert told(caught.list, "Save at the ends of epochs") == 1


def test_averaging_goes_on_from_the_end_of_an_epoch(framework: Framework, tmp_path: Path) -> None:
    """As it is told: a run that saves there is told nothing, and goes on exactly."""
    whole = train(AVERAGED, framework, by_epoch(framework, tmp_path), averaging(framework))
    checkpoint, callback = tmp_path / "step=8.ckpt", by_epoch(framework, tmp_path / "resumed")
    resumed = train(AVERAGED, framework, callback, averaging(framework), checkpoint=checkpoint)
    assert unlike(whole, resumed, checkpoint) == []


# Nothing is left to train.


def test_last_epoch_is_ended_where_nothing_is_left(framework: Framework, tmp_path: Path) -> None:
    """A scheduler's step was left to do; then all is as after the fit, with what was measured."""
    case = Case(script.ordinary, {"limit_train_batches": 4}, scheduler="plateau", epochs=2)
    whole = train(case, framework, by_epoch(framework, tmp_path))
    checkpoint = tmp_path / "step=8.ckpt"
    assert torch.load(checkpoint, weights_only=True)[KEY]["moment"] == "epoch"
    resumed = train(case, framework, by_epoch(framework, tmp_path / "resumed"), checkpoint=checkpoint)
    assert differences(whole.outcome, resumed.outcome) == []
    measured = dict(whole.trainer.callback_metrics)
    assert {"val_loss", "loss_epoch", "mean"} <= measured.keys()
    assert differences(measured, dict(resumed.trainer.callback_metrics)) == []


def test_epoch_that_is_not_ended_is_named_where_nothing_is_left(framework: Framework, tmp_path: Path) -> None:
    """After the last step, with the end of its epoch still to come, only the random state is put back."""
    case = Case(script.ordinary, {"max_steps": 3, "max_epochs": -1})
    train(case, framework, by_step(framework, tmp_path))
    checkpoint = tmp_path / "step=3.ckpt"
    with pytest.warns(UserWarning, match="There was nothing left to train") as caught:
        train(case, framework, by_step(framework, tmp_path / "resumed"), checkpoint=checkpoint)
    assert told(caught.list, "such as its validation, is not made up") == 1
    saved = torch.load(checkpoint, weights_only=True)[KEY]
    assert saved["moment"] == "batch"
    assert torch.equal(torch.get_rng_state(), saved["ranks"][0]["random"]["torch"])


def test_fit_that_was_over_stays_as_it_was(framework: Framework, tmp_path: Path) -> None:
    """Of what was saved after the last epoch nothing is left to do, and nothing is told."""
    path = tmp_path / "by-hand.ckpt"
    whole = train(SHORT, framework, by_epoch(framework, tmp_path), by_hand(framework, path, "on_train_end"))
    assert torch.load(path, weights_only=True)[KEY]["moment"] == "between"
    resumed = train(SHORT, framework, by_epoch(framework, tmp_path / "resumed"), checkpoint=path)
    assert differences(whole.outcome, resumed.outcome) == []


# Gradients that wait.


class _Looked:
    """A net that looks its weights up, and so has sparse gradients if it is told to."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 3, sparse=sparse)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(24) % 5, batch_size=4, shuffle=True)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.table(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]


def looked(framework: Framework, *, sparse: bool) -> Any:
    """Return a fresh net of that kind, always with the same weights."""
    torch.manual_seed(3)
    return type("Looked", (_Looked, framework.pl.LightningModule), {})(sparse=sparse)


def accumulating(precision: str = "32-true") -> Case:
    """Return a training of 6 batches, of which 3 make a step."""
    return Case(script.ordinary, {"accumulate_grad_batches": 3, "precision": precision}, epochs=2)


def within_a_step(framework: Framework, path: Path) -> Any:
    """Return a callback that saves after the second batch."""
    return by_hand(framework, path, "on_train_batch_end", lambda trainer: trainer.fit_loop.total_batch_idx == 1)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize(("precision", "sparse"), [("bf16-true", False), ("64-true", False), ("32-true", True)])
def test_gradients_of_any_kind_are_put_back(precision: str, sparse: bool, framework: Framework, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter of the test
    """In a precision that the trainer gives the module after it was loaded; and sparse ones."""
    case, path = accumulating(precision), tmp_path / "by-hand.ckpt"
    callbacks = by_epoch(framework, tmp_path / "whole"), within_a_step(framework, path)
    whole = train(case, framework, *callbacks, net=looked(framework, sparse=sparse))
    gradient = torch.load(path, weights_only=True)[KEY]["gradients"]["table.weight"]
    assert (gradient.dtype, gradient.is_sparse) == (whole.trainer.lightning_module.dtype, sparse)
    callback, net = by_epoch(framework, tmp_path / "resumed"), looked(framework, sparse=sparse)
    resumed = train(case, framework, callback, checkpoint=path, net=net)
    assert differences(whole.outcome, resumed.outcome) == []


# What is forged.

WEIGHT = "table.weight"
SHAPE = "gradient of table.weight is of another shape or dtype"

FORGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "lacking": (lambda saved: [saved.pop(name) for name in list(saved)], "it lacks what belongs there"),
    "moment": (lambda saved: saved.update(moment=["batch"]), "it knows no such moment"),
    "ranks": (lambda saved: saved.update(ranks=[0]), "its ranks are none"),
    "name of a rank": (lambda saved: saved.update(ranks={"0": saved["ranks"][0]}), "its ranks are none"),
    "world size": (lambda saved: saved.update(world_size=1.0), "its ranks are none"),
    "world size that is a truth": (lambda saved: saved.update(world_size=True), "its ranks are none"),
    "two elements": (lambda saved: saved["metrics"].update(loss=torch.ones(2)), "its metrics are no numbers"),
    "no element": (lambda saved: saved["metrics"].update(loss=torch.ones(0)), "its metrics are no numbers"),
    "metric": (lambda saved: saved["metrics"].update(loss=1.0), "its metrics are none"),
    "metric without data": (
        lambda saved: saved["metrics"].update(loss=torch.ones((), device="meta")),
        "its metrics are none",
    ),
    "name of a metric": (lambda saved: saved["metrics"].update({1: torch.ones(())}), "its metrics are none"),
    "shape": (lambda saved: saved["gradients"].update({WEIGHT: torch.ones(3, 5)}), SHAPE),
    "broadcast": (lambda saved: saved["gradients"].update({WEIGHT: torch.ones(3)}), SHAPE),
    "whole numbers": (lambda saved: saved["gradients"].update({WEIGHT: torch.ones(5, 3).long()}), SHAPE),
    "complex": (lambda saved: saved["gradients"].update({WEIGHT: torch.ones(5, 3).cfloat()}), SHAPE),
    "layout": (lambda saved: saved["gradients"].update({WEIGHT: torch.ones(5, 3).to_sparse_csr()}), SHAPE),
    "gradient": (lambda saved: saved["gradients"].update({WEIGHT: 1.0}), "its gradients are none"),
    "gradient without data": (
        lambda saved: saved["gradients"].update({WEIGHT: torch.ones(5, 3, device="meta")}),
        "its gradients are none",
    ),
    "nested gradient": (
        lambda saved: saved["gradients"].update({WEIGHT: torch.nested.nested_tensor([torch.ones(2)])}),
        "its gradients are none",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse (invariant checks|CSR tensor support):UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_forged_entries_are_refused_before_anything_is_changed(framework: Framework, tmp_path: Path) -> None:
    """Neither the random state nor gradients, measurements, counters or callbacks are those of the checkpoint."""
    case, path, forged = accumulating(), tmp_path / "by-hand.ckpt", tmp_path / "forged.ckpt"
    callbacks = by_epoch(framework, tmp_path / "whole"), within_a_step(framework, path)
    train(case, framework, *callbacks, net=looked(framework, sparse=False))
    for name, (forge, problem) in FORGED.items():
        checkpoint = torch.load(path, weights_only=True)
        forge(checkpoint[KEY])
        torch.save(checkpoint, forged)
        net, callback = looked(framework, sparse=False), by_epoch(framework, tmp_path / "refused")
        fitted = script.trainer(framework, case, script.curve(framework), callback)
        drawn, listed = torch.get_rng_state(), list(fitted.callbacks)
        with pytest.raises(CheckpointError, match=f"'{KEY}' entry is not what was saved there: .*{problem}"):
            fitted.fit(net, ckpt_path=forged)
            pytest.fail(f"{name} was taken")
        assert torch.equal(torch.get_rng_state(), drawn), name
        assert (net.table.weight.grad, fitted.callback_metrics, fitted.callbacks) == (None, {}, listed), name
        assert fitted.fit_loop.total_batch_idx == -1, name


def test_checkpoint_without_its_loops_is_begun_anew(framework: Framework, tmp_path: Path) -> None:
    """Who takes the loops out of a checkpoint has weights to begin with, as without Safepoint."""
    train(SHORT, framework, by_step(framework, tmp_path))
    checkpoint = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    del checkpoint["loops"]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    begun = train(SHORT, framework, by_step(framework, tmp_path / "anew"), checkpoint=tmp_path / "without.ckpt")
    assert begun.trainer.global_step == 8


# Loops that are not quite those known.


class Words(torchmetrics.Metric):
    """A metric that keeps what is no tensor, as that of the masks in pictures does."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("words", default=[], dist_reduce_fx=None)

    def _apply(self, fn: Any, exclude_state: Any = ()) -> Any:
        return super()._apply(fn, (*exclude_state, "words"))

    def update(self, word: str) -> None:
        """Note a word."""
        self.words.append(word)

    def compute(self) -> int:
        """Return how many there were."""
        return len(self.words)


def with_words(fitted: Any, net: Any) -> None:
    """Let the net measure what cannot be copied as tensors are: an AttributeError."""
    net.words = Words()
    step = net.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        net.words.update("word")
        return step(batch, batch_idx)

    net.training_step = training_step


def with_another_name(fitted: Any, net: Any) -> None:
    """Let the loops keep the states of the loaders under another name: a KeyError."""
    base: Any = type(fitted.fit_loop)

    class Renamed(base):  # type: ignore[misc]
        def state_dict(self, *args: Any, **options: Any) -> Any:
            found = super().state_dict(*args, **options)
            found["loaders"] = found.pop("state_dict")
            return found

        def load_state_dict(self, state_dict: Any, prefix: str = "") -> None:
            super().load_state_dict({**state_dict, "state_dict": state_dict["loaders"]}, prefix)

    fitted.fit_loop.__class__ = Renamed


def with_batches_uncounted(fitted: Any, net: Any) -> None:
    """Let the loop fetch without a list of what it has fetched in advance: a TypeError."""
    base: Any = type(fitted.fit_loop)

    class Fetching(base):  # type: ignore[misc]
        def setup_data(self) -> None:
            super().setup_data()
            if type(self._data_fetcher) is not Fetcher:
                fetcher, self._data_fetcher = self._data_fetcher, Fetcher()
                self._data_fetcher.setup(fetcher.combined_loader)
                iter(self._data_fetcher)

    fetchers: Any = importlib.import_module(f"{base.__module__.rpartition('.')[0]}.fetchers")

    class Fetcher(fetchers._DataFetcher):  # type: ignore[misc,name-defined]
        batches = None

    fitted.fit_loop.__class__ = Fetching


STRANGE = {"AttributeError": with_words, "KeyError": with_another_name, "TypeError": with_batches_uncounted}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before:UserWarning")
@pytest.mark.parametrize("error", STRANGE)
def test_loops_that_are_not_quite_those_known(error: str, framework: Framework, tmp_path: Path) -> None:
    """It is told once a run; checkpoints are made all the same, and resumed as the framework does it."""
    for checkpoint in (None, tmp_path / "step=2.ckpt"):
        script.seed(1)
        directory = tmp_path if checkpoint is None else tmp_path / "resumed"
        fitted = script.trainer(framework, SHORT, script.curve(framework), by_step(framework, directory))
        net = script.module(framework, SHORT)
        STRANGE[error](fitted, net)
        with pytest.warns(UserWarning, match=f"{NOT_EXACTLY}: {error}") as caught:
            fitted.fit(net, ckpt_path=checkpoint)
        assert told(caught.list, NOT_EXACTLY) == 1
        assert (fitted.global_step, fitted.current_epoch) == (8, 2)
        steps = range(1 if checkpoint is None else 3, 9)
        made = {step: torch.load(directory / f"step={step}.ckpt", weights_only=True) for step in steps}
        assert [step for step, found in made.items() if KEY in found] == []
        assert [found["global_step"] for found in made.values()] == list(steps)
