"""Directories of ``torch.distributed.checkpoint``: of one process and of two, whole and half-written."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.filesystem import SerializationFormat

from safepoint import formats
from safepoint.contents import Format, Opaque, Tensor
from safepoint.errors import CheckpointError, NotACheckpointError

SCRIPT = Path(__file__).parent / "scripts" / "shard.py"


def save(state: dict[str, Any], directory: Path, **options: Any) -> Path:
    """Save ``state`` as one process, and return the directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(directory, **options))
    return directory


def read(tensor: Tensor) -> bytes:
    """Return the bytes of the elements of a tensor, put together from its parts."""
    item = getattr(torch, tensor.dtype).itemsize
    whole = np.zeros((*tensor.shape, item), np.uint8)
    for part in tensor.parts:
        data = np.fromfile(part.storage.path, np.uint8, part.storage.size_bytes, offset=part.storage.offset)
        strides = [stride * item for stride in part.strides] + [1]
        viewed = np.lib.stride_tricks.as_strided(data[part.offset * item :], (*part.shape, item), strides)
        whole[tuple(slice(at, at + size) for at, size in zip(part.start, part.shape, strict=True))] = viewed
    return whole.tobytes()


def raw(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a live tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Return a state with a trained model, and with values of all kinds."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    tensors = {"empty": torch.ones(0, 2), "half": torch.rand(3, 2).bfloat16(), "columns": torch.rand(4, 6)[:, 1:3]}
    plain = {
        "epoch": 3,
        "step": 70,
        "loss": 0.5,
        "score": torch.tensor(2.0),
        "config": {"lr": [0.1, 0.2]},
        "set": {"x"},
    }
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        **tensors,
        **plain,
        "device": torch.device("cpu"),
    }


def test_directory_of_one_process_tells_of_its_tensors(tmp_path: Path, state: dict[str, Any]) -> None:
    """The bytes of every tensor, the plain values, step, epoch and metrics; in as many files as there are."""
    path = save(state, tmp_path / "checkpoint-70", thread_count=2)
    assert len(list(path.glob("*.distcp"))) == 2
    found = formats.contents(path)
    by_path = {tensor.path: tensor for tensor in found.tensors}
    assert len(by_path) == len(found.tensors)
    for name, live in state["model"].items():
        assert by_path[f"model.{name}"] == found.tree["model"][name]
        assert read(by_path[f"model.{name}"]) == raw(live)
    for index, moments in state["optimizer"]["state"].items():
        for name, live in moments.items():
            assert read(by_path[f"optimizer.state.{index}.{name}"]) == raw(live)
    for name in ("empty", "half", "columns", "score"):
        live = state[name]
        assert (by_path[name].shape, f"torch.{by_path[name].dtype}") == (live.shape, str(live.dtype))
        assert read(by_path[name]) == raw(live)
    assert found.tree["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert found.tree["set"] == {"x"}
    assert found.tree["device"] == Opaque("torch.device('cpu')")
    assert found.hyperparameters == {"lr": [0.1, 0.2]}
    outline = found.outline
    assert outline == formats.outline(path)
    assert formats.format_of(path) is Format.DCP
    assert (outline.step, outline.epoch) == (70, 3)
    assert outline.metrics == {"loss": 0.5, "score": 2.0}
    assert outline.size_bytes == sum(file.stat().st_size for file in path.iterdir())


def test_directory_of_two_processes_tells_of_the_parts(tmp_path: Path) -> None:
    """Tensors that are sharded over rows or columns are put together from their parts."""
    path = tmp_path / "checkpoint"
    commands = [[sys.executable, "-W", "ignore", SCRIPT, str(rank), tmp_path / "rendezvous", path] for rank in range(2)]
    processes = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    found = formats.contents(path)
    by_path = {tensor.path: tensor for tensor in found.tensors}
    assert [len(by_path[f"model.{name}"].parts) for name in ("rows", "columns", "same")] == [2, 2, 1]
    assert len({part.storage.path for part in by_path["model.rows"].parts}) == 2
    assert read(by_path["model.rows"]) == raw(torch.arange(35.0))
    assert read(by_path["model.columns"]) == raw(torch.arange(24))
    assert read(by_path["model.same"]) == raw(torch.arange(3.0))
    assert found.outline.step == 7


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a small checkpoint."""
    return save({"weight": torch.arange(6.0).view(2, 3), "step": 3, "config": {"lr": 0.5}}, tmp_path / "small")


def check_refused(path: Path, told: str) -> None:
    """Assert that neither an outline nor the contents are told, and why."""
    for reading in (formats.outline, formats.contents):
        with pytest.raises(NotACheckpointError, match=rf"^{path}: .*{told}"):
            reading(path)


def test_directory_without_metadata_is_half_written(small: Path) -> None:
    """The metadata is written last."""
    (small / ".metadata").unlink()
    check_refused(small, r"half-written: \.metadata.* is not there\. Take another")


def test_directory_without_a_file_of_parts_is_half_written(small: Path) -> None:
    """A file that the metadata names must be there."""
    (small / "__0_0.distcp").unlink()
    check_refused(small, "half-written.*'__0_0.distcp' is not there.*Take another")


def test_directory_that_is_cut_off_or_damaged_is_read_or_refused(small: Path) -> None:
    """Every beginning of a file is refused, and so is its damage, or what is told is what there is then."""
    chance = random.Random(0)
    for name in ("__0_0.distcp", ".metadata"):
        path = small / name
        whole = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for _ in range(200):
                at = chance.randrange(len(whole))
                os.pwrite(file.fileno(), bytes([chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))]), at)
                try:
                    formats.contents(small)
                except CheckpointError as error:
                    assert str(error).startswith(f"{small}: ")  # noqa: PT017 - of those that are refused
                os.pwrite(file.fileno(), whole[at : at + 1], at)
        for size in reversed(range(0, len(whole), 61)):
            os.truncate(path, size)
            check_refused(small, "half-written|cut off")
        path.write_bytes(whole)
    assert formats.outline(small).step == 3


class Inverted(StreamTransformExtension):
    """Writes every byte inverted, as another might compress."""

    @staticmethod
    def registry_name() -> str:
        """Return its name."""
        return "tests.inverted"

    @staticmethod
    def from_descriptor(version: str) -> Inverted:
        """Return one."""
        return Inverted()

    def get_descriptor(self) -> str:
        """Return its name and version."""
        return f"{self.registry_name()}/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        """Return what inverts on the way to ``output``."""

        class Inverting(io.BytesIO):
            def close(self) -> None:
                if not self.closed:
                    output.write(bytes(255 - byte for byte in self.getvalue()))
                super().close()

        return Inverting()

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:  # noqa: A002 - torch's name
        """Return what is inverted back."""
        return io.BytesIO(bytes(255 - byte for byte in input.read()))


@pytest.mark.parametrize(
    "options",
    [{"serialization_format": SerializationFormat.SAFETENSORS}, {"_extensions": [Inverted()]}],
    ids=["safetensors", "transformed"],
)
def test_parts_that_are_stored_in_another_way_are_said_to_be(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of a writer that stores safetensors, or transforms what it writes, shapes are told, and why there is no data."""
    path = save({"weight": torch.arange(6.0).view(2, 3), "step": 3}, tmp_path / "checkpoint", **options)
    found = formats.contents(path)
    (tensor,) = found.tensors
    assert (tensor.shape, tensor.parts, tensor.note) == ((2, 3), (), "stored in another way than by torch.save")
    assert found.outline.step == (None if "_extensions" in options else 3)


def forged(small: Path, change: Any) -> None:
    """Change the metadata."""
    metadata = pickle.loads((small / ".metadata").read_bytes())
    change(metadata)
    (small / ".metadata").write_bytes(pickle.dumps(metadata))


def _elsewhere(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../small/__0_0.distcp"


def _nowhere(metadata: Any) -> None:
    metadata.storage_data = {}


def _negative(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.offset = -5


def _larger(metadata: Any) -> None:
    metadata.state_dict_metadata["weight"].size = torch.Size((1, 1))


def _another(metadata: Any) -> None:
    metadata.state_dict_metadata["weight"].properties.dtype = torch.float16


def _no_names(metadata: Any) -> None:
    metadata.state_dict_metadata = {1: None}


def _within(metadata: Any) -> None:
    metadata.planner_data = {"weight": ("step", "a"), "step": ("step",), "config.lr": ("config", "lr")}


@pytest.mark.parametrize("change", [_elsewhere, _nowhere, _negative, _larger, _another, _no_names, _within])
def test_metadata_that_is_forged_is_refused(small: Path, change: Any) -> None:
    """No file outside of the directory is opened, and what contradicts itself is no checkpoint."""
    forged(small, change)
    with pytest.raises(NotACheckpointError, match=r"malformed|damaged, or forged"):
        formats.contents(small)


def test_metadata_of_another_program_is_refused(small: Path) -> None:
    """A pickle of that name that is something else."""
    for other in ({"a": 1}, Path("a")):
        (small / ".metadata").write_bytes(pickle.dumps(other))
        check_refused(small, r"\.metadata: none that torch\.distributed\.checkpoint writes")
