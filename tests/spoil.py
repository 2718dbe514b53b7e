"""Accidental damage to a file, as disks, file systems and copies do it: every kind of it, in memory."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

from safepoint import image, reader
from safepoint.archive import manifest_bytes
from safepoint.image import Layout
from safepoint.manifest import Manifest

BLOCK_BYTES = 4096

Damage = tuple[str, bytes]
"""What was done, and the file as it is then; never the file as it was."""


@dataclass(frozen=True)
class Sample:
    """A sound checkpoint in memory, with where everything lies in it."""

    data: bytes
    manifest: Manifest
    layout: Layout

    @classmethod
    def of(cls, path: Path) -> Sample:
        """Take in the checkpoint at ``path``."""
        with path.open("rb") as file:
            told_bytes = len(manifest_bytes(file.fileno()))
        manifest = reader.read_manifest(path)
        layout = image.lay_out(manifest.pickle.size_bytes, [b.size_bytes for b in manifest.storages], told_bytes)
        return cls(path.read_bytes(), manifest, layout)

    def subject(self, offset: int) -> str | None:
        """Return the path of the only tensor on the storage that the byte at ``offset`` belongs to, if there is one."""
        for key, entry in enumerate(self.layout.storages):
            if entry.data_offset <= offset < entry.data_offset + entry.size_bytes:
                named = [tensor.path for tensor in self.manifest.tensors if tensor.storage == key]
                return named[0] if len(named) == 1 else None
        return None

    def borders(self) -> list[int]:
        """Return where something begins: each record's header, name, padding, data and descriptor, and the directory.

        The end records and the end of the file are among them.
        """
        found = {self.layout.manifest.end, len(self.data) - 98, len(self.data) - 42, len(self.data) - 22}
        for entry in self.layout.entries:
            found |= {entry.header_offset, entry.header_offset + 30, entry.header_offset + 30 + len(entry.name)}
            found |= {entry.data_offset - 1, entry.data_offset, entry.data_offset + entry.size_bytes, entry.end}
        return sorted(offset for offset in found if 0 <= offset < len(self.data))


def flipped(data: bytes, offset: int, bit: int) -> bytes:
    """Return ``data`` with one bit changed."""
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def flips(sample: Sample) -> Iterator[Damage]:
    """Yield a flipped bit at every border within the file."""
    for offset in sample.borders():
        bit = random.randrange(8)
        yield f"bit {bit} of byte {offset} flipped", flipped(sample.data, offset, bit)


def cuts(sample: Sample) -> Iterator[Damage]:
    """Yield the file cut off at every border, one byte before and one behind it."""
    near = {offset + by for offset in (*sample.borders(), len(sample.data)) for by in (-1, 0, 1)}
    for size_bytes in sorted(near & set(range(len(sample.data)))):
        yield f"cut off at {size_bytes}", sample.data[:size_bytes]


def extensions(data: bytes) -> Iterator[Damage]:
    """Yield the file with more behind its end, or in front."""
    for name, more in (
        ("a zero", b"\0"),
        ("a line", b"\n"),
        ("a block of zeros", bytes(BLOCK_BYTES)),
        ("an end record", b"PK\x05\x06" + bytes(18)),
        ("its own end record", data[-22:]),
        ("its own last block", data[-BLOCK_BYTES:]),
        ("itself", data),
    ):
        yield f"{name} appended", data + more
        yield f"{name} in front", more + data


def blocks(data: bytes, *, pairs: bool = True) -> Iterator[Damage]:
    """Yield the file with a block zeroed, lost, doubled or pushed in, and with two swapped or one in another's place.

    Of ``pairs`` every one there is. What changes nothing, as where two blocks are the same, is left out.
    """
    whole = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    damages = (*_of_one(whole), *(_of_two(whole) if pairs else ()))
    yield from ((what, changed) for what, parts in damages if (changed := b"".join(parts)) != data)


def _of_one(whole: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    for at, block in enumerate(whole):
        before, behind = whole[:at], whole[at + 1 :]
        yield f"block {at} zeroed", [*before, bytes(len(block)), *behind]
        yield f"block {at} lost", [*before, *behind]
        yield f"block {at} doubled", [*before, block, block, *behind]
        yield f"zeros pushed in at block {at}", [*before, bytes(BLOCK_BYTES), block, *behind]


def _of_two(whole: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    for one, other in combinations(range(len(whole)), 2):
        swapped = list(whole)
        swapped[one], swapped[other] = whole[other], whole[one]
        yield f"blocks {one} and {other} swapped", swapped
    for one, other in permutations(range(len(whole)), 2):
        copied = list(whole)
        copied[one] = whole[other][: len(whole[one])]
        yield f"block {other} in the place of block {one}", copied


def every(sample: Sample) -> Iterator[Damage]:
    """Yield damage of every kind, at every border and to every block: some hundreds for a small file."""
    yield from flips(sample)
    yield from cuts(sample)
    yield from extensions(sample.data)
    yield from blocks(sample.data)


def few(sample: Sample, count: int = 60) -> list[Damage]:
    """Return ``count`` of ``every``, spread over all kinds, another selection each time."""
    damages = list(every(sample))
    step = len(damages) / count
    return [damages[int((turn + random.random()) * step)] for turn in range(count)]


def put(path: Path, data: bytes) -> None:
    """Let the file at ``path`` hold ``data``, in place and without a new file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, len(data))
        os.pwrite(descriptor, data, 0)
    finally:
        os.close(descriptor)
