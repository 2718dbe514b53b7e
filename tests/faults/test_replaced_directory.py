"""The directory goes, or becomes something else, under a running job: nothing of anybody else's is touched."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import file_systems
import pytest
from invariants import temporaries, whole_checkpoints
from loop import Training

from safepoint import Checkpointer, SaveError, keep, when
from safepoint.reader import read_manifest
from safepoint.stores import local
from safepoint.stores.local import LocalStore

GONE = "run is not there any more, and with it a checkpoint of this run"


def saver_for(directory: Path, *, seed: int = 0) -> Checkpointer:
    """Return a checkpointer that saves each step and keeps the last."""
    state = Training(seed=seed).state
    return Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.latest(1))


def saved(saver: Checkpointer) -> None:
    """Make a step, which must become durable."""
    saver.step()
    saver.wait()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return where the run saves; it is not there yet."""
    return tmp_path / "run"


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Return a directory of another run, which has saved under the same names."""
    place = tmp_path / "others"
    policies = {"save": when.every(steps=1), "keep": keep.all()}
    with Checkpointer(place, state=Training(seed=1).state, **policies) as saver:
        for _ in range(2):
            saved(saver)
    return place


def contents(place: Path) -> dict[str, bytes]:
    """Return what is in a directory."""
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def run_of(path: Path) -> str:
    """Return which run wrote a checkpoint."""
    return read_manifest(path).run


# It goes.


def test_directory_renamed_away_is_made_again_and_left_alone(tmp_path: Path, directory: Path) -> None:
    """The next saves go where they always went; what was renamed stays as it was, under its new name."""
    away = tmp_path / "away"
    with saver_for(directory) as saver:
        saved(saver)
        directory.rename(away)
        before = contents(away)
        with pytest.warns(RuntimeWarning, match=GONE):
            saved(saver)
        saved(saver)
    assert contents(away) == before
    assert [path.name for path in whole_checkpoints(directory)] == ["epoch=0-step=3.ckpt"]


def test_directory_removed_with_those_above_is_made_again(tmp_path: Path) -> None:
    """Every directory on the way is made again."""
    directory = tmp_path / "a" / "b" / "run"
    with saver_for(directory) as saver:
        saved(saver)
        shutil.rmtree(tmp_path / "a")
        with pytest.warns(RuntimeWarning, match=GONE):
            saved(saver)
        assert [record.step for record in saver.records()] == [2]
    assert [path.name for path in whole_checkpoints(directory)] == ["epoch=0-step=2.ckpt"]


def test_directory_that_comes_back_is_saved_into_again(tmp_path: Path, directory: Path) -> None:
    """Renamed away and back between two saves, it is as if nothing had been."""
    with saver_for(directory) as saver:
        saved(saver)
        directory.rename(tmp_path / "away")
        (tmp_path / "away").rename(directory)
        saved(saver)
    assert [path.name for path in whole_checkpoints(directory)] == ["epoch=0-step=2.ckpt"]


def test_directory_moved_to_another_disk_behind_a_link_is_saved_into(tmp_path: Path, directory: Path) -> None:
    """Whoever moves the run to a larger disk and leaves a link has it go on there, old checkpoints included."""
    with file_systems.mounted("tmpfs", tmp_path / "disk") as disk, saver_for(directory) as saver:
        saved(saver)
        shutil.move(directory, disk / "run")
        directory.symlink_to(disk / "run")
        saved(saver)
        assert [path.name for path in whole_checkpoints(disk / "run")] == ["epoch=0-step=2.ckpt"]


# Something else takes its place.


def _a_file(directory: Path) -> None:
    directory.write_bytes(b"somebody's")


def _a_link_to_nothing(directory: Path) -> None:
    directory.symlink_to("nowhere")


def _a_link_to_a_file(directory: Path) -> None:
    (directory.parent / "file").write_bytes(b"somebody's")
    directory.symlink_to("file")


def _a_link_to_itself(directory: Path) -> None:
    directory.symlink_to(directory.name)


def _a_fifo(directory: Path) -> None:
    os.mkfifo(directory)


@pytest.mark.parametrize("put", [_a_file, _a_link_to_nothing, _a_link_to_a_file, _a_link_to_itself, _a_fifo])
@pytest.mark.parametrize("moment", ["before-the-first-save", "after-it"])
def test_what_is_no_directory_is_told_and_left_alone(
    tmp_path: Path, directory: Path, moment: str, put: Callable[[Path], None]
) -> None:
    """Each save fails and says where; nothing is written through it, and once it is gone the run goes on."""
    away = tmp_path / "away"
    with saver_for(directory) as saver:
        if moment == "after-it":
            saved(saver)
            directory.rename(away)
        put(directory)
        before = sorted(os.listdir(tmp_path)), directory.lstat(), directory.is_file() and directory.read_bytes()
        for attempt in range(3):
            is_told = moment == "after-it" and attempt == 0
            with pytest.warns(RuntimeWarning, match=GONE) if is_told else contextlib.nullcontext():
                saver.step()
            with pytest.raises(SaveError, match=r"run/epoch=0-step=\d\.ckpt was not saved: .*run") as caught:
                saver.wait()
            assert isinstance(caught.value.__cause__, OSError)
        after = sorted(os.listdir(tmp_path)), directory.lstat(), directory.is_file() and directory.read_bytes()
        assert after[0] == before[0]
        assert after[1].st_ino == before[1].st_ino
        assert after[2] == before[2]
        directory.unlink()
        if moment == "after-it":
            away.rename(directory)
        saved(saver)
    assert len(whole_checkpoints(directory)) == 1


def _moved(others: Path, directory: Path) -> Path:
    others.rename(directory)
    return directory


def _linked(others: Path, directory: Path) -> Path:
    directory.symlink_to(others.name)
    return others


@pytest.fixture(params=[_moved, _linked], ids=["another", "a-link-to-another"])
def swap(request: pytest.FixtureRequest, tmp_path: Path, directory: Path, others: Path) -> Callable[[], Path]:
    """Return what puts the other run's directory in the place of this one's, and says where it is then."""

    def swapped() -> Path:
        directory.rename(tmp_path / "away")
        where: Path = request.param(others, directory)
        return where

    return swapped


def test_policy_removes_nothing_of_another_run(directory: Path, swap: Callable[[], Path]) -> None:
    """What the run was to remove bears the name of another run's checkpoint now: that stays, byte for byte."""
    with saver_for(directory) as saver:
        saved(saver)
        where = swap()
        theirs = contents(where)
        saver.step()
        saver.step()
        with contextlib.suppress(SaveError):  # told or not, what matters is what becomes of the other's files
            saver.wait()
    assert {name: contents(where).get(name) for name in theirs} == theirs


def test_save_replaces_nothing_of_another_run(directory: Path, swap: Callable[[], Path]) -> None:
    """What the run was to replace bears the name of another run's checkpoint now: that stays, byte for byte."""
    with saver_for(directory) as saver:
        saved(saver)
        where = swap()
        theirs = contents(where)
        saver.save()  # at the same step: it takes the place of the one before
        with contextlib.suppress(SaveError):  # told or not, what matters is what becomes of the other's files
            saver.wait()
    assert {name: contents(where).get(name) for name in theirs} == theirs


def test_new_name_never_takes_that_of_another_run(directory: Path, swap: Callable[[], Path]) -> None:
    """A save whose name another run has in the meantime gets a version, or is told; the other's stays."""
    with saver_for(directory) as saver:
        saver.step()
        saver.wait()
        where = swap()
        (where / "epoch=0-step=1.ckpt").unlink()
        theirs = (where / "epoch=0-step=2.ckpt").read_bytes()
        with pytest.warns(RuntimeWarning, match="a checkpoint of this run, epoch=0-step=1.ckpt, cannot be found"):
            saved(saver)
    assert (where / "epoch=0-step=2.ckpt").read_bytes() == theirs
    assert run_of(where / "epoch=0-step=2-v1.ckpt") != run_of(where / "epoch=0-step=2.ckpt")


# In the middle of a write.


@pytest.fixture(params=["unnamed", "hidden"])
def temporary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the kind of temporary that is written: the second one is that of older file systems."""
    if request.param == "hidden":
        monkeypatch.setattr(local, "_takes_unnamed", lambda directory, disk: False)
    kind: str = request.param
    return kind


def interrupted(directory: Path, act: Callable[[], object]) -> None:
    """Write a file with ``LocalStore``, and let ``act`` come in the middle."""

    def chunks() -> Iterator[bytes]:
        yield b"a" * 4096
        act()
        yield b"b" * 4096

    LocalStore(directory).write("a.ckpt", chunks(), 8192, replace=False)


def test_directory_removed_in_mid_write_is_told(directory: Path, temporary: str) -> None:
    """The write fails, nothing is left of it, and the directory is not made again for half of a checkpoint."""
    with pytest.raises(FileNotFoundError):
        interrupted(directory, lambda: shutil.rmtree(directory))
    assert not directory.exists()


def test_directory_renamed_in_mid_write_is_told(tmp_path: Path, directory: Path, temporary: str) -> None:
    """The write fails, and no temporary is left in the directory under its new name."""
    with pytest.raises(FileNotFoundError):
        interrupted(directory, lambda: directory.rename(tmp_path / "away"))
    assert os.listdir(tmp_path) == ["away"]
    assert temporaries(tmp_path / "away") == []


def test_directory_replaced_in_mid_write_keeps_what_the_other_holds(
    tmp_path: Path, directory: Path, temporary: str
) -> None:
    """A name that another directory has by then is not taken over."""

    def swapped() -> None:
        directory.rename(tmp_path / "away")
        directory.mkdir()
        (directory / "a.ckpt").write_bytes(b"another run's")

    with pytest.raises((FileExistsError, FileNotFoundError)):
        interrupted(directory, swapped)
    assert contents(directory) == {"a.ckpt": b"another run's"}
