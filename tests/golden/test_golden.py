"""Files of every format version are read for ever: each was written once and is never written again."""

from __future__ import annotations

from pathlib import Path

import torch

import safepoint
from safepoint import Checkpointer, keep, reader, when

FORMAT_1 = Path(__file__).parent / "format-1.ckpt"


def test_format_1_verifies_and_loads() -> None:
    """The file of format 1 is sound, and its state is what was saved, sharing included."""
    assert safepoint.verify(FORMAT_1) == []
    for state in (safepoint.load(FORMAT_1), torch.load(FORMAT_1, weights_only=True, mmap=True)):
        tensors = state["tensors"]
        assert torch.equal(tensors["weight"], torch.arange(6.0).reshape(2, 3))
        assert tensors["transposed"].data_ptr() == tensors["weight"].data_ptr()
        assert torch.equal(tensors["half"], torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
        assert (tensors["empty"].shape, bool(tensors["flag"])) == ((0,), True)
        assert state["notes"] == {"name": "golden", "numbers": [1, 2.5, None]}


def test_format_1_tells_of_itself() -> None:
    """The manifest of format 1 has its fields where they were."""
    manifest = reader.read_manifest(FORMAT_1)
    record = manifest.record(FORMAT_1, 0)
    assert (manifest.format_version, record.step, record.epoch) == (1, 1, 0)
    assert record.metrics == {"train_loss": 0.5, "val_loss": 0.25}
    assert record.reasons == ("every epoch",)
    assert [(entry.name, entry.kept) for entry in manifest.history] == [("epoch=0-step=1.ckpt", True)]
    assert {tensor.path for tensor in manifest.tensors} >= {"tensors.weight", "tensors.transposed", "tensors.half"}


def test_format_1_restores(tmp_path: Path) -> None:
    """A run can go on from the file of format 1."""
    (tmp_path / "epoch=0-step=1.ckpt").write_bytes(FORMAT_1.read_bytes())
    state: dict[str, object] = {"tensors": {}, "notes": {}}
    with Checkpointer(tmp_path, state=state, save=when.every(epochs=1), keep=keep.all()) as checkpointer:
        progress = checkpointer.restore()
    assert (progress.step, progress.epoch, progress.batch) == (1, 1, 0)
    assert state["notes"] == {"name": "golden", "numbers": [1, 2.5, None]}
