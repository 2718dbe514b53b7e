"""The facade for plain loops, on real training and real files: when it saves, what it keeps, what it restores."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from invariants import whole_checkpoints
from loop import Training, equal

import safepoint
from safepoint import Checkpointer, keep, when
from safepoint.keep import PreservationPolicy
from safepoint.when import SavePolicy


def names(directory: Path) -> list[str]:
    """Return the names of the checkpoints in ``directory``, each of which must be whole."""
    return [path.name for path in whole_checkpoints(directory)]


def train(
    directory: Path,
    *,
    epochs: int = 3,
    steps: int = 4,
    save: SavePolicy,
    preserve: PreservationPolicy,
    losses: tuple[float, ...] = (0.5, 0.3, 0.4, 0.2, 0.6),
    **options: object,
) -> Training:
    """Train in the usual loop and return the training."""
    training = Training()
    with Checkpointer(directory, state=training.state, save=save, keep=preserve, **options) as checkpointer:
        progress = checkpointer.restore()
        for epoch in range(progress.epoch, epochs):
            for _ in range(steps):
                checkpointer.step(train_loss=training.advance())
            checkpointer.epoch_end(val_loss=losses[epoch])
    return training


def test_best_and_latest_stay(tmp_path: Path) -> None:
    """Of one checkpoint an epoch, the best two by the metric and the latest stay, and nothing else."""
    train(tmp_path, epochs=5, save=when.every(epochs=1), preserve=keep.best("val_loss", n=2) | keep.latest(1))
    assert names(tmp_path) == ["epoch=1-step=8.ckpt", "epoch=3-step=16.ckpt", "epoch=4-step=20.ckpt"]


def test_saves_at_steps_and_keeps_all(tmp_path: Path) -> None:
    """Every third step is saved, across epochs, under names from the template."""
    train(tmp_path, save=when.every(steps=3), preserve=keep.all(), filename="at-{step:03d}")
    assert names(tmp_path) == ["at-step=003.ckpt", "at-step=006.ckpt", "at-step=009.ckpt", "at-step=012.ckpt"]


def test_train_end_saves_the_final_state_once(tmp_path: Path) -> None:
    """At the end of training the final state is saved, and not again if it was saved already."""
    train(tmp_path / "a", save=when.train_end(), preserve=keep.latest(1))
    train(tmp_path / "b", save=when.train_end() | when.every(epochs=1), preserve=keep.all())
    assert names(tmp_path / "a") == ["epoch=2-step=12.ckpt"]
    assert names(tmp_path / "b") == ["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt"]


def test_seconds_count_from_the_last_save(tmp_path: Path) -> None:
    """An interval that has always passed saves at each step; one that never passes saves nothing."""
    train(tmp_path / "a", epochs=1, save=when.every(seconds=1e-9), preserve=keep.all())
    train(tmp_path / "b", epochs=1, save=when.every(minutes=60), preserve=keep.all())
    assert len(names(tmp_path / "a")) == 4
    assert names(tmp_path / "b") == []


def test_epoch_end_supersedes_the_step_of_the_same_state(tmp_path: Path) -> None:
    """A step that is saved again at its epoch's end, now with the metric, leaves one checkpoint."""
    twice = when.every(steps=4) | when.every(epochs=1)
    train(tmp_path / "a", save=twice, preserve=keep.best("val_loss", n=2))
    assert names(tmp_path / "a") == ["epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt"]
    assert [record.metrics["val_loss"] for record in _records(tmp_path / "a")] == [0.3, 0.4]
    newest = safepoint.reader.read_manifest(tmp_path / "a" / "epoch=2-step=12.ckpt")
    assert newest.history[-1].reason == "number 2 by val_loss (0.4)"


def test_later_save_of_a_step_supersedes_an_earlier_one_of_another_name(tmp_path: Path) -> None:
    """Where the two names differ, the earlier one goes, whatever the policy, and the history says why."""
    training = Training()
    with Checkpointer(
        tmp_path, state=training.state, save=when.every(epochs=1), keep=keep.all(), filename="{epoch}"
    ) as checkpointer:
        checkpointer.step(loss=training.advance())
        checkpointer.epoch_end()
        checkpointer.step(loss=training.advance())
        checkpointer.save()
        checkpointer.epoch_end()
        checkpointer.epoch_end()  # an epoch without steps: the same step, called after the next epoch
    assert names(tmp_path) == ["epoch=0.ckpt", "epoch=2.ckpt"]
    newest = safepoint.reader.read_manifest(tmp_path / "epoch=2.ckpt")
    assert ("epoch=1.ckpt", "superseded by epoch=2.ckpt, saved later at the same step") in [
        (entry.name, entry.reason) for entry in newest.history
    ]


def test_save_saves_now_and_a_pinned_one_stays(tmp_path: Path) -> None:
    """``save()`` saves whatever the policy says, and a pinned checkpoint outlives every policy."""
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.train_end(), keep=keep.latest(1)) as checkpointer:
        training.advance()
        checkpointer.step()
        pinned = checkpointer.save(pinned=True)
        for _ in range(3):
            training.advance()
            checkpointer.step()
            checkpointer.save()
        checkpointer.wait()
        assert next(record.path for record in checkpointer.records()) == pinned
    assert names(tmp_path) == ["epoch=0-step=1.ckpt", "epoch=0-step=4.ckpt"]
    assert [record.pinned for record in _records(tmp_path)] == [True, False]


def test_saved_state_is_that_of_the_call(tmp_path: Path) -> None:
    """What training changes while a checkpoint is still being written does not get into it."""
    training = Training(width=600)
    with Checkpointer(tmp_path, state=training.state, save=when.train_end(), keep=keep.all()) as checkpointer:
        expected = []
        for _ in range(4):
            training.advance()
            checkpointer.step()
            path = checkpointer.save()
            expected.append((path, training.weights()))
            with torch.no_grad():
                for parameter in training.model.parameters():
                    parameter.add_(1)  # at once, while the writer is busy
    for path, weights in expected:
        loaded = safepoint.load(path)
        assert equal(list(loaded["model"].values()), weights[:4])


def test_restore_puts_state_progress_and_randomness_back(tmp_path: Path) -> None:
    """A restored run has the weights, the optimizer, the position, the metrics and the random state of the save."""
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.every(epochs=1), keep=keep.latest()) as checkpointer:
        training.advance()
        checkpointer.step()
        checkpointer.epoch_end(val_loss=0.25)
        expected = training.weights()
        drawn = (random.random(), float(np.random.random()), torch.rand(3))
    other = Training(seed=1)
    other.advance()
    with Checkpointer(tmp_path, state=other.state, save=when.every(epochs=1), keep=keep.latest()) as checkpointer:
        progress = checkpointer.restore()
        assert (progress.step, progress.epoch, progress.batch) == (1, 1, 0)
        assert progress.metrics == {"val_loss": 0.25}
        assert progress.path == tmp_path / "epoch=0-step=1.ckpt"
        assert equal(other.weights(), expected)
        assert random.random() == drawn[0]
        assert float(np.random.random()) == drawn[1]
        assert torch.equal(torch.rand(3), drawn[2])


def test_restore_in_an_empty_directory_is_a_fresh_start(tmp_path: Path) -> None:
    """With nothing to restore, the progress is zero and no directory is made."""
    training = Training()
    with Checkpointer(tmp_path / "new", state=training.state, save=when.train_end(), keep=keep.all()) as checkpointer:
        assert checkpointer.restore() == safepoint.Progress()
        assert not (tmp_path / "new").exists()


def test_mid_epoch_progress_tells_the_batch(tmp_path: Path) -> None:
    """A checkpoint from the middle of an epoch goes on in that epoch, with the steps done in it."""
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.every(steps=3), keep=keep.latest()) as checkpointer:
        for step in range(7):
            checkpointer.step(loss=training.advance())
            if step == 3:
                checkpointer.epoch_end()
    with Checkpointer(tmp_path, state=training.state, save=when.every(steps=3), keep=keep.latest()) as checkpointer:
        progress = checkpointer.restore()
        assert (progress.step, progress.epoch, progress.batch) == (6, 1, 2)


def test_resumed_run_goes_on_as_the_same_run(tmp_path: Path) -> None:
    """After a resumption the earlier checkpoints count for the policy again, and go when it lets them go."""
    policy = keep.best("val_loss", n=2) | keep.latest(1)
    train(tmp_path, epochs=3, save=when.every(epochs=1), preserve=policy)
    train(tmp_path, epochs=5, save=when.every(epochs=1), preserve=policy)
    # epoch 2 (0.4) has lost its place, and stays because the run was resumed from it.
    assert names(tmp_path) == [f"epoch={e}-step={4 * e + 4}.ckpt" for e in (1, 2, 3, 4)]
    assert len({record.run for record in _records(tmp_path)}) == 1


def test_moved_directory_loses_nothing(tmp_path: Path) -> None:
    """A renamed directory is resumed with all of its records and reasons."""
    policy = keep.best("val_loss", n=2)
    train(tmp_path / "a", epochs=3, save=when.every(epochs=1), preserve=policy)
    (tmp_path / "a").rename(tmp_path / "b")
    train(tmp_path / "b", epochs=4, save=when.every(epochs=1), preserve=policy)
    assert names(tmp_path / "b") == ["epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt", "epoch=3-step=16.ckpt"]


def test_files_of_another_run_are_never_touched(tmp_path: Path) -> None:
    """A run that was not restored leaves what lies in its directory alone, names included, and says so once."""
    train(tmp_path, epochs=2, save=when.every(epochs=1), preserve=keep.all())
    before = {path: path.read_bytes() for path in whole_checkpoints(tmp_path)}
    training = Training()
    checkpointer = Checkpointer(tmp_path, state=training.state, save=when.every(steps=4), keep=keep.latest(1))
    with pytest.warns(RuntimeWarning, match="2 checkpoints of another run"), checkpointer:
        for _ in range(8):
            training.advance()
            checkpointer.step()
    assert {path: path.read_bytes() for path in before} == before
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "epoch=0-step=8.ckpt", "epoch=1-step=8.ckpt"]


def test_name_of_another_run_gets_a_version(tmp_path: Path) -> None:
    """Where another run's file has the name already, the new one is called ``-v1``."""
    train(tmp_path, epochs=1, save=when.every(epochs=1), preserve=keep.all())
    training = Training()
    checkpointer = Checkpointer(tmp_path, state=training.state, save=when.every(epochs=1), keep=keep.all())
    with pytest.warns(RuntimeWarning, match="another run"), checkpointer:
        for _ in range(4):
            checkpointer.step(loss=training.advance())
        checkpointer.epoch_end()
    assert names(tmp_path) == ["epoch=0-step=4-v1.ckpt", "epoch=0-step=4.ckpt"]


def test_copy_made_by_hand_is_not_removed(tmp_path: Path) -> None:
    """A second name that somebody gave to a checkpoint of the run outlives the policy that removes the first."""
    train(tmp_path, epochs=1, save=when.every(epochs=1), preserve=keep.latest(1))
    (tmp_path / "mine.ckpt").hardlink_to(tmp_path / "epoch=0-step=4.ckpt")
    train(tmp_path, epochs=2, save=when.every(epochs=1), preserve=keep.latest(1))
    train(tmp_path, epochs=4, save=when.every(epochs=1), preserve=keep.latest(1))
    assert "mine.ckpt" in names(tmp_path)
    assert "epoch=0-step=4.ckpt" not in names(tmp_path)


def test_best_and_latest_answer_from_the_directory(tmp_path: Path) -> None:
    """``best`` and ``latest`` know the checkpoints of the directory, with or without a restoration."""
    train(tmp_path, epochs=4, save=when.every(epochs=1), preserve=keep.all())
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.train_end(), keep=keep.all()) as checkpointer:
        best, worst, latest = checkpointer.best("val_loss"), checkpointer.best("val_loss", "max"), checkpointer.latest()
        assert (best and best.epoch, worst and worst.epoch, latest and latest.epoch) == (3, 0, 3)
        assert checkpointer.best("accuracy") is None


def test_nan_is_never_best(tmp_path: Path) -> None:
    """A checkpoint whose metric is NaN is never the best, not even as the first, and survives a round trip."""
    train(
        tmp_path,
        epochs=3,
        save=when.every(epochs=1),
        preserve=keep.best("val_loss") | keep.all(),
        losses=(float("nan"), 0.3, float("nan")),
    )
    records = _records(tmp_path)
    assert [str(record.metrics["val_loss"]) for record in records] == ["nan", "0.3", "nan"]
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.train_end(), keep=keep.all()) as checkpointer:
        best = checkpointer.best("val_loss")
        assert best is not None
        assert best.epoch == 1


def test_blocking_saves_are_durable_at_once(tmp_path: Path) -> None:
    """With ``blocking=True`` a checkpoint is there, whole, when the call that saved it returns."""
    training = Training()
    policy = when.every(steps=1)
    with Checkpointer(tmp_path, state=training.state, save=policy, keep=keep.all(), blocking=True) as checkpointer:
        for step in range(1, 4):
            training.advance()
            checkpointer.step()
            assert len(names(tmp_path)) == step


def test_metrics_may_be_tensors_and_let_go_of_their_graph(tmp_path: Path) -> None:
    """One-element tensors are taken as numbers, and no graph is kept alive between steps."""
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        loss = training.model(torch.randn(2, 4)).mean()
        checkpointer.step(loss=loss, count=torch.tensor(3))
        assert all(not getattr(value, "requires_grad", False) for value in checkpointer._measured.values())
    (record,) = _records(tmp_path)
    assert record.metrics == {"loss": pytest.approx(loss.item()), "count": 3}


def test_error_in_the_loop_is_not_hidden_and_pending_saves_finish(tmp_path: Path) -> None:
    """An error in the loop comes out as it is; what was being saved becomes durable; no train-end save is made."""
    training = Training()
    policy = when.every(steps=2) | when.train_end()
    with (
        pytest.raises(ZeroDivisionError),
        Checkpointer(tmp_path, state=training.state, save=policy, keep=keep.all()) as checkpointer,
    ):
        for _ in range(3):
            checkpointer.step(loss=training.advance())
        1 / 0  # noqa: B018
    assert names(tmp_path) == ["epoch=0-step=2.ckpt"]


def test_dicts_and_generators_of_state_are_restored_in_place(tmp_path: Path) -> None:
    """An entry that is a dict is saved with what it holds, tensors too, and restored in place."""
    training, notes = Training(), {"seen": [1, 2], "mean": torch.ones(2)}
    state = {**training.state, "notes": notes}
    with Checkpointer(tmp_path, state=state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.step()
    notes.clear()
    with Checkpointer(tmp_path, state=state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.restore()
    assert notes["seen"] == [1, 2]
    assert torch.equal(notes["mean"], torch.ones(2))


def test_history_tells_of_the_removed_ones(tmp_path: Path) -> None:
    """The newest checkpoint tells of every earlier one: what became of it, and why."""
    train(tmp_path, epochs=3, save=when.every(epochs=1), preserve=keep.best("val_loss"))
    newest = safepoint.reader.read_manifest(tmp_path / "epoch=2-step=12.ckpt")
    assert [(entry.name, entry.kept, entry.reason) for entry in newest.history] == [
        ("epoch=0-step=4.ckpt", False, "not the best by val_loss (0.5)"),
        ("epoch=1-step=8.ckpt", True, "best by val_loss (0.3)"),
        ("epoch=2-step=12.ckpt", True, "the newest is never removed"),
    ]


def test_clock_that_goes_back_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest is what was saved last, also if the clock was set back in between, and after a resumption."""
    clock = iter(range(10**6, 0, -1000))
    monkeypatch.setattr("safepoint.pipeline.time.time", lambda: float(next(clock)))
    for epochs in (2, 4):
        train(tmp_path, epochs=epochs, save=when.every(epochs=1), preserve=keep.all())
    assert [record.step for record in _records(tmp_path)] == [4, 8, 12, 16]


def _records(directory: Path) -> tuple[safepoint.Record, ...]:
    training = Training()
    with Checkpointer(directory, state=training.state, save=when.train_end(), keep=keep.all()) as checkpointer:
        return checkpointer.records()
