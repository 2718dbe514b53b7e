"""What holds whatever is wrong with the disk: told once with its cause, nothing lost or left, and then it goes on."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from disk_faults import FAULTS, FURTHER_FAULTS, Fault, Scene
from invariants import whole_checkpoints
from loop import Training

from safepoint import Checkpointer, SaveError, keep, when

WIDTH = 256
"""A checkpoint of this width takes 0.8 MB, more than any full disk has left."""
FAILURES = 3
"""One more than there are images: one that does not come back would be waited for."""
OnError = Literal["raise", "warn"]


def _params(faults: tuple[Fault, ...], *marks: pytest.MarkDecorator) -> list[Any]:
    return [pytest.param(fault, marks=marks, id=fault.name.replace(" ", "-")) for fault in faults]


@pytest.fixture(params=[*_params(FAULTS), *_params(FURTHER_FAULTS, pytest.mark.torture)])
def fault(request: pytest.FixtureRequest) -> Fault:
    """Return each fault in turn."""
    found: Fault = request.param
    return found


@pytest.fixture
def scene(fault: Fault, tmp_path: Path) -> Iterator[Scene]:
    """Set the scene of the fault."""
    with fault.scene(tmp_path) as scene:
        yield scene


def saver_for(training: Training, directory: Path, on_error: OnError = "raise") -> Checkpointer:
    """Return a checkpointer that saves each step and keeps the last."""
    policies = {"save": when.every(steps=1), "keep": keep.latest(1)}
    return Checkpointer(directory, state=training.state, on_error=on_error, **policies)


def contents(directory: Path) -> dict[str, bytes]:
    """Return everything in ``directory``, hidden names included; every checkpoint must be whole."""
    whole_checkpoints(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


def told_by(saver: Checkpointer, on_error: OnError) -> str:
    """Wait, and return the one thing that is told; with ``on_error="raise"`` with its cause."""
    if on_error == "warn":
        with pytest.warns(RuntimeWarning) as warned:
            saver.wait()
        (warning,) = warned
        return str(warning.message)
    with pytest.raises(SaveError) as caught:
        saver.wait()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.__traceback__ is not None
    assert not getattr(caught.value, "__notes__", [])
    return str(caught.value)


def fails(saver: Checkpointer, training: Training, fault: Fault, on_error: OnError, step: int) -> None:
    """Save at ``step``, which must fail: told at the next call, once, with the path, the reason and a remedy."""
    training.advance()
    saver.step()
    told = told_by(saver, on_error)
    path = saver.directory / f"epoch=0-step={step}.ckpt"
    assert told.startswith(f"{path} was not saved: "), told
    assert any(os.strerror(number) in told for number in fault.errors), told
    assert re.search(r"Earlier checkpoints are intact and nothing was removed; .*resume", told), told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saver.wait()


@pytest.mark.parametrize("on_error", ["raise", pytest.param("warn", marks=pytest.mark.torture)])
def test_fault_is_told_and_passes(fault: Fault, scene: Scene, on_error: OnError) -> None:
    """Each failed save is told once; the directory stays as it was, and the first save after the fault is whole."""
    training = Training(WIDTH)
    with saver_for(training, scene.directory, on_error) as saver:
        training.advance()
        saver.step()
        saver.wait()
        before = contents(scene.directory)
        with scene.strike():
            for failure in range(FAILURES):
                fails(saver, training, fault, on_error, step=2 + failure)
        assert contents(scene.directory) == before
        training.advance()
        saver.step()
        saver.wait()
        assert list(contents(scene.directory)) == [f"epoch=0-step={2 + FAILURES}.ckpt"]
        assert [record.step for record in saver.records()] == [2 + FAILURES]


@pytest.mark.filterwarnings("ignore:.* not enough for .* Saves will fail:RuntimeWarning")  # a full disk is foreseen
def test_fault_before_the_first_save_is_told_and_passes(fault: Fault, scene: Scene) -> None:
    """A run whose directory cannot even be made is told so, leaves nothing, and saves when it can."""
    training = Training(WIDTH)
    with saver_for(training, scene.directory) as saver:
        with scene.strike():
            fails(saver, training, fault, "raise", step=1)
        assert contents(scene.directory) == {}
        training.advance()
        saver.step()
        saver.wait()
        assert list(contents(scene.directory)) == ["epoch=0-step=2.ckpt"]


@pytest.mark.torture
def test_close_under_a_fault_tells_it_and_ends_the_run(fault: Fault, scene: Scene) -> None:
    """``close`` raises what went wrong, and gives everything back all the same; a second one has nothing to do."""
    training = Training(WIDTH)
    training.advance()
    saver = saver_for(training, scene.directory)
    saver.step()
    saver.wait()
    before = contents(scene.directory)
    with scene.strike():
        saver.step()
        with pytest.raises(SaveError, match=r"step=2\.ckpt was not saved"):
            saver.close()
        saver.close()
    assert contents(scene.directory) == before
