"""Frozen parameters: which need not be copied into an image that holds them already, and how that is made certain.

A parameter that needs no gradient and belongs to no optimizer should not change, but nothing in torch proves it:
``tensor.data`` hides changes from the version counter (a momentum teacher is updated that way). So a parameter counts
as unchanged only after two checkpoints in a row had the same digest of it; and whenever its copy is left out, the live
bytes are digested again and must be those that the image holds. One that has changed unseen is copied from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from safepoint import memory
from safepoint.checksums import digest
from safepoint.errors import CaptureError
from safepoint.transfer import SMALL_BYTES, Owned, Piece, version

_ENOUGH = 2


@dataclass(slots=True, eq=False)
class Sighting:
    """A storage as it was in one or more checkpoints: ``times`` it had the same digest.

    ``source`` is the name of the durable checkpoint that has it, at ``offset``. Holds the storage, so that no other one
    can come to its address.
    """

    storage: torch.UntypedStorage
    versions: tuple[int, ...]
    digest: str = ""
    times: int = 0
    is_restless: bool = False
    source: str = ""
    offset: int = 0

    def is_live(self) -> bool:
        """Tell whether the live bytes are those that were seen; what is not so is never trusted again."""
        same = digest(memory.bytes_at(self.storage.data_ptr(), self.storage.nbytes())) == self.digest
        self.is_restless = self.is_restless or not same
        return same

    def seen(self, found: str) -> None:
        """Take in the digest that one more checkpoint has of it."""
        if self.times and found != self.digest:
            self.is_restless = True
        self.digest, self.times = found, self.times + 1

    @property
    def is_steady(self) -> bool:
        """Whether it has been seen often enough to be taken for unchanged."""
        return self.times >= _ENOUGH and not self.is_restless


Held = dict[int, Sighting]
"""What an image holds: sightings by the offset of their bytes."""


class Frozen:
    """The frozen parameters of one pipeline, as they were seen in its checkpoints."""

    def __init__(self) -> None:
        self._sightings: dict[int, Sighting] = {}

    def look(self, pieces: Sequence[Piece], tensors: Owned) -> Held:
        """Return the sightings of those of ``pieces`` whose tensors are in ``tensors``; all others are forgotten."""
        before, self._sightings = self._sightings, {}
        found: Held = {}
        for piece in pieces:
            address = piece.storage.data_ptr()
            if address not in tensors or piece.storage.nbytes() < SMALL_BYTES:
                continue
            versions = tuple(version(tensor) for tensor in tensors[address])
            sighting = before.get(address)
            if sighting is None or sighting.storage is not piece.storage:
                sighting = Sighting(piece.storage, versions)
            elif sighting.versions != versions:
                sighting = Sighting(piece.storage, versions, is_restless=sighting.is_restless)
            found[piece.offset] = self._sightings[address] = sighting
        return found


def unchanged(looked_at: Held, held: Mapping[int, Sighting]) -> Held:
    """Return those of ``looked_at`` that an image with ``held`` in it holds already, as far as was seen."""
    return {offset: seen for offset, seen in looked_at.items() if seen.is_steady and held.get(offset) is seen}


def take_in(looked_at: Held, kept: Mapping[int, Sighting], digest_at: Callable[[int], str]) -> None:
    """Take in what the file has of them, by offset.

    Raises:
        CaptureError: what was not copied again is not what the image held before: its memory has been written to.

    """
    for offset, sighting in looked_at.items():
        found = digest_at(offset)
        if offset in kept and found != sighting.digest:
            raise CaptureError("an image in host memory has changed since it was staged: this checkpoint was given up.")
        sighting.seen(found)
