"""Every kind of tensor through a real checkpoint: what ``torch.load`` gives back is what was there."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from contents import content, torch_content
from kinds import OBJECTS, TENSORS, made

import safepoint
from safepoint import Checkpointer, keep, when
from safepoint.capture import capture
from safepoint.reader import read_manifest


def _saved(directory: Path, state: Any) -> Path:
    with Checkpointer(directory, state={"state": state}, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.step()
    return directory / "epoch=0-step=1.ckpt"


def _loaded(file: Path | io.BytesIO, *, weights_only: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on sparse, nested and quantised tensors
        return torch.load(file, weights_only=weights_only)


@pytest.mark.filterwarnings("ignore:the state (needs|holds):RuntimeWarning")  # as said when it is saved
@pytest.mark.parametrize("kinds", [TENSORS, OBJECTS], ids=["plain", "of other classes"])
def test_checkpoint_gives_back_every_kind(tmp_path: Path, kinds: dict[str, Any]) -> None:
    """A state of all kinds verifies, and is loaded as the file of ``torch.save`` is."""
    weights_only = kinds is TENSORS
    state = {name: made(name) for name in kinds}
    path = _saved(tmp_path, {"kinds": state})  # a module at the top of an entry would be refused
    assert safepoint.verify(path) == []
    theirs = io.BytesIO()
    torch.save(state, theirs)
    theirs.seek(0)
    loaded = _loaded(path, weights_only=weights_only)["state"]["kinds"]
    expected = _loaded(theirs, weights_only=weights_only)
    assert content(capture(loaded)) == torch_content(expected)


def test_checkpoint_gives_back_bits_strides_and_sharing(tmp_path: Path) -> None:
    """NaN payloads, strides, conjugation, parameters and shared storages are back as they were."""
    names = (
        "NaN payloads and minus zero",
        "expanded",
        "conjugated",
        "frozen parameter",
        "twelve storages, each shared",
    )
    floats, expanded, conjugated, parameter, shared = (made(name) for name in names)
    path = _saved(tmp_path, dict(zip(names, (floats, expanded, conjugated, parameter, shared), strict=True)))
    back = [torch.load(path, weights_only=True)["state"][name] for name in names]
    assert back[0].view(torch.int32).tolist() == floats.view(torch.int32).tolist()
    assert (back[1].stride(), back[1].untyped_storage().nbytes()) == ((1, 0), 8)
    assert back[2].is_conj()
    assert torch.equal(back[2], conjugated)
    assert (type(back[3]), back[3].requires_grad) == (torch.nn.Parameter, False)
    assert back[4]["same"] is back[4]["one"][11]
    assert [a.data_ptr() for a in back[4]["one"]] == [b.data_ptr() for b in back[4]["other"]]


def test_checkpoint_of_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    """More storages than a zip directory of the first kind can count are saved, verified and loaded."""
    path = _saved(tmp_path, {f"layer.{i}": torch.full((2,), float(i)) for i in range(100_000)})
    try:
        assert len(read_manifest(path).tensors) >= 100_000
        # The fastest of torch's ways to read as many; the restricted one has its tests above.
        loaded = torch.load(path, weights_only=False, mmap=True)["state"]
        assert torch.equal(torch.stack(list(loaded.values()))[:, 1], torch.arange(100_000.0))
    finally:
        path.unlink()
