"""A disk that cannot read: what lies on rotten blocks of a file system that notices is an error of the system's own.

Btrfs keeps a checksum of every block. A bit changed behind its back, in the image that it is mounted from, is EIO to
whoever reads the file: a real read error, without a shim.
"""

from __future__ import annotations

import errno
import mmap
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from file_systems import mounted
from loop import Training, equal
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, Framework, fit, loader, model, trainer
from spoil import Sample

import safepoint
from safepoint import Checkpointer, keep, when
from safepoint.catalog import Catalog

pytestmark = [OLD_TREESPEC, NOT_EMPTY]

WIDTH = 64  # of a weight that fills four blocks


def make(directory: Path, state: dict[str, Any]) -> Checkpointer:
    """Return a checkpointer that saves every step and keeps all."""
    return Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.all())


@dataclass(frozen=True)
class Disk:
    """A mounted disk with a run of four steps: of 2 a weight cannot be read, of 3 the pickle, of 4 the manifest.

    ``first`` and ``second`` are the weights of steps 1, which is sound, and 2. Each of ``fits`` has two epochs, of
    which the second cannot be read.
    """

    run: Path
    first: list[torch.Tensor]
    second: list[torch.Tensor]
    fits: dict[str, Path]

    def step(self, number: int) -> Path:
        """Return the path of a checkpoint."""
        return self.run / f"epoch=0-step={number}.ckpt"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """Return a disk on which blocks have rotted."""
    below = tmp_path_factory.mktemp("disk")
    with mounted("btrfs", below) as place:
        made = Disk(place / "run", *_saved(place / "run"), {f.name: place / f.name for f in FRAMEWORKS})
        needles = [made.second[0].numpy().tobytes()[:64], b"the notes of step 3", _manifest(made.step(4))]
        for framework in FRAMEWORKS:
            callback = framework.ModelCheckpoint(dirpath=made.fits[framework.name], filename="{epoch}", save_top_k=-1)
            fitted = fit(framework, callback, epochs=2)
            needles.append(fitted.lightning_module.layer.weight.detach().numpy().tobytes())
        subprocess.run(["umount", place], check=True)
        try:
            _rot(below / "btrfs.img", set(needles))  # both fits give the same
        finally:
            subprocess.run(["mount", "-o", "loop", below / "btrfs.img", place], check=True)
        yield made


def _saved(directory: Path) -> list[list[torch.Tensor]]:
    """Save four steps, and return the weights of the first two."""
    training, notes, weights = Training(width=WIDTH), {"text": ""}, []
    with make(directory, {**training.state, "notes": notes}) as checkpointer:
        for number in range(1, 5):
            training.advance()
            notes["text"] = f"the notes of step {number}"
            checkpointer.step()
            weights.append(training.weights())
    return weights[:2]


def _manifest(path: Path) -> bytes:
    sample = Sample.of(path)
    return sample.data[sample.layout.manifest.data_offset :][:120]


def _rot(image: Path, needles: set[bytes]) -> None:
    """Change a bit of each of ``needles``, wherever it lies in ``image``."""
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
        for needle in needles:
            found = disk.find(needle)
            assert found >= 0
            while found >= 0:
                disk[found] ^= 1
                found = disk.find(needle, found + 1)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_read_error_is_raised_by_verify_and_load(disk: Disk, number: int) -> None:
    """The system's error comes out as it is, and names the file."""
    path = disk.step(number)
    with pytest.raises(OSError, match=r"Input/output error") as caught:
        safepoint.verify(path)
    assert caught.value.errno == errno.EIO
    for options in ({}, {"mmap": True}, {"map_location": "meta"}, {"weights_only": False}):
        with pytest.raises(OSError, match="Input/output error") as caught:
            safepoint.load(path, **options)
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))


def test_restore_passes_over_what_cannot_be_read(disk: Disk) -> None:
    """A weight, a structure or a manifest that cannot be read: each is skipped with its reason, the sound one rules."""
    training = Training(width=WIDTH, seed=1)
    training.advance()
    with pytest.warns(RuntimeWarning) as told:
        assert make(disk.run, {**training.state, "notes": {}}).restore().step == 1
    for number in (2, 3, 4):
        start = f"{disk.step(number)} was skipped and left alone: "
        (message,) = (str(warning.message) for warning in told if str(warning.message).startswith(start))
        assert "Input/output error" in message
    assert equal(training.weights(), disk.first)
    assert len(list(disk.run.iterdir())) == 4


def test_restore_of_what_cannot_be_read_says_that_tensors_are_torn(disk: Disk, tmp_path: Path) -> None:
    """Without a sound one it is an error, which says that the live tensors may hold parts of what could be read."""
    (tmp_path / "a.ckpt").symlink_to(disk.step(2))
    with pytest.raises(safepoint.RestoreError, match=r"(?s)a\.ckpt: .*Input/output error.*may hold parts of a damaged"):
        make(tmp_path, {**Training(width=WIDTH).state, "notes": {}}).restore()


def test_catalog_tells_what_cannot_be_read(disk: Disk) -> None:
    """A manifest that cannot be read is no other program's file, and the other files are listed."""
    catalog = Catalog.of(disk.run)
    assert [record.step for record in catalog.records] == [1, 2, 3]
    assert list(catalog.unreadable) == [disk.step(4)]
    assert catalog.foreign == frozenset()


def test_command_line_tells_what_cannot_be_read(disk: Disk) -> None:
    """``safepoint verify`` says so in a line, goes on with the others, and ends with 1."""
    command = [str(Path(sys.executable).with_name("safepoint")), "verify", str(disk.run)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr, lines[-1]) == (1, "", "3 of 4 not sound")
    assert lines[0] == f"{disk.step(1)}: sound"
    assert lines[1:4] == [f"{disk.step(number)}: cannot be read: Input/output error" for number in (2, 3, 4)]


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_trainer_names_what_to_load_instead_of_what_cannot_be_read(disk: Disk, framework: Framework) -> None:
    """By path it is an error that names the newest sound one; by "last" it would be skipped as damage is."""
    directory = disk.fits[framework.name]
    resumed = trainer(framework, framework.ModelCheckpoint(dirpath=directory, filename="other"))
    with pytest.raises(safepoint.CheckpointError) as caught:
        resumed.fit(model(framework), loader(), loader(), ckpt_path=directory / "epoch=1.ckpt")
    assert str(caught.value) == (
        f"{directory / 'epoch=1.ckpt'} cannot be read: Input/output error. "
        f"The newest sound checkpoint beside it is {directory / 'epoch=0.ckpt'}."
    )
