"""Nothing of a damaged file is ever returned by ``safepoint.load``, whatever its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spoil
import torch
from spoil import Sample

import safepoint

OPTIONS: list[dict[str, Any]] = [
    {},
    {"map_location": "cpu"},
    {"map_location": "meta"},
    {"map_location": {"cpu": "cpu"}},
    {"map_location": lambda storage, _: storage},
    {"mmap": True},
    {"mmap": True, "map_location": "cpu"},
    {"weights_only": False},
]


def _name(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in options.items()) or "plain"


def loaded(damages: list[spoil.Damage], path: Path, options: dict[str, Any]) -> list[str]:
    """Return which of ``damages`` were loaded all the same, or refused without a word of the file."""
    seen: list[str] = []
    for what, data in damages:
        spoil.put(path, data)
        try:
            safepoint.load(path, **options)
            seen.append(what)
        except safepoint.CheckpointError as error:
            seen += [what] if str(path) not in str(error) else []
    return seen


@pytest.mark.parametrize("options", OPTIONS, ids=_name)
def test_load_returns_nothing_damaged(small: Sample, tmp_path: Path, options: dict[str, Any]) -> None:
    """Every way of loading refuses damage of every kind, with an error of Safepoint's own that names the file."""
    path = tmp_path / "damaged.ckpt"
    assert loaded(spoil.few(small, 120), path, options) == []
    spoil.put(path, small.data)
    assert safepoint.load(path, **options).keys() == {"model", "safepoint"}


@pytest.mark.torture
@pytest.mark.parametrize("options", OPTIONS, ids=_name)
def test_load_returns_nothing_damaged_anywhere(small: Sample, tmp_path: Path, options: dict[str, Any]) -> None:
    """The long version: every damage of the catalogue, and a flipped bit in every seventh byte."""
    damages = list(spoil.every(small))
    damages += [(f"byte {at}", spoil.flipped(small.data, at, at % 8)) for at in range(0, len(small.data), 7)]
    assert loaded(damages, tmp_path / "damaged.ckpt", options) == []


@pytest.mark.parametrize("options", OPTIONS, ids=_name)
def test_load_names_the_damaged_tensor(small: Sample, tmp_path: Path, options: dict[str, Any]) -> None:
    """A bit of a tensor, which ``torch.load`` loads in silence, is an error that names it by its path in the state."""
    (tensor,) = (tensor for tensor in small.manifest.tensors if tensor.path == "model.half")
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(spoil.flipped(small.data, small.layout.storages[tensor.storage].data_offset + 9, 3))
    torch.load(path, weights_only=True)
    with pytest.raises(safepoint.DamagedCheckpointError, match=r"tensor 'model\.half' does not match its digest"):
        safepoint.load(path, **options)
