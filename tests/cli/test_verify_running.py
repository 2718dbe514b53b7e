"""``safepoint verify`` while it works: in parallel, with a bar, and until somebody ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import COMMAND, environment, on_terminal, safepoint


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of 400 files of 16 MiB: much to read, and little on the disk, as they are holes."""
    directory = tmp_path_factory.mktemp("many")
    torch.save({"weight": torch.zeros(1 << 22)}, directory / "000.pt")
    data = (directory / "000.pt").read_bytes()
    at = data.index(bytes(1 << 24))
    for index in range(400):
        with (directory / f"{index:03}.pt").open("wb") as file:
            file.write(data[:at])
            file.seek(1 << 24, os.SEEK_CUR)
            file.write(data[at + (1 << 24) :])
    return directory


def few(many: Path) -> list[Path]:
    """Return some of the names."""
    return sorted(many.iterdir())[:24]


@pytest.mark.parametrize("jobs", [1, 5])
def test_verify_prints_in_order_however_many_are_read_at_once(many: Path, jobs: int) -> None:
    """The output is the same with any number of jobs."""
    paths = few(many)[::-1]
    lines = safepoint("verify", "--jobs", jobs, *paths).stdout.splitlines()
    assert lines == [*(f"{path}: sound: all match their CRC-32" for path in paths), "all 24 sound"]


def test_verify_draws_a_bar_on_a_terminal(many: Path) -> None:
    """The bar tells bytes, and is in the way of no line that is printed meanwhile; without colours if so asked."""
    paths = few(many)
    code, text = on_terminal("verify", *paths, columns=200, NO_COLOR="1")
    assert code == 0
    assert "verifying" in text
    assert "MB" in text
    assert "\x1b[3" not in text
    parts = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))
    assert [part for part in parts if "sound" in part] == [
        *(f"{path}: sound: all match their CRC-32" for path in paths),
        "all 24 sound",
    ]


def test_verify_draws_no_bar_into_a_pipe(many: Path) -> None:
    """Piped, there is nothing but plain lines."""
    result = safepoint("verify", *few(many), FORCE_COLOR="1")
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_verify_keeps_to_its_pipe_while_the_bar_is_drawn(many: Path) -> None:
    """With standard output piped and standard error on a terminal, each gets its own."""
    theirs, ours = os.openpty()
    command = [*COMMAND, "verify", *map(str, few(many))]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=ours, text=True, check=True, env=environment({}))
    os.close(ours)
    drawn = os.read(theirs, 1 << 20).decode()
    os.close(theirs)
    assert len(result.stdout.splitlines()) == 25
    assert "verifying" in drawn
    assert "sound" not in drawn


def test_verify_ends_at_once_when_interrupted(many: Path) -> None:
    """Ctrl-C ends it within a second or two, with the code of SIGINT and no traceback."""
    process = subprocess.Popen(
        [*COMMAND, "verify", many], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment({})
    )
    assert process.stdout is not None
    process.stdout.readline()  # it is at work
    process.send_signal(signal.SIGINT)
    since = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - since < 5
    assert (process.returncode, err) == (130, "")
    assert "all 400" not in out


def test_verify_passes_over_what_is_removed_meanwhile(many: Path, tmp_path: Path) -> None:
    """A running job removes checkpoints: one that was listed and is gone is no problem."""
    for path in few(many):
        (tmp_path / path.name).hardlink_to(path)
    process = subprocess.Popen(
        [*COMMAND, "verify", "--jobs", "1", tmp_path], stdout=subprocess.PIPE, text=True, env=environment({})
    )
    assert process.stdout is not None
    process.stdout.readline()
    (tmp_path / "023.pt").unlink()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "all 23 sound"
