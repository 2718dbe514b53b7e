"""Tensors of other orders and in several pieces, as sharded checkpoints hold them, told by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch

from safepoint.checksums import checksums
from safepoint.contents import Part, Storage, Tensor
from safepoint.errors import DamagedCheckpointError
from safepoint.export.archive import Archive
from safepoint.export.elements import Elements, Plan
from safepoint.export.safetensors import Safetensors

DATA = torch.arange(24, dtype=torch.int16).reshape(4, 6)


def storage(path: Path, data: bytes, *, is_little: bool = True, checked_by: str = "digest") -> Storage:
    """Return a file of ``data`` as a storage."""
    path.write_bytes(data)
    sums = checksums(data)
    by_crc = checked_by == "crc"
    return Storage(path, 0, len(data), "" if by_crc else sums.digest, sums.crc if by_crc else None, is_little)


def written(plan: Plan, path: Path) -> Path:
    """Write a file, of the size that was told ahead."""
    path.write_bytes(b"".join(bytes(piece) for piece in plan.pieces(Elements())))
    assert path.stat().st_size == plan.size_bytes
    return path


@pytest.fixture(params=["big", "sharded"])
def tensor(request: pytest.FixtureRequest, tmp_path: Path) -> Tensor:
    """Return ``DATA`` in big-endian order, or in two pieces that lie in files of their own."""
    if request.param == "big":
        swapped = storage(tmp_path / "0", DATA.numpy().astype(">i2").tobytes(), is_little=False)
        return Tensor("net.weight", "int16", (4, 6), (Part((0, 0), (4, 6), swapped, 0, (6, 1)),))
    halves = [
        storage(tmp_path / f"{n}", half.contiguous().numpy().tobytes()) for n, half in enumerate(DATA.split(4, 1))
    ]
    left = Part((0, 0), (4, 4), halves[0], 0, (4, 1))
    return Tensor("net.weight", "int16", (4, 6), (left, Part((0, 4), (4, 2), halves[1], 0, (2, 1))))


def test_elements_in_pieces_or_swapped_are_put_in_order(tensor: Tensor, tmp_path: Path) -> None:
    """In either kind of file the tensor is whole, on a storage of its own; a second name shares it."""
    both = {"a": tensor, "b": dataclasses.replace(tensor, path="net.other")}
    loaded = torch.load(written(Archive(both, None), tmp_path / "o"), weights_only=True)
    assert torch.equal(loaded["a"], DATA)
    assert loaded["a"].untyped_storage().nbytes() == 48
    loaded["a"][0] = 7
    assert torch.equal(loaded["a"], loaded["b"])
    assert torch.equal(safetensors.torch.load_file(written(Safetensors(both, None), tmp_path / "s"))["a"], DATA)


def test_elements_in_pieces_or_swapped_are_verified(tensor: Tensor, tmp_path: Path) -> None:
    """A bit in one of the files that does not match is found, with the tensor's name."""
    path = tensor.parts[-1].storage.path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for plan in Archive({"a": tensor}, None), Safetensors({"a": tensor}, None):
        with pytest.raises(DamagedCheckpointError, match=rf"{path} is damaged: tensor 'net\.weight' does not match"):
            written(plan, tmp_path / "o")


def test_elements_of_one_storage_as_two_dtypes_are_parted(tmp_path: Path) -> None:
    """Torch knows one dtype a storage: bytes that are seen as several get a storage for each."""
    one = storage(tmp_path / "0", DATA.numpy().tobytes(), checked_by="crc")
    tensors = {
        "short": Tensor("short", "int16", (24,), (Part((0,), (24,), one, 0, (1,)),)),
        "half": Tensor("half", "bfloat16", (24,), (Part((0,), (24,), one, 0, (1,)),)),
        "bytes": Tensor("bytes", "uint8", (48,), (Part((0,), (48,), one, 0, (1,)),)),
        "odd": Tensor("odd", "int32", (2,), (Part((0,), (2,), one, 9, (2,)),)),
    }
    loaded = torch.load(written(Archive(tensors, None), tmp_path / "o"), weights_only=True)
    flat = DATA.reshape(-1)
    assert torch.equal(loaded["short"], flat)
    assert torch.equal(loaded["half"], flat.view(torch.bfloat16))
    assert torch.equal(loaded["bytes"], flat.view(torch.uint8))
    assert torch.equal(loaded["odd"], flat.view(torch.int32)[9::2])


def test_elements_on_a_storage_of_no_whole_length(tmp_path: Path) -> None:
    """A storage may be longer than its last whole element: the rest is verified, and left out."""
    one = storage(tmp_path / "0", bytes(range(15)))
    tensor = Tensor("a", "int32", (3,), (Part((0,), (3,), one, 0, (1,)),))
    loaded = torch.load(written(Archive({"a": tensor}, None), tmp_path / "o"), weights_only=True)["a"]
    assert bytes(loaded.untyped_storage()) == bytes(range(12))
