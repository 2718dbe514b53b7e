"""From staged data to the bytes of a file: what is staged, its digests, and the archive's frame around it.

Works slab by slab, so that one slab is digested while those before it are on their way to disk. Every byte is digested
before it is handed on. Knows bytes; knows no tensor, no store and no thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import msgspec

from safepoint import image
from safepoint.archive import MANIFEST_LIMIT_BYTES
from safepoint.checksums import Checksums, checksums
from safepoint.errors import CaptureError
from safepoint.image import ALIGNMENT_BYTES, Entry, Layout
from safepoint.manifest import Blob, Manifest, check_readable, encode
from safepoint.stores import Chunk, Unchanged

SLAB_BYTES = 32 << 20
_UNKNOWN = "0" * 32


@dataclass(frozen=True, slots=True)
class Known:
    """Where a storage of ``size_bytes`` lies in an older, durable checkpoint, as far as is known."""

    source: str
    offset: int
    size_bytes: int


NOTHING_KNOWN: Mapping[int, Known] = MappingProxyType({})


class Slabs(Protocol):
    """Where staged data is: the bytes of the file in front of the manifest, without the frame."""

    def slab(self, start: int, end: int) -> memoryview:
        """Return the bytes from ``start`` to ``end`` of the file, data in place; valid until two more are asked for."""


class Seal:
    """The file of one checkpoint in the making. ``size_bytes`` is known before anything is digested.

    ``draft`` is the manifest without sizes and digests.

    Raises:
        CaptureError: the manifest could not be read again.

    """

    def __init__(self, layout: Layout, draft: Manifest) -> None:
        check_readable(draft)
        self._draft = msgspec.structs.replace(
            draft, pickle=_blob(layout.pickle, _UNKNOWN), storages=tuple(_blob(e, _UNKNOWN) for e in layout.storages)
        )
        self._manifest_bytes = len(encode(self._draft))  # a digest is always as long as an unknown one
        if self._manifest_bytes > MANIFEST_LIMIT_BYTES:
            raise CaptureError(
                f"the state has {len(draft.tensors)} tensors, and its manifest {self._manifest_bytes >> 20} MiB, more "
                f"than the {MANIFEST_LIMIT_BYTES >> 20} MiB that are read again: put fewer, larger tensors into it."
            )
        self.layout = image.lay_out(
            layout.pickle.size_bytes, [entry.size_bytes for entry in layout.storages], self._manifest_bytes
        )
        self.captured_at = draft.time
        self._sums: dict[str, Checksums] = {}
        self._sums_at: dict[int, Checksums] = {}
        unsummed = dict.fromkeys((entry.name for entry in self.layout.entries), 0)
        self.size_bytes = self.layout.manifest.end + len(image.directory(self.layout, unsummed))

    def digest_at(self, offset: int) -> str:
        """Return the digest of the storage whose data begins at ``offset``, once that has been handed on."""
        return self._sums_at[offset].digest

    def chunks(self, staged: Slabs, known: Mapping[int, Known] = NOTHING_KNOWN) -> Iterator[Chunk]:
        """Yield the file, from its beginning to its end: the slabs of ``staged``, completed in place, and the rest.

        ``known``: which storages, by their offset, an older checkpoint has.
        """
        parts, body_bytes = self._parts(), self.layout.body_bytes
        part = next(parts)
        for start in range(0, body_bytes, SLAB_BYTES):
            end = min(start + SLAB_BYTES, body_bytes)
            slab = staged.slab(start, end)
            while part.offset < end:
                part.pass_through(slab, start, end)
                if part.end > end:  # the rest of it is in the next slab
                    break
                part = next(parts, _Part(body_bytes, body_bytes))
            yield from _cut(slab, start, known)
        yield self._tail()

    def _parts(self) -> Iterator[_Part]:
        """Yield what the file in front of the manifest consists of; what follows from digests, once they are there."""
        constants = {entry.name: content for entry, content in self.layout.constants}
        for entry in self.layout.entries[:-1]:
            yield _Frame(entry.header_offset, image.local_header(entry))
            sums = self._sums[entry.name] = Checksums()
            data_end = entry.data_offset + entry.size_bytes
            if entry.name in constants:
                sums.update(constants[entry.name])
                yield _Frame(entry.data_offset, constants[entry.name])
            elif entry.size_bytes:
                self._sums_at[entry.data_offset] = sums
                yield _Data(entry.data_offset, data_end, sums)
            if entry.size_bytes:
                yield _Frame(data_end, image.descriptor(entry, sums.crc))

    def _tail(self) -> bytes:
        """Return the manifest with its frame, and the directory."""
        layout = self.layout
        manifest = encode(
            msgspec.structs.replace(
                self._draft,
                pickle=_blob(layout.pickle, self._sums[layout.pickle.name].digest),
                storages=tuple(_blob(entry, self._sums[entry.name].digest) for entry in layout.storages),
            )
        )
        crcs = {name: sums.crc for name, sums in self._sums.items()}
        crcs[layout.manifest.name] = checksums(manifest).crc
        header, descriptor = (
            image.local_header(layout.manifest),
            image.descriptor(layout.manifest, crcs[layout.manifest.name]),
        )
        return b"".join((header, manifest, descriptor, image.directory(layout, crcs)))


class _Part:
    """A run of the file's bytes."""

    def __init__(self, offset: int, end: int) -> None:
        self.offset, self.end = offset, end

    def pass_through(self, slab: memoryview, start: int, end: int) -> None:
        """Do what is to be done with the part's bytes in ``slab``, which goes from ``start`` to ``end`` of the file."""


class _Frame(_Part):
    def __init__(self, offset: int, content: bytes) -> None:
        super().__init__(offset, offset + len(content))
        self._content = content

    def pass_through(self, slab: memoryview, start: int, end: int) -> None:
        first, last = max(self.offset, start), min(self.end, end)
        slab[first - start : last - start] = self._content[first - self.offset : last - self.offset]


class _Data(_Part):
    def __init__(self, offset: int, end: int, sums: Checksums) -> None:
        super().__init__(offset, end)
        self._sums = sums

    def pass_through(self, slab: memoryview, start: int, end: int) -> None:
        self._sums.update(slab[max(self.offset, start) - start : min(self.end, end) - start])


def _cut(slab: memoryview, start: int, known: Mapping[int, Known]) -> Iterator[Chunk]:
    """Yield ``slab`` whole, or in pieces of whole pages: those that an older checkpoint has, and those between them."""
    done, end = start, start + len(slab)
    for offset, place in known.items():
        first, last = max(offset, start), min(offset + place.size_bytes, end) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        if first < last:
            yield slab[done - start : first - start]
            yield Unchanged(slab[first - start : last - start], place.source, place.offset + first - offset)
            done = last
    yield slab[done - start :]


def _blob(entry: Entry, digest: str) -> Blob:
    return Blob(entry.size_bytes, digest)
