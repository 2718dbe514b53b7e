"""Directories that cannot be looked into: nothing unreadable passes for an empty directory or a fresh start."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from disk_faults import NO_FILES_TO_OPEN, Scene, forbidden
from injection import injected
from loop import Training, equal

from safepoint import Checkpointer, RestoreError, SafepointError, SaveError, keep, when

WRITE_ONLY = 0o300


def saver_for(training: Training, directory: Path) -> Checkpointer:
    """Return a checkpointer that saves each step and keeps the last two."""
    policies = {"save": when.every(steps=1), "keep": keep.latest(2)}
    return Checkpointer(directory, state=training.state, **policies)


def saved(directory: Path, steps: int = 2) -> list[object]:
    """Save some steps and return the weights at the last."""
    training = Training()
    with saver_for(training, directory) as saver:
        for _ in range(steps):
            training.advance()
            saver.step()
        return [*training.weights()]


@pytest.fixture
def closed() -> Iterator[Scene]:
    """Set the scene of a directory that may be written and not be read."""
    with forbidden(WRITE_ONLY, Path()) as scene:
        yield scene


def test_directory_that_may_not_be_read_is_no_fresh_start(closed: Scene) -> None:
    """A run that cannot see its checkpoints does not begin at step 0 as if there were none."""
    saved(closed.directory)
    with (
        closed.strike(),
        saver_for(Training(), closed.directory) as saver,
        pytest.raises((SafepointError, OSError), match="ermission denied"),
    ):
        saver.restore()


@pytest.mark.parametrize("calls", ["getdents64", "openat"])
@pytest.mark.parametrize("error", ["EIO", "ESTALE", "EMFILE", "ENOMEM"])
def test_directory_that_cannot_be_read_is_no_fresh_start(tmp_path: Path, calls: str, error: str) -> None:
    """Whatever keeps a run from seeing its checkpoints, it does not begin at step 0."""
    saved(tmp_path)
    with (
        injected({calls: f"error={error}"}, path=tmp_path),
        saver_for(Training(), tmp_path) as saver,
        pytest.raises((SafepointError, OSError), match=os.strerror(getattr(errno, error))),
    ):
        saver.restore()


@pytest.mark.parametrize("calls", ["pread64,preadv,preadv2,read", "openat"])
def test_restore_falls_back_where_the_newest_cannot_be_read(tmp_path: Path, calls: str) -> None:
    """A bad sector in the newest checkpoint: the one before is restored, with a warning that says why."""
    saved(tmp_path, 2)
    training, before = Training(seed=1), Training()
    before.advance()
    with injected({calls: "error=EIO"}, path=tmp_path / "epoch=0-step=2.ckpt"), saver_for(training, tmp_path) as saver:
        with pytest.warns(RuntimeWarning, match=r"step=2\.ckpt.*Input/output error"):
            progress = saver.restore()
        assert progress.step == 1
    assert equal(training.weights(), before.weights())


def test_restore_fails_where_nothing_can_be_read(tmp_path: Path) -> None:
    """If no checkpoint can be read that is an error which names each, and no fresh start."""
    saved(tmp_path, 1)
    with (
        injected({"pread64,preadv,preadv2,read": "error=EIO"}, path=tmp_path / "epoch=0-step=1.ckpt"),
        saver_for(Training(), tmp_path) as saver,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(RestoreError, match=r"step=1\.ckpt.*Input/output error"):
            saver.restore()


def _told_as_a_failed_save(saver: Checkpointer, strike: AbstractContextManager[None], reason: str) -> None:
    with strike:
        with pytest.raises(SaveError, match=reason):
            saver.step()
            saver.wait()
        with pytest.raises(SaveError, match=reason):
            saver.step()
            saver.wait()


def test_look_for_other_runs_fails_as_a_save_does(tmp_path: Path) -> None:
    """What cannot be read before the first save is a SaveError, or a warning, as anything else of the disk."""
    directory = tmp_path / "run"
    saved(directory)
    with saver_for(Training(), directory) as saver:
        _told_as_a_failed_save(saver, injected({"openat": "error=EIO"}, path=directory), "Input/output error")


def test_process_without_descriptors_is_told_and_passes(tmp_path: Path) -> None:
    """Where no file can be opened the save fails; once there are descriptors again the run goes on."""
    with NO_FILES_TO_OPEN.scene(tmp_path) as scene, saver_for(Training(), scene.directory) as saver:
        saver.step()
        saver.wait()
        _told_as_a_failed_save(saver, scene.strike(), "Too many open files")
        saver.step()
        saver.wait()
