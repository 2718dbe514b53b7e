"""Starting from another run's checkpoint: which one, as what run, and what happens at the next start."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import Training, equal
from models import FRAMEWORKS, OLD_TREESPEC, fit
from nets import flip, make, save

import safepoint
from safepoint import Checkpointer, Progress, keep, when
from safepoint.lightning import ModelCheckpoint

STEPS_PER_EPOCH = 2
LOSSES = (0.5, 0.3, 0.4, 0.6)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return the directory of a run that has ended, with a checkpoint of each of four steps, and of two epochs."""
    directory, training = tmp_path / "other", Training(seed=1)
    with make(directory, training.state) as checkpointer:
        for step, loss in enumerate(LOSSES, 1):
            training.advance()
            checkpointer.step(loss=loss, acc=1 - loss)
            if not step % STEPS_PER_EPOCH:
                checkpointer.epoch_end(loss=loss, acc=1 - loss)
    return directory


def weights_at(path: Path) -> list[torch.Tensor]:
    """Return the weights in the checkpoint at ``path``, sorted by name."""
    return [tensor for _, tensor in sorted(safepoint.load(path)["model"].items())]


def weights_of(training: Training) -> list[torch.Tensor]:
    """Return the live ones."""
    return [tensor for _, tensor in sorted(training.model.state_dict().items())]


def content(directory: Path) -> dict[str, tuple[str, int]]:
    """Return the digest and the time of change of each file in ``directory``."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.iterdir()
    }


def step_of(source: Any, directory: Path, **options: Any) -> int:
    """Return the step of the checkpoint that is restored."""
    training = Training(seed=2)
    with make(directory, training.state, resume_from=source) as checkpointer:
        progress = checkpointer.restore(**options)
    assert progress.path is not None
    assert equal(weights_of(training), weights_at(progress.path))
    return progress.step


def test_run_starts_where_another_stopped(tmp_path: Path, other: Path) -> None:
    """Everything is restored, and the run counts on: as a run of its own, in a directory of its own."""
    before = content(other)
    torch.manual_seed(3)
    reference = Training(seed=2)
    with make(other, reference.state) as checkpointer:
        expected = checkpointer.restore()
    drawn = torch.rand(3)
    training = Training(seed=3)
    with make(tmp_path / "own", training.state, resume_from=f"{other}@latest") as checkpointer:
        progress = checkpointer.restore()
        assert progress == expected
        assert (progress.step, progress.epoch, progress.batch) == (4, 1, 2)
        assert progress.report.is_exact
        assert torch.equal(torch.rand(3), drawn)
        assert equal(training.weights(), reference.weights())
        training.advance()
        checkpointer.step(loss=0.2)
        checkpointer.wait()
        (record,) = checkpointer.records()
    assert (record.step, record.path.parent) == (5, tmp_path / "own")
    assert record.run not in {found.run for found in safepoint_records(other)}
    assert content(other) == before


def safepoint_records(directory: Path) -> tuple[safepoint.Record, ...]:
    """Return what is in ``directory``."""
    with make(directory, {"notes": {}}) as checkpointer:
        return checkpointer.records()


def test_next_start_goes_on_from_the_runs_own(tmp_path: Path, other: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same script again, with the other run gone: its own checkpoint counts, whole, and it says so at INFO."""
    first = Training(seed=2)
    options: dict[str, Any] = {"resume_from": f"{other}@best:loss"}
    with make(tmp_path / "own", first.state, **options) as checkpointer:
        assert checkpointer.restore(only=["model"]) == Progress(path=other / "epoch=0-step=2.ckpt")
        first.advance()
        checkpointer.step()
    for path in other.iterdir():
        path.unlink()
    again = Training(seed=3)
    with caplog.at_level("INFO", "safepoint"), make(tmp_path / "own", again.state, **options) as checkpointer:
        progress = checkpointer.restore(only=["model"])
    assert (progress.step, progress.report.restored) == (1, ("model", "optimizer"))
    assert equal(again.weights(), first.weights())
    assert "resume_from= is not looked at" in caplog.text


def test_crash_before_the_first_save_starts_from_there_again(tmp_path: Path, other: Path) -> None:
    """Until the directory holds a checkpoint, every start is the same."""
    for _ in range(2):
        assert step_of(other, tmp_path / "own") == 4
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("suffix", "step"),
    [("", 4), ("@latest", 4), ("@best:loss", 2), ("@best:loss:max", 4), ("@best:acc:max", 2), ("@step:3", 3)],
)
def test_checkpoint_is_picked(tmp_path: Path, other: Path, suffix: str, step: int) -> None:
    """The latest, the best by a metric, or that of a step."""
    assert step_of(f"{other}{suffix}", tmp_path / "own") == step


def test_source_is_a_path_or_a_record_too(tmp_path: Path, other: Path) -> None:
    """A file, a directory with an '@' in its name, or what ``best()`` has returned."""
    assert step_of(str(other / "epoch=1-step=3.ckpt"), tmp_path / "own") == 3
    named = other.rename(tmp_path / "me@best")
    assert step_of(named, tmp_path / "own") == 4
    assert step_of(safepoint_records(named)[0], tmp_path / "own") == 1


def test_source_is_relative_to_where_the_program_was(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every path: at the moment when it is given."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with make(tmp_path / "own", Training().state, resume_from="../other@step:1") as checkpointer:
        monkeypatch.chdir("/")
        assert checkpointer.restore().path == other / "epoch=0-step=1.ckpt"


@pytest.mark.parametrize(
    ("suffix", "damaged", "step"),
    [
        ("", "epoch=1-step=4.ckpt", 3),
        ("@best:loss", "epoch=0-step=2.ckpt", 3),
        ("@best:loss:max", "epoch=1-step=4.ckpt", 1),
    ],
)
def test_damaged_source_is_passed_over(tmp_path: Path, other: Path, suffix: str, damaged: str, step: int) -> None:
    """The next older, or the next best, with a warning; the file is left alone."""
    flip(other / damaged, "model.0.weight")
    before = content(other)
    with pytest.warns(RuntimeWarning, match=f"{damaged} was skipped and left alone"):
        assert step_of(f"{other}{suffix}", tmp_path / "own") == step
    assert content(other) == before


def test_damaged_step_has_no_substitute(tmp_path: Path, other: Path) -> None:
    """Who asks for a step gets no other."""
    flip(other / "epoch=1-step=3.ckpt", "model.0.weight")
    with pytest.raises(safepoint.RestoreError, match=r"(?s)step=3\.ckpt.*tensor 'model.0.weight'"):
        step_of(f"{other}@step:3", tmp_path / "own")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("othr", "{0}/othr' does not exist. Did you mean {0}/other?"),
        ("nowhere", "{0}/nowhere' does not exist."),
        ("other@best:los", "the metrics given are: 'acc', 'loss'. Did you mean 'loss'?"),
        ("other@step:9", "{0}/other holds no checkpoint of step 9; the last are of 1, 2, 3, 4."),
        ("other/epoch=1-step=3.ckpt@best:loss", "is a file: give it as it is, or its directory"),
        ("empty", "{0}/empty' holds no checkpoint"),
    ],
)
def test_source_that_is_not_there_is_refused(tmp_path: Path, other: Path, source: str, message: str) -> None:
    """At ``restore()``, before anything is changed: with the absolute path, and what there is."""
    (tmp_path / "empty").mkdir()
    training = Training(seed=2)
    before = training.weights()
    with (
        make(tmp_path / "own", training.state, resume_from=f"{tmp_path}/{source}") as checkpointer,
        pytest.raises(safepoint.ConfigurationError) as caught,
    ):
        checkpointer.restore()
    assert message.format(tmp_path) in str(caught.value)
    assert equal(training.weights(), before)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("other@worst:loss", "PATH@best:METRIC"),
        ("own", "is in the run's own directory"),
        ("own@best:loss", "is in the run's own directory"),
        ("own/a.ckpt", "is in the run's own directory"),
        ("own/../own", "is in the run's own directory"),
    ],
)
def test_wrong_source_is_refused_at_once(tmp_path: Path, source: str, message: str) -> None:
    """What can never be right is told before training begins."""
    with pytest.raises(safepoint.ConfigurationError, match=message):
        make(tmp_path / "own", {"notes": {}}, resume_from=f"{tmp_path}/{source}")


def test_foreign_source_is_refused(tmp_path: Path) -> None:
    """A file that another program wrote is to be loaded by whoever knows what is in it."""
    (tmp_path / "foreign").mkdir()
    path = tmp_path / "foreign" / "a.ckpt"
    torch.save({"model": {}}, path)
    for source in (path, path.parent):
        with (
            make(tmp_path / "own", {"notes": {}}, resume_from=source) as checkpointer,
            pytest.raises(
                safepoint.NotACheckpointError, match=r"no checkpoint of Safepoint's: load it with torch\.load"
            ),
        ):
            checkpointer.restore()
    torn = save(tmp_path / "torn", {"notes": {}})
    with torn.open("r+b") as file:
        file.truncate(5000)
    for source, error in ((torn, safepoint.NotACheckpointError), (torn.parent, safepoint.RestoreError)):
        with make(tmp_path / "own", {"notes": {}}, resume_from=source) as checkpointer, pytest.raises(error):
            checkpointer.restore()


LIVING = """
import sys
sys.path.insert(0, sys.argv[1])
from loop import Training
from nets import make
training = Training(seed=1)
checkpointer = make(sys.argv[2], training.state)
checkpointer.step()
checkpointer.wait()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("way", ["resume_from", "only"])
def test_living_run_can_be_started_from(tmp_path: Path, way: str) -> None:
    """Reading is never refused: the other run goes on, and nobody waits for its end."""
    other = tmp_path / "other"
    with subprocess.Popen(
        [sys.executable, "-c", LIVING, str(Path(__file__).parents[1]), str(other)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        training = Training(seed=2)
        if way == "only":
            with make(other, training.state) as checkpointer:
                progress = checkpointer.restore(only=["model"])
        else:
            with make(tmp_path / "own", training.state, resume_from=other) as checkpointer:
                progress = checkpointer.restore()
        process.communicate("")
    assert progress.path == other / "epoch=0-step=1.ckpt"
    assert equal(weights_of(training), weights_at(progress.path))


def test_best_of_another_run_does_not_count_for_this_one(tmp_path: Path, other: Path) -> None:
    """What ``keep`` ranks are the run's own checkpoints, and the other's stay as they are."""
    before = content(other)
    training = Training(seed=2)
    with Checkpointer(
        tmp_path / "own",
        state=training.state,
        save=when.every(steps=1),
        keep=keep.best("loss"),
        resume_from=f"{other}@best:loss",
    ) as checkpointer:
        checkpointer.restore()
        for loss in (0.9, 0.8, 0.85):
            checkpointer.step(loss=loss)
        checkpointer.wait()
        best = checkpointer.best("loss")
    assert best is not None
    assert (best.metrics["loss"], best.step) == (0.8, 4)
    assert content(other) == before


@OLD_TREESPEC
def test_weights_of_a_lightning_run_can_be_started_from(tmp_path: Path) -> None:
    """The module's weights alone, under the names that they have without it; where to go on, only Lightning knows."""
    callback = ModelCheckpoint(dirpath=tmp_path / "fit", save_top_k=-1)
    trainer = fit(FRAMEWORKS[0], callback, epochs=1)
    layer = torch.nn.Linear(4, 3)
    with make(tmp_path / "own", {"layer": layer}, resume_from=tmp_path / "fit") as checkpointer:
        with pytest.raises(safepoint.StateMismatchError, match=r"Lightning drop-in.*only="):
            checkpointer.restore()
        with pytest.raises(safepoint.StateMismatchError, match=r"with rename=\{'layer\.': ''\}, 2 more keys"):
            checkpointer.restore(only=["layer"])
        progress = checkpointer.restore(only=["layer"], rename={"layer.": ""})
    assert (progress.step, progress.report.matched) == (0, 2)
    assert torch.equal(layer.weight, trainer.lightning_module.layer.weight)
