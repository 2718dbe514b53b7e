"""What ``restore`` does with damage: it goes back to the newest that verifies, says so, and the run goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spoil
import torch
from loop import Training, equal
from nets import flip
from spoil import Sample

import safepoint
from safepoint import Checkpointer, keep, when
from safepoint.catalog import Catalog


def make(directory: Path, state: dict[str, Any], policy: keep.PreservationPolicy | None = None) -> Checkpointer:
    """Return a checkpointer that saves every step."""
    return Checkpointer(directory, state=state, save=when.every(steps=1), keep=policy or keep.all())


def trained(directory: Path, losses: list[float], policy: keep.PreservationPolicy | None = None) -> list[Any]:
    """Save a step for each of ``losses``, and return the weights of each."""
    training, weights = Training(), []
    with make(directory, training.state, policy) as checkpointer:
        for loss in losses:
            training.advance()
            checkpointer.step(loss=loss)
            weights.append(training.weights())
    return weights


def step(directory: Path, number: int) -> Path:
    """Return the path of the checkpoint of a step of the first epoch."""
    return directory / f"epoch=0-step={number}.ckpt"


def names(directory: Path) -> list[str]:
    """Return what lies in ``directory``, without the part of the names that all share."""
    return sorted(path.stem.removeprefix("epoch=0-step=") for path in directory.iterdir())


class Model:
    """A live model and its optimizer: what is saved of it is read into it in place."""

    def __init__(self) -> None:
        self.training = Training(seed=5)
        self.training.advance()
        self.state = self.training.state

    def weights(self) -> list[torch.Tensor]:
        """Return what it holds."""
        return self.training.weights()


class Values:
    """Dicts, which adopt the tensors that are read into new storages."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"model": {}, "optimizer": {}}

    def weights(self) -> list[torch.Tensor]:
        """Return what they hold, in the order of ``Training.weights``."""
        if not self.state["model"]:
            return []
        moments = [value for state in self.state["optimizer"]["state"].values() for value in state.values()]
        return [*self.state["model"].values(), *moments]


@pytest.mark.parametrize("kind", [Model, Values])
def test_restore_passes_over_damage_of_every_kind(tmp_path: Path, kind: type[Model | Values]) -> None:
    """Whatever happened to the newest file: the one before it is restored bit for bit, a warning names the other.

    The damaged file is left as it is.
    """
    first, _ = trained(tmp_path, [1.0, 2.0])
    newest = step(tmp_path, 2)
    for what, data in spoil.few(Sample.of(newest), 50):
        spoil.put(newest, data)
        live = kind()
        with pytest.warns(RuntimeWarning, match=r"step=2\.ckpt was skipped and left alone"):
            progress = make(tmp_path, live.state).restore()
        assert (progress.step, progress.path) == (1, step(tmp_path, 1)), what
        assert equal(live.weights(), first), what
        assert newest.read_bytes() == data


@pytest.mark.parametrize("kind", [Model, Values])
def test_restore_of_nothing_but_damage_is_an_error(tmp_path: Path, kind: type[Model | Values]) -> None:
    """If the only file is damaged, whatever happened to it, nothing is restored; what is not said to be torn is not."""
    trained(tmp_path, [1.0])
    path = step(tmp_path, 1)
    live = kind()
    before = live.weights()
    for what, data in spoil.few(Sample.of(path), 50):
        spoil.put(path, data)
        with pytest.raises(safepoint.RestoreError, match=r"step=1\.ckpt: ") as caught:
            make(tmp_path, live.state).restore()
        assert "parts of a damaged" in str(caught.value) or equal(live.weights(), before), what
        if isinstance(live, Model) and not equal(live.weights(), before):
            live = Model()


@pytest.mark.parametrize("record", ["pickle", "manifest"])
def test_damaged_structure_or_manifest_touches_no_live_object(tmp_path: Path, record: str) -> None:
    """A bit in what tells how the state is built: no live tensor changes, and nobody is told that one might have."""
    trained(tmp_path, [1.0])
    path = step(tmp_path, 1)
    sample = Sample.of(path)
    entry = {"pickle": sample.layout.pickle, "manifest": sample.layout.manifest}[record]
    live = Model()
    before = live.weights()
    for offset in range(entry.data_offset, entry.data_offset + entry.size_bytes, 61):
        spoil.put(path, spoil.flipped(sample.data, offset, offset % 8))
        with pytest.raises(safepoint.RestoreError) as caught:
            make(tmp_path, live.state).restore()
        assert "parts of a damaged" not in str(caught.value)
        assert equal(live.weights(), before)


def test_damaged_tensor_that_was_read_in_place_is_told(tmp_path: Path) -> None:
    """Where no sound one is left, live tensors may hold parts of the damaged one: the error says so and names it."""
    trained(tmp_path, [1.0])
    flip(step(tmp_path, 1), "optimizer.state.2.exp_avg")
    with pytest.raises(
        safepoint.RestoreError, match=r"(?s)'optimizer\.state\.2\.exp_avg'.*may hold parts of a damaged"
    ):
        make(tmp_path, Model().state).restore()


def test_several_damaged_are_skipped_one_by_one(tmp_path: Path) -> None:
    """Each that is skipped has a warning with its path and what is damaged; nothing is moved or removed."""
    weights = trained(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0])
    flip(step(tmp_path, 5), "model.2.weight")
    flip(step(tmp_path, 4), "pickle")
    spoil.put(step(tmp_path, 3), step(tmp_path, 3).read_bytes()[:-9])
    live = Model()
    with pytest.warns(RuntimeWarning) as told:
        assert make(tmp_path, live.state).restore().step == 2
    messages = sorted(str(warning.message) for warning in told)
    for number, why in ((3, "no whole zip archive"), (4, "the structure of the state"), (5, "tensor 'model.2.weight'")):
        assert messages[number - 3].startswith(f"{step(tmp_path, number)} was skipped and left alone: {why}")
    assert equal(live.weights(), weights[1])
    assert names(tmp_path) == ["1", "2", "3", "4", "5"]


def test_if_all_are_damaged_the_error_lists_them(tmp_path: Path) -> None:
    """Several ways of being damaged, one error, a line for each file."""
    trained(tmp_path, [1.0, 2.0, 3.0])
    flip(step(tmp_path, 1), "model.0.bias")
    flip(step(tmp_path, 2), "pickle")
    spoil.put(step(tmp_path, 3), b"")
    with pytest.raises(safepoint.RestoreError) as caught:
        make(tmp_path, Model().state).restore()
    for number, why in ((1, "tensor 'model.0.bias'"), (2, "the structure"), (3, "no whole zip archive")):
        assert f"  {step(tmp_path, number)}: {why}" in str(caught.value)


@pytest.mark.parametrize("with_bytes", [bytes, lambda size_bytes: b"x" * size_bytes], ids=["zeros", "others"])
def test_file_whose_directory_is_lost_is_no_other_programs(tmp_path: Path, with_bytes: Callable[[int], bytes]) -> None:
    """Where a block ends just behind the directory, its end records tell of one that is gone: that is damage.

    A file that another program wrote would be passed over in silence.
    """
    trained(tmp_path, [1.0, 2.0])
    newest = step(tmp_path, 2)
    sample = Sample.of(newest)
    end = len(sample.data) - 98
    for lost in (1, 40, 78, 400):
        spoil.put(newest, sample.data[: end - lost] + with_bytes(lost) + sample.data[end:])
        with pytest.warns(RuntimeWarning, match=r"step=2\.ckpt was skipped and left alone: no whole zip archive"):
            assert make(tmp_path, Model().state).restore().step == 1


# How the run goes on.


def resumed(directory: Path, losses: list[float], policy: keep.PreservationPolicy) -> None:
    """Restore past what is damaged, and save a step for each of ``losses``."""
    live = Model()
    with make(directory, live.state, policy) as checkpointer:
        with pytest.warns(RuntimeWarning, match="was skipped and left alone"):
            checkpointer.restore()
        for loss in losses:
            live.training.advance()
            checkpointer.step(loss=loss)


def test_damaged_latest_hold_no_place(tmp_path: Path) -> None:
    """``keep.latest(2)`` after two damaged newest keeps two sound ones; the damaged lie where they lay."""
    trained(tmp_path, [1.0] * 4)
    for number in (3, 4):
        flip(step(tmp_path, number), "model.0.weight")
    resumed(tmp_path, [1.0], keep.latest(2))
    assert names(tmp_path) == ["2", "3", "3-v1", "4"]
    assert [record.step for record in Catalog.of(tmp_path).written_by(_run(tmp_path))] == [2, 3]
    resumed_quietly(tmp_path, [1.0, 1.0], keep.latest(2))
    assert names(tmp_path) == ["3", "3-v1", "4", "4-v1", "5"]


def test_damaged_best_holds_no_place(tmp_path: Path) -> None:
    """A best that is damaged, the newest too, does not keep its place from the best of those that are sound."""
    trained(tmp_path, [3.0, 2.0, 1.0])
    flip(step(tmp_path, 3), "model.0.weight")
    resumed(tmp_path, [4.0, 5.0, 6.0], keep.best("loss"))
    assert names(tmp_path) == ["2", "3", "5"]


@pytest.mark.parametrize("spoiled", [b"", b"PK\x03\x04 half"])
def test_unreadable_best_holds_no_place(tmp_path: Path, spoiled: bytes) -> None:
    """Nor does an older one that does not even tell what it is; it is told of, and left alone."""
    trained(tmp_path, [1.0, 3.0, 2.0])
    step(tmp_path, 1).write_bytes(spoiled)
    resumed(tmp_path, [4.0, 5.0], keep.best("loss"))
    assert names(tmp_path) == ["1", "3", "5"]
    assert step(tmp_path, 1).read_bytes() == spoiled


def test_what_the_run_was_restored_from_stays(tmp_path: Path) -> None:
    """However many are saved since, the one that was restored is not removed."""
    trained(tmp_path, [1.0, 2.0, 3.0])
    flip(step(tmp_path, 3), "model.0.weight")
    resumed(tmp_path, [4.0, 5.0, 6.0, 7.0], keep.latest(1))
    assert names(tmp_path) == ["2", "3", "6"]


def test_skipped_one_is_never_the_newest_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved after a fallback is newer than what was skipped, whatever the clock says, and restored first."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 4e9)
        trained(tmp_path, [1.0, 2.0])
    sound = step(tmp_path, 2).read_bytes()
    flip(step(tmp_path, 2), "model.0.weight")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e9)
        resumed(tmp_path, [3.0], keep.all())
    step(tmp_path, 2).write_bytes(sound)  # it can be read again
    assert make(tmp_path, Model().state).restore().metrics == {"loss": 3.0}


def resumed_quietly(directory: Path, losses: list[float], policy: keep.PreservationPolicy) -> None:
    """Restore the newest, of which nothing is to be told, and save a step for each of ``losses``."""
    live = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with make(directory, live.state, policy) as checkpointer:
            checkpointer.restore()
            for loss in losses:
                live.training.advance()
                checkpointer.step(loss=loss)


def _run(directory: Path) -> str:
    (run,) = Catalog.of(directory).runs()
    return run
