"""What the benchmarks ask of whatever saves."""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from contender import Contender
from saves import window
from states import Training


class Short(Contender):
    """Writes a few bytes, whatever the state is."""

    def start(self, path: Path) -> None:
        """Write five bytes."""
        path.write_bytes(b"short")


class Failing(Contender):
    """Fails in the background."""

    def start(self, path: Path) -> Future[object]:
        """Read what is not there."""
        with ThreadPoolExecutor() as pool:
            return pool.submit(path.read_bytes)


@pytest.fixture(scope="module")
def training() -> Training:
    """Return a training of a few kilobytes."""
    return Training(1, width=8, batch=2)


def test_window_refuses_an_empty_write(training: Training, tmp_path: Path) -> None:
    """A contender whose files are smaller than the state has saved something else."""
    with pytest.raises(AssertionError, match="5 bytes were written"):
        window(training, Short(tmp_path / "short"))


def test_window_raises_what_failed_in_the_background(training: Training, tmp_path: Path) -> None:
    """A save that fails after its call has returned is no fast save."""
    with pytest.raises(FileNotFoundError):
        window(training, Failing(tmp_path / "failing"))
