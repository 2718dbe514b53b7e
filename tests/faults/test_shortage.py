"""A disk that is about to be full is told of in time, by what is really free, and what is warned of is what happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_faults import filled
from file_systems import mounted
from invariants import whole_checkpoints
from loop import Training

from safepoint import Checkpointer, SaveError, keep, when
from safepoint.keep import PreservationPolicy

WIDTH = 512
HALF_MORE_BYTES = 3 * WIDTH * WIDTH * 4 * 3 // 2  # than a checkpoint takes: the parameters, and twice that for Adam


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of a kind that tells what is free to the byte."""
    with mounted(request.param, tmp_path, make=("-m", "0")) as disk:  # none of it for root alone
        yield disk


def saver_for(training: Training, directory: Path, kept: PreservationPolicy) -> Checkpointer:
    """Return a checkpointer that saves each step."""
    return Checkpointer(directory, state=training.state, save=when.every(steps=1), keep=kept)


def test_disk_without_room_for_old_and_new_is_warned_of_before_the_first_save(disk: Path) -> None:
    """Room for one and a half is too little for a run that keeps one: said once, before the save that fails."""
    training = Training(WIDTH)
    with filled(disk, left_bytes=HALF_MORE_BYTES), saver_for(training, disk / "run", keep.latest(1)) as saver:
        training.advance()
        with pytest.warns(RuntimeWarning, match="not enough for 1 that are kept and one while it is written") as warned:
            saver.step()
        assert len(warned) == 1
        with pytest.warns(RuntimeWarning, match=r"step=1\.ckpt is saved, and the next will not fit"):
            saver.wait()
        saver.step()
        with pytest.raises(SaveError, match="No space left on device"):
            saver.wait()
        assert [path.name for path in whole_checkpoints(disk / "run")] == ["epoch=0-step=1.ckpt"]


def test_disk_that_becomes_short_is_warned_of_with_the_last_save_that_fits(disk: Path) -> None:
    """Somebody else fills the disk: that the next save will not fit is said before it fails."""
    training = Training(WIDTH)
    with saver_for(training, disk / "run", keep.all()) as saver:
        training.advance()
        saver.step()
        saver.wait()
        with filled(disk, left_bytes=HALF_MORE_BYTES):
            saver.step()
            with pytest.warns(RuntimeWarning, match=r"step=2\.ckpt is saved, and the next will not fit"):
                saver.wait()
            saver.step()
            with pytest.raises(SaveError, match="No space left on device"):
                saver.wait()
        assert len(whole_checkpoints(disk / "run")) == 2


def test_disk_with_room_for_what_the_policy_gives_up_is_not_warned_of(disk: Path) -> None:
    """Where each save makes room for the next there is nothing to say."""
    training = Training(WIDTH)
    with saver_for(training, disk / "run", keep.latest(1)) as saver:
        training.advance()
        saver.step()
        saver.wait()
        with filled(disk, left_bytes=HALF_MORE_BYTES):
            for _ in range(3):
                saver.step()
                saver.wait()
        assert [path.name for path in whole_checkpoints(disk / "run")] == ["epoch=0-step=4.ckpt"]
