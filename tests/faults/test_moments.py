"""The moments of a save at which a system call fails: what is there afterwards, and what the next save does."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from injection import injected
from invariants import temporaries, whole_checkpoints
from loop import Training

from safepoint import Checkpointer, SaveError, keep, when

FSYNC_FAILS = {"fsync": "error=EIO"}


def saver_for(training: Training, directory: Path, n: int = 1) -> Checkpointer:
    """Return a checkpointer that saves at each step and each epoch's end, and keeps the last ``n``."""
    policies = {"save": when.every(steps=1) | when.every(epochs=1), "keep": keep.latest(n)}
    return Checkpointer(directory, state=training.state, **policies)


def names(directory: Path) -> list[str]:
    """Return the names of the checkpoints, which must be whole, and of nothing else."""
    assert temporaries(directory) == []
    return [path.name for path in whole_checkpoints(directory)]


def saved(saver: Checkpointer) -> None:
    """Make a step, which must become durable."""
    saver.step()
    saver.wait()


def fails(saver: Checkpointer, message: str, number: int) -> None:
    """Wait for a save that fails with ``number``, and see that it is told once."""
    with pytest.raises(SaveError, match=message) as caught:
        saver.wait()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    saver.wait()


# The directories above.


def test_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Where ``mkdir`` fails the save has failed; the next one makes the directory."""
    directory = tmp_path / "runs" / "one"
    with saver_for(Training(), directory) as saver:
        with injected({"mkdir,mkdirat": "error=EIO"}):
            saver.step()
            fails(saver, "was not saved: .*Input/output error", errno.EIO)
        assert os.listdir(tmp_path) == []
        saved(saver)
    assert names(directory) == ["epoch=0-step=2.ckpt"]


def test_directory_that_was_not_made_durable_is_made_durable_by_the_next_save(tmp_path: Path) -> None:
    """Where the ``fsync`` of the directory above has failed, the next save calls it again: see rule 1."""
    directory, log = tmp_path / "run", tmp_path / "log"
    with saver_for(Training(), directory) as saver:
        with injected(FSYNC_FAILS, path=tmp_path):
            saver.step()
            fails(saver, "was not saved", errno.EIO)
        with injected({"fsync": ""}, path=tmp_path, log=log):
            saved(saver)
    assert f"<{tmp_path}>) = 0" in log.read_text()


# A new name.


def test_directory_that_cannot_be_synced_keeps_no_name(tmp_path: Path) -> None:
    """A checkpoint whose entry in the directory may be lost has failed: nothing is left of it."""
    directory = tmp_path / "run"
    with saver_for(Training(), directory) as saver:
        saved(saver)
        with injected(FSYNC_FAILS, path=directory):
            saver.step()
            fails(saver, "was not saved", errno.EIO)
        assert names(directory) == ["epoch=0-step=1.ckpt"]


def test_directory_that_cannot_be_synced_loses_nothing(tmp_path: Path) -> None:
    """A checkpoint whose entry in the directory may be lost replaces nothing; the next save does."""
    directory = tmp_path / "run"
    with saver_for(Training(), directory) as saver:
        saved(saver)
        with injected(FSYNC_FAILS, path=directory):
            saver.step()
            fails(saver, r"step=2\.ckpt was not saved: .*Input/output error", errno.EIO)
            assert "epoch=0-step=1.ckpt" in names(directory)
        saved(saver)
        assert "epoch=0-step=1.ckpt" not in names(directory)
        assert "epoch=0-step=3.ckpt" in names(directory)


def test_file_that_could_not_be_synced_is_written_anew(tmp_path: Path) -> None:
    """After a failed ``fsync`` the kernel may take the pages for clean: no file is ever synced again after it."""
    directory, log = tmp_path / "run", tmp_path / "log"
    with saver_for(Training(), directory) as saver:
        saved(saver)
        with injected({"openat": "", "fsync": "error=EIO", "pwrite64": ""}, log=log):
            for _ in range(2):
                saver.step()
                fails(saver, "was not saved", errno.EIO)
    calls = re.findall(r"O_TMPFILE|pwrite64\(|fsync\(", log.read_text())
    assert re.fullmatch(r"(O_TMPFILE(pwrite64\()+fsync\(){2,}", "".join(calls)), calls
    assert not re.search(rf"fsync\(\d+<{directory}>", log.read_text()), "the error was that of the directory"


# A name that is taken over.


@pytest.mark.parametrize("calls", ["rename,renameat,renameat2", "link,linkat", "pwrite64", "fsync"])
def test_replaced_checkpoint_stays_until_the_new_one_has_its_name(tmp_path: Path, calls: str) -> None:
    """A save that is to replace an earlier one of its step and fails leaves that, and no hidden name."""
    training = Training()
    with saver_for(training, tmp_path) as saver:
        saved(saver)
        (before,) = (path.read_bytes() for path in whole_checkpoints(tmp_path))
        with injected({calls: "error=EIO"}):
            saver.epoch_end()
            fails(saver, r"step=1\.ckpt was not saved", errno.EIO)
        assert names(tmp_path) == ["epoch=0-step=1.ckpt"]
        assert (tmp_path / "epoch=0-step=1.ckpt").read_bytes() == before
        saver.save()
        saver.wait()
        assert names(tmp_path) == ["epoch=0-step=1.ckpt"]
        assert (tmp_path / "epoch=0-step=1.ckpt").read_bytes() != before


def test_replaced_checkpoint_is_whole_where_the_directory_cannot_be_synced(tmp_path: Path) -> None:
    """Under the one name lies the old or the new checkpoint, each of them whole."""
    with saver_for(Training(), tmp_path) as saver:
        saved(saver)
        with injected(FSYNC_FAILS, path=tmp_path):
            saver.epoch_end()
            fails(saver, r"step=1\.ckpt was not saved", errno.EIO)
        assert names(tmp_path) == ["epoch=0-step=1.ckpt"]
        saved(saver)
        assert names(tmp_path) == ["epoch=1-step=2.ckpt"]


# Removal.


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Let nobody remove or change ``path``, root included."""
    done = subprocess.run(["chattr", "+i", path], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no immutable files here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EIO, errno.EROFS, errno.EBUSY])
def test_removal_that_fails_is_told_and_tried_again(tmp_path: Path, number: int) -> None:
    """The new checkpoint is durable, the old one stays; it is told once, and the next save removes both."""
    first = tmp_path / "epoch=0-step=1.ckpt"
    refusal = f"error={errno.errorcode[number]}"
    with saver_for(Training(), tmp_path) as saver:
        saved(saver)
        with immutable(first) if number == errno.EPERM else injected({"unlink,unlinkat": refusal}, path=first):
            saver.step()
            fails(saver, r"step=2\.ckpt is saved, but epoch=0-step=1\.ckpt could not be removed", number)
            assert names(tmp_path) == [first.name, "epoch=0-step=2.ckpt"]
            assert [record.step for record in saver.records()] == [1, 2]
        saved(saver)
        assert names(tmp_path) == ["epoch=0-step=3.ckpt"]


# Temporaries with hidden names, as where a file system has no others.


@contextlib.contextmanager
def only_hidden_names() -> Iterator[None]:
    """Let the first write find that a file without a name can be given none."""
    with injected({"linkat": "error=ENOENT:when=1"}):
        yield


@pytest.mark.parametrize("calls", ["pwrite64", "fsync", "link,linkat", "fallocate"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
def test_hidden_name_does_not_outlive_a_failure(tmp_path: Path, calls: str, error: str) -> None:
    """A failed write removes its hidden temporary; the next one succeeds."""
    directory, log = tmp_path / "run", tmp_path / "log"
    with saver_for(Training(), directory) as saver:
        with only_hidden_names():
            saved(saver)
        with injected({calls: f"error={error}", "openat": ""}, log=log):
            saver.step()
            fails(saver, r"step=2\.ckpt was not saved", getattr(errno, error))
        assert ".safepoint-" in log.read_text()
        assert names(directory) == ["epoch=0-step=1.ckpt"]
        saved(saver)
    assert names(directory) == ["epoch=0-step=3.ckpt"]


@pytest.mark.parametrize("hidden", [False, True], ids=["unnamed", "hidden"])
def test_first_error_is_the_one_that_is_told(tmp_path: Path, *, hidden: bool) -> None:
    """A disk that becomes read-only because of what happened is told of by what happened."""
    directory = tmp_path / "run"
    with saver_for(Training(), directory) as saver:
        with only_hidden_names() if hidden else contextlib.nullcontext():
            saved(saver)
        with injected({"pwrite64": "error=ENOSPC", "unlink,unlinkat": "error=EROFS"}):
            saver.step()
            fails(saver, r"step=2\.ckpt was not saved: .*No space left", errno.ENOSPC)


# What passes by itself.


@pytest.mark.parametrize("error", ["EIO", "EAGAIN", "ESTALE", "ETIMEDOUT"])
@pytest.mark.parametrize("calls", ["fsync", "link,linkat", "fallocate"])
def test_error_that_passes_is_not_told(tmp_path: Path, calls: str, error: str) -> None:
    """A transient error is retried, with a new file: training hears nothing, and the checkpoint is there."""
    with saver_for(Training(), tmp_path) as saver:
        saved(saver)
        with injected({calls: f"error={error}:when=1"}):
            saved(saver)
    assert names(tmp_path) == ["epoch=0-step=2.ckpt"]
