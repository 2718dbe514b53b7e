"""Worker processes of data loaders, when a scheduler signals every process of a job."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from invariants import whole_checkpoints
from other_process import Other
from torch.utils.data import DataLoader

from safepoint import Checkpointer, keep, when
from safepoint.catalog import Catalog
from safepoint.workers import begun

SCRIPT = Path(__file__).parent / "scripts" / "preempted_workers.py"
TERMINATED = 128 + signal.SIGTERM

Begin = Callable[[str, Path], tuple[Other, list[int]]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a training in some way, and return it with the numbers of its workers, which are at work."""
    others: list[Other] = []

    def start(way: str, directory: Path) -> tuple[Other, list[int]]:
        others.append(Other(str(SCRIPT), way, directory))
        return others[-1], [int(pid) for pid in others[-1].answer().split()]

    yield start
    for other in others:
        other.end()


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process, other than as a zombie that nobody has asked for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def reasons(directory: Path) -> list[str]:
    """Return why each checkpoint in ``directory``, all of which must be whole, was saved."""
    whole_checkpoints(directory)
    return [reason for record in Catalog.of(directory).records for reason in record.reasons]


@pytest.mark.parametrize("way", ["plain", "persistent"])
def test_signal_to_all_processes_ends_the_run_in_good_order(tmp_path: Path, begin: Begin, way: str) -> None:
    """The workers go on to the step's end, the step is saved, and none of them is left in the end."""
    other, pids = begin(way, tmp_path)
    os.killpg(other.pid, signal.SIGTERM)
    assert other.process.wait(100) == TERMINATED
    assert reasons(tmp_path) == ["preempted: SIGTERM"]
    assert Catalog.of(tmp_path).records[0].emergency == ""
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


def test_workers_of_other_loaders_die_and_the_step_is_saved(tmp_path: Path, begin: Begin) -> None:
    """What torch does by itself: an error in the training process. The save is made on its way out all the same."""
    other, pids = begin("outside", tmp_path)
    os.killpg(other.pid, signal.SIGTERM)
    assert other.process.wait(100) in (1, TERMINATED)  # whichever comes first
    assert reasons(tmp_path) == ["preempted: SIGTERM"]
    assert not any(map(is_alive, pids))


def test_worker_that_hangs_does_not_keep_the_process(tmp_path: Path, begin: Begin) -> None:
    """At the interpreter's exit it is killed, as SIGTERM does not reach it."""
    other, pids = begin("hung", tmp_path)
    other.process.terminate()
    assert other.process.wait(100) == TERMINATED
    assert not any(map(is_alive, pids))


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path, begin: Begin) -> None:
    """They look whether it lives, every five seconds."""
    other, pids = begin("plain", tmp_path)
    other.kill()
    for _ in range(600):
        if not any(map(is_alive, pids)):
            break
        time.sleep(0.1)
    assert not any(map(is_alive, pids))


def blocked(pid: int) -> int:
    """Return the signals that a process has masked, as bits."""
    masks, status = "SigBlk:\t", Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.removeprefix(masks) for line in status if line.startswith(masks)), 16)


TERM_BIT = 1 << (signal.SIGTERM - 1)


@pytest.mark.parametrize(("method", "is_masked"), [("spawn", True), ("forkserver", False)])
def test_workers_that_are_not_forked_here(tmp_path: Path, method: str, *, is_masked: bool) -> None:
    """Those that are spawned are masked, too; those of a fork server, which serves others as well, are not."""
    loader = DataLoader(range(4), num_workers=1, multiprocessing_context=method)  # type: ignore[arg-type, var-annotated]
    state = {"model": torch.nn.Linear(1, 1), "loader": loader}
    with Checkpointer(tmp_path, state=state, save=when.preempted(), keep=keep.all()):
        iterator = iter(loader)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        assert bool(blocked(worker.pid) & TERM_BIT) is is_masked
        del iterator


def test_other_children_are_not_masked(tmp_path: Path) -> None:
    """Only the workers of a loader in ``state=`` are, and only while a run answers signals."""
    loader: DataLoader[int] = DataLoader(range(4), num_workers=1)  # type: ignore[arg-type]
    state = {"model": torch.nn.Linear(1, 1), "loader": loader}
    with Checkpointer(tmp_path, state=state, save=when.preempted(), keep=keep.all()):
        iterator = iter(loader)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        assert blocked(worker.pid) & TERM_BIT
        assert not blocked(os.getpid()) & TERM_BIT
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        assert child.pid is not None
        assert not blocked(child.pid) & TERM_BIT
        os.kill(child.pid, signal.SIGUSR1)  # ignored there: it is for the run
        time.sleep(0.2)
        assert child.is_alive()
        child.terminate()
        child.join()
        assert child.exitcode == -signal.SIGTERM
        del iterator
    iterator = begun(loader, lambda: iter(loader))
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    assert not blocked(worker.pid) & TERM_BIT
    del iterator


def test_private_names_are_there() -> None:
    """Of torch's iterator and of multiprocessing's processes, as ``workers`` uses them."""
    iterator = iter(DataLoader(range(4), num_workers=1))  # type: ignore[arg-type]
    (worker,) = iterator._workers  # type: ignore[attr-defined]
    assert callable(worker._popen.terminate)
    assert callable(worker._popen.kill)
    iterator._shutdown_workers()  # type: ignore[attr-defined]
    assert not worker.is_alive()
