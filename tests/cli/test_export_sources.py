"""Exports of what other programs wrote: Lightning, plain ``torch.save``, safetensors."""

from __future__ import annotations

import argparse
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import kinds
import pytest
import safetensors.torch
import torch
from models import FRAMEWORKS, OLD_TREESPEC, Framework, fit, model
from nets import tied
from torch import nn

from safepoint.errors import ConfigurationError, DamagedCheckpointError, SafepointError
from safepoint.export import Dtype, Kind
from safepoint.export.job import Order, prepared

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
NO_DATA = (
    *("conjugated", "negated", "sparse COO", "sparse COO, not coalesced", "sparse CSR", "sparse CSC", "sparse BSR"),
    *("sparse BSC", "quantised per tensor", "quantised per channel", "quantised to four bits", "meta"),
    *("meta parameter", "masked", "wrapper"),
)
NOT_PLAIN = (
    *("nested", "nested, jagged", "sizes and dtypes", "a list in itself", "a dictionary in itself"),
    *("uninitialised parameter", "uninitialised buffer", "lazy module's state", "module", "packed sequence"),
    *("generator", "NumPy", "enumeration", "dataclass", "registered with copyreg", "named tuple"),
    *("slice and range", "bound method"),
)


class Tower(nn.Module):
    """A module with parameters, buffers, and a state of its own besides."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def export(source: Path, kind: Kind, **options: Any) -> Path:
    """Export into the same directory, and return where."""
    out = source.with_name(f"exported{kind.extension}")
    prepared(Order(source, out, kind, replace=True, **options)).run()
    return out


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts are the same, bit for bit."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@OLD_TREESPEC
@every_framework
@pytest.mark.parametrize("own", [False, True], ids=["lightning", "safepoint"])
def test_lightning_weights_go_into_the_module(tmp_path: Path, framework: Framework, *, own: bool) -> None:
    """Of Lightning's files and of the drop-in's, into the LightningModule, or, stripped, into the module within."""
    fit(framework, (framework.ModelCheckpoint if own else framework.original)(tmp_path, filename="a"), epochs=1)
    path = tmp_path / "a.ckpt"
    wanted = torch.load(path, weights_only=True)["state_dict"]
    weights = torch.load(export(path, Kind.WEIGHTS), weights_only=True)
    assert same(weights, wanted)
    model(framework, seed=3).load_state_dict(weights)
    for strip in ("layer", "layer.", "state_dict.layer."):
        inner = torch.load(export(path, Kind.WEIGHTS, strip=strip), weights_only=True)
        model(framework, seed=3).layer.load_state_dict(inner)
    flat = safetensors.torch.load_file(export(path, Kind.SAFETENSORS, keys=("state_dict",), strip="state_dict"))
    assert same(dict(sorted(flat.items())), dict(sorted(wanted.items())))


@OLD_TREESPEC
def test_lightning_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    """All of the state is plain values and tensors: the file that is made goes into ``load_from_checkpoint``."""
    framework = FRAMEWORKS[0]
    trained = fit(framework, framework.original(tmp_path, filename="a"), epochs=1)
    out = export(tmp_path / "a.ckpt", Kind.TORCH)
    before, after = (torch.load(path, weights_only=True) for path in (tmp_path / "a.ckpt", out))
    assert repr(dict(before["state_dict"])) == repr(after.pop("state_dict"))
    before.pop("state_dict")
    assert repr(after) == repr(before)
    loaded = type(model(framework)).load_from_checkpoint(out, weights_only=True)
    assert trained is None or same(loaded.state_dict(), torch.load(tmp_path / "a.ckpt")["state_dict"])


def test_weights_of_a_saved_state_dict(tmp_path: Path) -> None:
    """What ``torch.save(module.state_dict())`` wrote is the model itself, buffers included."""
    tower = Tower()
    path = tmp_path / "a.pt"
    torch.save(tower.state_dict(), path)
    for kind in Kind.WEIGHTS, Kind.TORCH:
        assert same(torch.load(export(path, kind), weights_only=True), tower.state_dict())
    flat = safetensors.torch.load_file(export(path, Kind.SAFETENSORS))
    assert flat.keys() == tower.state_dict().keys()
    Tower().load_state_dict(flat)


@pytest.mark.parametrize("wrapped", ["module.", "_orig_mod."])
def test_weights_of_a_loop_of_ones_own(tmp_path: Path, wrapped: str) -> None:
    """The one entry that is a model is found among optimizer, scheduler and numbers; what wrapped it is stripped."""
    tower = Tower()
    optimizer = torch.optim.AdamW(tower.parameters())
    tower.net(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    weights = OrderedDict((f"{wrapped}{name}", tensor) for name, tensor in tower.state_dict().items())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    state = {"epoch": 3, "net": weights, "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(state | {"rng": torch.get_rng_state(), "seen": {"batches": torch.tensor(3)}}, tmp_path / "a.pth")
    found = torch.load(export(tmp_path / "a.pth", Kind.WEIGHTS, strip=wrapped), weights_only=True)
    assert str(Tower().load_state_dict(found)) == "<All keys matched successfully>"


def test_weights_carry_what_a_module_adds_to_them(tmp_path: Path) -> None:
    """A module's extra state goes along where it is plain, and is refused by its name where it is not."""
    weights = {"weight": torch.ones(2), "_extra_state": {"scale": 3}}
    torch.save({"model": weights, "epoch": 1}, tmp_path / "a.pt")
    assert torch.load(export(tmp_path / "a.pt", Kind.WEIGHTS), weights_only=True)["_extra_state"] == {"scale": 3}
    torch.save({"model": {**weights, "_extra_state": kinds.Colour.RED}}, tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match="'_extra_state'"):
        export(tmp_path / "a.pt", Kind.WEIGHTS)
    kept = torch.load(export(tmp_path / "a.pt", Kind.WEIGHTS, except_=("*._extra_state",)), weights_only=True)
    assert list(kept) == ["weight"]


def test_objects_are_refused_by_name_and_can_be_left_out(tmp_path: Path) -> None:
    """What only its own class could make again is named, with what to do about it; the rest then goes over."""
    torch.save({"epoch": 3, "settings": kinds.Settings(torch.ones(1)), "weight": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match=r"'settings'\. Leave it out with --except 'settings'"):
        export(tmp_path / "a.pt", Kind.TORCH)
    found = torch.load(export(tmp_path / "a.pt", Kind.TORCH, except_=("settings",)), weights_only=True)
    assert repr(found) == repr({"epoch": 3, "weight": torch.ones(2)})


def test_namespaces_become_dictionaries(tmp_path: Path) -> None:
    """What a program's arguments were goes over as plain values, without their class."""
    torch.save({"args": argparse.Namespace(lr=0.1, name="x"), "weight": torch.ones(2)}, tmp_path / "a.pt")
    assert torch.load(export(tmp_path / "a.pt", Kind.TORCH), weights_only=True)["args"] == {"lr": 0.1, "name": "x"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [*kinds.TENSORS, *kinds.OBJECTS])
def test_every_kind_comes_back_the_same_or_is_refused(tmp_path: Path, name: str) -> None:
    """Tensors and objects of every kind that torch saves: the same in the end, or one sentence that names them."""
    path = tmp_path / "a.pt"
    torch.save({"it": kinds.made(name), "other": torch.ones(2)}, path)
    if name in NO_DATA or name in NOT_PLAIN:
        with pytest.raises(SafepointError, match=r"'it.*--except 'it"):
            export(path, Kind.TORCH)
        assert sorted(tmp_path.iterdir()) == [path]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = torch.load(path, weights_only=False), torch.load(export(path, Kind.TORCH), weights_only=True)
    assert _meant(after) == _meant(before)


def _meant(value: Any) -> Any:
    """Return ``value`` with lists for all that is one after another, and bytes for tensors."""
    if isinstance(value, torch.UntypedStorage):
        return _meant(torch.tensor(list(value), dtype=torch.uint8))
    if isinstance(value, torch.TypedStorage):
        return _meant(torch.tensor(value.tolist(), dtype=value.dtype))
    if isinstance(value, torch.Tensor):
        plain = value.detach().as_subclass(torch.Tensor)
        return str(plain.dtype), tuple(plain.shape), plain.stride(), bytes(plain.contiguous().untyped_storage())
    if isinstance(value, dict):
        return {key: _meant(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return [_meant(entry) for entry in value] if isinstance(value, list | tuple) or hasattr(value, "popleft") else value


@pytest.mark.parametrize("kind", [Kind.TORCH, Kind.WEIGHTS, Kind.SAFETENSORS])
def test_safetensors_file_becomes_any_other(tmp_path: Path, kind: Kind) -> None:
    """Named tensors go over into a dictionary of them, or another file of the kind, converted if asked for."""
    tower = Tower()
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tower.state_dict(), path)
    for dtype in (None, Dtype.BFLOAT16):
        out = export(path, kind, dtype=dtype)
        found = safetensors.torch.load_file(out) if kind is Kind.SAFETENSORS else torch.load(out, weights_only=True)
        Tower().bfloat16().load_state_dict(found)
        assert found["net.0.weight"].dtype == (torch.bfloat16 if dtype else torch.float32)
        assert found["net.1.num_batches_tracked"].dtype == torch.int64


def test_exported_safetensors_can_be_exported_again(tmp_path: Path) -> None:
    """What Safepoint wrote is what it reads: a round trip through every kind of file ends with the same bits."""
    torch.save(tied(c=torch.randn(4, 3).t(), d=torch.randn(3).bfloat16()).state_dict(), tmp_path / "a.pt")
    first = export(tmp_path / "a.pt", Kind.SAFETENSORS).rename(tmp_path / "b.safetensors")
    second = export(first, Kind.TORCH).rename(tmp_path / "c.pt")
    third = export(second, Kind.SAFETENSORS)
    assert first.read_bytes()[-96:] == third.read_bytes()[-96:]
    wanted = torch.load(tmp_path / "a.pt", weights_only=True)
    found = safetensors.torch.load_file(third)
    assert all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize("kind", [Kind.TORCH, Kind.SAFETENSORS])
def test_damage_in_a_torch_file_is_found_by_its_crc(tmp_path: Path, kind: Kind) -> None:
    """A bit that differs from what the archive's CRC-32 says keeps the file from being made, with the tensor's name."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(5), "b": torch.arange(1000.0)}, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("a/data/1").file_size == 4000
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match="tensor 'b' does not match its CRC-32"):
        export(path, kind)
    assert sorted(tmp_path.iterdir()) == [path]
    export(path, kind, keys=("a",))
