"""The byte layout of a ``.ckpt``: the zip container that ``torch.save`` writes, as a pure function.

The archive is stored, not compressed; every storage begins at a multiple of 4096 bytes, so that it can be mapped, and
the record ``.storage_alignment`` says so. Headers, padding and data descriptors are byte for byte those of torch's own
writer (``caffe2/serialize/inline_container.cc`` and miniz), so that torch can compute where each storage lies; sizes
and CRC-32 stand behind each record, as there. In front of the central directory lies one extra record, the manifest.

Given the sizes, the CRCs and the manifest, every byte that is not data follows: this is what lets ``reader`` account
for all of them. This file knows bytes and offsets only: no tensors, no disk.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safepoint.zip_records import CENTRAL, LOCAL, UINT16_MAX, UINT32_MAX

ROOT = "archive"
PICKLE_RECORD = f"{ROOT}/data.pkl"
MANIFEST_RECORD = f"{ROOT}/safepoint/manifest.json"
ALIGNMENT_BYTES = 4096

_FLAGS_UTF8 = 0x0800
_FLAG_DESCRIPTOR = 0x0008
_LOCAL_HEADER_BYTES = 30
_PADDING_HEADER_BYTES = 4
_CRC_OFFSET = 16

_CONSTANT_RECORDS = (
    (f"{ROOT}/.format_version", b"1"),
    (f"{ROOT}/.storage_alignment", str(ALIGNMENT_BYTES).encode()),
    (f"{ROOT}/byteorder", sys.byteorder.encode()),
)
_VERSION_RECORD = (f"{ROOT}/version", b"3\n")


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of the archive: where its header begins, where its data begins, and how long the data is."""

    name: str
    header_offset: int
    data_offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        """The offset behind the data and its descriptor."""
        return self.data_offset + self.size_bytes + len(descriptor(self, 0))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies.

    ``constants`` are the records whose content is the same in every file, with that content.
    """

    pickle: Entry
    storages: tuple[Entry, ...]
    constants: tuple[tuple[Entry, bytes], ...]
    manifest: Entry

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every record, in the order of the file."""
        rest = (entry for entry, _ in self.constants)
        return tuple(sorted((self.pickle, *self.storages, *rest, self.manifest), key=lambda entry: entry.header_offset))

    @property
    def body_bytes(self) -> int:
        """The size of everything in front of the manifest's header: what the host image holds."""
        return self.manifest.header_offset


def lay_out(pickle_bytes: int, storage_bytes: Sequence[int], manifest_bytes: int = 0) -> Layout:
    """Return the layout of a checkpoint with data of these sizes.

    The manifest comes last, so that nothing else depends on its size: it may still be unknown (0) while staging.
    """
    pickle = _place(PICKLE_RECORD, 0, pickle_bytes)
    end = pickle.end
    constants: list[tuple[Entry, bytes]] = []
    for name, content in _CONSTANT_RECORDS:
        entry = _place(name, end, len(content))
        constants.append((entry, content))
        end = entry.end
    storages: list[Entry] = []
    for key, size in enumerate(storage_bytes):
        entry = _place(f"{ROOT}/data/{key}", end, size)
        storages.append(entry)
        end = entry.end
    version = _place(_VERSION_RECORD[0], end, len(_VERSION_RECORD[1]))
    constants.append((version, _VERSION_RECORD[1]))
    manifest = _place(MANIFEST_RECORD, version.end, manifest_bytes)
    return Layout(pickle, tuple(storages), tuple(constants), manifest)


def local_header(entry: Entry) -> bytes:
    """Return the bytes from ``entry.header_offset`` to ``entry.data_offset``: header, name, and padding to alignment.

    Sizes and CRC are zero here and stand in the descriptor behind the data; an empty record needs none.
    """
    name = entry.name.encode()
    zip64 = _zip64_local(entry)
    fixed = _LOCAL_HEADER_BYTES + len(name) + len(zip64) + _PADDING_HEADER_BYTES
    padding = entry.data_offset - entry.header_offset - fixed
    extra = zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    flags = _FLAGS_UTF8 | (_FLAG_DESCRIPTOR if entry.size_bytes else 0)
    return LOCAL.pack(b"PK\x03\x04", 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra


def descriptor(entry: Entry, crc: int) -> bytes:
    """Return the bytes behind the data: CRC-32 and sizes, with 64-bit sizes where offset or size need them."""
    if not entry.size_bytes:
        return b""
    size = "Q" if _needs_zip64(entry) else "I"
    return struct.pack(f"<4sI2{size}", b"PK\x07\x08", crc, entry.size_bytes, entry.size_bytes)


def directory(layout: Layout, crcs: dict[str, int]) -> bytes:
    """Return the central directory and its end records: everything behind the manifest's descriptor."""
    return directory_of(layout.entries, crcs)


def directory_of(entries: Sequence[Entry], crcs: dict[str, int]) -> bytes:
    """Return the central directory of ``entries``, in the order of the file, and its end records: what is behind."""
    start = entries[-1].end
    headers = b"".join(_central_header(entry, crcs[entry.name]) for entry in entries)
    return headers + _end_records(len(entries), len(headers), start)


def crcs_in(directory: bytes, layout: Layout) -> dict[str, int]:
    """Return the CRC-32 of each record, by its name, as a central directory tells them if it is that of ``layout``."""
    found: dict[str, int] = {}
    at = 0
    for entry in layout.entries:
        found[entry.name] = int.from_bytes(directory[at + _CRC_OFFSET : at + _CRC_OFFSET + 4], "little")
        at += len(_central_header(entry, 0))
    return found


def frame(layout: Layout, crcs: dict[str, int]) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of everything in the file that is not pickle, storage or manifest data, in file order."""
    constants = {entry.name: content for entry, content in layout.constants}
    for entry in layout.entries:
        yield entry.header_offset, local_header(entry)
        if entry.name in constants:
            yield entry.data_offset, constants[entry.name]
        yield entry.data_offset + entry.size_bytes, descriptor(entry, crcs[entry.name])
    yield layout.manifest.end, directory(layout, crcs)


def _place(name: str, offset: int, size: int) -> Entry:
    unpadded = Entry(name, offset, offset, size)
    start = offset + _LOCAL_HEADER_BYTES + len(name.encode()) + len(_zip64_local(unpadded)) + _PADDING_HEADER_BYTES
    return Entry(name, offset, -(-start // ALIGNMENT_BYTES) * ALIGNMENT_BYTES, size)


def _needs_zip64(entry: Entry) -> bool:
    return entry.size_bytes >= UINT32_MAX or entry.header_offset >= UINT32_MAX


def _zip64_local(entry: Entry) -> bytes:
    """Return the zip64 field of a local header as miniz writes it: sizes if too long, then the offset if too far."""
    values: list[int] = []
    if entry.size_bytes >= UINT32_MAX:
        values += [entry.size_bytes, entry.size_bytes]
    if entry.header_offset >= UINT32_MAX:
        values.append(entry.header_offset)
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _central_header(entry: Entry, crc: int) -> bytes:
    name = entry.name.encode()
    size = min(entry.size_bytes, UINT32_MAX)
    offset = min(entry.header_offset, UINT32_MAX)
    extra = _zip64_local(entry)
    flags = _FLAGS_UTF8 | (_FLAG_DESCRIPTOR if entry.size_bytes else 0)
    # version made by, version needed, flags, method, time, date
    versions = (0, 0, flags, 0, 0, 0)
    lengths = (len(name), len(extra), 0, 0, 0)
    return CENTRAL.pack(b"PK\x01\x02", *versions, crc, size, size, *lengths, 0, offset) + name + extra


def _end_records(count: int, size: int, start: int) -> bytes:
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    short = min(count, UINT16_MAX)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, min(size, UINT32_MAX), min(start, UINT32_MAX), 0)
    return end64 + locator + end
