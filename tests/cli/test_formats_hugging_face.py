"""Hugging Face's directories: what its ``Trainer`` and ``save_pretrained`` write, whole and half-written."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import safetensors.torch
import torch

from safepoint import formats
from safepoint.contents import Contents, Format, Opaque
from safepoint.errors import CheckpointError, NotACheckpointError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the checkpoints of a short training, and its model saved in one file and in several."""
    directory = tmp_path_factory.mktemp("hugging face")
    model = foreign.of_bert(directory, layers=1, steps=3, save_steps=1, eval_steps=1, logging_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory / "sharded", max_shard_size="1KB")
        model.save_pretrained(directory / "whole")
    return directory


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """Return a copy of that directory."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def elements(found: Contents) -> dict[str, bytes]:
    """Return the bytes of each tensor, by path."""
    read: dict[str, bytes] = {}
    for tensor in found.tensors:
        (part,) = tensor.parts
        itemsize = getattr(torch, tensor.dtype).itemsize
        start = part.storage.offset + part.offset * itemsize
        read[tensor.path] = np.fromfile(part.storage.path, np.uint8, tensor.count * itemsize, offset=start).tobytes()
    return read


def raw(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a live tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_trainers_checkpoint_tells_step_epoch_and_metrics(run: Path) -> None:
    """What was logged at its very step; the size of all files; and the trainer's arguments and version."""
    path = run / "checkpoint-3"
    found = formats.contents(path)
    outline = found.outline
    assert outline == formats.outline(path)
    assert formats.format_of(path) is Format.HUGGING_FACE
    assert (outline.step, outline.epoch) == (3, 1)
    assert outline.size_bytes == sum(file.stat().st_size for file in path.iterdir())
    assert outline.time == (path / "trainer_state.json").stat().st_mtime
    history = json.loads((path / "trainer_state.json").read_text())["log_history"]
    logged = {name: value for entry in history if entry["step"] == 3 for name, value in entry.items()}
    assert {"loss", "eval_loss"} <= set(outline.metrics)
    assert not any("runtime" in name or "per_second" in name for name in outline.metrics)
    assert outline.metrics == {name: logged[name] for name in outline.metrics}
    assert found.hyperparameters["learning_rate"] == 0.125
    assert found.hyperparameters["per_device_train_batch_size"] == 4
    assert found.producer == {"transformers": json.loads((path / "config.json").read_text())["transformers_version"]}


def test_trainers_checkpoint_tells_of_the_tensors_of_all_its_files(run: Path) -> None:
    """Model, optimizer and random state, each below what it is, with the very bytes; plain values in the tree."""
    path = run / "checkpoint-3"
    found = formats.contents(path)
    read = elements(found)
    model = safetensors.torch.load_file(path / "model.safetensors")
    for name, tensor in model.items():
        assert read[f"model.{name}"] == raw(tensor)
    optimizer = torch.load(path / "optimizer.pt")
    for index, state in optimizer["state"].items():
        assert read[f"optimizer.state.{index}.exp_avg"] == raw(state["exp_avg"])
    assert found.tree["optimizer"]["param_groups"] == optimizer["param_groups"]
    assert found.tree["scheduler"] == torch.load(path / "scheduler.pt")
    assert found.tree["trainer_state"]["global_step"] == 3
    assert found.tree["training_args"] == Opaque("transformers.training_args.TrainingArguments")
    assert read["rng_state.cpu"] == raw(torch.load(path / "rng_state.pth", weights_only=False)["cpu"])
    assert len(read) == len(found.tensors)


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_saved_model_tells_of_its_tensors(run: Path, name: str) -> None:
    """A model that ``save_pretrained`` wrote has no step; its tensors are there, in however many files."""
    found = formats.contents(run / name)
    assert (found.outline.format, found.outline.step, found.outline.metrics) == (Format.HUGGING_FACE, None, {})
    model = safetensors.torch.load_file(run / "whole" / "model.safetensors")
    assert elements(found) == {f"model.{name}": raw(tensor) for name, tensor in model.items()}
    assert found.tree["model"] == {tensor.path.removeprefix("model."): tensor for tensor in found.tensors}


def test_older_names_and_adapters_are_read(tmp_path: Path) -> None:
    """``pytorch_model.bin``, and the weights of an adapter."""
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    safetensors.torch.save_file({"lora": torch.zeros(3)}, tmp_path / "adapter_model.safetensors")
    assert list(elements(formats.contents(tmp_path))) == ["model.a.weight", "adapter.lora"]


def check_refused(path: Path, told: str) -> None:
    """Assert that neither an outline nor the contents are told, and why."""
    for read in (formats.outline, formats.contents):
        with pytest.raises(NotACheckpointError, match=rf"^{path}: .*{told}.*Take another"):
            read(path)


def test_checkpoint_without_what_is_written_last_is_half_written(run: Path) -> None:
    """A trainer that died before it wrote its state has left a half-written checkpoint."""
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    check_refused(run / "checkpoint-2", r"half-written: trainer_state\.json.* not there")
    (run / "checkpoint-9").mkdir()
    check_refused(run / "checkpoint-9", "half-written")


def test_checkpoint_with_half_a_state_is_half_written(run: Path) -> None:
    """A state that is cut off is no JSON."""
    path = run / "checkpoint-2" / "trainer_state.json"
    path.write_text(path.read_text()[:-9])
    check_refused(run / "checkpoint-2", r"trainer_state\.json: cut off")


def test_checkpoint_without_weights_is_not_whole(run: Path) -> None:
    """Not even if all else is there, unless a directory of another program's may hold them."""
    (run / "checkpoint-2" / "model.safetensors").unlink()
    check_refused(run / "checkpoint-2", "its weights were taken away: there is no file of them")
    (run / "checkpoint-2" / "pytorch_model_fsdp_0").mkdir()
    assert formats.outline(run / "checkpoint-2").step == 2


def test_model_without_one_of_its_files_is_half_written(run: Path) -> None:
    """An index that names what is not there."""
    (run / "sharded" / "model-00002-of-00003.safetensors").unlink()
    check_refused(run / "sharded", "half-written: .*names 3 files, and 1 of them, such as 'model-00002-of-00003")


def test_model_with_files_of_another_is_refused(run: Path) -> None:
    """An index that names a tensor that is not in its file."""
    first, second = (run / "sharded" / f"model-0000{index}-of-00003.safetensors" for index in (1, 2))
    shutil.copy(first, second)
    with pytest.raises(NotACheckpointError, match=r"model-00002-of-00003\.safetensors: not the file .*Take another"):
        formats.contents(run / "sharded")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"]
)
def test_checkpoint_with_a_file_that_is_cut_off_names_it(run: Path, name: str) -> None:
    """The error says which of the files it is."""
    path = run / "checkpoint-2" / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=rf"^{path.parent}: {name}: .*cut off"):
        formats.contents(path.parent)


@pytest.mark.parametrize("target", ["../whole/model.safetensors", "/etc/passwd", "", "..", 5, "a\0b"])
def test_index_that_leads_elsewhere_is_refused(run: Path, target: Any) -> None:
    """No file outside of the directory is opened."""
    (run / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(NotACheckpointError, match="names no files"):
        formats.contents(run / "sharded")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a":' * 500 + "1" + "}" * 500, "{" + "9" * 5000, '{"global_step": NaN, "epoch": 1e999}']
)
def test_state_of_any_text_is_read_or_refused(run: Path, text: str) -> None:
    """Whatever the trainer's state says, it ends in a checkpoint without a step, or in one error."""
    (run / "checkpoint-2" / "trainer_state.json").write_text(text)
    try:
        outline = formats.outline(run / "checkpoint-2")
    except CheckpointError as error:
        assert "trainer_state.json: " in str(error)  # noqa: PT017 - of those that are refused
    else:
        assert (outline.step, outline.epoch) == (None, None)
