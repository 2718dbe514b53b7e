"""What a file is called, and what it says, in messages: readable, in one line, and nothing that a terminal obeys."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import files
import forge
import pytest
import torch
from forge import called, mapped, state, text
from models import FRAMEWORKS, Framework
from nets import flip, save
from test_doors import make

import safepoint
from safepoint import errors
from safepoint.errors import SafepointError, in_line, plain, shortened, warn
from safepoint.manifest import Blob, Tensor

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\u200b\r\b\udc80"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066\u200b\r\x08\udc80"


def test_plain_text_keeps_what_can_be_read() -> None:
    """Letters of every language, signs and lines stay; what commands a terminal is written out."""
    honest = "Über/模型/модель-λ=0.5 é é\n  second line"
    assert plain(honest) == honest
    assert plain(EVIL) == SHOWN
    assert in_line("a\nb\x1b") == r"a\nb\x1b"
    assert len(plain("x" * 10**6)) < 200_000
    assert shortened("x" * 501) == "x" * 500 + "..."
    assert shortened("short") == "short"


@pytest.mark.parametrize(
    "kind", [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, SafepointError)]
)
def test_every_error_and_its_notes_are_plain(kind: type[SafepointError]) -> None:
    """The root of the error tree sees to it, whoever raises."""
    error = kind(EVIL, EVIL, [EVIL], EVIL) if kind is safepoint.MissingMetricError else kind(f"{EVIL}\n  more")
    error.add_note(EVIL)
    assert "\x1b" not in str(error) + "".join(error.__notes__)
    assert r"\x1b" in str(error)
    assert error.__notes__ == [SHOWN]


def test_every_warning_is_plain() -> None:
    """One function warns."""
    with pytest.warns(RuntimeWarning) as told:
        warn(EVIL, stacklevel=1)
    assert str(told[0].message) == SHOWN
    assert told[0].filename == __file__


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_what_the_trainers_callback_says_is_plain(framework: Framework, caplog: pytest.LogCaptureFixture) -> None:
    """Through the framework's own functions, too."""
    says = framework.ModelCheckpoint.framework
    with pytest.warns(UserWarning, match="owned") as told:
        says.warn(EVIL)
    assert str(told[0].message) == SHOWN
    with caplog.at_level(logging.INFO):
        says.info(EVIL)
    assert all("\x1b" not in record.getMessage() for record in caplog.records)


def test_names_in_a_damaged_file_are_told_plainly(tmp_path: Path) -> None:
    """Paths of tensors, and the file's own name, in what load and restore say."""
    path = save(tmp_path, {"notes": {"a\x1b[31m": torch.ones(3)}}).rename(tmp_path / "evil\x1b[2J\n.ckpt")
    flip(path, "notes.a\x1b[31m")
    for door in (safepoint.load, lambda _: make(tmp_path, {"notes": {}}).restore()):
        with pytest.raises(SafepointError) as raised:
            door(path)
        assert "\x1b" not in str(raised.value)
        assert r"\x1b[31m" in str(raised.value)


def test_entries_of_a_foreign_state_are_listed_plainly(tmp_path: Path) -> None:
    """A name with a line of its own does not pass for a line of ours."""
    pickled, storages = forge.parts({"x\n  model: fits\x1b[0m": {}})
    forge.write(tmp_path / "a.ckpt", pickled, storages)
    with pytest.raises(safepoint.StateMismatchError) as raised:
        make(tmp_path, {"notes": {}}).restore()
    assert r"x\n  model: fits\x1b[0m" in str(raised.value)


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_name_that_the_unpickler_refuses_is_told_plainly(tmp_path: Path, framework: Framework) -> None:
    """Torch repeats the name of a class; ours and the framework's users see it without its codes."""
    pickled = state(mapped((text("a"), called("os.sys\x1b[2Jtem"))))
    path = forge.write(tmp_path / "a.ckpt", pickled)
    with pytest.raises(safepoint.CheckpointError, match=r"os\.sys\\x1b"):
        safepoint.load(path)
    strategy = SimpleNamespace(checkpoint_io=framework.pl.plugins.io.TorchCheckpointIO())
    framework.ModelCheckpoint.framework.intercept(strategy)
    with pytest.raises(Exception, match=r"os\.sys\\x1b"):
        strategy.checkpoint_io.load_checkpoint(path)


def test_command_line_shows_every_name_in_one_line(tmp_path: Path) -> None:
    """Run, reasons, metrics, names of files, problems: of all of them nothing reaches the terminal as a code."""
    evil = EVIL[:-1] + "\n"
    files.write(tmp_path / "a\x1b[31m\n.ckpt", files.manifest(metrics={evil: 1.0}, run=evil, reasons=(evil,)))
    wrong = files.manifest(storages=(Blob(0, "0" * 32),), tensors=(Tensor(evil, evil, (0,), 0),))
    files.write(tmp_path / "b.ckpt", wrong, (0,))
    told = files.manifest(history=(files.told("b.ckpt", 1), files.told("gone\x1b.ckpt", 1)), time=2e9)
    files.write(tmp_path / "b.ckpt", told)
    (tmp_path / "not\x1b[2J.ckpt").write_text("no")
    (tmp_path / os.fsdecode(b"bytes\xff.ckpt")).write_text("no")
    (tmp_path / "Über 模型.ckpt").write_text("no")
    program = str(Path(sys.executable).with_name("safepoint"))
    for command in (["ls"], ["ls", "--removed"], ["verify"]):
        done = subprocess.run([program, *command, tmp_path], capture_output=True, check=False, timeout=60)
        output = (done.stdout + done.stderr).decode()
        assert "Traceback" not in output
        assert output.replace("\n", "").isprintable()
        assert "Über 模型.ckpt" in output
        assert r"bytes\udcff.ckpt" in output


def test_command_line_writes_out_letters_that_the_terminal_lacks(tmp_path: Path) -> None:
    """It ends with a table, and not with a UnicodeEncodeError."""
    files.write(tmp_path / "模型.ckpt", files.manifest())
    program = str(Path(sys.executable).with_name("safepoint"))
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([program, "ls", tmp_path], capture_output=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0
    assert rb"\u6a21\u578b.ckpt" in done.stdout
