"""What ``safepoint.load`` returns: what ``torch.load`` would, verified, whatever the options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import Training
from nets import flip, let_torch_clone, mixed, save, tied

import safepoint


def _everything() -> dict[str, Any]:
    shared = torch.arange(10.0)
    return {
        "net": mixed().state_dict(),
        "tied": tied().state_dict(),
        "views": [shared[:4], shared[2:], shared.view(2, 5).t()],
        "sparse": torch.eye(3).to_sparse(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "expanded": torch.ones(1).expand(4),
        "large": torch.randn(700, 700),
        "plain": {"epoch": 3, "names": ("a", "b")},
    }


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def _same(here: Any, there: Any) -> bool:
    if isinstance(here, torch.Tensor):
        return type(here) is type(there) and here.layout == there.layout and torch.equal(_dense(here), _dense(there))
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(_same(here[key], there[key]) for key in here)
    if isinstance(here, list | tuple):
        return len(here) == len(there) and all(_same(a, b) for a, b in zip(here, there, strict=True))
    return bool(here == there)


def _where_it_is(storage: Any, tag: str) -> Any:
    return storage


OPTIONS: list[dict[str, Any]] = [
    {},
    {"map_location": "cpu"},
    {"map_location": torch.device("cpu")},
    {"map_location": {"cpu": "cpu"}},
    {"map_location": _where_it_is},
    {"mmap": True},
    {"weights_only": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(options).partition(" at 0x")[0])
@pytest.mark.parametrize("clones", [False, True], ids=["maps", "clones"])
def test_load_returns_what_torch_load_returns(
    tmp_path: Path, options: dict[str, Any], *, clones: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the options, and whether or not torch maps as expected: the same state, sharing storages as it did."""
    path = save(tmp_path, {"all": _everything()})
    expected = torch.load(path, **{"weights_only": True, **options})
    if clones:
        let_torch_clone(monkeypatch)
    found = safepoint.load(path, **options)
    assert _same(found, expected)
    views = found["all"]["views"]
    assert len({view.untyped_storage().data_ptr() for view in views}) == 1


def test_load_onto_no_device_reads_no_data(tmp_path: Path) -> None:
    """With ``map_location="meta"`` the tensors have shapes and no data, as with torch; the file is verified."""
    path = save(tmp_path, {"model": Training().model})
    assert safepoint.load(path, map_location="meta")["model"]["0.weight"].device.type == "meta"
    flip(path, "model.0.weight")
    with pytest.raises(safepoint.DamagedCheckpointError):
        safepoint.load(path, map_location="meta")


def test_load_maps_where_it_is_asked_to(tmp_path: Path) -> None:
    """With ``mmap=True`` the tensors lie in the file, and are read when they are used."""
    path = save(tmp_path, {"model": Training().model})
    loaded = safepoint.load(path, mmap=True)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert torch.equal(loaded["model"]["0.bias"], torch.load(path, weights_only=True)["model"]["0.bias"])


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"map_location": {}}], ids=str)
def test_load_reads_one_file_though_its_name_is_given_away(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that another takes the place of while it is loaded is loaded whole: data and structure are one's."""
    old = save(tmp_path / "old", {"all": {"name": "old", "data": torch.zeros(4)}})
    new = save(tmp_path / "new", {"all": {"name": "new", "data": torch.ones(4)}})
    load = torch.load

    def late(*arguments: Any, **keywords: Any) -> Any:
        if new.exists():
            os.replace(new, old)
        return load(*arguments, **keywords)

    monkeypatch.setattr(torch, "load", late)
    found = safepoint.load(old, **options)["all"]
    assert (found["name"], found["data"].tolist()) == ("old", [0, 0, 0, 0])
