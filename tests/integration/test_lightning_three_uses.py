"""The three everyday uses of ``ModelCheckpoint``, each beside a run of the framework's own class."""

from __future__ import annotations

from collections.abc import Mapping
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

from safepoint.integrations.exactness import KEY

pytestmark = OLD_TREESPEC

BEST: dict[str, Any] = {
    "monitor": "val_loss",
    "mode": "min",
    "filename": "best-model-{epoch}-{val_loss:.2f}",
    "save_top_k": 1,
    "verbose": True,
}
PERIODIC: dict[str, Any] = {"filename": "epoch-{epoch}", "every_n_epochs": 2, "save_top_k": -1}
LAST: dict[str, Any] = {"filename": "last-model", "save_last": True}

USES: dict[str, dict[str, Any]] = {
    "best": BEST,
    "periodic": PERIODIC,
    "last": LAST,
    "top 3": {"monitor": "val_loss", "save_top_k": 3, "filename": "{epoch}-{val_loss:.2f}"},
    "max": {"monitor": "accuracy", "mode": "max", "save_top_k": 2, "filename": "{epoch}-{accuracy:.3f}"},
    "all monitored": {"monitor": "val_loss", "save_top_k": -1},
    "ties": {"monitor": "flat", "save_top_k": 2},
    "nan": {"monitor": "broken", "save_top_k": 2},
    "all": {"monitor": None, "save_top_k": -1},
    "defaults": {},
    "only last": {"save_top_k": 0, "save_last": True},
    "best and last": {"monitor": "val_loss", "save_last": True},
    "best and link": {"monitor": "val_loss", "save_last": "link"},
    "weights": {"monitor": "val_loss", "save_weights_only": True},
    "top 2 and link": {"monitor": "val_loss", "save_top_k": 2, "save_last": "link"},
    "steps": {"every_n_train_steps": 3, "save_top_k": -1},
    "steps and last": {"every_n_train_steps": 3, "save_last": True},
    "train metric": {"monitor": "train_loss", "save_on_train_epoch_end": True, "save_top_k": 2},
}
METRICS = {
    "val_loss": VAL_LOSSES,
    "accuracy": (0.1, 0.5, 0.4, 0.45, 0.7, 0.6),
    "flat": (1.0, 1.0, 1.0, 0.5, 0.5, 0.5),
    "broken": (float("nan"), 2.0, float("nan"), 3.0, 1.0, float("nan")),
}
use = pytest.mark.parametrize("arguments", USES.values(), ids=USES.keys())


def side_by_side(framework: Framework, root: Path, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the drop-in and the framework's own callback after the same training, in ``ours`` and ``theirs``."""
    callbacks = []
    for directory, kind in (("ours", framework.ModelCheckpoint), ("theirs", framework.original)):
        callback = kind(dirpath=root / directory, **arguments)
        fit(framework, callback, metrics=METRICS)
        callbacks.append(callback)
    return callbacks[0], callbacks[1]


@use
def test_use_shows_the_attributes_of_the_original(
    framework: Framework, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """Every public attribute, the state's keys and the directory are those of the framework's own class."""
    ours, theirs = side_by_side(framework, tmp_path, arguments)
    assert shown(theirs) == shown(ours)
    assert listing(tmp_path / "theirs") == listing(tmp_path / "ours")
    assert theirs.state_key == ours.state_key
    assert modulo_directory(theirs.state_dict() | {"dirpath": ""}) == modulo_directory(
        ours.state_dict() | {"dirpath": ""}
    )


@use
def test_use_on_a_slow_disk_shows_the_attributes_of_the_original(
    framework: Framework, tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where training overtakes the disk by several checkpoints, the outcome is the same."""
    monkeypatch.setattr("safepoint.pipeline.LocalStore", SlowStore)
    ours, theirs = side_by_side(framework, tmp_path, arguments)
    assert shown(theirs) == shown(ours)
    assert listing(tmp_path / "theirs") == listing(tmp_path / "ours")
    whole_checkpoints(tmp_path / "ours")


@use
def test_use_writes_the_content_of_the_original(
    framework: Framework, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """Every file holds what the framework's own file of that name holds, bit for bit."""
    side_by_side(framework, tmp_path, arguments)
    for path in whole_checkpoints(tmp_path / "ours"):
        expected = torch.load(tmp_path / "theirs" / path.name, weights_only=True)
        actual = torch.load(path, weights_only=True)
        assert (actual.pop(KEY, None) is not None) is ("callbacks" in actual)  # in a whole checkpoint, for its resume
        their_callbacks, our_callbacks = expected.pop("callbacks", {}), actual.pop("callbacks", {})
        assert differences(expected, actual) == [], path.name
        # Ours already names itself where theirs is still without the file that it is in: only the keys can agree.
        assert list(their_callbacks) == list(our_callbacks)
        for state_key, state in their_callbacks.items():
            assert list(state) == list(our_callbacks[state_key])


@use
def test_use_leaves_whole_checkpoints_that_name_themselves(
    framework: Framework, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """At the end there are only whole files, and what the attributes name is among them."""
    callback = framework.ModelCheckpoint(dirpath=tmp_path, **arguments)
    fit(framework, callback, metrics=METRICS)
    found = {str(path) for path in whole_checkpoints(tmp_path)}
    named = {callback.best_model_path, callback.last_model_path, callback.kth_best_model_path, *callback.best_k_models}
    assert found
    assert temporaries(tmp_path) == []
    assert named - {""} <= found


def test_best_keeps_exactly_the_best_and_removes_what_it_supersedes(framework: Framework, tmp_path: Path) -> None:
    """At every moment the directory holds the best so far and nothing else."""

    class Watcher(framework.pl.Callback):  # type: ignore[misc,name-defined]
        """List the directory before each epoch."""

        def __init__(self) -> None:
            self.seen: list[list[str]] = []

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen.append(listing(tmp_path))

    watcher = Watcher()
    fit(framework, watcher, framework.ModelCheckpoint(dirpath=tmp_path, blocking=True, **BEST))
    first, second, best = (
        [f"best-model-epoch={name}.ckpt"] for name in ("0-val_loss=1.50", "1-val_loss=1.20", "3-val_loss=0.98")
    )
    assert [[], first, second, second, best, best] == watcher.seen
    assert best == listing(tmp_path)
    assert best == [path.name for path in whole_checkpoints(tmp_path)]


def test_best_says_why_each_epoch_was_saved_or_not(framework: Framework, tmp_path: Path, told: list[str]) -> None:
    """With verbose=True there is one line an epoch, with the score, the decision and its reason."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **BEST))
    lines = [line for line in told if line.startswith("Epoch ")]
    assert list(range(6)) == [int(line.removeprefix("Epoch ").partition(",")[0]) for line in lines]
    saved = {0: "1.50", 1: "1.20", 3: "0.98"}
    for epoch, line in enumerate(lines):
        assert f"global step {(epoch + 1) * BATCHES_PER_EPOCH}" in line
        if epoch in saved:
            assert f"saving best-model-epoch={epoch}-val_loss={saved[epoch]}.ckpt" in line
            assert f"val_loss reached {VAL_LOSSES[epoch]:.5f}" in line
        else:
            assert f"not saved: not the best by val_loss ({VAL_LOSSES[epoch]:g})" in line
    assert "best-model-epoch=0-val_loss=1.50.ckpt goes" in lines[1]
    assert "best-model-epoch=1-val_loss=1.20.ckpt goes" in lines[3]


def test_best_is_silent_without_verbose(framework: Framework, tmp_path: Path, told: list[str]) -> None:
    """By default nothing is said about saves."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **{**BEST, "verbose": False}))
    assert [line for line in told if "saved" in line or "saving" in line] == []


def test_periodic_keeps_exactly_every_second_epoch(framework: Framework, tmp_path: Path) -> None:
    """Six epochs leave three files, each of the state at its epoch's end."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **PERIODIC))
    found = whole_checkpoints(tmp_path)
    assert [f"epoch-epoch={epoch}.ckpt" for epoch in (1, 3, 5)] == [path.name for path in found]
    states = [torch.load(path, weights_only=True) for path in found]
    assert [state["epoch"] for state in states] == [1, 3, 5]
    assert [epoch * BATCHES_PER_EPOCH for epoch in (2, 4, 6)] == [state["global_step"] for state in states]


def test_last_holds_the_final_state_under_two_names_of_one_file(framework: Framework, tmp_path: Path) -> None:
    """Both names are one inode, written once, with the live weights and optimizer state bit for bit."""
    done = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **LAST))
    named, last = tmp_path / "last-model.ckpt", tmp_path / "last.ckpt"
    assert [named, last] == whole_checkpoints(tmp_path)
    assert named.stat().st_ino == last.stat().st_ino
    assert named.stat().st_nlink == 2
    state = torch.load(last, weights_only=True)
    assert differences(dict(done.lightning_module.state_dict()), dict(state["state_dict"])) == []
    assert differences(done.optimizers[0].state_dict(), state["optimizer_states"][0]) == []
    assert state["epoch"] == 5
    assert done.global_step == state["global_step"] == 6 * BATCHES_PER_EPOCH


@NOT_EMPTY
def test_last_resumes_where_training_ended(framework: Framework, tmp_path: Path) -> None:
    """fit(ckpt_path="last") goes on, and ends bit for bit where one uninterrupted run ends."""
    straight = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path / "straight", **LAST), epochs=5)
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path / "halves", **LAST), epochs=3)

    class Watcher(framework.pl.Callback):  # type: ignore[misc,name-defined]
        """Note where training starts."""

        start: tuple[int, int] | None = None

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.start = self.start or (trainer.current_epoch, trainer.global_step)

    watcher = Watcher()
    callback = framework.ModelCheckpoint(dirpath=tmp_path / "halves", **LAST)
    resumed = fit(framework, watcher, callback, epochs=5, ckpt_path="last")
    assert watcher.start == (3, 3 * BATCHES_PER_EPOCH)
    assert resumed.global_step == straight.global_step
    assert differences(dict(straight.lightning_module.state_dict()), dict(resumed.lightning_module.state_dict())) == []
    assert differences(straight.optimizers[0].state_dict(), resumed.optimizers[0].state_dict()) == []


@NOT_EMPTY
@pytest.mark.parametrize("arguments", [BEST, PERIODIC, LAST], ids=["best", "periodic", "last"])
def test_resumed_use_leaves_the_directory_of_the_original(
    framework: Framework, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """Interrupted after four of six epochs and resumed, attributes and directory are those of the framework's own."""
    seen = []
    for directory, kind in (("ours", framework.ModelCheckpoint), ("theirs", framework.original)):
        first = kind(dirpath=tmp_path / directory, **arguments)
        fit(framework, first, epochs=4)
        second = kind(dirpath=tmp_path / directory, **arguments)
        fit(framework, second, ckpt_path=first.best_model_path)
        seen.append((listing(tmp_path / directory), shown(second)))
    assert seen[1] == seen[0]


def test_best_checkpoint_can_be_tested(framework: Framework, tmp_path: Path) -> None:
    """trainer.test(ckpt_path="best") runs with the weights of the best epoch, not with the final ones."""
    done = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **BEST))
    best = torch.load(tmp_path / "best-model-epoch=3-val_loss=0.98.ckpt", weights_only=True)["state_dict"]
    final = done.lightning_module.layer.weight.detach().clone()
    (results,) = done.test(ckpt_path="best", dataloaders=loader(), verbose=False)
    assert results["weights"] == pytest.approx(best["layer.weight"].abs().sum().item())
    assert results["weights"] != pytest.approx(final.abs().sum().item())


@pytest.mark.parametrize("name", ["last-model.ckpt", "last.ckpt"])
def test_last_checkpoint_loads_as_a_module(framework: Framework, tmp_path: Path, name: str) -> None:
    """load_from_checkpoint gives the trained module with its hyperparameters, under either name."""
    done = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **LAST), epochs=2)
    loaded = framework.module.load_from_checkpoint(tmp_path / name)
    assert differences(dict(done.lightning_module.state_dict()), dict(loaded.state_dict())) == []
    assert done.lightning_module.metrics == loaded.metrics


def test_last_can_be_tested_by_another_trainer(framework: Framework, tmp_path: Path) -> None:
    """A later process finds "last" and "best" by its own callback's directory and by path."""
    done = fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, **LAST), epochs=2)
    later = trainer(framework, framework.ModelCheckpoint(dirpath=tmp_path, **LAST))
    (results,) = later.test(model(framework, seed=8), loader(), ckpt_path="last", verbose=False)
    expected = done.lightning_module.layer.weight.abs().sum().item()
    assert results["weights"] == pytest.approx(expected)
