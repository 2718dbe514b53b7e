"""The elements of tensors, read without torch: the same bytes and numbers as torch's own, in bounded memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from safepoint import Checkpointer, keep, when
from safepoint import values as read
from safepoint.checksums import digest
from safepoint.contents import Part, Storage, Tensor
from safepoint.errors import CheckpointError
from safepoint.formats import contents

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")

NUMBERS = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
AHEAD = b"what lies ahead of the storage"
VIEWS = {
    "whole": lambda t: t,
    "slice": lambda t: t[3:7],
    "column": lambda t: t[:, 2],
    "transposed": lambda t: t.T,
    "permuted": lambda t: t.reshape(5, 2, 12).permute(2, 0, 1),
    "channels last": lambda t: t.reshape(2, 5, 4, 3).contiguous(memory_format=torch.channels_last),
    "every third": lambda t: t[::3, 1::2],
    "expanded": lambda t: t[:1].expand(7, 12),
    "scalar": lambda t: t[4, 5],
    "empty": lambda t: t[:0],
    "unfolded": lambda t: t.reshape(-1).unfold(0, 10, 3),
}


def random(dtype: str, *shape: int) -> torch.Tensor:
    """Return a tensor of random bits; a bool has one of the two bytes that it may have."""
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(5)
    high = 2 if kind == torch.bool else 256
    bits = torch.randint(0, high, (math.prod(shape) * kind.itemsize,), dtype=torch.uint8, generator=generator)
    return bits.view(kind).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of the elements of ``tensor`` in row-major order, as torch has them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored(path: Path, tensor: torch.Tensor) -> Tensor:
    """Write the storage of ``tensor`` into a file, behind something else, and return where the tensor lies."""
    data = bytes(tensor.untyped_storage())
    path.write_bytes(AHEAD + data)
    shape, storage = tuple(tensor.shape), Storage(path, len(AHEAD), len(data))
    part = Part((0,) * len(shape), shape, storage, tensor.storage_offset(), tensor.stride())
    return Tensor("weight", str(tensor.dtype).removeprefix("torch."), shape, (part,))


def all_bytes(tensor: Tensor, most_bytes: int = read.BLOCK_BYTES) -> bytes:
    """Return the bytes of all pieces, none of which may be longer than asked for."""
    pieces = [bytes(piece) for piece in read.pieces(tensor, most_bytes)]
    assert all(0 < len(piece) <= max(most_bytes, read.item_bytes(tensor)) for piece in pieces)
    return b"".join(pieces)


def with_part(tensor: Tensor, **changes: object) -> Tensor:
    """Return ``tensor`` with another only part."""
    return dataclasses.replace(tensor, parts=(dataclasses.replace(tensor.parts[0], **changes),))


@pytest.mark.parametrize("dtype", NUMBERS)
def test_values_of_every_dtype_are_those_of_torch(tmp_path: Path, dtype: str) -> None:
    """Elements of every dtype are the numbers, infinities and NaNs that torch shows of them, and the same bytes."""
    tensor = random(dtype, 37, 11)
    told = stored(tmp_path / "file", tensor)
    assert all_bytes(told) == bits(tensor)
    (block,) = (block.copy() for block in read.blocks(told))
    wide = "complex128" if tensor.is_complex() else "float64"
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(block.astype(wide), tensor.reshape(-1).to(getattr(torch, wide)).numpy())


@pytest.mark.parametrize("dtype", ["quint8", "float4_e2m1fn_x2", "uint4", "bits16"])
def test_values_of_packed_dtypes_are_bytes_only(tmp_path: Path, dtype: str) -> None:
    """What has no element that is a number can be copied and compared as bytes, and is refused as numbers."""
    told = dataclasses.replace(stored(tmp_path / "file", random("uint8", 6, 2)), dtype=dtype, shape=(6,))
    told = with_part(told, start=(0,), shape=(6,), strides=(1,))
    assert len(all_bytes(told)) == 6 * getattr(torch, dtype).itemsize
    with pytest.raises(CheckpointError, match=f"file: tensor 'weight' cannot be read: its elements are {dtype}"):
        next(read.blocks(told))


def test_values_of_an_unknown_dtype_are_refused(tmp_path: Path) -> None:
    """A dtype that a file made up, or that is newer than this, is named."""
    told = dataclasses.replace(stored(tmp_path / "file", random("uint8", 6)), dtype="float3")
    with pytest.raises(CheckpointError, match="float3"):
        all_bytes(told)


@pytest.mark.parametrize("most_bytes", [1, 13, 64, 4096])
@pytest.mark.parametrize("view", VIEWS)
def test_values_of_views_come_in_row_major_order(tmp_path: Path, view: str, most_bytes: int) -> None:
    """Slices, transposed, permuted, expanded and overlapping views are read in order, in pieces of any size."""
    tensor = VIEWS[view](random("int16", 10, 12))
    assert all_bytes(stored(tmp_path / "file", tensor), most_bytes) == bits(tensor)


def test_values_far_apart_are_read_run_by_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between runs is read over where it is little, and left out where it is much, with the same result."""
    tensor = random("float32", 7, 5, 6, 9)
    for gap_bytes, block_bytes in itertools.product((0, 40, 1 << 20), (16, 200, 1 << 20)):
        monkeypatch.setattr(read, "_GAP_BYTES", gap_bytes)
        monkeypatch.setattr(read, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(read, "_STRIDED_BYTES", block_bytes)
        for order in ((3, 2, 1, 0), (1, 0, 3, 2), (0, 3, 1, 2), (2, 3, 0, 1)):
            view = tensor[1:, :, ::2].permute(order)
            assert all_bytes(stored(tmp_path / "file", view), 100) == bits(view)


def test_values_of_sharded_tensors_are_put_together(tmp_path: Path) -> None:
    """Parts on several files, of any box of the tensor, become one; each block takes what it needs of each."""
    tensor = random("bfloat16", 11, 7)
    parts = []
    for number, (rows, columns) in enumerate(itertools.product(((0, 4), (4, 11)), ((0, 3), (3, 7)))):
        shard = tensor[slice(*rows), slice(*columns)]
        (part,) = stored(tmp_path / f"{number}", shard.T.contiguous().T if number % 2 else shard.clone()).parts
        parts.append(dataclasses.replace(part, start=(rows[0], columns[0])))
    for order in itertools.permutations(parts):
        told = Tensor("weight", "bfloat16", (11, 7), order)
        assert [all_bytes(told, most) for most in (2, 30, 4096)] == [bits(tensor)] * 3
    with pytest.raises(CheckpointError, match="not the whole of it"):
        all_bytes(Tensor("weight", "bfloat16", (11, 7), tuple(parts[:3])))
    with pytest.raises(CheckpointError, match="not the whole of it"):
        all_bytes(Tensor("weight", "bfloat16", (11, 7), (*parts[:3], dataclasses.replace(parts[3], start=(3, 3)))))


@pytest.mark.parametrize("dtype", ["int16", "float64", "complex64", "complex32", "bool"])
def test_values_in_big_endian_order_are_turned(tmp_path: Path, dtype: str) -> None:
    """What a machine of the other order wrote gives the same numbers, either half of a complex one turned by itself."""
    tensor = random(dtype, 4, 6)
    told = stored(tmp_path / "file", tensor.T)
    number = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
    turned = np.frombuffer(bits(tensor), f"u{number}").byteswap().tobytes()
    (tmp_path / "file").write_bytes(AHEAD + turned)
    told = with_part(told, storage=dataclasses.replace(told.parts[0].storage, is_little=False))
    assert all_bytes(told, 32) == bits(tensor.T)
    (part,) = told.parts
    little = dataclasses.replace(part, storage=dataclasses.replace(part.storage, is_little=True))
    with pytest.raises(CheckpointError, match="in two byte orders"):
        all_bytes(dataclasses.replace(told, parts=(part, little)))


@pytest.mark.parametrize("view", VIEWS)
def test_tensors_are_equal_if_all_their_bytes_are(tmp_path: Path, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However each of them lies on its storage, and whichever byte it is that is another."""
    monkeypatch.setattr(read, "_CACHED_BYTES", 26)
    tensor = VIEWS[view](random("int8", 10, 12)).contiguous()
    here = stored(tmp_path / "here", VIEWS[view](random("int8", 10, 12)))
    assert read.equal(here, stored(tmp_path / "there", tensor))
    for at in range(0, tensor.numel(), 7):
        other = tensor.clone()
        other.view(-1)[at] += 1
        assert not read.equal(here, stored(tmp_path / "there", other))


def test_digest_of_a_whole_storage_is_the_manifest_s(tmp_path: Path) -> None:
    """Read from a checkpoint of Safepoint's own, every digest is that of the bytes, and so the one in the manifest."""
    module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    with Checkpointer(tmp_path, state={"model": module}, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.step()
    found = {tensor.path: tensor for tensor in contents(checkpointer.latest().path).tensors}
    weight, bias = found["model.weight"], found["model.bias"]
    assert read.digest(bias) == bias.parts[0].storage.digest == digest(bits(module.bias.detach()))
    assert read.digest(weight) == digest(bits(module.weight.detach())) != weight.parts[0].storage.digest


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"offset": -1}, "negative"),
        ({"offset": 1}, "beyond its storage"),
        ({"strides": (12, -1)}, "negative"),
        ({"strides": (13, 1)}, "beyond its storage"),
        ({"strides": (1 << 62, 1)}, "beyond its storage"),
        ({"strides": (1,)}, "outside of it"),
        ({"start": (1, 0)}, "outside of it"),
        ({"start": (0, -1)}, "outside of it"),
        ({"shape": (120, 1)}, "outside of it"),
        ({"shape": (10, 11)}, "not the whole of it"),
        ({"shape": (-10, -12)}, "outside of it"),
        ({"shape": (120,), "start": (0,), "strides": (1,)}, "outside of it"),
    ],
)
def test_places_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    """Nothing that a file says of a tensor's place is believed."""
    tensor = with_part(stored(tmp_path / "file", random("int16", 10, 12)), **changes)
    with pytest.raises(CheckpointError, match=told):
        all_bytes(tensor)


@pytest.mark.parametrize("shape", [(1 << 42,), (1 << 20, 1 << 22), (2,) * 65, (1,) * 65, (-1, -4)])
def test_shapes_that_cannot_be_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A shape costs a file nothing: what nobody could have made is refused, and no memory is taken for it."""
    told = stored(tmp_path / "file", random("int16", 1))
    told = dataclasses.replace(with_part(told, start=(0,) * len(shape), shape=shape, strides=(0,) * len(shape)))
    with pytest.raises(CheckpointError, match=r"absurdly large|none that a tensor has"):
        all_bytes(dataclasses.replace(told, shape=shape))


def test_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    """A file shorter than it says, or one that becomes so while it is read, is named with the tensor: no crash."""
    told = stored(tmp_path / "file", random("int16", 10, 12))
    reading = read.pieces(told, 60)
    next(reading)
    os.truncate(tmp_path / "file", len(AHEAD) + 100)
    with pytest.raises(CheckpointError, match=r"file: tensor 'weight' cannot be read: the file ends before it does"):
        list(reading)
    (tmp_path / "file").unlink()
    with pytest.raises(FileNotFoundError):
        all_bytes(told)
    os.mkfifo(tmp_path / "file")
    with pytest.raises(CheckpointError, match="not a regular file"):
        all_bytes(told)


def test_tensor_without_data_says_why() -> None:
    """A meta tensor has nothing to read, and the error gives its note."""
    with pytest.raises(CheckpointError, match="tensor 'a' cannot be read: a meta tensor"):
        list(read.pieces(Tensor("a", "float32", (2,), (), "a meta tensor")))


def test_values_take_little_memory(tmp_path: Path) -> None:
    """A tensor far larger than a block, in order or transposed, is read in a bounded part of its size."""
    path = tmp_path / "file"
    path.touch()
    side = 1 << 14
    os.truncate(path, side * side)
    storage = Storage(path, 0, side * side)
    for strides, most in (((side, 1), 9 << 20), ((1, side), 82 << 20)):
        told = Tensor("weight", "uint8", (side, side), (Part((0, 0), (side, side), storage, 0, strides),))
        tracemalloc.start()
        assert sum(map(len, read.pieces(told))) == side * side
        assert tracemalloc.get_traced_memory()[1] < most
        tracemalloc.stop()
