"""When a failed save is told, and of which way of saving: at the next call, once; the memory always comes back."""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disk_faults import FAILING_FSYNC, FILES_TOO_LARGE, FULL_TMPFS, Scene
from invariants import temporaries, whole_checkpoints
from loop import Training

from safepoint import Checkpointer, SaveError, keep, when

WIDTH = 256
CALLS: dict[str, Callable[[Checkpointer], object]] = {
    "step": lambda saver: saver.step(),
    "epoch_end": lambda saver: saver.epoch_end(),
    "save": lambda saver: saver.save(),
    "wait": lambda saver: saver.wait(),
    "restore": lambda saver: saver.restore(),
    "records": lambda saver: saver.records(),
    "latest": lambda saver: saver.latest(),
    "best": lambda saver: saver.best("loss"),
    "stats": lambda saver: saver.stats(),
    "close": lambda saver: saver.close(),
}
WAYS: dict[str, dict[str, Any]] = {
    "copied": {},
    "deferred": {"staging": "deferred"},
    "streamed": {"max_host_bytes": 1},
    "one-image": {"max_images": 1},
    "without-frozen": {"exclude_frozen": True},
}
STREAMED = "ignore:checkpoints of .* do not fit:RuntimeWarning"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Set the scene of a fault that needs no rights."""
    with FILES_TOO_LARGE.scene(tmp_path) as scene:
        yield scene


def saver_for(training: Training, directory: Path, **options: Any) -> Checkpointer:
    """Return a checkpointer that saves each step and keeps the last."""
    options = {"save": when.every(steps=1), "keep": keep.latest(1)} | options
    return Checkpointer(directory, state=training.state, **options)


def ended(saver: Checkpointer) -> None:
    """Return once the writer has nothing to do, without telling anybody."""
    saver._run.pipeline.hold_back()
    saver._run.pipeline._writer.wait()


@pytest.mark.parametrize("call", CALLS)
def test_failed_save_is_told_by_whatever_is_called_next(scene: Scene, call: str) -> None:
    """Every call that may tell raises it, and no call after that."""
    training = Training(WIDTH)
    training.advance()
    saver = saver_for(training, scene.directory)
    saver.step()
    saver.wait()
    with scene.strike():
        saver.step()
        ended(saver)
    with pytest.raises(SaveError, match=r"step=2\.ckpt was not saved: .*File too large") as caught:
        CALLS[call](saver)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    saver.close()
    assert temporaries(scene.directory) == []
    assert len(whole_checkpoints(scene.directory)) == 1


@pytest.mark.parametrize("call", CALLS)
def test_failed_save_is_warned_of_by_whatever_is_called_next(scene: Scene, call: str) -> None:
    """With ``on_error="warn"`` the call does what it is for as well; a step saves again."""
    training = Training(WIDTH)
    training.advance()
    saver = saver_for(training, scene.directory, on_error="warn")
    saver.step()
    saver.wait()
    with scene.strike():
        saver.step()
        ended(saver)
    with pytest.warns(RuntimeWarning, match=r"step=2\.ckpt was not saved: .*File too large") as warned:
        CALLS[call](saver)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saver.close()
    steps = {"step=3": ("step",), "step=2": ("save",)}
    expected = next((step for step, calls in steps.items() if call in calls), "step=1")
    assert [path.name for path in whole_checkpoints(scene.directory)] == [f"epoch=0-{expected}.ckpt"]


@pytest.mark.filterwarnings(STREAMED)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "fault",
    [FILES_TOO_LARGE, *(pytest.param(fault, marks=pytest.mark.torture) for fault in (FAILING_FSYNC, FULL_TMPFS))],
    ids=lambda fault: fault.name.replace(" ", "-"),
)
def test_repeated_failures_give_all_memory_back(tmp_path: Path, fault: Any, way: str) -> None:
    """However a state is staged, five failed saves in a row are five errors, and the sixth save finds an image."""
    training = Training(WIDTH)
    with fault.scene(tmp_path) as scene, saver_for(training, scene.directory, **WAYS[way]) as saver:
        training.advance()
        saver.step()
        saver.wait()
        with scene.strike():
            for step in range(2, 7):
                training.advance()
                with pytest.raises(SaveError, match=rf"step={step}\.ckpt was not saved"):
                    saver.step()
                    saver.wait()
        training.advance()
        saver.step()
        saver.wait()
        pool = saver._run.pipeline._pool
        assert len(pool._free) == pool._count
        assert [path.name for path in whole_checkpoints(scene.directory)] == ["epoch=0-step=7.ckpt"]


def told(call: Callable[[], object]) -> list[str]:
    """Return what a call raises, with what is noted on it."""
    try:
        call()
    except SaveError as error:
        return [str(error), *getattr(error, "__notes__", [])]
    return []


def test_failures_that_were_queued_are_each_told_once(scene: Scene) -> None:
    """However many fail before anybody asks, each is an error or a note on one, once; nothing is removed."""
    training = Training(WIDTH)
    training.advance()
    with saver_for(training, scene.directory, max_images=4) as saver:
        saver.step()
        saver.wait()
        with scene.strike():
            messages = [message for _ in range(6) for message in told(saver.step)]
            messages += told(saver.wait)
        assert told(saver.wait) == []
        steps = [re.findall(r"step=(\d)\.ckpt was not saved", message) for message in messages]
        assert steps == [[str(step)] for step in range(2, 8)]
        assert [path.name for path in whole_checkpoints(scene.directory)] == ["epoch=0-step=1.ckpt"]


@pytest.mark.filterwarnings(STREAMED)
@pytest.mark.parametrize("options", [{"blocking": True}, {"max_host_bytes": 1}], ids=["blocking", "streamed"])
def test_save_that_waits_for_the_disk_raises_what_failed(scene: Scene, options: dict[str, Any]) -> None:
    """A save that returns when it is durable does not return when it is not."""
    training = Training(WIDTH)
    with saver_for(training, scene.directory, **options) as saver:
        saver.step()
        with scene.strike(), pytest.raises(SaveError, match=r"step=2\.ckpt was not saved"):
            saver.step()
