"""How a process ends whose last save has failed: with the error, in the end, and without a trace on the disk."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from invariants import temporaries, whole_checkpoints

SCRIPT = Path(__file__).parent / "scripts" / "failing.py"
LOST = "epoch=0-step=2.ckpt was not saved: [Errno 27] File too large"


@functools.cache
def ended(place: Path, staging: str, ending: str) -> tuple[int, str]:
    """Run the script, once for each way, and return its status and what it said, after a look at the directory."""
    directory = place / f"{staging}-{ending}"
    done = subprocess.run(
        [sys.executable, SCRIPT, directory, staging, ending], capture_output=True, text=True, check=False, timeout=100
    )
    assert [path.name for path in whole_checkpoints(directory)] == ["epoch=0-step=1.ckpt"]
    assert temporaries(directory) == []
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all of them save."""
    return tmp_path_factory.mktemp("endings")


WAYS = [
    ("copy", "nothing", 0),
    ("deferred", "nothing", 0),
    pytest.param("copy", "sys.exit", 3, marks=pytest.mark.torture),
    pytest.param("copy", "error", 1, marks=pytest.mark.torture),
]


def test_error_in_the_loop_comes_out_with_what_failed(place: Path) -> None:
    """An error that leaves ``with`` is the one that comes out, and the failed save is noted on it."""
    status, said = ended(place, "copy", "error in with")
    assert status == 1
    noted = "ZeroDivisionError\nWhile this error was on its way, a checkpoint failed too: "
    assert f"{noted}{place}/copy-error in with/{LOST}" in said


@pytest.mark.parametrize("ending", ["with", pytest.param("close", marks=pytest.mark.torture)])
def test_end_of_the_run_raises_what_failed(place: Path, ending: str) -> None:
    """``close`` and the end of ``with`` do not let a run that has lost its last checkpoint end as if all were well."""
    status, said = ended(place, "deferred", ending)
    assert status == 1
    assert said.count(LOST) == 1


@pytest.mark.parametrize(("staging", "ending", "status"), WAYS)
def test_interpreter_ends_with_an_error_that_nobody_asked_for(
    place: Path, staging: str, ending: str, status: int
) -> None:
    """Without ``close`` the process ends all the same, with the status that it would have had."""
    assert ended(place, staging, ending)[0] == status


@pytest.mark.parametrize(("staging", "ending", "status"), WAYS)
def test_error_that_nobody_asked_for_is_said_in_the_end(place: Path, staging: str, ending: str, status: int) -> None:
    """A job that ends without ``close`` does not lose a checkpoint in silence."""
    assert LOST in ended(place, staging, ending)[1]
