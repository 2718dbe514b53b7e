"""What people do to a run's files and processes while it lives: told, and never made worse."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from invariants import whole_checkpoints
from loop import Training

from safepoint import Checkpointer, SaveError, keep, when
from safepoint.keep import PreservationPolicy
from safepoint.stores.disk import Disk

BEST_AND_LATEST = keep.best("loss", 1) | keep.latest(1)


def saver_for(directory: Path, policy: PreservationPolicy = BEST_AND_LATEST, **options: object) -> Checkpointer:
    """Return a checkpointer that saves each step."""
    settings: dict[str, object] = {"save": when.every(steps=1), **options}
    return Checkpointer(directory, state=Training().state, keep=policy, **settings)  # type: ignore[arg-type]


def saved(saver: Checkpointer, loss: float) -> None:
    """Make a step, which must become durable."""
    saver.step(loss=loss)
    saver.wait()


def names(directory: Path) -> list[str]:
    """Return what whole checkpoints there are."""
    return [path.stem for path in whole_checkpoints(directory)]


# Files that somebody else takes away.


@pytest.mark.parametrize("away", [shutil.rmtree, lambda directory: directory.rename(directory.with_name("away"))])
def test_best_of_those_that_are_there_stays_when_the_directory_has_gone(tmp_path: Path, away: object) -> None:
    """What went with the directory holds no place: one warning says how many, and the best of the rest stays."""
    directory = tmp_path / "run"
    with saver_for(directory) as saver:
        saved(saver, 1.0)
        saved(saver, 2.0)
        away(directory)  # type: ignore[operator]
        with pytest.warns(RuntimeWarning, match=r"run is not there any more, and with it 2 checkpoints") as told:
            saved(saver, 3.0)
        saved(saver, 4.0)
        saved(saver, 5.0)
        assert len(told) == 1
        assert names(directory) == ["epoch=0-step=3", "epoch=0-step=5"]
        best = saver.best("loss")
        assert best is not None
        assert best.step == 3
        assert saver.explain("epoch=0-step=1.ckpt").startswith(
            "epoch=0-step=1.ckpt was removed: by hand, or by 'safepoint prune'"
        )


def test_one_checkpoint_removed_by_hand_is_told_and_counts_no_more(tmp_path: Path) -> None:
    """The best, removed by somebody, makes room for the next best; the warning names it."""
    with saver_for(tmp_path) as saver:
        saved(saver, 1.0)
        saved(saver, 2.0)
        (tmp_path / "epoch=0-step=1.ckpt").unlink()
        with pytest.warns(RuntimeWarning, match=r"a checkpoint of this run, epoch=0-step=1.ckpt, cannot be found"):
            saved(saver, 3.0)
        assert names(tmp_path) == ["epoch=0-step=2", "epoch=0-step=3"]


def test_what_comes_back_counts_again(tmp_path: Path) -> None:
    """A directory that was away for one save is kept to the policy again, with what is in it."""
    directory, away = tmp_path / "run", tmp_path / "away"
    with saver_for(directory) as saver:
        saved(saver, 1.0)
        directory.rename(away)
        with pytest.warns(RuntimeWarning, match="with it a checkpoint of this run"):
            saved(saver, 3.0)
        shutil.copytree(away, directory, dirs_exist_ok=True)
        saved(saver, 2.0)
        assert names(directory) == ["epoch=0-step=1", "epoch=0-step=3"]


def test_another_save_under_the_same_name_is_not_removed(tmp_path: Path) -> None:
    """Where another process goes on as the same run, what it has saved under a name is not this one's to remove."""
    directory, away = tmp_path / "run", tmp_path / "away"
    with saver_for(directory, keep.latest(1)) as first:
        saved(first, 1.0)
        shutil.copytree(directory, away)
        with saver_for(away, keep.latest(2)) as second:
            second.restore()
            saved(second, 1.0)
        saved(first, 1.0)
        shutil.copy(away / "epoch=0-step=2.ckpt", directory / "epoch=0-step=2.ckpt")
        saved(first, 1.0)
        assert names(directory) == ["epoch=0-step=2", "epoch=0-step=3"]


def test_save_that_has_its_name_and_may_not_last_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has taken the place of an earlier one cannot leave that intact; it goes when its successor is durable."""
    with saver_for(tmp_path, keep.latest(1), save=when.every(steps=1) | when.every(epochs=1)) as saver:
        saved(saver, 1.0)

        def refuse(*_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        with monkeypatch.context() as patch:
            patch.setattr(Disk, "sync_directory", refuse)
            saver.epoch_end(loss=2.0)
            with pytest.raises(SaveError, match=r"not saved for certain: .*step=1.ckpt has the new content.*; other"):
                saver.wait()
        saved(saver, 3.0)
        assert names(tmp_path) == ["epoch=1-step=2"]


# Where a run looks.


def test_what_lies_below_the_directory_is_not_the_runs(tmp_path: Path) -> None:
    """A run in a directory of experiments starts afresh, without a warning, and lists its own files only."""
    with saver_for(tmp_path / "experiment") as saver:
        saved(saver, 1.0)
    with saver_for(tmp_path) as saver:
        assert saver.restore().path is None
        saved(saver, 1.0)
        assert [record.path.parent for record in saver.records()] == [tmp_path]
    shutil.copytree(tmp_path / "experiment", tmp_path / "experiment" / "backup")
    with saver_for(tmp_path / "experiment") as saver:
        assert saver.restore().path == tmp_path / "experiment" / "epoch=0-step=1.ckpt"


def test_living_run_found_by_its_links_says_what_may_be_the_case(tmp_path: Path) -> None:
    """A copy made of hard links is held by the original's process: the error says so, and what to do."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    with saver_for(original) as saver:
        saved(saver, 1.0)
        shutil.copytree(original, copy, copy_function=os.link)
        code = (
            "from safepoint import claim\nfrom pathlib import Path\nfrom safepoint.catalog import Catalog\nimport sys\n"
            "from safepoint.run import Run\nfrom safepoint.pipeline import Pipeline, Options\nclaim.WAIT_S = 0.0\n"
            "Run(Pipeline(Path(sys.argv[1]), Options())).claimed(Catalog.latest)\n"
        )
        ran = subprocess.run([sys.executable, "-c", code, copy], capture_output=True, text=True, check=False)
    assert "The file has 2 names: if that run is alive in another directory" in ran.stderr
    assert "copy the files themselves (cp -a)" in ran.stderr


# Signals, after everything is closed.

SIGNALS = """
import os, signal, sys
from safepoint.signals import Signals
first, second = Signals(["SIGTERM"]), Signals(["SIGTERM"])
{then}
os.kill(os.getpid(), signal.SIGTERM)
print("survived", *(came and came.name for came in (first.take(), second.take())))
"""


@pytest.mark.parametrize(
    ("then", "code", "said"),
    [
        ("second.restore(); first.restore()", -signal.SIGTERM, ""),
        ("first.restore(); second.restore()", -signal.SIGTERM, ""),
        ("first.restore()", 0, "survived None SIGTERM"),
        ("second.restore()", 0, "survived SIGTERM None"),
        # Somebody's own handler, which passes on to what was there before.
        (
            "first.restore(); before = signal.signal(signal.SIGTERM, lambda n, f: before(n, f)); second.restore()",
            -signal.SIGTERM,
            "",
        ),
    ],
)
def test_signal_does_what_it_did_once_all_are_closed(then: str, code: int, said: str) -> None:
    """In whatever order they are closed, no closed one notes or swallows a signal, and an open one gets it."""
    ran = subprocess.run([sys.executable, "-c", SIGNALS.format(then=then)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (code, said), ran.stderr


# What save() returns, and who should save.


def _refused(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.filterwarnings("ignore:checkpoints of .* do not fit")
@pytest.mark.parametrize("options", [{"blocking": True}, {"max_host_bytes": 1}], ids=["blocking", "streamed"])
def test_save_that_fails_at_once_returns_the_path_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """With ``on_error="warn"`` the warning tells of the failure; the path is never an older checkpoint's."""
    with saver_for(tmp_path, keep.latest(2), save=when.first_step(), on_error="warn", **options) as saver:
        for step in (1, 2):
            with monkeypatch.context() as patch:
                patch.setattr(Disk, "reserve", _refused)
                with pytest.warns(RuntimeWarning, match="was not saved: .*No space left"):
                    assert saver.save() == tmp_path / f"epoch=0-step={step - 1}.ckpt"
            saver.step()


def test_rank_that_should_not_save_is_told_once(tmp_path: Path) -> None:
    """A plain Checkpointer that saves on a rank other than 0 says what to do instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda: 1)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        with saver_for(tmp_path, keep.latest(1)) as saver:
            with pytest.warns(RuntimeWarning, match=r"rank 1 of 2 saves into .* save\(\) on rank 0 only"):
                saver.step()
            saver.step()
