"""Files of safetensors: what is told of them, and what is refused."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from safepoint import formats
from safepoint.contents import Contents, Format
from safepoint.errors import CheckpointError, NotACheckpointError

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool", "complex64",
    "float4_e2m1fn_x2",
)  # fmt: skip


def check(found: Contents, state: dict[str, torch.Tensor]) -> None:
    """Assert that ``found`` tells of the tensors in ``state``, and that the bytes in the file are theirs."""
    assert {tensor.path for tensor in found.tensors} == set(state)
    for tensor in found.tensors:
        live = state[tensor.path].detach()
        assert (f"torch.{tensor.dtype}", tensor.shape) == (str(live.dtype), live.shape)
        (part,) = tensor.parts
        data = np.fromfile(part.storage.path, np.uint8, part.storage.size_bytes, offset=part.storage.offset)
        assert data.tobytes() == (live.reshape(-1).view(torch.uint8).numpy().tobytes() if live.numel() else b"")


def test_safetensors_file_tells_of_tensors_of_every_dtype(tmp_path: Path) -> None:
    """Dtype, shape, and the very bytes; and what its metadata says."""
    source = torch.arange(2, 50, dtype=torch.uint8)
    state = {name: source.clone().view(getattr(torch, name)).view(2, -1) for name in DTYPES if name != "bool"}
    state |= {"bool": torch.tensor([True, False, True]), "empty": torch.empty(0, 3), "scalar": torch.tensor(1.5)}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, {"format": "pt", "step": "70", "epoch": "3", "rank": "8"})
    found = formats.contents(path)
    check(found, state)
    assert found.tree == {tensor.path: tensor for tensor in found.tensors}
    outline = found.outline
    assert outline == formats.outline(path)
    assert (outline.format, outline.step, outline.epoch) == (Format.SAFETENSORS, 70, 3)
    assert (outline.size_bytes, outline.time) == (path.stat().st_size, path.stat().st_mtime)
    assert found.producer == {"format": "pt"}
    assert found.hyperparameters == {"step": "70", "epoch": "3", "rank": "8"}


def test_safetensors_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    """Whatever its name is."""
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "weights")
    assert formats.format_of(tmp_path / "weights") is Format.SAFETENSORS


def test_safetensors_file_of_a_model_tells_of_tied_tensors(tmp_path: Path) -> None:
    """What ``save_model`` leaves out as it is there by another name is told by both."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_model(model, str(path))
    found = formats.contents(path)
    check(found, dict(model.state_dict()))
    assert found.hyperparameters == {}


def header(told: Any, data: bytes = b"") -> bytes:
    """Return a file with this header."""
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(**changes: Any) -> dict[str, Any]:
    """Return the header of a file with one tensor of four bytes."""
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


MALFORMED = {
    "no JSON": (header(b"{" * 100), "its header is none"),
    "deep JSON": (header(b'{"a":' * 100_000), "its header is none"),
    "a list": (header([]), "its header is none"),
    "a tensor without offsets": (header({"a": {"dtype": "F32", "shape": []}}), "its header is none"),
    "a negative shape": (header(one(shape=[-1]), bytes(4)), "its header is none"),
    "many dimensions": (header(one(shape=[2**61] * 1000), bytes(4)), "its header is none"),
    "metadata of numbers": (header({"__metadata__": {"a": 1}}), "its header is none"),
    "an absurd header": (b"\xff" * 8 + b"{}", "absurdly long"),
    "a long header": (header(one(), bytes(4))[:40], "cut off within its header"),
    "a hole": (header(one(data_offsets=[4, 8]), bytes(8)), "begins at 4"),
    "an overlap": (header({**one(), "b": one()["a"]}, bytes(4)), "begins at 0"),
    "another size": (header(one(shape=[2]), bytes(4)), "2 elements of float32 has 4 bytes"),
    "too little data": (header(one(), bytes(3)), "cut off: .* 4 bytes of data, and 3 are there"),
    "too much data": (header(one(), bytes(5)), "1 bytes behind its last tensor"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_safetensors_file_that_breaks_the_format_is_refused(tmp_path: Path, name: str) -> None:
    """The header must be whole, and its tensors must fill the file."""
    data, told = MALFORMED[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(NotACheckpointError, match=f"^{path}: .*{told}"):
        formats.contents(path)


def test_safetensors_file_of_an_unknown_dtype_tells_of_the_rest(tmp_path: Path) -> None:
    """A tensor of a dtype that is unknown here has no data, and says so."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(one(dtype="F6_E2M3"), bytes(4)))
    (tensor,) = formats.contents(path).tensors
    assert (tensor.dtype, tensor.parts, tensor.note) == ("f6_e2m3", (), "of a dtype that is unknown here")


def test_safetensors_file_that_is_cut_off_or_damaged_is_read_or_refused(tmp_path: Path) -> None:
    """Every beginning is refused; with another byte anywhere, there is what is told then, or one error of ours."""
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path, {"format": "pt"})
    whole = path.read_bytes()
    chance = random.Random(0)
    with path.open("r+b", buffering=0) as file:
        for _ in range(1000):
            at = chance.randrange(len(whole))
            os.pwrite(file.fileno(), bytes([chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))]), at)
            try:
                formats.contents(path)
            except CheckpointError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017 - of those that are refused
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    for size in reversed(range(len(whole))):
        os.truncate(path, size)
        with pytest.raises(NotACheckpointError, match=f"^{path}: .*(cut off|empty)"):
            formats.contents(path)
