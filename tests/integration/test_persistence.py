"""What a save does about a disk that has a moment of weakness, lies, or fills up: through the public interface."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import file_systems
import pytest
import torch
from invariants import temporaries, whole_checkpoints
from loop import Training

import safepoint
from safepoint import Checkpointer, keep, sealing, staging, when, writer
from safepoint.staging import StagedLive
from safepoint.stores import Chunk
from safepoint.stores.disk import Disk
from safepoint.stores.local import LocalStore

EVERY_STEP: dict[str, Any] = {"save": when.every(steps=1), "keep": keep.latest(2)}
MIB = 1 << 20


class Weak(Disk):
    """A disk whose ``step`` fails ``times`` times with ``code``; ``steps`` tells of files that are made and synced."""

    def __init__(self, step: str, times: int, code: int = errno.EIO) -> None:
        self.step, self.left, self.code = step, times, code
        self.steps: list[str] = []

    def strike(self, step: str) -> None:
        """Fail, if it is the turn of this step."""
        if step == self.step and self.left:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code))

    def create_unnamed(self, directory: Path) -> int:
        """Refuse, so that each attempt is seen in ``create``."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def create(self, path: Path) -> int:
        """Note it."""
        self.steps.append("create")
        return super().create(path)

    def write(self, descriptor: int, chunks: Iterable[Chunk], share: Callable[..., int]) -> int:
        """Write everything, then fail."""
        written = super().write(descriptor, chunks, share)
        self.strike("write")
        return written

    def sync(self, descriptor: int) -> None:
        """Fail before anything is durable."""
        self.steps.append("sync")
        self.strike("sync")
        super().sync(descriptor)

    def link(self, source: Path | int, name: Path) -> None:
        """Fail before there is a name."""
        self.strike("link")
        super().link(source, name)

    def sync_directory(self, directory: Path) -> None:
        """Fail before the name is durable."""
        if "sync" in self.steps:
            self.strike("sync_directory")
        super().sync_directory(directory)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    """Return what lets every run that begins use a disk, and try again without a pause."""

    def use(disk: Disk) -> None:
        monkeypatch.setattr("safepoint.pipeline.LocalStore", lambda directory: LocalStore(directory, disk))
        monkeypatch.setattr(writer, "RETRY_AFTER_S", (0.0, 0.0, 0.0))

    return use


@pytest.mark.parametrize("step", ["write", "sync", "link", "sync_directory"])
@pytest.mark.parametrize("options", [{}, {"staging": "deferred"}, {"max_host_bytes": 1}, {"verify_after_write": True}])
@pytest.mark.filterwarnings("ignore:checkpoints of:RuntimeWarning")
def test_moment_of_weakness_costs_no_checkpoint(
    tmp_path: Path,
    on_disk: Callable[[Disk], None],
    caplog: pytest.LogCaptureFixture,
    step: str,
    options: dict[str, Any],
) -> None:
    """Three errors that pass are survived: another file is written each time, and none is synced a second time."""
    disk = Weak(step, 3)
    on_disk(disk)
    training = Training()
    with (
        caplog.at_level(logging.WARNING, "safepoint"),
        Checkpointer(tmp_path, state=training.state, **EVERY_STEP, **options) as saver,
    ):
        saver.step(loss=training.advance())
        saver.wait()
    assert len([record for record in caplog.records if "trying again in" in record.message]) == 3
    (path,) = whole_checkpoints(tmp_path)
    assert temporaries(tmp_path) == []
    assert disk.left == 0
    assert disk.steps == ["create", "sync"] * 4 if step != "write" else ["create"] * 4 + ["sync"]
    assert torch.equal(safepoint.load(path)["model"]["0.weight"], training.model[0].weight)


def test_weakness_that_does_not_pass_is_the_error_that_comes_out(
    tmp_path: Path, on_disk: Callable[[Disk], None]
) -> None:
    """After the last attempt the error is told as any other, and nothing is left."""
    disk = Weak("sync", 4)
    on_disk(disk)
    training = Training()
    with Checkpointer(tmp_path, state=training.state, **EVERY_STEP) as saver:
        saver.step(loss=training.advance())
        with pytest.raises(safepoint.SaveError, match="Input/output error"):
            saver.wait()
        assert os.listdir(tmp_path) == []
        saver.step(loss=training.advance())
    assert len(whole_checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_what_does_not_pass_by_itself_is_not_tried_again(
    tmp_path: Path, on_disk: Callable[[Disk], None], code: int
) -> None:
    """A full disk, or one that may not be written to, is told at once."""
    disk = Weak("sync", 1, code)
    on_disk(disk)
    training = Training()
    with Checkpointer(tmp_path, state=training.state, **EVERY_STEP) as saver:
        saver.step(loss=training.advance())
        with pytest.raises(safepoint.SaveError) as caught:
            saver.wait()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == code
    assert disk.steps == ["create", "sync"]


def test_frozen_parameter_is_not_seen_once_more_by_a_second_attempt(
    tmp_path: Path, on_disk: Callable[[Disk], None]
) -> None:
    """A digest counts for a checkpoint, not for an attempt at one: what is left uncopied has been seen twice."""
    on_disk(Weak("sync", 2))
    model = torch.nn.Linear(300, 300).requires_grad_(False)  # noqa: FBT003 - torch's own way
    with Checkpointer(tmp_path, state={"model": model}, **EVERY_STEP) as saver:
        saver.save()
        saver.wait()
        (image,) = saver._run.pipeline._pool._free
        assert {sighting.times for sighting in image.held.values()} == {1}


def test_streamed_state_is_streamed_from_its_beginning_again(
    tmp_path: Path, on_disk: Callable[[Disk], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes through the ring is taken from the live tensors anew, all of it."""
    on_disk(Weak("write", 1))
    starts: list[int] = []
    slab = StagedLive.slab

    def noted(staged: StagedLive, start: int, end: int) -> memoryview:
        starts.append(start)
        return slab(staged, start, end)

    monkeypatch.setattr(StagedLive, "slab", noted)
    monkeypatch.setattr(sealing, "SLAB_BYTES", 12288)
    monkeypatch.setattr(staging, "RING_BYTES", 3 * 12288)
    state = {"a": {"x": torch.arange(20_000, dtype=torch.float32)}, "b": {"y": torch.ones(20_000)}}
    with (
        pytest.warns(RuntimeWarning, match="do not fit into the host memory"),
        Checkpointer(tmp_path, state=state, max_host_bytes=1, **EVERY_STEP) as saver,
    ):
        path = saver.save()
    assert starts.count(0) == 2
    assert torch.equal(safepoint.load(path)["a"]["x"], state["a"]["x"])


# Reading back.


class Lying(Disk):
    """A disk that has another byte than it was given, in the first ``files`` files."""

    def __init__(self, files: int) -> None:
        self.files = files

    def sync(self, descriptor: int) -> None:
        """Say that all is well."""
        super().sync(descriptor)
        if self.files:
            self.files -= 1
            at = os.fstat(descriptor).st_size // 2
            (byte,) = os.pread(descriptor, 1, at)
            with open(f"/proc/self/fd/{descriptor}", "r+b") as file:
                file.seek(at)
                file.write(bytes((byte ^ 1,)))


def test_verify_after_write_writes_anew_what_the_disk_has_not(tmp_path: Path, on_disk: Callable[[Disk], None]) -> None:
    """A file that does not read back as it was written never gets its name; the next one does."""
    on_disk(Lying(2))
    training = Training(width=300)
    with Checkpointer(tmp_path, state=training.state, verify_after_write=True, **EVERY_STEP) as saver:
        saver.step(loss=training.advance())
    assert len(whole_checkpoints(tmp_path)) == 1


def test_verify_after_write_names_what_the_disk_has_not(tmp_path: Path, on_disk: Callable[[Disk], None]) -> None:
    """Where no attempt reads back, the error says which tensor was not what was written."""
    on_disk(Lying(4))
    training = Training(width=300)
    with Checkpointer(tmp_path, state=training.state, verify_after_write=True, **EVERY_STEP) as saver:
        saver.step(loss=training.advance())
        with pytest.raises(
            safepoint.SaveError, match=r"read back from the disk, it is not what was written \(tensor '"
        ):
            saver.wait()
    assert os.listdir(tmp_path) == []


def test_without_verify_after_write_a_lying_disk_is_found_out_when_reading(
    tmp_path: Path, on_disk: Callable[[Disk], None]
) -> None:
    """Why there is the option: the save itself does not read."""
    on_disk(Lying(1))
    training = Training(width=300)
    with Checkpointer(tmp_path, state=training.state, **EVERY_STEP) as saver:
        saver.step(loss=training.advance())
        saver.wait()
        assert safepoint.verify(saver.records()[0].path) != []


# Room.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterable[Path]:
    """Return a directory on a disk of 16 MiB."""
    with file_systems.mounted("tmpfs", tmp_path, options="size=16m") as place:
        yield place / "run"


def test_room_that_will_not_suffice_is_told_at_the_first_step(small_disk: Path) -> None:
    """Before anything is saved: two are kept and a third is there while it is written, which is too much here."""
    state = {"a": {"x": torch.zeros(6 * MIB // 4)}}
    with Checkpointer(small_disk, state=state, save=when.every(steps=100), keep=keep.latest(2)) as saver:
        with pytest.warns(RuntimeWarning, match=r"not enough for 2 that are kept and one while it is written \(0\.02"):
            saver.step()
        saver.step()
    assert not small_disk.exists()


def test_room_that_suffices_is_not_spoken_of(small_disk: Path) -> None:
    """Three times four fits into sixteen."""
    state = {"a": {"x": torch.zeros(3 * MIB // 4)}}
    with Checkpointer(small_disk, state=state, **EVERY_STEP) as saver:
        for _ in range(4):
            saver.step()
    assert len(whole_checkpoints(small_disk)) == 2


def test_room_that_ends_is_told_before_the_save_that_fails(small_disk: Path) -> None:
    """With nothing that bounds what is kept, the last save that fits says so, once; the next fails, with all intact."""
    state = {"a": {"x": torch.zeros(6 * MIB // 4)}}
    with Checkpointer(small_disk, state=state, save=when.every(steps=1), keep=keep.all()) as saver:
        saver.step()
        saver.wait()
        saver.step()
        with pytest.warns(RuntimeWarning, match=r"step=2\.ckpt is saved, and the next will not fit: it takes"):
            saver.wait()
        saver.step()
        with pytest.raises(safepoint.SaveError, match="No space left"):
            saver.wait()
        (small_disk / "epoch=0-step=1.ckpt").unlink()
        with pytest.warns(RuntimeWarning, match="cannot be found"):
            saver.step()
        with pytest.warns(RuntimeWarning, match="the next will not fit"):
            saver.wait()
    assert [path.name for path in whole_checkpoints(small_disk)] == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt"]
