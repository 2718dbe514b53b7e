"""``safepoint show`` and ``verify`` of checkpoints that are directories: of Hugging Face's and torch's own."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import foreign
import msgspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import safepoint

from safepoint import formats
from safepoint.cli.documents import Show


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a real ``Trainer``."""
    directory = tmp_path_factory.mktemp("trainer")
    foreign.of_bert(directory, layers=4, steps=2, save_steps=2, eval_steps=2)
    return directory / "checkpoint-2"


@pytest.fixture
def trainers(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run" / trained.name))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a checkpoint of ``torch.distributed.checkpoint``."""
    model = torch.nn.Linear(100, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict(), "step": 3, "lr": 0.5}, checkpoint_id=tmp_path / "shards")
    return tmp_path / "shards"


def flip(path: Path, tensor: str) -> Path:
    """Flip a bit in the middle of a tensor of the checkpoint at ``path``, and return the file in which it lies."""
    (found,) = (each for each in formats.contents(path).tensors if each.path == tensor)
    storage = found.parts[0].storage
    data = bytearray(storage.path.read_bytes())
    data[storage.offset + storage.size_bytes // 2] ^= 16
    storage.path.write_bytes(data)
    return storage.path


def test_show_tells_of_a_trainers_checkpoint(trainers: Path) -> None:
    """Step, metrics, versions, the arguments as hyperparameters, and the model's layers as one."""
    result = safepoint("show", trainers)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["format", "Hugging", "Face", "Trainer"] in lines
    assert ["step", "2"] in lines
    assert "eval_loss" in next(line for line in lines if line[:1] == ["metrics"])
    assert "learning_rate: 0.125" in result.stdout
    assert "written by  transformers" in result.stdout
    assert "0-3 (4 the same)" in result.stdout
    assert next(line for line in lines if line[:1] == ["holds"])[1] == "model:"


def test_show_tells_of_shards(shards: Path) -> None:
    """The state is shown as it was given to ``save``, with the CRC-32s of what lies in one piece."""
    result = safepoint("show", shards)
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["format", "torch.distributed.checkpoint"]
    assert any(line.startswith("├ weight") and "[50, 100]" in line and "crc" in line for line in lines)
    assert lines[-2:] == ["step: 3", "lr: 0.5"]


@pytest.mark.parametrize("kind", ["trainers", "shards"])
def test_show_json_of_directories_names_the_files(kind: str, request: pytest.FixtureRequest) -> None:
    """Each tensor has the file in which it lies, and where in it; the document decodes into its class."""
    path = request.getfixturevalue(kind)
    found = msgspec.json.decode(safepoint("show", "--json", path).stdout, type=Show)
    assert found.path == str(path)
    assert {Path(tensor.file).parent for tensor in found.tensors} == {path}
    expected = {each.path: each.parts[0] for each in formats.contents(path).tensors}
    for tensor in found.tensors:
        part = expected[tensor.path]
        assert tensor.offset == part.storage.offset + part.offset * (tensor.size_bytes // max(tensor.elements, 1))


def test_show_of_a_directory_of_checkpoints_says_to_list_it(shards: Path) -> None:
    """What is no checkpoint itself is listed with another command."""
    result = safepoint("show", shards.parent)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"safepoint ls {shards.parent}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_of_a_trainers_checkpoint_goes_file_by_file(trainers: Path) -> None:
    """What has checksums is compared with them; of the weights in safetensors it says that they have none."""
    result = safepoint("verify", trainers)
    assert result.returncode == 0
    assert result.stdout == f"{trainers}: structure sound; no checksums in model.safetensors\nOK\n"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_verify_finds_damage_in_any_file_of_a_trainers(trainers: Path, name: str) -> None:
    """Each of the files that have checksums is read, and the damaged one is named."""
    data = bytearray((trainers / name).read_bytes())
    data[data.index(b"data.pkl") + 200] ^= 1
    (trainers / name).write_bytes(data)
    result = safepoint("verify", trainers)
    assert result.returncode == 1
    assert f"{trainers}: {name}: the structure of the state (data.pkl) does not match its CRC-32" in result.stdout


def test_verify_names_the_damaged_tensor_of_an_optimizer(trainers: Path) -> None:
    """The tensor is named as the file calls it."""
    flip(trainers, "optimizer.state.3.exp_avg")
    result = safepoint("verify", trainers)
    assert f"{trainers}: optimizer.pt: tensor 'state.3.exp_avg' does not match its CRC-32\n" in result.stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [("trainer_state.json", "half-written"), ("model.safetensors", "model.safetensors"), ("optimizer.pt", "optimizer")],
)
def test_verify_of_a_half_written_trainers_checkpoint_fails(trainers: Path, name: str, told: str) -> None:
    """What was not written to its end, or not at all, is damage: 1."""
    data = (trainers / name).read_bytes()
    (trainers / name).write_bytes(data[: len(data) // 2])
    assert safepoint("verify", trainers).returncode == 1
    (trainers / name).unlink()
    if told == "half-written":
        assert told in safepoint("verify", trainers.parent).stdout


def test_verify_finds_damage_in_shards(shards: Path) -> None:
    """The archive of each part is compared with its CRC-32s; the entry is named."""
    assert safepoint("verify", shards).stdout == f"{shards}: sound: all match their CRC-32\nOK\n"
    file = flip(shards, "model.weight")
    result = safepoint("verify", shards)
    assert (result.returncode, result.stdout.splitlines()[0]) == (
        1,
        f"{shards}: {file.name}: 'model.weight' (data/0) does not match its CRC-32",
    )


def test_verify_of_half_written_shards_fails(shards: Path) -> None:
    """Without its metadata, with a file cut off, or with one missing, it is damaged: 1."""
    (file,) = shards.glob("*.distcp")
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    assert safepoint("verify", shards).returncode == 1
    file.unlink()
    assert safepoint("verify", shards).returncode == 1
    file.write_bytes(data)
    (shards / ".metadata").unlink()
    result = safepoint("verify", "--json", shards.parent)
    assert result.returncode == 1
    ((checked),) = json.loads(result.stdout)["checkpoints"]
    assert "half-written" in checked["problems"][0]
