"""What lies in a directory under the name of a checkpoint and is none: nobody waits for it, or follows it out."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import files
import pytest
from test_doors import make

import safepoint
from safepoint import archive
from safepoint.catalog import Catalog, found_in
from safepoint.integrations import resume


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """End a test that waits."""

    def wake(*_: object) -> None:
        raise AssertionError("waited for what is no checkpoint")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Return a directory of everything that is no file, under names of checkpoints and of temporaries."""
    directory, outside = tmp_path / "run", tmp_path / "outside"
    directory.mkdir()
    outside.mkdir()
    files.write(outside / "kept.ckpt", files.manifest(run="outside"))
    for stem in ("{}.ckpt", ".safepoint-{}.tmp", "last-{}.ckpt"):
        os.mkfifo(directory / stem.format("fifo"))
        (directory / stem.format("folder")).mkdir()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(directory / stem.format("socket")))
        for name, target in {
            "zero": "/dev/zero", "null": "/dev/null", "tty": "/dev/tty", "kcore": "/proc/kcore", "kmsg": "/proc/kmsg",
            "pagemap": "/proc/self/pagemap", "mem": "/proc/self/mem", "loop": stem.format("loop"), "nothing": "nothing",
            "outside": str(outside), "folder2": "/", "pipe": stem.format("fifo"),
        }.items():  # fmt: skip
            (directory / stem.format(name)).symlink_to(target)
        if os.geteuid() == 0:
            os.mknod(directory / stem.format("device"), stat.S_IFCHR | 0o600, os.makedev(1, 5))
    return directory


def _shape(directory: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.lstat().st_ino) for path in directory.iterdir())


@pytest.mark.parametrize("command", [["ls"], ["ls", "--removed"], ["verify"]], ids=" ".join)
def test_command_line_answers_at_once(zoo: Path, command: list[str]) -> None:
    """Each thing that is no file is named, none is waited for, and nothing is changed."""
    before = _shape(zoo)
    program = str(Path(sys.executable).with_name("safepoint"))
    done = subprocess.run([program, *command, str(zoo)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (1 if command == ["verify"] else 0)
    assert "Traceback" not in done.stdout + done.stderr
    assert "fifo.ckpt: not a regular file" in done.stdout + done.stderr
    assert "kept.ckpt" not in done.stdout
    assert _shape(zoo) == before


def test_every_call_answers_at_once(zoo: Path) -> None:
    """Load, verify and restore refuse what is no file, each by an error with a name."""
    for path in sorted(zoo.glob("*.ckpt")):
        try:
            problems = safepoint.verify(path)
        except OSError:
            problems = ["cannot be read"]
        assert problems
        with pytest.raises((safepoint.CheckpointError, OSError)):
            safepoint.load(path)
    checkpointer = make(zoo, {"notes": {}})
    with pytest.raises(safepoint.RestoreError):
        checkpointer.restore()


def test_run_saves_between_what_is_no_file(zoo: Path) -> None:
    """A run in such a directory saves, and touches nothing that lies there."""
    before = _shape(zoo)
    with make(zoo, {"notes": {}}) as checkpointer:
        path = checkpointer.save()
    assert safepoint.verify(path) == []
    after = {name for name, _ in _shape(zoo)}
    assert {name for name, _ in before if not name.startswith(".safepoint-")} <= after
    assert (zoo.parent / "outside" / "kept.ckpt").exists()


def test_trainer_looks_for_the_last_among_what_is_no_file(zoo: Path) -> None:
    """``ckpt_path="last"`` finds the checkpoint there, and waits for nothing."""
    told: list[str] = []
    with pytest.raises(safepoint.RestoreError, match=r"last-fifo\.ckpt: not a regular file"):
        resume.newest_last(zoo, "last-fifo", ".ckpt", told.append)
    assert told == [f"{zoo / 'last-fifo.ckpt'} was skipped: not a regular file"]
    assert not resume.is_checkpoint(zoo / "last-fifo.ckpt")
    files.write(zoo / "last.ckpt", files.manifest())
    assert resume.newest_last(zoo, "last", ".ckpt", told.append) == zoo / "last.ckpt"


def test_another_thing_that_gets_the_name_meanwhile_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a name and its opening, the name may be given to a FIFO."""
    path = tmp_path / "a.ckpt"
    files.write(path, files.manifest())
    look = os.stat

    def late(name: object, *arguments: object, **options: object) -> os.stat_result:
        found = look(name, *arguments, **options)  # type: ignore[call-overload]
        if name == path and stat.S_ISREG(found.st_mode):
            path.unlink()
            os.mkfifo(path)
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(os, "stat", late)
    with pytest.raises(safepoint.NotACheckpointError, match="not a regular file"):
        archive.open_regular(path)


def test_directories_however_deep_are_looked_through(tmp_path: Path) -> None:
    """Folders within folders, beyond the length of a path and the depth of a call; loops are not followed."""
    files.write(tmp_path / "a.ckpt", files.manifest())
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [path.name for path in found_in(tmp_path)] == ["a.ckpt"]
    assert len(Catalog.of(tmp_path).records) == 1
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_directory_that_cannot_be_listed_shows_nothing(tmp_path: Path) -> None:
    """A folder of somebody else's in the directory is passed over."""
    files.write(tmp_path / "a.ckpt", files.manifest())
    (tmp_path / "closed").mkdir(mode=0)
    assert [path.name for path in found_in(tmp_path)] == ["a.ckpt"]
    assert found_in(tmp_path / "none") == []
