"""What a plain loop answers to bad input: what, where, what to do; and nothing on disk is touched."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
import torch
from loop import Training, equal

import safepoint
from safepoint import Checkpointer, keep, when


def make(directory: Path, **changes: Any) -> Checkpointer:
    """Return a checkpointer with good arguments but for ``changes``."""
    arguments: dict[str, Any] = {"state": Training().state, "save": when.every(steps=1), "keep": keep.all()}
    return Checkpointer(directory, **{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save": "every epoch"}, r"save='every epoch'.*when\.every"),
        ({"keep": 3}, r"keep=3.*keep\.latest"),
        ({"state": {}}, r"state= must map names"),
        ({"state": {"safepoint": {}}}, r"'safepoint'.*rename"),
        ({"filename": "../{step}"}, r"filename='\.\./value'.*leave the directory"),
        ({"filename": "/tmp/{step}"}, r"filename='/tmp/value'.*leave the directory"),
        ({"filename": "a/{step}"}, r"side by side"),
        ({"filename": ""}, r"give a template"),
        ({"filename": "{step"}, r"filename='\{step' is malformed"),
        ({"filename": "{}"}, r"plain name"),
        ({"filename": ".safepoint-{step}"}, r"temporary files"),
        ({"staging": "telepathy"}, r"staging='telepathy'.*'copy'"),
        ({"on_error": "ignore"}, r"on_error='ignore'.*'raise', 'warn'"),
        ({"max_images": 0}, r"max_images=0.*1 or more"),
    ],
)
def test_wrong_argument_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Each wrong argument gets an error that names it and says what to give, before a directory is made."""
    with pytest.raises(safepoint.ConfigurationError, match=message):
        make(tmp_path / "run", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: when.every(), r"exactly one of steps, epochs, minutes, seconds; given: none"),
        (lambda: when.every(steps=1, epochs=1), r"given: steps, epochs"),
        (lambda: when.every(steps=0), r"steps=0.*1 or more"),
        (lambda: when.every(minutes=-1), r"minutes=-1.*positive"),
        (lambda: keep.best("val_loss", mode="smallest"), r"mode='smallest'.*'min' or 'max'"),  # type: ignore[arg-type]
        (lambda: keep.best("val_loss", n=0), r"n=0.*1 or more"),
        (lambda: keep.best(""), r"name of a metric"),
        (lambda: keep.latest(0), r"n=0.*1 or more"),
        (lambda: keep.every(), r"given: none"),
        (lambda: keep.every(epochs=1, steps=1), r"given: epochs, steps"),
    ],
)
def test_wrong_policy_is_refused(build: Callable[[], object], message: str) -> None:
    """A policy that contradicts itself or is out of range says so where it is made."""
    with pytest.raises(safepoint.ConfigurationError, match=message):
        build()


def test_state_that_cannot_be_restored_is_refused(tmp_path: Path) -> None:
    """An object without ``state_dict`` and ``load_state_dict`` is named, with its type."""
    with pytest.raises(
        safepoint.StateMismatchError, match=r"state\['epochs'\] is a object: give an object with state_dict"
    ):
        make(tmp_path / "run", state={"epochs": object()})
    assert list(tmp_path.iterdir()) == []


def test_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A file where the directory should be, or above it, is named, and its content stays."""
    file = tmp_path / "run"
    file.write_text("precious")
    for directory in (file, file / "below"):
        with pytest.raises(safepoint.ConfigurationError, match=rf"directory='{directory}': {file} is a file"):
            make(directory)
    assert file.read_text() == "precious"


def test_directory_that_is_not_writable_is_refused() -> None:
    """A directory that this user may not write to is refused before training starts."""
    script = (
        "import os, sys; from safepoint import Checkpointer, ConfigurationError, keep, when\n"
        "if os.getuid() == 0: os.setresuid(65534, 65534, 65534)\n"
        "try: Checkpointer(sys.argv[1], state={'notes': {}}, save=when.every(steps=1), keep=keep.all())\n"
        "except ConfigurationError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as root:  # pytest's own is closed to other users
        Path(root).chmod(0o755)
        directory = Path(root) / "run"
        directory.mkdir(0o555)
        process = subprocess.run(
            [sys.executable, "-c", script, str(directory / "deeper")], capture_output=True, text=True, check=True
        )
        assert f"{directory} is not writable" in process.stdout
        assert list(directory.iterdir()) == []


def test_template_with_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    """A template that names a metric which was not passed names those that were; nothing is written."""
    with (
        pytest.raises(safepoint.MissingMetricError, match=r"'val_los'.*given are: 'epoch', 'step', 'val_loss'"),
        make(tmp_path / "run", save=when.every(epochs=1), filename="{epoch}-{val_los:.2f}") as checkpointer,
    ):
        checkpointer.step()
        checkpointer.epoch_end(val_loss=0.5)
    assert not (tmp_path / "run").exists()


def test_metric_that_is_never_passed_is_refused(tmp_path: Path) -> None:
    """A policy that ranks by a metric which the epoch's end does not bring names those that it brings."""
    with (
        pytest.raises(safepoint.MissingMetricError, match=r"keep.best\('val_los'\).*given are: 'val_acc', 'val_loss'"),
        make(tmp_path / "run", save=when.every(epochs=1), keep=keep.best("val_los")) as checkpointer,
    ):
        checkpointer.step()
        checkpointer.epoch_end(val_loss=0.5, val_acc=0.5)
    assert not (tmp_path / "run").exists()


def test_metric_missing_until_the_end_is_told_at_the_end(tmp_path: Path) -> None:
    """Where only steps are saved, a metric that never came is told when the run is closed, with everything saved."""
    checkpointer = make(tmp_path / "run", keep=keep.best("val_loss"))
    checkpointer.step(loss=1.0)
    with pytest.raises(safepoint.MissingMetricError, match=r"'val_loss'.*given are: 'loss'"):
        checkpointer.close()
    assert safepoint.verify(tmp_path / "run" / "epoch=0-step=1.ckpt") == []


def test_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """A metric that is no number is named with its value."""
    with (
        pytest.raises(safepoint.ConfigurationError, match=r"loss='low' is not a number"),
        make(tmp_path / "run") as checkpointer,
    ):
        checkpointer.step(loss="low")
    assert not (tmp_path / "run").exists()


def test_state_that_cannot_be_pickled_is_refused(tmp_path: Path) -> None:
    """An object that cannot be pickled is told in the training thread, and training can go on without it."""
    notes: dict[str, Any] = {"callback": lambda: None}
    with make(tmp_path / "run", state={**Training().state, "notes": notes}) as checkpointer:
        with pytest.raises(
            safepoint.CaptureError, match=r"state\['notes'\]\['callback'\] \(function\) cannot be pickled"
        ):
            checkpointer.step()
        assert not (tmp_path / "run").exists()
        notes.clear()
        checkpointer.step()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["epoch=0-step=2.ckpt"]


def test_closed_checkpointer_says_so(tmp_path: Path) -> None:
    """After ``close`` the other calls are refused, and a second ``close`` does nothing."""
    checkpointer = make(tmp_path / "run")
    checkpointer.close()
    checkpointer.close()
    for call in (checkpointer.step, checkpointer.epoch_end, checkpointer.save, checkpointer.restore):
        with pytest.raises(safepoint.ConfigurationError, match="closed"):
            call()


def damage(path: Path) -> None:
    """Flip one bit in the middle of the first tensor of ``path``."""
    layout = safepoint.reader.read_manifest(path)
    offset = safepoint.image.lay_out(layout.pickle.size_bytes, [blob.size_bytes for blob in layout.storages])
    with path.open("r+b") as file:
        file.seek(offset.storages[0].data_offset + 1)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def saved(directory: Path, steps: int = 3) -> Training:
    """Return a training of which every step lies in ``directory``."""
    training = Training()
    with make(directory, state=training.state) as checkpointer:
        for _ in range(steps):
            training.advance()
            checkpointer.step()
    return training


def test_damaged_newest_is_skipped_and_left_alone(tmp_path: Path) -> None:
    """``restore`` falls back to the newest that verifies, names the damaged tensor, and removes nothing."""
    saved(tmp_path)
    damage(tmp_path / "epoch=0-step=3.ckpt")
    training = Training(seed=1)
    with make(tmp_path, state=training.state, keep=keep.latest(1)) as checkpointer:
        with pytest.warns(RuntimeWarning, match=r"step=3.ckpt was skipped.*tensor 'model.0.weight'.*digest"):
            progress = checkpointer.restore()
        assert progress.step == 2
        checkpointer.step()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch=0-step=2.ckpt",
        "epoch=0-step=3-v1.ckpt",
        "epoch=0-step=3.ckpt",
    ]


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _flipped(path: Path, before: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.rindex(before)] ^= 1
    path.write_bytes(data)


def _of_another_format(path: Path) -> None:
    files.write(path, files.manifest(format_version=99))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_cut, "no end record"),
        (_emptied, "no end record"),
        (_of_another_format, "written in format 99"),
        (lambda path: _flipped(path, b'"format_version"'), "does not match its CRC-32"),
        (lambda path: _flipped(path, b"archive/safepoint/manifest.json"), "entry in its directory"),
        (lambda path: _flipped(path, b"PK\x01\x02"), "entry in its directory"),
        (lambda path: _flipped(path, b"PK\x05\x06"), "no end record"),
    ],
)
def test_newest_that_does_not_tell_its_age_is_warned_of(
    tmp_path: Path, spoil: Callable[[Path], object], why: str
) -> None:
    """Where the newest has no manifest to be read, ``restore`` says so, and goes on from the one before it."""
    saved(tmp_path)
    spoil(tmp_path / "epoch=0-step=3.ckpt")
    with make(tmp_path) as checkpointer, pytest.warns(RuntimeWarning, match=rf"step=3.ckpt was skipped.*{why}"):
        assert checkpointer.restore().step == 2


def test_restore_is_silent_about_what_others_wrote(tmp_path: Path) -> None:
    """A file of another program, or a directory that is called like one, is no checkpoint that could be missed."""
    saved(tmp_path, steps=1)
    torch.save({"a": torch.ones(2)}, tmp_path / "foreign.ckpt")
    (tmp_path / "sharded.ckpt").mkdir()
    with make(tmp_path) as checkpointer:
        assert checkpointer.restore().step == 1


def test_directory_in_which_nothing_verifies_is_refused(tmp_path: Path) -> None:
    """If no checkpoint verifies, the error lists each with its problem, and nothing is overwritten."""
    saved(tmp_path, steps=2)
    for path in tmp_path.iterdir():
        damage(path)
    torch.save({}, tmp_path / "foreign.ckpt")
    checkpointer = make(tmp_path, state=Training(seed=1).state)
    with pytest.raises(safepoint.RestoreError) as caught:
        checkpointer.restore()
    for expected in (
        "step=1.ckpt: tensor 'model.0.weight'",
        "step=2.ckpt: tensor 'model.0.weight'",
        "foreign.ckpt: it holds no",
    ):
        assert expected in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 3


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """A checkpoint of another model says which keys and shapes differ, and changes no tensor."""
    saved(tmp_path)
    other = torch.nn.ModuleDict({"0": torch.nn.Linear(5, 4), "extra": torch.nn.Linear(2, 2)})
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    checkpointer = make(tmp_path, state={"model": other, "scheduler": Training().optimizer})
    with pytest.raises(safepoint.StateMismatchError) as caught:
        checkpointer.restore()
    for expected in (
        "nothing was restored",
        "1 matched, 3 missing, 3 unexpected, 1 of another shape or kind",
        "model extra.weight (2, 2) -",
        "model 2.bias - (1,)",
        "model 0.weight (4, 5) (4, 4)",
        "scheduler (all) Adam -",
        "optimizer (all) - dict",
    ):
        assert expected in " ".join(str(caught.value).split())
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_optimizer_of_another_model_is_refused_before_the_model_is_changed(tmp_path: Path) -> None:
    """An optimizer with other parameter groups is found out before the model, which fits, is changed."""
    saved(tmp_path)
    training = Training(seed=1)
    optimizer = torch.optim.Adam(training.model[0].parameters())
    before = training.weights()
    checkpointer = make(tmp_path, state={"model": training.model, "optimizer": optimizer})
    with pytest.raises(safepoint.StateMismatchError, match=r"of \[2\] parameters +of \[4\] parameters"):
        checkpointer.restore()
    assert equal(training.weights(), before)


def test_load_refuses_damage_and_foreign_files(tmp_path: Path) -> None:
    """``safepoint.load`` never returns unverified data: damaged and foreign files are errors."""
    saved(tmp_path, steps=1)
    path = tmp_path / "epoch=0-step=1.ckpt"
    assert set(safepoint.load(path)) == {"model", "optimizer", "safepoint"}
    damage(path)
    with pytest.raises(safepoint.DamagedCheckpointError, match=r"tensor 'model.0.weight' does not match its digest"):
        safepoint.load(path)
    torch.save({}, tmp_path / "foreign.ckpt")
    with pytest.raises(safepoint.NotACheckpointError, match="no Safepoint manifest"):
        safepoint.load(tmp_path / "foreign.ckpt")


class Custom:
    """A class that PyTorch does not hold for safe."""


@pytest.mark.filterwarnings("ignore:the state needs:RuntimeWarning")  # as said when it is saved
def test_load_of_an_unsafe_class_needs_trust(tmp_path: Path) -> None:
    """A class outside PyTorch's safe list is named, and loaded only if it is trusted."""
    with make(tmp_path, state={"notes": {"thing": Custom()}}) as checkpointer:
        checkpointer.step()
    path = tmp_path / "epoch=0-step=1.ckpt"
    with pytest.raises(safepoint.CheckpointError, match=r"cannot be loaded safely.*Custom.*trust="):
        safepoint.load(path)
    assert isinstance(safepoint.load(path, trust=[Custom])["notes"]["thing"], Custom)
    assert isinstance(safepoint.load(path, weights_only=False)["notes"]["thing"], Custom)


@pytest.mark.parametrize("trust", [dict, Custom, ["os.system"], "os.system", [3], 3, [functools.partial(int)]])
def test_trust_that_is_no_list_of_classes_is_refused(tmp_path: Path, trust: Any) -> None:
    """Names in place of classes, or a class in place of a list, are refused before anything is read."""
    saved(tmp_path, steps=1)
    checkpointer = make(tmp_path)
    with pytest.raises(safepoint.ConfigurationError, match=r"trust=.*list of classes and functions"):
        checkpointer.restore(trust=trust)
    with pytest.raises(safepoint.ConfigurationError, match=r"trust=.*list of classes and functions"):
        safepoint.load(tmp_path / "epoch=0-step=1.ckpt", trust=trust)


@pytest.mark.filterwarnings("ignore:the state needs:RuntimeWarning")  # as said when it is saved
def test_restore_of_an_unsafe_class_needs_trust(tmp_path: Path) -> None:
    """A scheduler that has a NumPy number in its state is restored by those who trust what makes one."""
    scheduler = torch.optim.lr_scheduler.StepLR(Training().optimizer, 3)
    scheduler.gamma = np.float64(0.5)
    with make(tmp_path, state={"scheduler": scheduler}) as checkpointer:
        checkpointer.step()
    scheduler.gamma = 0.1
    checkpointer = make(tmp_path, state={"scheduler": scheduler})
    with pytest.raises(safepoint.CheckpointError, match=r"cannot be loaded safely.*scalar.*pass trust=\[[^]]*\]\."):
        checkpointer.restore()
    makes_scalars = np.float64(1).__reduce__()[0]
    assert checkpointer.restore(trust=[makes_scalars, np.dtype, type(np.dtype("f8"))]).step == 1
    assert scheduler.gamma == 0.5


class Refuses:
    """Saves what it will not load."""

    def state_dict(self) -> dict[str, int]:
        """Return a state."""
        return {"a": 1}

    def load_state_dict(self, state: object) -> None:
        """Refuse, in a way of its own."""
        raise AttributeError(state)


def test_object_that_refuses_its_state_is_named(tmp_path: Path) -> None:
    """Whatever an object raises when it loads, the error says which it is, and that others are changed by then."""
    state = {"model": Training().model, "own": Refuses()}
    with make(tmp_path, state=state) as checkpointer:
        checkpointer.step()
    with pytest.raises(safepoint.StateMismatchError, match=r"state\['own'\] refuses.*may hold parts of it") as caught:
        make(tmp_path, state=state).restore()
    assert isinstance(caught.value.__cause__, AttributeError)
    assert "nothing was restored" not in str(caught.value)


class Has:
    """Saves whatever it was given, and takes whatever it is given."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def state_dict(self) -> Any:
        """Return it."""
        return self.content

    def load_state_dict(self, state: Any) -> None:
        """Take it."""
        self.content = state


@pytest.mark.parametrize(
    ("content", "live", "kinds"),
    [
        ([1], {"precious": 1}, "dict +list"),
        (None, torch.nn.Linear(1, 1), "Linear +NoneType"),
        ([1], torch.nn.Linear(1, 1), "Linear +list"),
        ({1: 2}, torch.nn.Linear(1, 1), "Linear +dict"),
        ({"a": 1}, Training().optimizer, "Adam +dict"),
        (None, Training().optimizer, "Adam +NoneType"),
        ({"state": {}, "param_groups": [3]}, Training().optimizer, "Adam +dict"),
        ({"state": [], "param_groups": []}, Training().optimizer, "Adam +dict"),
    ],
)
def test_state_of_another_kind_is_refused(tmp_path: Path, content: Any, live: Any, kinds: str) -> None:
    """What was saved of something else is told before anything is changed: a dict is not even emptied."""
    with make(tmp_path, state={"thing": Has(content)}) as checkpointer:
        checkpointer.step()
    with pytest.raises(safepoint.StateMismatchError, match=rf"(?s)nothing was restored.*thing +\(all\) +{kinds}"):
        make(tmp_path, state={"thing": live}).restore()
    assert not isinstance(live, dict) or live == {"precious": 1}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"\ud800": 1.0}, r"the metric '\\ud800' has a name that no file can hold"),
        ({"loss": 10**400}, "loss is larger than a float can be"),
        ({"loss": 10**5000}, "loss is larger than a float can be"),
    ],
    ids=["name", "large", "larger"],
)
def test_metric_that_no_manifest_holds_is_refused(tmp_path: Path, metrics: dict[str, Any], message: str) -> None:
    """A metric that could not be written is told before anything is staged."""
    with make(tmp_path / "run") as checkpointer, pytest.raises(safepoint.ConfigurationError, match=message):
        checkpointer.step(**metrics)
    assert not (tmp_path / "run").exists()
