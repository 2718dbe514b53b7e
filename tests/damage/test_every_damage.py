"""No accident to a file goes unseen: every byte, every length, every block, through the one reader of all."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import spoil
from spoil import Sample

import safepoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the damaged file lies."""
    return tmp_path / "damaged.ckpt"


def unseen_flips(sample: Sample, path: Path, bits: range) -> Iterator[str]:
    """Flip bits of each byte, as many as ``bits`` is long or one by chance, and yield what is not told as it must be.

    A bit of a tensor that has its storage for itself is one problem, which names the tensor.
    """
    spoil.put(path, sample.data)
    with path.open("r+b", buffering=0) as file:
        for offset, byte in enumerate(sample.data):
            subject = sample.subject(offset)
            for bit in bits or (random.randrange(8),):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), offset)
                found = safepoint.verify(path)
                if not found or (subject and found != [f"tensor {subject!r} does not match its digest"]):
                    yield f"bit {bit} of byte {offset}: {found}"
            os.pwrite(file.fileno(), bytes([byte]), offset)


def unseen(damages: Iterator[spoil.Damage], path: Path) -> Iterator[str]:
    """Yield each of ``damages`` that is not found."""
    for what, data in damages:
        spoil.put(path, data)
        if not safepoint.verify(path):
            yield what


def unseen_lengths(sample: Sample, path: Path) -> Iterator[int]:
    """Cut the file off byte by byte, and yield each length at which that is not found."""
    path.write_bytes(sample.data)
    for size_bytes in reversed(range(len(sample.data))):
        os.truncate(path, size_bytes)
        if not safepoint.verify(path):
            yield size_bytes


def test_sound_samples_verify(small: Sample, large: Sample, path: Path) -> None:
    """What the other tests damage is sound: they find damage, not what was there before."""
    for sample in (small, large):
        spoil.put(path, sample.data)
        assert safepoint.verify(path) == []


def test_flipped_bit_in_any_byte_is_found(small: Sample, path: Path) -> None:
    """One bit of each byte of a file, headers, padding and directory included; a tensor of its own is named."""
    assert list(unseen_flips(small, path, range(0))) == []


def test_truncation_to_any_length_is_found(small: Sample, path: Path) -> None:
    """A file that is cut off is no checkpoint, whatever is left of it."""
    assert list(unseen_lengths(small, path)) == []


def test_extension_of_a_file_is_found(small: Sample, path: Path) -> None:
    """Nothing can lie behind the end of a file or in front of it, not even what looks like an end."""
    assert list(unseen(spoil.extensions(small.data), path)) == []


def test_any_misplaced_block_is_found(small: Sample, path: Path) -> None:
    """A block that was zeroed, lost, doubled, swapped or written in another's place, wherever in the file."""
    assert list(unseen(spoil.blocks(small.data), path)) == []


def test_any_block_of_a_longer_file_is_missed(large: Sample, path: Path) -> None:
    """So it is where the structure, the manifest and the directory are longer than a block, and blocks are alike."""
    assert list(unseen(spoil.blocks(large.data, pairs=False), path)) == []


def test_two_tensors_swapped_on_disk_are_both_named(large: Sample, path: Path) -> None:
    """Each of two blocks of data that have changed places is told, by the path of its tensor in the state."""
    named = {tensor.path: large.layout.storages[tensor.storage].data_offset for tensor in large.manifest.tensors}
    first, second = named["model.tensor 7"], named["model.tensor 23"]
    data = bytearray(large.data)
    data[first : first + 4096], data[second : second + 4096] = data[second : second + 4096], data[first : first + 4096]
    path.write_bytes(data)
    assert safepoint.verify(path) == [f"tensor 'model.tensor {n}' does not match its digest" for n in (7, 23)]


@pytest.mark.torture
def test_every_flipped_bit_is_found(small: Sample, path: Path) -> None:
    """The exhaustive version: every bit there is."""
    assert list(unseen_flips(small, path, range(8))) == []


@pytest.mark.torture
def test_every_truncation_of_a_longer_file_is_found(large: Sample, path: Path) -> None:
    """The exhaustive version: every length of a file of several hundred kilobytes."""
    assert list(unseen_lengths(large, path)) == []


@pytest.mark.torture
def test_every_pair_of_blocks_that_changed_places_is_found(large: Sample, path: Path) -> None:
    """The exhaustive version: every two blocks of a longer file swapped, and each in the place of each other."""
    assert list(unseen(spoil.blocks(large.data), path)) == []
