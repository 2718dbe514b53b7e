"""Two runs in one directory: every checkpoint that either was told of stays whole, and none removes the other's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from invariants import whole_checkpoints
from loop import Training
from other_process import Start

import safepoint
from safepoint import Checkpointer, SaveError, keep, when
from safepoint.reader import read_manifest

STEPS = 300
OTHERS = pytest.mark.filterwarnings("ignore:.* holds .* checkpoints of another run:RuntimeWarning")


def checkpointer(directory: Path, *, filename: str = "{epoch}-{step}", kept: int = 1) -> Checkpointer:
    """Return what saves when it is told to."""
    return Checkpointer(
        directory, state=Training().state, save=when.train_end(), keep=keep.latest(kept), filename=filename
    )


def test_two_processes_in_lockstep_lose_nothing(tmp_path: Path, start: Start) -> None:
    """Two runs that choose the same names at the same time: what either was told is durable is there, whole and its."""
    others = [start(tmp_path, STEPS, own, script="lockstep.py") for own in (1, 2)]
    for other in others:
        other.send("go")
    saved: dict[int, list[Path]] = {}
    for own, other in enumerate(others, start=1):
        lines = iter(other.answer, "")
        paths = saved[own] = []
        for line in lines:
            if line.startswith("failed"):
                assert len(paths) + int(line.split()[1]) == STEPS
                break
            paths.append(Path(line))
    assert len(saved[1]) + len(saved[2]) > STEPS, "they were hardly ever at it together"
    assert sorted(saved[1] + saved[2]) == whole_checkpoints(tmp_path)
    for own, paths in saved.items():
        assert len({read_manifest(path).run for path in paths}) == 1
        assert all(safepoint.load(path)["model"]["weight"].eq(own).all() for path in paths)


def test_two_processes_that_keep_one_each_remove_their_own(tmp_path: Path, start: Start) -> None:
    """Retention of one run leaves everything of another run alone; a name that is taken gets a version."""
    one, two = start(tmp_path), start(tmp_path)
    for step in range(1, 7):
        assert one.ask("step").endswith(f"step={step}.ckpt")
        assert two.ask("step").endswith(f"step={step}-v1.ckpt")
    left = whole_checkpoints(tmp_path)
    runs = [read_manifest(path).run for path in left]
    assert len(left) == 4
    assert sorted(runs.count(run) for run in set(runs)) == [2, 2]
    assert {read_manifest(path).step for path in left} == {5, 6}


def _made_by_another_run(path: Path) -> Path:
    with checkpointer(path.parent / "elsewhere") as other:
        made = other.save()
    path.unlink()
    return made


def _by_another_run(path: Path) -> None:
    _made_by_another_run(path).rename(path)


def _by_a_foreign_file(path: Path) -> None:
    path.write_bytes(b"somebody's")


def _by_a_symbolic_link(path: Path) -> None:
    path.symlink_to(_made_by_another_run(path))


def _by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "precious").touch()


REPLACED = pytest.mark.parametrize(
    "put", [_by_another_run, _by_a_foreign_file, _by_a_symbolic_link, _by_a_directory], ids=lambda put: put.__name__[4:]
)


def _seen(path: Path) -> object:
    return sorted(path.iterdir()) if path.is_dir() else path.read_bytes()


@REPLACED
def test_removal_leaves_what_has_come_in_the_place_of_a_checkpoint(
    tmp_path: Path, put: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """What bears the name of a checkpoint that is let go, but is another's, stays as it is; that is told."""
    with checkpointer(tmp_path) as ours:
        ours.step()
        first = ours.save()
        ours.wait()
        put(first)
        before = _seen(first)
        ours.step()
        ours.save()
    assert _seen(first) == before
    assert "is not what this run saved under that name" in caplog.text


@REPLACED
def test_superseding_save_leaves_what_has_come_in_the_place_of_a_checkpoint(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    """A second save at a step takes the first one's name only from the first one: what has it else stays, untouched."""
    with checkpointer(tmp_path) as ours:
        ours.step()
        first = ours.save()
        ours.wait()
        put(first)
        before = _seen(first)
        assert ours.save() == first
        with pytest.raises(SaveError, match="another run, or somebody, has put a file there"):
            ours.wait()
        assert _seen(first) == before


def test_superseding_save_takes_a_name_that_is_free_by_now(tmp_path: Path) -> None:
    """A second save at a step gets its name, too, if somebody has removed the first one."""
    with checkpointer(tmp_path) as ours:
        ours.step()
        first = ours.save()
        ours.wait()
        first.unlink()
        with pytest.warns(RuntimeWarning, match="cannot be found"):
            assert ours.save() == first
    assert whole_checkpoints(tmp_path) == [first]


@OTHERS
def test_run_never_removes_what_it_was_not_restored_from(tmp_path: Path) -> None:
    """A fresh run keeps one checkpoint of its own, and all of an earlier run's."""
    with checkpointer(tmp_path, kept=9) as earlier:
        for _ in range(3):
            earlier.step()
            earlier.save()
    before = set(whole_checkpoints(tmp_path))
    with checkpointer(tmp_path) as ours:
        for _ in range(3):
            ours.step()
            ours.save()
    assert before < set(whole_checkpoints(tmp_path))
    assert len(whole_checkpoints(tmp_path)) == 4


def test_run_never_removes_the_checkpoint_that_it_was_resumed_from(tmp_path: Path) -> None:
    """The one that was restored stays under ``keep.latest(1)``; older ones of that run go, as its policy says."""
    with checkpointer(tmp_path, kept=9) as earlier:
        for _ in range(3):
            earlier.step()
            earlier.save()
    with checkpointer(tmp_path) as ours:
        resumed = ours.restore().path
        for _ in range(2):
            ours.step()
            last = ours.save()
    assert whole_checkpoints(tmp_path) == sorted([resumed, last])  # type: ignore[type-var]


def test_run_never_removes_copies_of_its_checkpoints(tmp_path: Path) -> None:
    """A copy that somebody made under another name is theirs, though it says that the run wrote it."""
    with checkpointer(tmp_path) as earlier:
        path = earlier.save()
    copy = Path(shutil.copy(path, tmp_path / "mine.ckpt"))
    with checkpointer(tmp_path) as ours:
        ours.restore()
        for _ in range(2):
            ours.step()
            ours.save()
    assert copy in whole_checkpoints(tmp_path)
