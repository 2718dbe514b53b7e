"""The private names and the undocumented order of the frameworks that the drop-in stands on.

Each test fails loudly when a new version of a framework changes what the adapter takes for granted.
"""

from __future__ import annotations

import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from models import FRAMEWORKS, OLD_TREESPEC, Framework, fit, loader, model, trainer

from safepoint.integrations import loops

pytestmark = OLD_TREESPEC


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.name)
def framework(request: pytest.FixtureRequest) -> Framework:
    """Return the one and the other package."""
    found: Framework = request.param
    return found


def test_find_last_checkpoints_is_what_the_trainer_asks(framework: Framework, tmp_path: Path) -> None:
    """fit(ckpt_path="last") resumes from what ``_find_last_checkpoints(trainer)`` of an instance of the class gives."""
    fit(framework, framework.original(dirpath=tmp_path / "a", filename="a"), epochs=1)
    asked: list[Any] = []

    class Asked(framework.original):  # type: ignore[misc,name-defined]
        def _find_last_checkpoints(self, trainer: Any) -> set[str]:
            asked.append(trainer)
            return {str(tmp_path / "a" / "a.ckpt")}

    Asked.__qualname__ = "ModelCheckpoint"  # the state is found by this name
    resumed = fit(framework, Asked(dirpath=tmp_path / "a", save_top_k=0), epochs=1, ckpt_path="last")
    assert asked == [resumed]
    assert resumed.ckpt_path == str(tmp_path / "a" / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "fresh"),
    [
        ("_last_global_step_saved", 0),
        ("_last_checkpoint_saved", ""),
        ("_save_on_train_epoch_end", None),
        ("_enable_version_counter", True),
        ("_train_time_interval", None),
    ],
)
def test_private_attribute_is_set_by_the_constructor(framework: Framework, name: str, fresh: object) -> None:
    """The framework's own class has the attribute, with the value that the drop-in takes for "not yet" or "default"."""
    callback = framework.original()
    assert name in vars(callback)
    assert fresh == vars(callback)[name]


def test_private_attributes_hold_the_arguments(framework: Framework) -> None:
    """What is given to the constructor is found again under the private names."""
    callback = framework.original(
        save_on_train_epoch_end=False, enable_version_counter=False, train_time_interval=timedelta(minutes=1)
    )
    assert callback._save_on_train_epoch_end is False
    assert callback._enable_version_counter is False
    assert callback._train_time_interval == timedelta(minutes=1)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_private_attributes_tell_of_the_last_save(framework: Framework, tmp_path: Path, kind: str) -> None:
    """After a save they hold its global step and its path: loggers read the first."""
    make = {"ours": framework.ModelCheckpoint, "theirs": framework.original}[kind]
    callback = make(dirpath=tmp_path, filename="a")
    fitted = fit(framework, callback, epochs=2)
    assert callback._last_global_step_saved == fitted.global_step
    assert callback._last_checkpoint_saved == str(tmp_path / "a.ckpt")


def test_constructor_begins_with_the_parameters_of_the_framework(framework: Framework) -> None:
    """Same names, same order, same defaults, same kinds; what Safepoint adds comes behind, by keyword only."""
    theirs = list(inspect.signature(framework.original.__init__).parameters.values())
    ours = list(inspect.signature(framework.ModelCheckpoint.__init__).parameters.values())
    assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in ours[: len(theirs)]]
    added = ours[len(theirs) :]
    options = {"staging", "blocking", "max_images", "max_host_bytes", "exclude_frozen", "on_error"}
    assert {p.name for p in added} == {*options, "verify_after_write", "log_stats"}
    assert {p.kind for p in added} == {inspect.Parameter.KEYWORD_ONLY}


def test_hooks_have_the_signatures_of_the_framework(framework: Framework) -> None:
    """Every method that the drop-in overrides takes the framework's parameters in the framework's order."""
    for kind in framework.ModelCheckpoint.__mro__:
        if kind is framework.original:
            break
        for name, ours in inspect.getmembers(kind, inspect.isfunction):
            theirs = getattr(framework.original, name, None)
            if name != "__init__" and inspect.isfunction(theirs) and name in vars(kind):
                expected = [(p.name, p.kind) for p in inspect.signature(theirs).parameters.values()]
                assert expected == [(p.name, p.kind) for p in inspect.signature(ours).parameters.values()], name


def test_drop_in_is_an_instance_of_the_framework_s_own(framework: Framework) -> None:
    """The trainer asks only instances of its own class for "last" and "best", and finds states by the class's name."""
    assert issubclass(framework.ModelCheckpoint, framework.original)
    assert framework.ModelCheckpoint.__qualname__ == framework.original.__qualname__
    assert trainer(framework, framework.ModelCheckpoint()).checkpoint_callbacks != []


def test_strategy_lets_its_checkpoint_io_be_set(framework: Framework, tmp_path: Path) -> None:
    """What is put in place through the setter is what ``trainer.save_checkpoint`` writes with."""
    written: list[Any] = []
    io = framework.pl.plugins.io

    class Sink(io.TorchCheckpointIO):  # type: ignore[misc,name-defined]
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            written.append(path)

    fitted = fit(framework, epochs=1, enable_checkpointing=False)
    before = fitted.strategy.checkpoint_io
    assert type(before) is io.TorchCheckpointIO
    fitted.strategy.checkpoint_io = Sink()
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    assert written == [tmp_path / "a.ckpt"]
    assert list(tmp_path.iterdir()) == []


def test_trainer_reads_a_checkpoint_through_its_checkpoint_io(framework: Framework, tmp_path: Path) -> None:
    """fit(ckpt_path=...) loads with ``strategy.checkpoint_io.load_checkpoint``, after every callback's ``setup``."""
    fit(framework, framework.original(dirpath=tmp_path, filename="a"), epochs=1)
    order: list[str] = []

    class Source(framework.pl.plugins.io.TorchCheckpointIO):  # type: ignore[misc,name-defined]
        def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
            order.append(f"load {Path(path).name}")
            return super().load_checkpoint(path, *args, **kwargs)

    class Hooks(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            order.append(f"setup {trainer.ckpt_path}")
            trainer.strategy.checkpoint_io = Source()

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            order.append(f"on_load_checkpoint {Path(trainer.ckpt_path).name}")

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            order.append(f"on_fit_start {Path(trainer.ckpt_path).name}")

    fit(framework, Hooks(), framework.original(dirpath=tmp_path, save_top_k=0), epochs=1, ckpt_path=tmp_path / "a.ckpt")
    # In setup, trainer.ckpt_path does not name the file yet; from on_load_checkpoint on it does.
    assert order == ["setup None", "load a.ckpt", "on_load_checkpoint a.ckpt", "on_fit_start a.ckpt"]


def test_val_check_time_interval_is_an_attribute_of_the_trainer(framework: Framework) -> None:
    """It is None, or the seconds between validations where these go by time."""
    usual = trainer(framework)
    assert usual._val_check_time_interval is None
    timed = trainer(framework, val_check_interval=timedelta(minutes=1))
    assert timed._val_check_time_interval == pytest.approx(60)


def test_checkpoint_callbacks_run_last(framework: Framework) -> None:
    """The trainer moves them behind all others: what these put into the state at a hook is in the file."""
    callback, other = framework.ModelCheckpoint(), framework.pl.Callback()
    assert trainer(framework, callback, other).callbacks[-1] is callback


def test_module_metrics_reach_the_callback_as_tensors(framework: Framework) -> None:
    """``trainer.callback_metrics`` holds what was logged, as tensors, when a training epoch ends."""
    seen: dict[str, Any] = {}

    class Reader(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.update(trainer.callback_metrics)

    quiet = trainer(framework, Reader(), epochs=1, enable_checkpointing=False)
    quiet.fit(model(framework), loader(), loader())
    assert set(seen) == {"train_loss", "val_loss"}
    assert seen["val_loss"].item() == pytest.approx(1.5)


def test_loops_have_what_a_resume_goes_on_with(framework: Framework) -> None:
    """The fit loop's parts and flags are there from the start, under the names that ``integrations.loops`` uses."""
    fit_loop = trainer(framework).fit_loop
    assert {"_restart_stage", "_restarting", "_resuming_from_checkpoint", "_data_fetcher"} <= vars(fit_loop).keys()
    assert {"_combined_loader", "epoch_progress", "epoch_loop"} <= vars(fit_loop).keys()
    assert (fit_loop._restart_stage, fit_loop.is_resuming) == ("none", False)
    stage = inspect.getmodule(type(fit_loop)).RestartStage  # type: ignore[union-attr]
    assert (stage.NONE, stage.RESTARTED_MID_EPOCH) == ("none", "restarted_mid_epoch")
    loop = fit_loop.epoch_loop
    assert {"_skip_next_val", "_batches_that_stepped", "_results", "batch_progress", "val_loop"} <= vars(loop).keys()
    for name in ("on_advance_end", "_num_ready_batches_reached", "update_lr_schedulers", "load_state_dict"):
        assert callable(getattr(loop, name))
    assert trainer(framework)._logger_connector._first_loop_iter is None


def test_a_framework_with_other_loops_saves_and_resumes_as_ever(framework: Framework, tmp_path: Path) -> None:
    """Where a name is missing, a warning says so, once, and nothing else changes."""
    callback = framework.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    strange = trainer(framework, callback, epochs=1)
    assert loops.missing(strange) == []
    del strange.fit_loop.epoch_loop._skip_next_val
    assert loops.missing(strange) == ["fit_loop.epoch_loop._skip_next_val"]
    with pytest.warns(match="has no fit_loop.epoch_loop._skip_next_val: to resume exactly"):
        callback.setup(strange, model(framework), "fit")
    callback.teardown(strange, model(framework), "fit")


def test_strategy_is_shown_each_training_loader_before_it_is_iterated(framework: Framework) -> None:
    """``process_dataloader`` of the strategy gets each loader while the trainer is training, or validating."""
    shown: list[tuple[int, bool]] = []
    quiet = trainer(framework, epochs=1, enable_checkpointing=False)
    process = quiet.strategy.process_dataloader

    def noting(found: Any) -> Any:
        shown.append((id(found), quiet.training))
        return process(found)

    quiet.strategy.process_dataloader = noting
    training, validation = loader(), loader()
    quiet.fit(model(framework), training, validation)
    assert sorted(shown) == sorted([(id(training), True), (id(validation), False)])


def test_results_are_made_of_the_parts_that_a_tally_makes_them_of(framework: Framework) -> None:
    """What is logged is a ``_ResultMetric`` with its ``_Metadata`` and ``_Sync``, in the module of the collection."""
    seen: dict[str, Any] = {}

    class Reader(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            results = trainer.fit_loop.epoch_loop._results
            seen.update(found=dict(results), module=inspect.getmodule(type(results)), key=next(iter(results)))

    quiet = trainer(framework, Reader(), epochs=1, enable_checkpointing=False)
    quiet.fit(model(framework), loader(), loader())
    result, module = seen["found"]["training_step.train_loss"], seen["module"]
    assert type(result) is module._ResultMetric
    assert type(result.meta) is module._Metadata
    assert type(result.meta.sync) is module._Sync
    assert result.is_tensor
    assert {"has_reset", "value"} <= vars(result).keys()
