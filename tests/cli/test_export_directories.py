"""Exports of checkpoints that are directories: sharded by ``torch.distributed.checkpoint``, and Hugging Face's."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from safepoint.errors import ConfigurationError, DamagedCheckpointError
from safepoint.export import Dtype, Kind
from safepoint.export.job import Order, prepared

SHARDING = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}.ranks", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
whole = {"rows": torch.randn(7, 5), "columns": torch.randn(6, 9).bfloat16(), "both": torch.randn(3)}
placed = {"rows": Shard(0), "columns": Shard(1), "both": Replicate()}
model = {name: distribute_tensor(whole[name], mesh, [placed[name]]) for name in whole}
dcp.save({"model": model, "epoch": 3, "lr": [0.5]}, checkpoint_id=path)
if rank == 0:
    torch.save(whole, f"{path}.whole")
dist.barrier()
dist.destroy_process_group()
"""


def export(source: Path, kind: Kind, **options: Any) -> Path:
    """Export to beside the directory, and return where."""
    out = source.with_name(f"exported{kind.extension}")
    prepared(Order(source, out, kind, replace=True, **options)).run()
    return out


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that two processes have written, each its shards; the whole tensors are beside it."""
    path = tmp_path_factory.mktemp("sharded") / "checkpoint"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SHARDING]
    ranks = [subprocess.Popen([*command, str(rank), str(path)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    return path


@pytest.mark.parametrize("dtype", [None, Dtype.FLOAT64])
def test_sharded_tensors_are_whole_in_the_end(sharded: Path, dtype: Dtype | None) -> None:
    """What lies in several files, split by rows or columns, is one tensor in every kind of file."""
    wanted = torch.load(f"{sharded}.whole", weights_only=True)
    wanted = {name: tensor if dtype is None else tensor.double() for name, tensor in wanted.items()}
    state = torch.load(export(sharded, Kind.TORCH, dtype=dtype), weights_only=True)
    assert (state["epoch"], state["lr"]) == (3, [0.5])
    found = (
        state["model"],
        torch.load(export(sharded, Kind.WEIGHTS, dtype=dtype), weights_only=True, mmap=True),
        safetensors.torch.load_file(export(sharded, Kind.SAFETENSORS, strip="model", dtype=dtype)),
    )
    for tensors in found:
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
        assert all(tensors[name].is_contiguous() for name in wanted)


def test_sharded_checkpoint_is_not_written_into(sharded: Path) -> None:
    """No file of the directory is replaced by one that is made of it."""
    for name in (".metadata", "__0_0.distcp"):
        before = (sharded / name).read_bytes()
        with pytest.raises(ConfigurationError, match="belongs to the checkpoint itself"):
            prepared(Order(sharded, sharded / name, Kind.TORCH, replace=True))
        assert (sharded / name).read_bytes() == before


def test_sharded_tensor_with_a_damaged_shard_is_found(sharded: Path) -> None:
    """A bit that is not what the shard's CRC-32 says is told with the file that it is in."""
    file = sharded / "__1_0.distcp"
    before = file.read_bytes()
    part = torch.load(f"{sharded}.whole", weights_only=True)["rows"][4:].contiguous().numpy().tobytes()
    at = before.index(part) + 9
    try:
        file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        for kind in Kind:
            with pytest.raises(
                DamagedCheckpointError, match=r"__1_0\.distcp is damaged: tensor 'model\.rows' does not"
            ):
                export(sharded, kind)
    finally:
        file.write_bytes(before)


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a tiny language model whose output layer is tied to its input layer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32, n_positions=16))


def test_shards_of_hugging_face_become_one_file(model: Any, tmp_path: Path) -> None:
    """What ``save_pretrained`` split becomes one file, in another dtype, that ``from_pretrained`` takes."""
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    one = tmp_path / "one"
    one.mkdir()
    model.config.save_pretrained(one)
    order = Order(
        tmp_path / "shards",
        one / "model.safetensors",
        Kind.SAFETENSORS,
        ("model",),
        strip="model",
        dtype=Dtype.BFLOAT16,
    )
    prepared(order).run()
    loaded, told = type(model).from_pretrained(one, dtype=torch.bfloat16, output_loading_info=True)
    assert {key: list(value) for key, value in told.items() if value} == {}
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in loaded.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_weights_of_a_trainers_checkpoint(tmp_path: Path) -> None:
    """Among optimizer, scheduler and random states, the model's weights are found, and go into the model."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=8, max_position_embeddings=8)
    trained = BertForSequenceClassification(config)
    examples = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(n % 2)} for n in range(4)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.125
    )
    Trainer(trained, arguments, train_dataset=examples).train()
    weights = torch.load(export(tmp_path / "checkpoint-1", Kind.WEIGHTS), weights_only=True)
    other = BertForSequenceClassification(config)
    other.load_state_dict(weights)
    assert all(map(torch.equal, other.parameters(), trained.parameters()))
