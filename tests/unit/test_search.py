"""Where checkpoints may be in a tree of files, told by names and first bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from safepoint.search import found_below, is_checkpoint


def _named(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x80")


def test_search_finds_what_is_called_like_a_checkpoint_or_begins_like_one(tmp_path: Path) -> None:
    """All that is ``.ckpt`` or ``.safetensors``, and of the rest what torch may have written, or begun to write."""
    _named(tmp_path, "a.ckpt", "b.safetensors", "firmware.bin", "points.pt", "x/deep.ckpt", "notes.txt")
    torch.save({}, tmp_path / "weights.pt")
    torch.save({}, tmp_path / "x" / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "begun.pt").touch()
    (tmp_path / "empty.bin").touch()
    found = found_below(tmp_path)
    assert [path.name for path in found.named_as_ours] == ["a.ckpt", "deep.ckpt"]
    assert [path.name for path in found.others] == ["b.safetensors", "begun.pt", "weights.pt", "legacy.pth"]


def test_search_passes_over_temporaries_hidden_directories_and_links_to_directories(tmp_path: Path) -> None:
    """A temporary is none, a link is followed as a file only, and what is not to be listed has nothing to show."""
    _named(tmp_path, "run/a.ckpt", "run/.safepoint-1.ckpt", ".cache/b.ckpt", "run/.hidden.safetensors")
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    (tmp_path / "linked.ckpt").symlink_to(tmp_path / "run")
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "run" / "a.ckpt")
    os.mkfifo(tmp_path / "pipe.pt")
    found = found_below(tmp_path)
    assert found.named_as_ours == [tmp_path / "last.ckpt", tmp_path / "run" / "a.ckpt"]
    assert found.others == []
    assert found_below(tmp_path / ".cache").named_as_ours == [tmp_path / ".cache" / "b.ckpt"]


@pytest.mark.parametrize(
    ("name", "files", "answer"),
    [
        ("step-1", [".metadata", "__0_0.distcp"], True),
        ("half-written", ["__0_0.distcp"], True),
        ("epoch=1.ckpt", [".metadata", "meta.pt"], True),
        ("checkpoint-12", ["trainer_state.json", "model.safetensors"], True),
        ("checkpoint-12", ["config.json"], True),
        ("checkpoint-12", ["model.pt"], False),
        ("checkpoint-best", ["config.json", "model.safetensors"], False),
        ("out", ["config.json", "trainer_state.json"], False),
        ("out", [], False),
    ],
)
def test_directory_is_one_checkpoint_by_what_it_holds(
    tmp_path: Path, name: str, files: list[str], *, answer: bool
) -> None:
    """Shards, their metadata, or what a trainer of Hugging Face's writes into a directory called so."""
    _named(tmp_path / name, *files, "below/a.ckpt")
    assert is_checkpoint(tmp_path / name, [path.name for path in (tmp_path / name).iterdir()]) == answer
    found = found_below(tmp_path)
    assert (tmp_path / name in found.others) == answer
    assert (tmp_path / name / "below" / "a.ckpt" in found.named_as_ours) != answer


def test_metadata_of_another_program_is_no_checkpoint(tmp_path: Path) -> None:
    """What is called ``.metadata`` and is no pickle makes no checkpoint of its directory."""
    (tmp_path / ".metadata").write_text("version: 1\n")
    assert not is_checkpoint(tmp_path, [".metadata"])
