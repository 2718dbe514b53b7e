"""Hostile checkpoints at every door: nothing runs, nothing fills memory, and what was restored stays as it was."""

from __future__ import annotations

import errno
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import files
import forge
import numpy as np
import pytest
import torch
from forge import called, listed, mapped, number, state, storage, tensor, text
from loop import Training
from models import FRAMEWORKS, Framework

import safepoint
from safepoint import Checkpointer, archive, image, keep, loading, manifest, memory, reader, when
from safepoint.catalog import Catalog
from safepoint.checksums import checksums
from safepoint.in_place import live_storages
from safepoint.manifest import Blob, Position, encode

BOMB = called("builtins.bytearray", number(10**13))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a test puts its checkpoint."""
    return tmp_path / "a.ckpt"


def make(directory: Path, state: Any) -> Checkpointer:
    """Return a checkpointer that saves every step and keeps the latest."""
    return Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.latest())


def restored(path: Path) -> None:
    """Restore the checkpoint at ``path`` into objects of that kind."""
    make(path.parent, Training().state).restore()


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"map_location": {}}, {"map_location": "meta"}], ids=str)
def test_load_refuses_a_bomb_in_the_pickle(path: Path, options: dict[str, Any]) -> None:
    """Whatever the options, the walk comes before torch."""
    forge.write(path, state(BOMB))
    with pytest.raises(safepoint.CheckpointError, match="none that PyTorch writes"):
        safepoint.load(path, **options)


def test_restore_refuses_a_bomb_in_the_pickle_and_changes_nothing(path: Path) -> None:
    """The live objects stay as they were."""
    training = Training()
    before = training.weights()
    forge.write(path, state(BOMB))
    with pytest.raises(safepoint.CheckpointError, match="none that PyTorch writes"):
        make(path.parent, training.state).restore()
    assert all(torch.equal(here, there) for here, there in zip(training.weights(), before, strict=True))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
@pytest.mark.parametrize("options", [{}, {"weights_only": True}, {"map_location": None}], ids=str)
def test_trainer_refuses_a_bomb_in_the_pickle(path: Path, framework: Framework, options: dict[str, Any]) -> None:
    """What the trainer loads goes the same way."""
    strategy = SimpleNamespace(checkpoint_io=framework.pl.plugins.io.TorchCheckpointIO())
    framework.ModelCheckpoint.framework.intercept(strategy)
    forge.write(path, state(BOMB))
    with pytest.raises(safepoint.CheckpointError, match="none that PyTorch writes"):
        strategy.checkpoint_io.load_checkpoint(path, **options)


def test_code_in_a_pickle_does_not_run(path: Path) -> None:
    """No door but ``weights_only=False`` calls what a pickle names."""
    mark = path.parent / "mark"
    forge.write(path, state(called("os.mkdir", text(str(mark)))))
    assert safepoint.verify(path) == []
    assert Catalog.of(path.parent).records
    for door in (safepoint.load, restored):
        with pytest.raises(safepoint.CheckpointError, match="cannot be loaded safely"):
            door(path)
    for command in ("ls", "verify"):
        program = str(Path(sys.executable).with_name("safepoint"))
        subprocess.run([program, command, str(path.parent)], check=True, capture_output=True, timeout=60)
    assert not mark.exists()
    safepoint.load(path, weights_only=False)
    assert mark.is_dir()


def test_digests_come_before_trust(path: Path) -> None:
    """With ``weights_only=False`` too, a file that does not verify is not unpickled."""
    mark = path.parent / "mark"
    data = forge.sealed(state(called("os.mkdir", text(str(mark)))))
    path.write_bytes(data.replace(b"mark", b"mork", 1))
    with pytest.raises(safepoint.DamagedCheckpointError):
        safepoint.load(path, weights_only=False)
    assert not mark.exists()


def test_restore_does_not_follow_a_directory_to_another_pickle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zip directory says where torch finds the pickle: if it is not as it must be, torch does not get to see it."""
    pickled, storages = forge.parts({"model": {}})
    evil = state(called("os.mkdir", text(str(path.parent / "mark"))))
    data = bytearray(forge.sealed(pickled, [*storages, evil]))
    entry = data.rindex(image.PICKLE_RECORD.encode()) - 46
    layout = image.lay_out(len(pickled), [len(found) for found in (*storages, evil)])
    data[entry + 42 : entry + 46] = layout.storages[-1].header_offset.to_bytes(4, "little")
    path.write_bytes(data)
    with reader.opened(path) as checkpoint:
        assert checkpoint.sound_pickle() == pickled
        assert not checkpoint.has_sound_index()
    opened: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *arguments, **_: opened.append(arguments))
    with pytest.raises(safepoint.RestoreError, match="not what they must be"):
        restored(path)
    assert opened == []


@pytest.mark.parametrize(
    "value",
    [
        b"N",
        number(5),
        listed(),
        mapped((text("rng"), b"N")),
        mapped((text("rng"), mapped((text("python"), number(1))))),
    ],
    ids=["none", "number", "list", "no random state", "half a random state"],
)
def test_restore_refuses_another_random_state_before_it_changes_anything(path: Path, value: bytes) -> None:
    """Random state that the generators would not take, or crash on, is told with everything else that does not fit."""
    forge.write(path, b"\x80\x02" + mapped((text("notes"), mapped()), (text("safepoint"), value)) + b".")
    notes = {"a": 1}
    with pytest.raises(safepoint.StateMismatchError, match="no random state"):
        make(path.parent, {"notes": notes}).restore()
    assert notes == {"a": 1}


def test_random_state_of_numpy_cannot_point_beyond_its_numbers(path: Path) -> None:
    """NumPy would read there."""
    np.random.seed(1)
    np.random.seed(1)
    pickled, storages = forge.parts({"notes": {}})
    position = pickled.index(b"MT19937")
    assert b"M\x70\x02" in pickled[position:]  # 624, as it is after seeding
    forge.write(path, pickled[:position] + pickled[position:].replace(b"M\x70\x02", b"M\xff\xff", 1), storages)
    with pytest.raises(safepoint.StateMismatchError, match="no random state"):
        make(path.parent, {"notes": {}}).restore()


@pytest.mark.parametrize("value", [listed(), b"N", number(1)], ids=["list", "none", "number"])
def test_restore_of_what_is_no_dictionary_is_refused(path: Path, value: bytes) -> None:
    """A state without entries fits nothing."""
    forge.write(path, b"\x80\x02" + value + b".")
    with pytest.raises(safepoint.StateMismatchError, match="holds no entries"):
        restored(path)


def test_left_out_tensors_go_into_dictionaries_only(path: Path) -> None:
    """A manifest that says that tensors were left out of a list is no reason to put them there."""
    pickled, storages = forge.parts({"model": [1]})
    forge.write(path, pickled, storages, excluded={"model.0.weight": "0" * 32})
    with pytest.raises(safepoint.StateMismatchError, match=r"Sequential +list"):
        make(path.parent, {"model": Training().model}).restore()


def test_optimizer_is_not_given_a_tensor_that_inflates(path: Path) -> None:
    """An optimizer converts its state to the parameter's dtype: of an expanded tensor that would make a large one."""
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters())
    saved = optimizer.state_dict()
    saved["state"] = {0: {"momentum_buffer": torch.ones(1, dtype=torch.float64).expand(10**8)}}
    pickled, storages = forge.parts({"optimizer": saved})
    forge.write(path, pickled, storages)
    with pytest.raises(safepoint.StateMismatchError, match="many more elements than data"):
        make(path.parent, {"optimizer": optimizer}).restore()


def test_deep_state_is_compared_in_little_memory(path: Path) -> None:
    """Lists within lists by the ten thousand, each with a tensor: their paths are not written out."""
    depth = 3000
    nested = b"](" + tensor(storage(0, 16), (4,), (1,)) + b"q\0" + b"](h\0" * depth + b"e" * (depth + 1)
    forge.write(path, b"\x80\x02" + mapped((text("model"), nested)) + b".", [bytes(64)])
    with pytest.raises(safepoint.StateMismatchError):
        restored(path)
    found = safepoint.load(path)["model"]
    tracemalloc.start()
    try:
        assert live_storages({"model": torch.nn.Linear(1, 1)}, {"model": found}, lambda _: 0, [64]) == {}
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_more_tensors_than_memory_are_refused(path: Path) -> None:
    """A file that is a hole takes no disk, and would take all memory."""
    size = memory.available_bytes() + (8 << 30)
    pickled = state(b"N")
    blobs = (Blob(size, "0" * 32),)
    data = encode(files.manifest(pickle=Blob(len(pickled), checksums(pickled).digest), storages=blobs))
    layout = image.lay_out(len(pickled), [size], len(data))
    crcs = dict.fromkeys((entry.name for entry in layout.entries), 0) | {layout.manifest.name: checksums(data).crc}
    with path.open("wb") as file:
        for offset, piece in (*image.frame(layout, crcs), (layout.manifest.data_offset, data)):
            file.seek(offset)
            file.write(piece)
    with pytest.raises(safepoint.CheckpointError, match=r"GB of memory left: load it with mmap=True"):
        safepoint.load(path)


def test_state_that_torch_cannot_build_is_an_error_of_ours(path: Path) -> None:
    """A device that is not here, or that nobody knows."""
    forge.write(path, state(tensor(storage(0, 16, location="nowhere"), (4,), (1,))), [bytes(64)])
    with pytest.raises(safepoint.CheckpointError, match="is sound, and its state cannot be built"):
        safepoint.load(path)


def test_manifest_of_more_than_its_limit_is_neither_read_nor_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would not be read again is refused when it is saved, before anything is staged."""
    assert archive.MANIFEST_LIMIT_BYTES <= 128 << 20
    files.write(path, files.manifest(run="a" * (archive.MANIFEST_LIMIT_BYTES + 1)))
    with pytest.raises(safepoint.NotACheckpointError, match="absurdly long"):
        reader.read_manifest(path)
    monkeypatch.setattr("safepoint.sealing.MANIFEST_LIMIT_BYTES", 1000)
    checkpointer = make(path.parent / "run", {"notes": {str(key): torch.zeros(1) for key in range(20)}})
    with pytest.raises(safepoint.CaptureError, match="put fewer, larger tensors"):
        checkpointer.save()
    assert not (path.parent / "run").exists()
    assert checkpointer.records() == ()


def test_more_metrics_than_are_read_are_not_saved(path: Path) -> None:
    """A catalog keeps the metrics of all files in memory: there is a limit, and it holds for saving as for reading."""
    many = {str(key): 1.0 for key in range(manifest.METRICS_LIMIT + 1)}
    files.write(path, files.manifest(metrics=many))
    with pytest.raises(safepoint.NotACheckpointError, match="malformed"):
        reader.read_summary(path)
    with pytest.raises(safepoint.CaptureError, match="metrics are more than"):
        make(path.parent / "run", {"notes": {}}).step(**many)


def test_step_that_is_not_read_again_is_not_saved(tmp_path: Path) -> None:
    """A training that was led to an absurd step (by a framework's own checkpoint) is told when it saves."""
    with pytest.raises(safepoint.CaptureError, match="none that a training comes to"):
        manifest.check_readable(files.manifest(step=2**62))


def test_position_that_leaves_no_room_is_refused(path: Path) -> None:
    """A run counts on from where it is restored; what it saves must be readable again."""
    files.write(path, files.manifest(position=Position(2**62 - 1, 0, 0)))
    with pytest.raises(safepoint.NotACheckpointError, match="malformed"):
        reader.read_manifest(path)


@pytest.mark.parametrize("time_s", [1e308, 1.7976931348623157e308])
def test_run_that_goes_on_from_the_end_of_time_saves_readable_checkpoints(path: Path, time_s: float) -> None:
    """However late a checkpoint claims to be, later ones are no earlier, and can be read."""
    pickled, storages = forge.parts({"notes": {}})
    forge.write(path, pickled, storages, time=time_s, history=(files.told("a.ckpt", 1),))
    with make(path.parent, {"notes": {}}) as checkpointer:
        assert checkpointer.restore().path == path
        new = checkpointer.save()
    assert safepoint.verify(new) == []
    assert reader.read_summary(new).time >= time_s


@pytest.mark.parametrize(
    "text_",
    [b"1" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{\0}\0", b"null", b"[]", b"NaN", b'"\\ud800"', b""],
    ids=["digits", "lists", "dictionaries", "UTF-16", "null", "list", "NaN", "half a character", "nothing"],
)
def test_manifest_that_is_no_manifest_is_refused(path: Path, text_: bytes) -> None:
    """Deep, long, of another encoding or kind: one error, at every door."""
    files.write(path, text_)
    assert "malformed" in safepoint.verify(path)[0] or "does not match" in safepoint.verify(path)[0]
    assert Catalog.of(path.parent).records == ()
    with pytest.raises(safepoint.NotACheckpointError):
        safepoint.load(path)


@pytest.mark.parametrize("metric", [b"1e999", b"1" * 400, b"9" * 5000, b"[]", b"NaN", b"true"])
def test_metric_that_is_no_number_is_refused(path: Path, metric: bytes) -> None:
    """A number that no float holds would break whoever formats it."""
    files.write(path, encode(files.manifest(metrics={"a": 0.25})).replace(b"0.25", metric))
    with pytest.raises(safepoint.NotACheckpointError, match="malformed"):
        reader.read_summary(path)


def test_a_million_damaged_storages_are_named_in_good_time(path: Path) -> None:
    """Each problem is named without a search among all others; here there are twenty thousand."""
    count, wrong = 20_000, Blob(0, "0" * 32)
    told = files.manifest(storages=(wrong,) * count, tensors=tuple(
        manifest.Tensor(str(key), "float32", (0,), key) for key in range(count)
    ))  # fmt: skip
    files.write(path, told, (0,) * count)
    assert len(safepoint.verify(path)) == count


def test_layout_is_not_made_for_a_file_that_has_no_room_for_it(path: Path) -> None:
    """Each storage begins a page: a short file cannot have a million, not even empty ones."""
    files.write(path, files.manifest(storages=(files.EMPTY,) * 100_000))
    assert "bytes of data in" in safepoint.verify(path)[0]  # said before it is laid out


def test_trust_of_builtin_names_does_not_lift_their_limits(path: Path) -> None:
    """``trust=`` is for what is not on torch's list: what is on it is checked all the same."""
    forge.write(path, state(BOMB))
    with pytest.raises(safepoint.CheckpointError, match="none that PyTorch writes"):
        safepoint.load(path, trust=[bytearray])


def test_unrestricted_load_by_the_environment_is_torchs_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment tells torch to unpickle anything, ``weights_only=None`` is not held to the short list."""
    forge.write(path, state(b"N0N"))
    with pytest.raises(Exception, match="Unsupported operand"):
        loading.read_state(path, weights_only=None)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.warns(UserWarning, match="forcing weights_only=False"):
        assert loading.read_state(path, weights_only=None)[0] == {"notes": None}


def test_error_codes_stay(tmp_path: Path) -> None:
    """A file that is not there is still an OSError with its number."""
    with pytest.raises(OSError, match="No such file") as raised:
        safepoint.load(tmp_path / "none.ckpt")
    assert raised.value.errno == errno.ENOENT
