"""``safepoint pin`` and ``safepoint unpin``: what they say of every kind of file, and how they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from file_systems import mounted
from loop import Training

from safepoint import Checkpointer, keep, pins, when
from safepoint.catalog import Catalog
from safepoint.cli.documents import Pin
from safepoint.errors import CheckpointError
from safepoint.pinning import set_pinned
from safepoint.places import place_of


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint`` with its output piped."""
    program = [sys.executable, "-c", "from safepoint.cli import main; main()", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.fixture
def saved(tmp_path: Path) -> list[Path]:
    """Return the paths of three checkpoints in one directory, the second one saved as pinned."""
    with Checkpointer(tmp_path / "run", state=Training().state, save=when.train_end(), keep=keep.all()) as checkpointer:
        paths = []
        for step in (1, 2, 3):
            checkpointer.step()
            paths.append(checkpointer.save(pinned=step == 2))
    return paths


def test_pin_and_unpin_say_what_they_have_done(saved: list[Path]) -> None:
    """In one line each; what is so already is no error."""
    for command, said in (
        ("pin", "is pinned: no policy removes it"),
        ("pin", "is pinned already"),
        ("unpin", "is not pinned: its run's policy decides at the next save"),
        ("unpin", "is not pinned"),
    ):
        done = run(command, saved[0])
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{saved[0]} {said}\n", "")
    assert sorted(os.listdir(saved[0].parent)) == [path.name for path in saved]


def test_unpin_lifts_what_was_saved_as_pinned(saved: list[Path]) -> None:
    """The file cannot be changed, and the list tells what counts."""
    assert run("unpin", saved[1]).returncode == 0
    assert not any(record.pinned for record in Catalog.of(saved[1].parent).records)
    assert run("pin", saved[1]).returncode == 0
    assert "pinned\n" in run("ls", saved[1].parent).stdout


def test_pin_as_json(saved: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One document, with paths as they were given."""
    monkeypatch.chdir(saved[0].parent)
    name = saved[0].name
    for command, changed in (("pin", True), ("pin", False), ("unpin", True)):
        found = msgspec.json.decode(run(command, "--json", name).stdout, type=Pin)
        assert (found.path, found.record, found.pinned, found.changed) == (name, name, command == "pin", changed)
        assert name in found.told
    shutil.copy(name, "copy.ckpt")
    found = msgspec.json.decode(run("pin", "--json", "copy.ckpt").stdout, type=Pin)
    assert (found.record, found.pinned, found.changed) == (None, False, False)


def test_copy_needs_no_pin(saved: list[Path]) -> None:
    """No policy touches what somebody has copied or renamed; a link that somebody made is the checkpoint itself."""
    copy, link = saved[0].with_name("copy.ckpt"), saved[0].with_name("link.ckpt")
    shutil.copy(saved[0], copy)
    os.link(saved[0], link)
    for command in ("pin", "unpin"):
        done = run(command, copy)
        assert (done.returncode, done.stderr) == (0, "")
        assert "no policy touches it" in done.stdout
    assert run("pin", link).stdout == f"{saved[0]} is pinned: no policy removes it ({link} is another name of it)\n"
    assert [record.path for record in Catalog.of(saved[0].parent).records if record.pinned] == saved[:2]


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _foreign(path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, path)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("command", ["pin", "unpin"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_missing, "no such file"),
        (_directory, "is a directory"),
        (_foreign, "was written by another program"),
        (_half, "no whole zip archive"),
    ],
    ids=["missing", "directory", "foreign", "half"],
)
def test_what_is_no_checkpoint_is_refused(
    saved: list[Path], command: str, spoil: Callable[[Path], None], said: str
) -> None:
    """In one line, with its path; nothing is written."""
    spoil(saved[0])
    before = sorted(os.listdir(saved[0].parent))
    done = run(command, saved[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert str(saved[0]) in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(saved[0].parent)) == before


def _read_only(directory: Path) -> Path:
    """Return a directory with the same checkpoints, which nobody can write to; skip where that cannot be had."""
    if os.geteuid():
        directory.chmod(0o555)
        return directory
    place = Path(shutil.copytree(directory, directory.parent / "mounted" / "run"))
    subprocess.run(["mount", "-o", "remount,ro", place.parent], check=True)
    return place


@pytest.mark.parametrize(("command", "number"), [("pin", 0), ("unpin", 1)])
def test_directory_that_cannot_be_written_to_is_told(saved: list[Path], command: str, number: int) -> None:
    """In one line that says what a pin is; nothing has changed."""
    with mounted("tmpfs", saved[0].parents[1]) if not os.geteuid() else contextlib.nullcontext():
        path = _read_only(saved[0].parent) / saved[number].name
        done = run(command, path)
        assert done.returncode == 2
        assert f"{path} cannot be {command}ned: " in done.stderr
        assert "make that directory writable" in done.stderr
        assert done.stderr.count("\n") == 1
        assert sorted(os.listdir(path.parent)) == [path.name for path in saved]
    saved[0].parent.chmod(0o755)


def test_checkpoint_that_goes_while_it_is_pinned_is_told(saved: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run removes it in the moment before the pin is there: nobody is told that it is kept."""
    place, put = place_of(saved[0]), pins.put

    def too_late(*arguments: object) -> None:
        saved[0].unlink()
        put(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pins, "put", too_late)
    with pytest.raises(CheckpointError, match="removed by its run in the moment before"):
        set_pinned(place, pinned=True)
    assert sorted(os.listdir(saved[0].parent)) == [path.name for path in saved[1:]]


def test_name_that_a_terminal_would_obey_is_written_out(saved: list[Path]) -> None:
    """In what is printed, and in errors."""
    path = saved[0].with_name("\x1b[2Jred.ckpt")
    saved[0].rename(path)
    assert "\x1b" not in run("pin", path).stdout
    path.write_bytes(b"")
    assert "\x1b" not in run("pin", path).stderr
