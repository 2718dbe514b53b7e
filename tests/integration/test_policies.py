"""Policies that depend on what happens outside of the loop (signals, errors, cost, late metrics), in real runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invariants import whole_checkpoints
from loop import Training

import safepoint
from safepoint import Checkpointer, ConfigurationError, keep, when
from safepoint.catalog import Catalog


def names(directory: Path) -> list[str]:
    """Return the names of the checkpoints in ``directory``, each of which must be whole."""
    return [path.name for path in whole_checkpoints(directory)]


def reasons(directory: Path) -> list[str]:
    """Return why each checkpoint in ``directory`` was saved, oldest first."""
    return [reason for record in Catalog.of(directory).records for reason in record.reasons]


def checkpointer(directory: Path, **options: Any) -> Checkpointer:
    """Return a checkpointer that keeps everything, over a tiny training."""
    return Checkpointer(directory, **{"state": Training().state, "keep": keep.all(), **options})


def test_given_steps_and_the_first_are_saved(tmp_path: Path) -> None:
    """``at(steps=...)`` and ``first_step()`` save there, once each."""
    with checkpointer(tmp_path, save=when.first_step() | when.at(steps=[3, 5])) as saver:
        for _ in range(6):
            saver.step()
    assert reasons(tmp_path) == ["at step 1", "at step 3", "at step 5"]


def test_exception_is_saved_and_comes_out(tmp_path: Path) -> None:
    """An error in the loop saves the state that it leaves, under a name of its own, and goes on its way."""
    with (
        pytest.raises(ZeroDivisionError),
        checkpointer(tmp_path, save=when.exception(), filename="{loss:.2f}") as saver,
    ):
        saver.step(loss=0.5)
        1 / 0  # noqa: B018 - the error
    assert names(tmp_path) == ["epoch=0-step=1-exception.ckpt"]
    assert reasons(tmp_path) == ["exception: ZeroDivisionError"]
    assert Catalog.of(tmp_path).records[0].metrics == {}


def test_keyboard_interrupt_is_saved(tmp_path: Path) -> None:
    """Ctrl-C is an exception, too; the run that is restored goes on from there."""
    with pytest.raises(KeyboardInterrupt), checkpointer(tmp_path, save=when.exception()) as saver:
        saver.step()
        saver.step()
        raise KeyboardInterrupt
    with checkpointer(tmp_path, save=when.exception()) as saver:
        assert saver.restore().step == 2


def test_exception_saves_nothing_twice(tmp_path: Path) -> None:
    """Where the step is saved already, or none was made, or nobody asked for it, an exception saves nothing."""
    for directory, policy, steps in (
        ("saved", when.exception() | when.every(steps=1), 1),
        ("none", when.exception(), 0),
        ("unasked", when.every(steps=9), 3),
    ):
        with pytest.raises(KeyboardInterrupt), checkpointer(tmp_path / directory, save=policy) as saver:
            for _ in range(steps):
                saver.step()
            raise KeyboardInterrupt
    assert names(tmp_path / "saved") == ["epoch=0-step=1.ckpt"]
    assert names(tmp_path / "none") == names(tmp_path / "unasked") == []


def test_failing_emergency_save_hides_nothing(tmp_path: Path) -> None:
    """If saving at an exception fails, the exception still comes out, with a note about the save."""
    state = {"bad": {"cannot be saved": threading.Lock()}}
    with (
        pytest.raises(ZeroDivisionError) as caught,
        checkpointer(tmp_path, state=state, save=when.exception()) as saver,
    ):
        saver.step()
        1 / 0  # noqa: B018 - the error
    assert any("a checkpoint failed too" in note for note in caught.value.__notes__)


@pytest.fixture
def handler() -> Iterator[list[int]]:
    """Install a handler for SIGUSR1, as a training script may, and return what it has noted."""
    noted: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: noted.append(number))
    yield noted
    signal.signal(signal.SIGUSR1, before)


def test_signal_is_answered_at_the_next_step(tmp_path: Path, handler: list[int]) -> None:
    """A signal saves once, at the next step; training goes on, and the handler from before is called and put back."""
    installed = signal.getsignal(signal.SIGUSR1)
    with checkpointer(tmp_path, save=when.signal("SIGUSR1", "SIGUSR2")) as saver:
        saver.step()
        os.kill(os.getpid(), signal.SIGUSR1)
        saver.step()
        saver.step()
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
        saver.epoch_end()
        saver.step()
    assert reasons(tmp_path) == ["signal: SIGUSR1", "signal: SIGUSR2"]
    assert [record.step for record in Catalog.of(tmp_path).records] == [2, 3]
    assert handler == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is installed
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_signal_does_not_save_a_step_twice(tmp_path: Path, handler: list[int]) -> None:
    """Where the step at which a signal is answered is saved anyway, it is saved once."""
    with checkpointer(tmp_path, save=when.signal() | when.every(steps=1)) as saver:
        os.kill(os.getpid(), signal.SIGUSR1)
        saver.step()
    assert reasons(tmp_path) == ["every step"]


def test_handler_of_somebody_else_stays(tmp_path: Path, handler: list[int]) -> None:
    """A handler that was set after ours is not taken away when the run ends."""
    with checkpointer(tmp_path, save=when.signal()):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_signals_need_the_main_thread(tmp_path: Path) -> None:
    """In another thread Python sets no handlers: that is told at once, and nothing is touched."""
    errors: list[Exception] = []

    def make() -> None:
        try:
            checkpointer(tmp_path / "run", save=when.signal())
        except ConfigurationError as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
    assert not (tmp_path / "run").exists()


def test_overhead_spends_no_more_than_its_share(tmp_path: Path) -> None:
    """Saves follow one another no faster than the share allows, going by what they took."""
    with checkpointer(tmp_path, save=when.overhead(0.02)) as saver:
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            time.sleep(0.001)
            saver.step()
    records = Catalog.of(tmp_path).records
    assert records[0].step == 1
    assert 2 <= len(records) < 200
    assert reasons(tmp_path)[-1] == "at most 0.02 of the time"


def test_at_risk_keeps_the_unsaved_work_small(tmp_path: Path) -> None:
    """Between two saves there is no more than the limit, with room for a step and a write."""
    with checkpointer(tmp_path, save=when.at_risk(seconds=0.3)) as saver:
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            time.sleep(0.01)
            saver.step()
    assert len(names(tmp_path)) >= 3
    assert set(reasons(tmp_path)) == {"at most 0.3 s of work at risk"}


def test_metric_of_the_epoch_end_attaches_to_the_step_saved(tmp_path: Path) -> None:
    """Validation measures the weights that the last step has saved: that checkpoint is ranked by it."""
    policy = keep.best("val_loss") | keep.latest()
    with checkpointer(tmp_path, save=when.every(steps=2), keep=policy) as saver:
        for loss in (0.5, 0.1, 0.3, 0.4):
            saver.step()
            saver.step()
            saver.epoch_end(val_loss=loss)
        saver.wait()
        assert saver.explain("epoch=1-step=4.ckpt") == "epoch=1-step=4.ckpt is kept: best by val_loss (0.1)."
    assert names(tmp_path) == ["epoch=1-step=4.ckpt", "epoch=3-step=8.ckpt"]


def test_late_metric_attaches_and_is_on_disk_with_the_next_save(tmp_path: Path) -> None:
    """A metric that comes steps later counts for its checkpoint, and a new process finds it in the directory."""
    policy = keep.best("val_loss") | keep.latest(2)
    with checkpointer(tmp_path, save=when.every(steps=1), keep=policy) as saver:
        saver.step()
        saver.step()
        saver.attach(1, val_loss=0.25)
        saver.step()
        saver.step()
    assert names(tmp_path) == ["epoch=0-step=1.ckpt", "epoch=0-step=3.ckpt", "epoch=0-step=4.ckpt"]
    best = Catalog.of(tmp_path).best("val_loss")
    assert best is not None
    assert (best.step, dict(best.metrics)) == (1, {"val_loss": 0.25})
    with checkpointer(tmp_path, save=when.every(steps=1), keep=policy) as saver:
        saver.restore()
        saver.step()
    assert "epoch=0-step=1.ckpt" in names(tmp_path)


def test_attach_knows_the_steps_of_the_run_only(tmp_path: Path) -> None:
    """A step at which nothing was saved is refused."""
    with checkpointer(tmp_path, save=when.every(steps=2)) as saver:
        saver.step()
        with pytest.raises(ConfigurationError, match="nothing at step 1"):
            saver.attach(1, val_loss=0.5)


def test_explain_tells_of_kept_and_removed(tmp_path: Path) -> None:
    """By record, by path and by name; what is not the run's is refused."""
    with checkpointer(tmp_path, save=when.every(steps=1), keep=keep.latest()) as saver:
        saver.step()
        saver.step()
        saver.wait()
        assert saver.explain(saver.records()[0]) == "epoch=0-step=2.ckpt is kept: the latest."
        assert saver.explain(tmp_path / "epoch=0-step=1.ckpt").startswith("epoch=0-step=1.ckpt was removed: not the")
        with pytest.raises(ConfigurationError, match="not a checkpoint of this run"):
            saver.explain("other.ckpt")


def test_disk_budget_is_held(tmp_path: Path) -> None:
    """Of checkpoints that are each larger than a third of the budget, two stay."""
    with checkpointer(tmp_path, save=when.every(steps=1), keep=keep.all()) as saver:
        saver.step()
    gigabytes = 2.5 * (tmp_path / "epoch=0-step=1.ckpt").stat().st_size / 1e9
    with checkpointer(tmp_path / "run", save=when.every(steps=1), keep=keep.within(gigabytes=gigabytes)) as saver:
        for _ in range(5):
            saver.step()
    assert names(tmp_path / "run") == ["epoch=0-step=4.ckpt", "epoch=0-step=5.ckpt"]


def test_ledger_is_rebuilt_from_the_directory_alone(tmp_path: Path) -> None:
    """A new process knows of every checkpoint, kept and removed, what the one before knew."""
    policy = keep.best("loss", 2) | keep.every(steps=4) | keep.latest()
    with checkpointer(tmp_path, save=when.every(steps=1), keep=policy) as saver:
        for step in range(10):
            saver.step(loss=[0.5, 0.2, 0.9, float("nan"), 0.1][step % 5])
        saver.save(pinned=True)
        saver.wait()
        before = saver._run.ledger
    with checkpointer(tmp_path, save=when.every(steps=1), keep=policy) as saver:
        saver.restore()
        after = saver._run.ledger
    plain = [(r.path, r.step, r.time, repr(r.metrics), r.pinned, r.size_bytes) for r in before.records]
    assert plain == [(r.path, r.step, r.time, repr(r.metrics), r.pinned, r.size_bytes) for r in after.records]
    told = {(fate.record.path, fate.record.time, fate.reason) for fate in before.history()}
    assert told == {(fate.record.path, fate.record.time, fate.reason) for fate in after.history() if not fate.kept} | {
        (record.path, record.time, before.kept[record.path]) for record in after.records
    }
    assert safepoint.verify(before.records[-1].path) == []
