"""``safepoint prune`` and runs that are alive: it leaves them alone, and nobody goes on with what it prunes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from invariants import whole_checkpoints
from loop import Training
from other_process import Start

from safepoint import Checkpointer, keep, keep_words, prune, when
from safepoint.stores.disk import Disk

POLICY = keep_words.parsed("latest:1")
HELD = "import sys; from pathlib import Path; from safepoint.stores.lease import is_held_elsewhere as held"


def pruned(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint prune`` in a process of its own."""
    command = [sys.executable, "-c", "from safepoint.cli import main; main()", "prune", str(directory)]
    arguments = [*command, "--keep", "latest:1", *options]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def is_held(path: Path) -> bool:
    """Tell whether another process finds that the checkpoint at ``path`` is held."""
    command = [sys.executable, "-c", f"{HELD}; print(held(Path(sys.argv[1])))", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_living_run_is_not_pruned(tmp_path: Path, start: Start) -> None:
    """It says who is alive, and what to do; what would go is shown all the same; once it has ended, it is pruned."""
    other = start(tmp_path)
    for _ in range(2):
        other.ask("step")
    done = pruned(tmp_path, "--yes")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"step=2.ckpt is held by process {other.pid}: its run is alive" in done.stderr
    assert "Wait for its end" in done.stderr
    shown = pruned(tmp_path, "--dry-run")
    assert shown.returncode == 0
    assert "1 of 2 checkpoints would go" in shown.stdout
    assert "its run is alive, and is not pruned now" in shown.stdout
    assert len(whole_checkpoints(tmp_path)) == 2
    other.kill()
    assert pruned(tmp_path, "--yes").returncode == 0
    assert len(whole_checkpoints(tmp_path)) == 1


def test_run_that_begins_after_the_question_is_not_pruned(tmp_path: Path, start: Start, impatient: None) -> None:
    """It was dead when all was shown: nothing goes, and each is told."""
    other = start(tmp_path)
    for _ in range(2):
        other.ask("step")
    other.kill()
    planned = prune.plan(tmp_path, POLICY, "latest:1")
    assert planned.living == ()
    start(tmp_path).ask("restore")
    done = prune.carry_out(planned, POLICY, "latest:1")
    assert (done.removed, done.left) == ((), {})
    assert "still alive" in done.failed[planned.goes[0].record.path]
    assert len(whole_checkpoints(tmp_path)) == 2


def test_run_is_held_while_it_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever would go on with it meanwhile finds it alive; afterwards it is free."""
    saver = Checkpointer(tmp_path, state=Training().state, save=when.every(steps=1), keep=keep.all())
    with saver:
        for _ in range(3):
            saver.step()
    unlink, newest, found = Disk.unlink, tmp_path / "epoch=0-step=3.ckpt", []

    def looked_at(disk: Disk, path: Path) -> None:
        found.append(is_held(newest))
        unlink(disk, path)

    assert not is_held(newest)
    monkeypatch.setattr(Disk, "unlink", looked_at)
    done = prune.carry_out(prune.plan(tmp_path, POLICY, "latest:1"), POLICY, "latest:1")
    assert len(done.removed) == 2
    assert found == [True, True]
    assert not is_held(newest)
