"""The elements of tensors on their way into another file: read in bounded memory, verified, and converted.

What a file tells of its own bytes (a digest, or a CRC-32) is compared before, or while, they are handed on. Knows no
layout of any file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from xxhash import xxh3_128

from safepoint import values
from safepoint.contents import Part, Storage, Tensor
from safepoint.errors import ConfigurationError, DamagedCheckpointError, shortened
from safepoint.export import Dtype

Buffer = bytes | memoryview

LARGEST: dict[str, int] = {Dtype.FLOAT8_E4M3FN: 448}
"""What numbers beyond the range of a dtype that has no infinity become, as in torch; of others, they become that."""


@dataclass(frozen=True, slots=True)
class Item:
    """The elements of ``tensor``, in row-major order, as ``dtype``."""

    tensor: Tensor
    dtype: str

    @property
    def item_bytes(self) -> int:
        """The size of an element."""
        return values.item_bytes(replace(self.tensor, dtype=self.dtype))

    @property
    def size_bytes(self) -> int:
        """The size of them all."""
        return self.tensor.count * self.item_bytes


class Plan(Protocol):
    """A file in the making, all of which is known but the elements."""

    @property
    def size_bytes(self) -> int:
        """The size of the file."""

    def pieces(self, elements: Elements) -> Iterator[Buffer]:
        """Yield the file, from its beginning to its end; a piece is valid until the next is asked for."""


def item(tensor: Tensor, dtype: str | None) -> Item:
    """Return what is written of ``tensor``: as ``dtype`` if it is floating-point, and one is given.

    Raises:
        ConfigurationError: it has no elements that could be told.
        CheckpointError: they cannot be read, or not be converted.

    """
    if tensor.count and not tensor.parts:
        path = shortened(tensor.path)
        raise ConfigurationError(
            f"tensor {path!r} cannot be written ({tensor.note or 'it has no data'}): leave it out, --except {path!r}."
        )
    if dtype is None or "float" not in tensor.dtype or tensor.dtype == dtype:
        dtype = tensor.dtype
    else:
        values.numpy_dtype(tensor)
    if tensor.parts:
        values.check(tensor)
    return Item(tensor, dtype)


class Elements:
    """The elements of items. ``overflowed`` are the paths of tensors with some beyond the range of their new dtype."""

    def __init__(self) -> None:
        self.overflowed: dict[str, None] = {}
        self._sound: set[Storage] = set()

    def pieces(self, wanted: Item) -> Iterator[Buffer]:
        """Yield the bytes of ``wanted``, little-endian; a piece is valid until the next is asked for.

        Raises:
            DamagedCheckpointError: what they were made from is not what the file says of it.
            CheckpointError: as ``values.pieces`` does.
            OSError: a file cannot be read.

        """
        tensor = wanted.tensor
        if not tensor.count:
            return
        source = self._verified(tensor)
        if wanted.dtype == tensor.dtype:
            yield from source
            return
        dtype = values.numpy_dtype(tensor)
        target = values.numpy_dtype(replace(tensor, dtype=wanted.dtype))
        for piece in source:
            found = np.frombuffer(piece, np.uint8).view(dtype)
            yield self._converted(found, target, tensor.path).view(np.uint8).data

    def _converted(self, found: NDArray[Any], target: np.dtype[Any], path: str) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            made = found.astype(target)
        lost = ~np.isfinite(made) & np.isfinite(found)
        if target.name in LARGEST:
            lost = np.isnan(made) & ~np.isnan(found)
            made[lost] = np.copysign(LARGEST[target.name], found[lost].astype(np.float32)).astype(target)
        if lost.any():
            self.overflowed[path] = None
        return made

    def _verified(self, tensor: Tensor) -> Iterator[memoryview]:
        """Yield the bytes of ``tensor``: hashed on the way where they are all of a storage, else read once more."""
        storage = _whole(tensor)
        if storage is None:
            for part in tensor.parts:
                self._verify(part.storage, tensor)
        if storage is None or storage in self._sound:
            yield from values.pieces(tensor)
            return
        sums = _Sums(storage)
        for piece in values.pieces(tensor):
            sums.update(piece)
            yield piece
        self._note(storage, sums, tensor)

    def _verify(self, storage: Storage, tensor: Tensor) -> None:
        if storage in self._sound:
            return
        sums = _Sums(storage)
        if sums.update is not _ignored:
            for piece in values.pieces(_bytes_of(storage, tensor.path)):
                sums.update(piece)
        self._note(storage, sums, tensor)

    def _note(self, storage: Storage, sums: _Sums, tensor: Tensor) -> None:
        if not sums.match():
            raise DamagedCheckpointError(
                f"{storage.path} is damaged: tensor {shortened(tensor.path)!r} does not match its {sums.name}. Nothing "
                "was written; export another checkpoint of the run."
            )
        self._sound.add(storage)


def _whole(tensor: Tensor) -> Storage | None:
    """Return the storage all of whose bytes the elements of ``tensor`` are, in its order; ``None`` if there is none."""
    if len(tensor.parts) != 1:
        return None
    (part,) = tensor.parts
    size_bytes = tensor.count * values.item_bytes(tensor)
    is_all = size_bytes == part.storage.size_bytes and part.storage.is_little
    return part.storage if is_all and part.is_in_order else None


def _bytes_of(storage: Storage, path: str) -> Tensor:
    """Return ``storage`` as a tensor of bytes."""
    shape = (storage.size_bytes,)
    return Tensor(path, "uint8", shape, (Part((0,), shape, storage, 0, (1,)),))


def _ignored(_: Buffer) -> None:
    """Take in nothing."""


class _Sums:
    """What a file tells of the bytes of ``storage``, compared with those that are fed to ``update``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._xxh = xxh3_128()
        self._crc = 0
        self.name = "digest" if storage.digest else "CRC-32"
        self.update: Callable[[Buffer], None] = _ignored
        if storage.digest:
            self.update = self._xxh.update
        elif storage.crc is not None:
            self.update = self._update_crc

    def _update_crc(self, data: Buffer) -> None:
        self._crc = isal_zlib.crc32(data, self._crc)

    def match(self) -> bool:
        """Tell whether they are what the file says."""
        if self._storage.digest:
            return self._xxh.hexdigest() == self._storage.digest
        return self._storage.crc is None or self._crc == self._storage.crc
