"""A run that is alive in one process cannot be gone on with in another: who finds it out, when, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loop import Training, equal
from other_process import Start

import safepoint
from safepoint import Checkpointer, RunAliveError, claim, keep, when
from safepoint.cli.ls import ls
from safepoint.stores import lease
from safepoint.stores.local import LocalStore

ALONE = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def checkpointer(directory: Path, training: Training) -> Checkpointer:
    """Return what saves at each step, and keeps two."""
    return Checkpointer(directory, state=training.state, save=when.every(steps=1), keep=keep.latest(2))


def test_restore_refuses_a_run_that_another_process_saves(tmp_path: Path, start: Start, impatient: None) -> None:
    """The error names the file and the process; no live object has changed, and no file."""
    other = start(tmp_path)
    other.ask("step")
    held = other.ask("step")
    training = Training(seed=3)
    before, listing = training.weights(), sorted(os.listdir(tmp_path))
    with checkpointer(tmp_path, training) as ours, pytest.raises(RunAliveError) as caught:
        ours.restore()
    assert held in str(caught.value)
    assert f"held by process {other.pid}:" in str(caught.value)
    assert "End that process" in str(caught.value)
    assert equal(training.weights(), before)
    assert sorted(os.listdir(tmp_path)) == listing
    assert other.ask("step").endswith("step=3.ckpt")


def test_restore_refuses_a_run_that_another_process_has_restored(tmp_path: Path, start: Start, impatient: None) -> None:
    """A run is alive from its restoration on, before it saves anything."""
    with checkpointer(tmp_path, Training()) as ours:
        ours.save()
    other = start(tmp_path)
    assert other.ask("restore") == "0"
    with checkpointer(tmp_path, Training()) as ours, pytest.raises(RunAliveError):
        ours.restore()


def test_restore_goes_on_once_the_run_is_closed(tmp_path: Path, start: Start, impatient: None) -> None:
    """A process that has closed its run and lives on is in nobody's way."""
    other = start(tmp_path)
    other.ask("step")
    other.ask("close")
    with checkpointer(tmp_path, Training()) as ours:
        assert ours.restore().step == 1


@pytest.mark.parametrize("child", ["fork", "start"])
def test_restore_goes_on_after_a_kill_that_leaves_children(
    tmp_path: Path, start: Start, impatient: None, child: str
) -> None:
    """A killed run is dead at once, whatever it had forked or started."""
    other = start(tmp_path)
    other.ask("step")
    pid = int(other.ask(child))
    other.kill()
    os.kill(pid, 0)
    with checkpointer(tmp_path, Training()) as ours:
        assert ours.restore().step == 1


@pytest.mark.parametrize("moment", ["opened", "locked"])
def test_restore_goes_on_after_a_fork_in_the_middle_of_a_write(tmp_path: Path, moment: str) -> None:
    """Children that are forked at whatever moment of a write do not hold the file, nor hold the write up."""
    script = Path(__file__).parent / "scripts" / "forking.py"
    command = [sys.executable, script, tmp_path, moment]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("True True []\n", "")


def test_restore_waits_for_the_last_checkpoint_of_a_process_that_ends(tmp_path: Path, start: Start) -> None:
    """A run that saves once more and ends while it is waited for is gone on with from what it saved then."""
    other = start(tmp_path)
    other.ask("step")
    assert other.ask("linger") == "lingering"
    with checkpointer(tmp_path, Training()) as ours:
        assert ours.restore().step == 2


def test_restore_goes_to_one_of_those_that_ask_at_once(tmp_path: Path, start: Start) -> None:
    """Of several processes that restore at the same moment, one goes on, and the others learn of it."""
    with checkpointer(tmp_path, Training()) as ours:
        ours.save()
    others = [start(tmp_path) for _ in range(4)]
    for other in others:
        other.send("restore")
    answers = [other.answer() for other in others]
    assert answers.count("0") == 1, answers
    assert sum(answer.startswith("alive: ") for answer in answers) == 3, answers


def test_restore_looks_again_when_it_has_the_newest(
    tmp_path: Path, start: Start, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A living run that saves between the look at the directory and the claim is found all the same."""
    other = start(tmp_path)
    other.ask("step")
    read = claim.Catalog.of

    def slow(*arguments: object, **options: bool) -> claim.Catalog:
        catalog = read(*arguments, **options)  # type: ignore[arg-type]
        other.ask("step")
        return catalog

    monkeypatch.setattr(claim.Catalog, "of", slow)
    with checkpointer(tmp_path, Training()) as ours, pytest.raises(RunAliveError):
        ours.restore()


def test_restore_in_one_process_does_not_find_itself(tmp_path: Path, impatient: None) -> None:
    """A second checkpointer of a process, as in a notebook, goes on with a first one that was never closed."""
    first = checkpointer(tmp_path, Training())
    first.save()
    first.wait()
    second = checkpointer(tmp_path, Training())
    assert second.restore().path == first.latest().path  # type: ignore[union-attr]
    first.close()
    second.close()


def test_restore_keeps_the_lock_of_a_first_checkpointer_that_closes(tmp_path: Path, start: Start) -> None:
    """Where two of one process share the lock, the run is alive until both have let go."""
    first = checkpointer(tmp_path, Training())
    first.save()
    first.wait()
    with checkpointer(tmp_path, Training()) as second:
        second.restore()
        first.close()
        assert start(tmp_path).ask("restore").startswith("alive: ")
    assert start(tmp_path).ask("restore") == "0"


def test_fresh_run_is_told_of_a_living_one(tmp_path: Path, start: Start) -> None:
    """Who saves where another process does, without going on with its run, is warned that it is alive."""
    other = start(tmp_path)
    other.ask("step")
    with (
        checkpointer(tmp_path, Training()) as ours,
        pytest.warns(RuntimeWarning, match=f"That run is alive: .* is held by process {other.pid},"),
    ):
        ours.save()


def test_reading_is_never_refused(tmp_path: Path, start: Start) -> None:
    """What a living run has saved can be loaded, verified and listed, and its run does not notice."""
    other = start(tmp_path)
    path = Path(other.ask("step"))
    assert "model" in safepoint.load(path)
    assert safepoint.verify(path) == []
    assert "model" in torch.load(path, weights_only=False)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        ls([tmp_path])
    assert path.name in told.getvalue()
    assert other.ask("step").endswith("step=2.ckpt")


def test_restore_takes_no_answer_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file system has no locks, nobody is taken to be alive."""
    with checkpointer(tmp_path, Training()) as ours:
        ours.save()

    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)
    with checkpointer(tmp_path, Training()) as ours:
        assert ours.restore().path is not None


def test_restore_refuses_where_a_newer_checkpoint_of_another_run_is_damaged(
    tmp_path: Path, start: Start, impatient: None
) -> None:
    """What is fallen back to must not be alive, either: the run of each candidate is asked for."""
    other = start(tmp_path)
    other.ask("step")
    with checkpointer(tmp_path / "elsewhere", Training()) as ours:
        damaged = ours.save().name
    damaged_path = (tmp_path / "elsewhere" / damaged).rename(tmp_path / "newer.ckpt")
    with damaged_path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"damage")
    with (
        checkpointer(tmp_path, Training()) as ours,
        pytest.warns(RuntimeWarning, match="was skipped"),
        pytest.raises(RunAliveError),
    ):
        ours.restore()


def test_claim_is_refused_where_another_file_has_taken_the_name(tmp_path: Path) -> None:
    """What is locked is the file that has the name, and not one that had it a moment before."""
    path, newer = tmp_path / "a.ckpt", tmp_path / "newer.ckpt"
    path.write_bytes(b"old")
    newer.write_bytes(b"new")

    class Late(lease.Held):
        def lock(self, operation: int = fcntl.LOCK_EX) -> bool:
            newer.replace(path)
            return super().lock(operation)

    ours = lease.Lease()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "Held", Late)
        assert not ours.claim(path)
    assert ours.claim(path)


def test_removed_checkpoint_keeps_no_room(tmp_path: Path) -> None:
    """What a run removes is gone for good, though it held it."""
    store = LocalStore(tmp_path)
    store.write("a.ckpt", [b"data"], 4, replace=False)
    assert lease.is_held_here(tmp_path / "a.ckpt")
    store.remove("a.ckpt")
    assert not [name for name in _open_files() if name.startswith(str(tmp_path))]


def _open_files() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            yield os.readlink(f"/proc/self/fd/{name}")


def test_claim_removes_the_names_that_a_dead_run_was_giving(tmp_path: Path) -> None:
    """A hidden link that a killed run left of its newest checkpoint goes, though the next run holds that file now."""
    with checkpointer(tmp_path, Training()) as ours:
        path = ours.save()
    os.link(path, tmp_path / ".safepoint-left.tmp")
    with checkpointer(tmp_path, Training()) as ours:
        ours.restore()
        assert os.listdir(tmp_path) == [path.name]


def test_ranks_restore_as_one_run(tmp_path: Path, start: Start, impatient: None) -> None:
    """Of the processes of one group only the first holds the run; the others restore beside it, and a third cannot."""
    with checkpointer(tmp_path / "run", Training()) as ours:
        path = ours.save()
    ranks = [start(tmp_path / "run", tmp_path / "meeting point", rank, script="ranks.py") for rank in (0, 1)]
    assert [rank.answer() for rank in ranks] == [f"restored {path}"] * 2
    with checkpointer(tmp_path / "run", Training()) as ours, pytest.raises(RunAliveError) as caught:
        ours.restore()
    assert f"process {ranks[0].pid}" in str(caught.value)
