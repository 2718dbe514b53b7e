"""The command line, run as a user runs it: what it prints, its exit codes, and what it never does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from loop import Training, best_and_latest

from safepoint import Checkpointer, keep, when

AS_NOBODY_SPECIAL = (
    () if os.getuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
)
"""What takes from root that it may read everything."""


def safepoint(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint`` with its output piped."""
    command = [str(Path(sys.executable).with_name("safepoint")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a directory in which a run kept its best and its latest of four checkpoints."""
    return best_and_latest(tmp_path / "run")


def flip(path: Path, offset: int) -> None:
    """Flip a bit of the byte at ``offset``."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_ls_lists_what_is_there_and_why(run: Path) -> None:
    """``ls`` prints name, step, epoch, metrics, size, age and reason of each checkpoint, on one line when piped."""
    result = safepoint("ls", run)
    assert result.returncode == 0
    header, best, latest, summary = result.stdout.splitlines()
    assert header.split() == ["name", "step", "epoch", "metrics", "size", "age", "why", "it", "is", "kept"]
    assert best.split()[:3] == ["epoch=1-step=2.ckpt", "2", "1"]
    assert "val_loss 0.25" in best
    assert best.rstrip().endswith("best by val_loss (0.25)")
    assert latest.rstrip().endswith("the latest")
    assert summary.startswith("2 checkpoints, ")


def test_ls_tells_of_the_removed_ones(run: Path) -> None:
    """``ls --removed`` also lists those that are gone, with why they went."""
    result = safepoint("ls", "--removed", run)
    assert "removed: epoch=0-step=1.ckpt (step 1): not the best by val_loss (0.5) and not the latest" in result.stdout
    assert "removed: epoch=2-step=3.ckpt (step 3): not the best by val_loss (0.75) and not the latest" in result.stdout


def test_ls_counts_several_names_of_one_file_once(run: Path) -> None:
    """A second link adds a line, says that no policy touches it, and adds nothing to the bytes on disk."""
    before = safepoint("ls", run).stdout.splitlines()[-1].split(", ")[-1]
    (run / "mine.ckpt").hardlink_to(run / "epoch=1-step=2.ckpt")
    lines = safepoint("ls", run).stdout.splitlines()
    assert lines[-1] == f"3 checkpoints (2 files, some with several names), {before}"
    assert any(line.startswith("mine.ckpt") and "copied, renamed" in line for line in lines)


def test_ls_names_what_cannot_be_read(run: Path) -> None:
    """A file that is no whole checkpoint is named, with why it has no entry."""
    (run / "half.ckpt").write_bytes(b"PK\x03\x04 cut off")
    result = safepoint("ls", run)
    assert result.returncode == 0
    assert "cannot be read: half.ckpt: no whole zip archive" in result.stdout


def test_ls_of_an_empty_directory_says_so(tmp_path: Path) -> None:
    """A directory without checkpoints is no error."""
    result = safepoint("ls", tmp_path)
    assert (result.returncode, result.stdout) == (0, "no checkpoints\n")


def test_ls_of_what_is_not_there_or_no_checkpoint_fails_in_one_line(run: Path) -> None:
    """A missing path and another file are answered in one line on standard error, with exit code 2, no traceback."""
    (run / "notes.txt").write_text("mine")
    for path, message in ((run / "nope", "no such file"), (run / "notes.txt", "notes.txt")):
        result = safepoint("ls", path)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("colour", [True, False])
def test_ls_fits_into_the_terminal(run: Path, *, colour: bool) -> None:
    """On a terminal the lines are folded to its width, and the heading is bold unless the user wants no styles."""
    theirs, ours = os.openpty()
    termios.tcsetwinsize(ours, (24, 60))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    if not colour:
        environment["NO_COLOR"] = "1"
    command = [str(Path(sys.executable).with_name("safepoint")), "ls", str(run)]
    with open(theirs, "rb", buffering=0) as terminal:
        subprocess.run(command, stdout=ours, stdin=ours, env=environment, check=True)
        os.close(ours)
        text = terminal.read(1 << 16).decode()
    lines = text.splitlines()
    assert lines[0].startswith("\x1b[1m") == colour
    assert ("\x1b" in text) == colour
    assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= 60 for line in lines[:-1])
    assert "best by" in text


def test_names_from_files_cannot_command_the_terminal(run: Path) -> None:
    """Escape codes in a metric's name are printed as text."""
    training = Training()
    directory = run.parent / "hostile"
    with Checkpointer(directory, state=training.state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.step(**{"\x1b[31mloss[bold]": 1.0})
    result = safepoint("ls", directory)
    assert "\x1b" not in result.stdout
    assert "\\x1b[31mloss[bold] 1" in result.stdout


def test_verify_says_what_is_sound(run: Path) -> None:
    """``verify`` of sound checkpoints, of a file or of a directory, ends with 0."""
    result = safepoint("verify", run)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "all 2 sound"
    result = safepoint("verify", run / "epoch=1-step=2.ckpt")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "OK")


def test_verify_names_the_damage(run: Path) -> None:
    """``verify`` names the damaged tensor, goes on with the other files, and ends with 1."""
    path = run / "epoch=1-step=2.ckpt"
    flip(path, path.read_bytes().find(b"archive/data/0") + 4096)
    result = safepoint("verify", run)
    assert result.returncode == 1
    assert f"{path}: tensor 'model.0.weight' does not match its digest" in result.stdout
    assert "epoch=3-step=4.ckpt: sound" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 of 2 not sound"


def test_verify_of_nothing_fails(tmp_path: Path) -> None:
    """A path that is not there and a directory without checkpoints end with 2."""
    assert safepoint("verify", tmp_path / "nope").returncode == 2
    result = safepoint("verify", tmp_path)
    assert result.returncode == 2
    assert "holds no checkpoint" in result.stderr


def test_missing_libraries_are_named(tmp_path: Path) -> None:
    """Without typer and rich the command says what to install, and nothing else breaks."""
    blocked = "import sys; sys.modules['typer'] = None; import importlib.util as u; f = u.find_spec\n"
    blocked += "u.find_spec = lambda name, *a: None if name == 'typer' else f(name, *a)\n"
    blocked += "from safepoint.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install 'safepoint[cli]'" in result.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
@pytest.mark.parametrize("command", ["ls RUN", "prune RUN --keep latest:1"])
def test_closed_streams_are_as_if_they_led_to_nothing(run: Path, command: str, closed: str) -> None:
    """Cron and daemons close them: nothing is printed there, and nothing else is different."""
    program = Path(sys.executable).with_name("safepoint")
    shell = f"exec {program} {command.replace('RUN', str(run))} {closed}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == (2 if command.startswith("prune") else 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["explain", "pin", "show", "verify", "scan", "export --to torch", "ls", "diff", "latest", "prune --keep all"],
)
def test_what_may_not_be_read_is_told_in_one_line(run: Path, command: str) -> None:
    """With what is wrong, like all else that cannot be looked at."""
    path = run if command in ("latest", "prune --keep all") else run / "epoch=1-step=2.ckpt"
    paths = [path, path] if command == "diff" else [path]
    path.chmod(0)
    try:
        done = subprocess.run(
            [*AS_NOBODY_SPECIAL, Path(sys.executable).with_name("safepoint"), *command.split(), *paths],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.chmod(0o700)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"safepoint: .*Permission denied\.?\n", done.stderr)
