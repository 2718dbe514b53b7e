"""Files of ``torch.save`` and of Lightning: what is told of them, and where the elements of their tensors lie."""

from __future__ import annotations

import argparse
import os
import random
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from safepoint import formats
from safepoint.contents import Contents, Format, Opaque, Tensor
from safepoint.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "complex32",
)  # fmt: skip


def raw(tensor: Tensor) -> bytes:
    """Return the bytes of the elements, in order, read from the file with numpy."""
    (part,) = tensor.parts
    storage = part.storage
    data = np.fromfile(storage.path, np.uint8, storage.size_bytes, offset=storage.offset)
    item = getattr(torch, tensor.dtype).itemsize
    strides = [stride * item for stride in part.strides] + [1]
    viewed = np.lib.stride_tricks.as_strided(data[part.offset * item :], (*part.shape, item), strides)
    return viewed.tobytes()


def expected(tensor: torch.Tensor) -> bytes:
    """Return the bytes of the elements of a live tensor, in order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def check(found: Contents, state: dict[str, torch.Tensor]) -> None:
    """Assert that ``found`` tells of the tensors in ``state``, by path, and that their bytes are theirs."""
    assert [tensor.path for tensor in found.tensors] == list(state)
    for tensor in found.tensors:
        live = state[tensor.path]
        assert f"torch.{tensor.dtype}" == str(live.dtype)
        assert tensor.shape == live.shape
        assert tensor.note == ""
        assert raw(tensor) == expected(live)


def test_torch_file_tells_of_tensors_of_every_dtype(tmp_path: Path) -> None:
    """Dtype, shape, and the very bytes, whatever the dtype."""
    source = torch.arange(48, dtype=torch.uint8)
    state = {name: source.clone().view(getattr(torch, name)) for name in DTYPES if name != "bool"}
    state["bool"] = torch.tensor([True, False, True])
    path = tmp_path / "a.pt"
    torch.save(state, path)
    check(formats.contents(path), state)


def test_torch_file_tells_of_views_and_tied_tensors(tmp_path: Path) -> None:
    """Offsets, strides, shared storages, parameters, empty tensors and scalars."""
    base = torch.arange(60.0).view(3, 4, 5)
    weight = nn.Parameter(torch.rand(3, 2))
    state = {
        "slice": base[1:, 2],
        "permuted": base.permute(2, 0, 1)[::2],
        "expanded": torch.arange(3.0).view(3, 1).expand(3, 4),
        "parameter": weight,
        "tied": weight,
        "scalar": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
    }
    path = tmp_path / "a.pth"
    torch.save(state, path)
    found = formats.contents(path)
    check(found, state)
    storages = {tensor.path: tensor.parts[0].storage for tensor in found.tensors}
    assert storages["slice"] == storages["permuted"]
    assert storages["parameter"] == storages["tied"] != storages["slice"]


@pytest.mark.parametrize("with_crcs", [True, False])
def test_torch_file_tells_the_checksums_that_it_has(tmp_path: Path, *, with_crcs: bool) -> None:
    """The CRC-32 of each storage as the directory has it, and none where torch was told to leave them out."""
    path = tmp_path / "a.pt"
    torch.serialization.set_crc32_options(with_crcs)
    try:
        torch.save({"a": torch.arange(1000.0), "b": torch.ones(2)}, path)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    crcs = [tensor.parts[0].storage.crc for tensor in formats.contents(path).tensors]
    told = [record.CRC for record in zipfile.ZipFile(path).infolist() if "/data/" in record.filename]
    assert crcs == (told if with_crcs else [None, None])


def test_torch_file_tells_step_epoch_metrics_and_hyperparameters(tmp_path: Path) -> None:
    """Counts and numbers at the top of the state, and its arguments."""
    path = tmp_path / "a.pt"
    arguments = argparse.Namespace(lr=0.1, layers=[1, 2], device=torch.device("cpu"))
    state = {
        "epoch": 3,
        "step": 70,
        "loss": torch.tensor(0.5, requires_grad=True),
        "accuracy": np.float64(0.25),
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "flag": True,
        "metrics": {"f1": 0.75, "name": "x"},
        "args": arguments,
    }
    torch.save(state, path)
    found = formats.contents(path)
    outline = found.outline
    assert outline == formats.outline(path)
    assert (outline.format, outline.step, outline.epoch) == (Format.TORCH, 70, 3)
    assert outline.metrics == {"loss": 0.5, "accuracy": 0.25, "half": 1.5, "f1": 0.75}
    assert (outline.size_bytes, outline.time) == (path.stat().st_size, path.stat().st_mtime)
    assert found.hyperparameters == {"lr": 0.1, "layers": [1, 2], "device": Opaque("torch.device('cpu')")}
    assert found.tree["metrics"] == {"f1": 0.75, "name": "x"}


def test_torch_file_with_a_table_of_numbers_has_no_metrics(tmp_path: Path) -> None:
    """A hundred numbers at the top of a state may be metrics; more are something else."""
    path = tmp_path / "a.pt"
    for count, expected in ((100, 100), (101, 0)):
        torch.save({f"m{index}": 0.5 for index in range(count)}, path)
        assert len(formats.outline(path).metrics) == expected


@pytest.mark.parametrize(
    "state", [[1, torch.ones(2)], torch.ones(3), {}, 5, {"epoch": "three", "step": -1, "metrics": {"loss": 10**400}}]
)
def test_torch_file_of_any_state_is_told(tmp_path: Path, state: Any) -> None:
    """What is no dictionary, or has something else where a count would be, has no step and no metrics."""
    path = tmp_path / "a.pt"
    torch.save(state, path)
    outline = formats.contents(path).outline
    assert (outline.step, outline.epoch, outline.metrics) == (None, None, {})


def test_torch_file_of_a_whole_module_lists_its_tensors(tmp_path: Path) -> None:
    """A module that was saved whole is an object without content in the tree; its tensors are listed all the same."""
    path = tmp_path / "a.pt"
    model = nn.Sequential(nn.Linear(2, 3))
    torch.save({"model": model}, path)
    found = formats.contents(path)
    assert found.tree == {"model": Opaque("torch.nn.modules.container.Sequential")}
    paths = ["model._modules.0._parameters.weight", "model._modules.0._parameters.bias"]
    check(found, dict(zip(paths, model.parameters(), strict=True)))


def test_torch_file_of_big_endian_says_so(tmp_path: Path) -> None:
    """The record ``byteorder`` counts."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3)}, tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as little, zipfile.ZipFile(path, "w") as big:
        for name in little.namelist():
            big.writestr(name, b"big" if name.endswith("byteorder") else little.read(name))
    (tensor,) = formats.contents(path).tensors
    assert not tensor.parts[0].storage.is_little


def test_torch_file_that_is_compressed_is_refused(tmp_path: Path) -> None:
    """One that somebody has packed again says so, and what to do."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(300)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(NotACheckpointError, match=f"^{path}: .*compressed.*zip -0"):
        formats.contents(path)


def rewritten(path: Path, data: bytes, told: str) -> None:
    """Assert that a file of this content is refused, and why."""
    path.write_bytes(data)
    with pytest.raises(NotACheckpointError, match=f"^{path}: .*{told}"):
        formats.contents(path)


def test_torch_file_whose_directory_lies_is_refused(tmp_path: Path, small: bytes) -> None:
    """Every record must be where the directory says, within the file, and there once."""
    path = tmp_path / "a.pt"
    header, entry = small.index(b"a/data/0"), small.rindex(b"a/data/0")
    moved = small[:header] + b"a/data/9" + small[header + 8 :]
    rewritten(path, moved, "'data/0' is not where its directory says")
    longer = (1 << 20).to_bytes(4, "little") * 2
    rewritten(path, small[: entry - 26] + longer + small[entry - 18 :], "'data/0' reaches beyond the file")
    rewritten(path, small.replace(b"a/data/1", b"a/data/0"), "two records called 'data/0'")


def hollow(path: Path, size_bytes: int, *, has_pickle: bool) -> None:
    """Write an archive that is mostly a hole: its one record, ``data.pkl``, or its directory."""
    name = b"a/data.pkl"
    header = struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0, 0, 0, 0, 0, size_bytes, size_bytes, len(name), 0) + name
    sizes = (0, size_bytes, size_bytes, len(name), *(0,) * 6)
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *(0,) * 6, *sizes) + name
    start = len(header) + size_bytes if has_pickle else len(header)
    directory_bytes = len(entry) if has_pickle else size_bytes + len(entry)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, directory_bytes, start, 0)
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + size_bytes)
        file.write(entry + end)


@pytest.mark.parametrize(
    ("has_pickle", "told"), [(True, r"'data\.pkl' is absurdly long"), (False, "its directory is absurdly")]
)
def test_torch_file_that_is_mostly_a_hole_is_refused_unread(tmp_path: Path, told: str, *, has_pickle: bool) -> None:
    """A hole in a file costs its writer nothing, and is not read to be looked at."""
    path = tmp_path / "a.pt"
    hollow(path, 1 << 29, has_pickle=has_pickle)
    tracemalloc.start()
    with pytest.raises(NotACheckpointError, match=told):
        formats.contents(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_torch_file_of_more_than_four_gigabytes_is_read(tmp_path: Path) -> None:
    """Offsets that need 64 bits stand in another place of the directory."""
    path, value = tmp_path / "a.pt", torch.arange(4.0)
    torch.save({"a": value}, tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as small, zipfile.ZipFile(path, "w") as large:
        names = small.namelist()
        large.writestr(names[0], small.read(names[0]))
        large.start_dir = 5 << 30
        for name in names[1:]:
            large.writestr(name, small.read(name))
    (tensor,) = formats.contents(path).tensors
    assert tensor.parts[0].storage.offset > 5 << 30
    assert raw(tensor) == expected(value)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    """Each kind of file has one line: what it is, and what to do."""
    model = nn.Linear(2, 2)
    script, exported = tmp_path / "script.pt", tmp_path / "exported.pt2"
    legacy, empty, text = tmp_path / "legacy.pt", tmp_path / "empty.ckpt", tmp_path / "text.pt"
    tar, plain, other = tmp_path / "tar.pt", tmp_path / "plain.pkl", tmp_path / "other.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(str(script))
    torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), exported)
    torch.save(model.state_dict(), legacy, _use_new_zipfile_serialization=False)
    empty.touch()
    text.write_text("a letter")
    tar.write_bytes(bytes(257) + b"ustar\0" + bytes(300))
    plain.write_bytes(b"\x80\x04N.")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a/b", b"c")
    for path, told in (
        (script, r"TorchScript archive.*torch\.jit\.load"),
        (exported, r"exported program.*torch\.export\.load"),
        (legacy, r"before 1\.6.*save it again"),
        (tar, r"tar archive.*save it again"),
        (empty, "empty.*Take another"),
        (text, "no checkpoint of any kind"),
        (plain, "plain pickle.*scan"),
        (other, r"without data\.pkl"),
        (tmp_path, "a directory that is no checkpoint"),
        (Path(os.devnull), "not a regular file"),
    ):
        for read in (formats.format_of, formats.outline, formats.contents):
            with pytest.raises(NotACheckpointError, match=rf"(?s)^{path}: .*{told}.*\.$"):
                read(path)
    with pytest.raises(FileNotFoundError):
        formats.outline(tmp_path / "nothing")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a small file of torch's."""
    path = tmp_path_factory.mktemp("small") / "a.pt"
    state = {"epoch": 1, "loss": torch.tensor(0.5), "weight": torch.arange(4.0), "args": argparse.Namespace(lr=1.0)}
    torch.save(state, path)
    return path.read_bytes()


def test_torch_file_that_is_cut_off_anywhere_is_none(tmp_path: Path, small: bytes) -> None:
    """Every beginning of a file is half-written, and is told to be no checkpoint."""
    path = tmp_path / "a.pt"
    path.write_bytes(small)
    for size in reversed(range(len(small))):
        os.truncate(path, size)
        with pytest.raises(NotACheckpointError, match=f"^{path}: "):
            formats.contents(path)


def test_torch_file_with_any_damage_is_read_or_refused(tmp_path: Path, small: bytes) -> None:
    """A byte that is another one, anywhere: what is told then, or one error of ours."""
    path = tmp_path / "a.pt"
    path.write_bytes(small)
    chance = random.Random(0)
    refused = 0
    with path.open("r+b", buffering=0) as file:
        for _ in range(1500):
            places = [chance.randrange(len(small)) for _ in range(chance.randint(1, 3))]
            for at in places:
                os.pwrite(file.fileno(), bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))]), at)
            try:
                formats.contents(path)
            except CheckpointError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ")  # noqa: PT017 - of those that are refused
            for at in places:
                os.pwrite(file.fileno(), small[at : at + 1], at)
    assert 100 < refused < 1500


def test_torch_file_with_a_damaged_pickle_is_damaged(tmp_path: Path, small: bytes) -> None:
    """A pickle that does not match its CRC-32 is not believed, although it could be read."""
    path = tmp_path / "a.pt"
    path.write_bytes(small.replace(b"weight", b"weighs"))
    with pytest.raises(DamagedCheckpointError, match=r"data\.pkl.*CRC-32"):
        formats.contents(path)
