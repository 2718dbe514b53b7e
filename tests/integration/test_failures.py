"""What happens when a save fails in the background: told once, nothing removed, nothing half-written."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants import temporaries, whole_checkpoints
from loop import Training

import safepoint
from safepoint import Checkpointer, SaveError, keep, sealing, staging, when
from safepoint.stores.disk import Disk
from safepoint.stores.local import LocalStore


class FullDisk(LocalStore):
    """A local store on which writes fail from a given one on, after some bytes, for a number of times."""

    fails = range(0)
    writes = 0

    def write(self, name: str, chunks: Iterable[bytes | memoryview], size_bytes: int, **options: Any) -> int:
        """Fail in mid-write, as a full disk does, if it is this write's turn."""
        number, FullDisk.writes = FullDisk.writes, FullDisk.writes + 1

        def interrupted() -> Iterator[memoryview]:
            for chunk in chunks:
                yield memoryview(chunk)[: len(chunk) // 2]
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return super().write(name, interrupted() if number in FullDisk.fails else chunks, size_bytes, **options)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> type[FullDisk]:
    """Let every run write to a disk that is full at chosen moments."""
    monkeypatch.setattr("safepoint.pipeline.LocalStore", FullDisk)
    monkeypatch.setattr(FullDisk, "writes", 0)
    return FullDisk


def test_failed_save_is_raised_once_with_its_cause(tmp_path: Path, full_disk: type[FullDisk]) -> None:
    """A failed write comes out at the next call, once, with the original error and its traceback behind it."""
    full_disk.fails = range(1, 2)
    training = Training()
    with Checkpointer(tmp_path, state=training.state, save=when.every(steps=1), keep=keep.latest(1)) as checkpointer:
        checkpointer.step(loss=training.advance())
        checkpointer.step(loss=training.advance())
        with pytest.raises(safepoint.SaveError, match=r"step=2.ckpt was not saved.*No space left") as caught:
            checkpointer.wait()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.__traceback__ is not None
        checkpointer.wait()
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["epoch=0-step=1.ckpt"]
    assert temporaries(tmp_path) == []


def test_failed_save_removes_nothing_and_the_next_succeeds(tmp_path: Path, full_disk: type[FullDisk]) -> None:
    """With ``on_error="warn"`` training goes on; the old one goes only when a later save is durable."""
    full_disk.fails = range(1, 3)
    training = Training()
    policies = {"save": when.every(steps=1), "keep": keep.latest(1)}
    with Checkpointer(tmp_path, state=training.state, on_error="warn", **policies) as checkpointer:
        checkpointer.step(loss=training.advance())
        checkpointer.wait()
        for _ in full_disk.fails:
            checkpointer.step(loss=training.advance())
            with pytest.warns(RuntimeWarning, match="was not saved"):
                checkpointer.wait()
            assert [path.name for path in whole_checkpoints(tmp_path)] == ["epoch=0-step=1.ckpt"]
        checkpointer.step(loss=training.advance())
        checkpointer.wait()
        assert [path.name for path in whole_checkpoints(tmp_path)] == ["epoch=0-step=4.ckpt"]


def test_saves_queued_behind_a_failed_one_remove_nothing(tmp_path: Path, full_disk: type[FullDisk]) -> None:
    """What a queued save was to remove was decided in the belief that the failed one would be there: it stays."""
    full_disk.fails = range(1, 2)
    training = Training(width=500)
    policies = {"save": when.every(steps=1), "keep": keep.latest(2)}
    with Checkpointer(tmp_path, state=training.state, max_images=4, **policies) as checkpointer:
        with pytest.raises(safepoint.SaveError, match=r"step=2\.ckpt was not saved"):
            for _ in range(3):
                training.advance()
                checkpointer.step()
            checkpointer.wait()
        checkpointer.wait()
        steps = {record.step for record in checkpointer.records()}
        assert steps in ({1, 3}, {1})  # {1} if the failure was told before the third save was decided
        training.advance()
        checkpointer.step()
        checkpointer.wait()
        assert len(checkpointer.records()) == 2


def test_directory_removed_under_a_running_job_is_made_again(tmp_path: Path) -> None:
    """If somebody removes the directory, the next save makes it again, and is whole."""
    training = Training()
    directory = tmp_path / "run"
    with Checkpointer(directory, state=training.state, save=when.every(steps=1), keep=keep.latest(1)) as checkpointer:
        checkpointer.step(loss=training.advance())
        checkpointer.wait()
        (directory / "epoch=0-step=1.ckpt").unlink()
        directory.rmdir()
        with pytest.warns(RuntimeWarning, match="not there any more, and with it a checkpoint of this run"):
            checkpointer.step(loss=training.advance())
        checkpointer.wait()
    assert [path.name for path in whole_checkpoints(directory)] == ["epoch=0-step=2.ckpt"]


def test_failed_removal_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that cannot be removed is told of; it stays in the books and goes with the next save."""
    training = Training()

    def refused(disk: Disk, path: Path) -> None:
        if path.name == "epoch=0-step=1.ckpt":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(disk, path)

    unlink = Disk.unlink
    with Checkpointer(tmp_path, state=training.state, save=when.every(steps=1), keep=keep.latest(1)) as checkpointer:
        checkpointer.step(loss=training.advance())
        with monkeypatch.context() as patch:
            patch.setattr(Disk, "unlink", refused)
            checkpointer.step(loss=training.advance())
            with pytest.raises(safepoint.SaveError, match=r"step=2.ckpt is saved, but epoch=0-step=1.ckpt could not"):
                checkpointer.wait()
        assert len(whole_checkpoints(tmp_path)) == 2
        checkpointer.step(loss=training.advance())
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["epoch=0-step=3.ckpt"]


def test_error_of_a_late_save_is_noted_on_the_error_of_the_loop(tmp_path: Path, full_disk: type[FullDisk]) -> None:
    """When the loop itself fails, a save that fails too does not hide that, and is noted on it."""
    full_disk.fails = range(1)
    training = Training()
    with (
        pytest.raises(ZeroDivisionError) as caught,
        Checkpointer(tmp_path, state=training.state, save=when.every(steps=1), keep=keep.all()) as checkpointer,
    ):
        checkpointer.step(loss=training.advance())
        1 / 0  # noqa: B018
    assert any("was not saved" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("end", ["close", "exception"])
def test_last_save_is_made_though_an_earlier_one_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """What went wrong before comes out when the final or emergency save has been made, not in its place."""
    state = {"a": {"x": torch.ones(4)}}
    policy = when.at(steps=[1]) | when.train_end() | when.exception()
    saver = Checkpointer(tmp_path, state=state, save=policy, keep=keep.all())

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", full)
        saver.step()
        saver._run.pipeline._writer.wait()
    if end == "close":
        with pytest.raises(SaveError, match="No space left"):
            saver.close()
    else:
        with pytest.raises(ZeroDivisionError) as caught, saver:
            raise ZeroDivisionError
        assert "No space left" in caught.value.__notes__[0]
    assert len(whole_checkpoints(tmp_path)) == 1


def test_streamed_save_that_is_interrupted_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C training may go on and change the state: no more of it is read, and nothing is published."""
    state = {"a": {"x": torch.ones(60_000)}}
    monkeypatch.setattr(staging, "SLAB_BYTES", 12288)
    monkeypatch.setattr(sealing, "SLAB_BYTES", 12288)
    slab = staging.StagedLive.slab

    def interrupted(staged: staging.StagedLive, start: int, end: int) -> memoryview:
        if start == 12288 * 3:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.2)
        return slab(staged, start, end)

    monkeypatch.setattr(staging.StagedLive, "slab", interrupted)
    with Checkpointer(tmp_path, state=state, save=when.at(steps=[9]), keep=keep.all(), max_host_bytes=1) as saver:
        with pytest.warns(RuntimeWarning, match="do not fit"), pytest.raises(KeyboardInterrupt):
            saver.save()
        state["a"]["x"].zero_()
        with pytest.raises(SaveError, match="interrupted while the state was streamed"):
            saver.wait()
    assert whole_checkpoints(tmp_path) == []


@pytest.mark.parametrize("options", [{"blocking": True}, {"max_host_bytes": 1}])
@pytest.mark.filterwarnings("ignore:checkpoints of:RuntimeWarning")
def test_stats_count_all_that_training_was_held_up(tmp_path: Path, options: dict[str, Any]) -> None:
    """Where a save returns when it is durable, the whole of it is stall."""
    state = {"a": {"x": torch.ones(9)}}
    with Checkpointer(tmp_path, state=state, save=when.at(steps=[9]), keep=keep.all(), **options) as saver:
        saver.save()
        (stats,) = saver.stats()
    assert stats.stalled_s == stats.committed_s
