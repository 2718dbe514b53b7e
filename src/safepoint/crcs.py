"""Whether the records of torch's zip archives are where they must be and match their CRC-32, read in one pass.

A file may hold several archives, one behind the other. What the records mean is for others to say.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from isal import isal_zlib

from safepoint.archive import Source, directory_of
from safepoint.errors import NotACheckpointError, shortened
from safepoint.formats.zips import Archive, Record
from safepoint.reader import Stream
from safepoint.stores import direct
from safepoint.zip_records import LOCAL, UINT32_MAX

_HAS_DESCRIPTOR = 0x0008
_DESCRIPTORS = (struct.Struct("<4s3I"), struct.Struct("<4sI2Q"))
_END_BYTES = 22
_END64 = b"PK\x06\x06"
_END64_BYTES = 76


class Place(NamedTuple):
    """Where in the file the data of a record lies, and its CRC-32."""

    name: str
    offset: int
    size_bytes: int
    crc: int


def places(archive: Archive, source: Source) -> tuple[list[Place], list[str]]:
    """Return where the records of ``archive`` lie, and what is wrong with what stands around them."""
    found: list[Place] = []
    problems: list[str] = []
    for name, record in archive.records.items():
        try:
            offset, size_bytes = archive.place(name)
        except NotACheckpointError as error:
            problems.append(str(error))
            continue
        if not _agrees(record, offset - source.start, source):
            problems.append(f"the header of its record {shortened(name)!r} does not agree with its directory")
        found.append(Place(name, offset, size_bytes, record.crc))
    return found, problems + _behind(source)


def _behind(source: Source) -> list[str]:
    """Return what is wrong with what follows the directory: end records, and nothing behind them."""
    _, end = directory_of(source)
    is_long = source.read(end, len(_END64)) == _END64
    excess = source.size_bytes - end - _END_BYTES - is_long * _END64_BYTES
    return [f"it has {excess} bytes too many behind its end"] if excess else []


def mismatches(
    descriptor: int, size_bytes: int, wanted: Iterable[Place], on_bytes: Callable[[int], object]
) -> Iterator[Place]:
    """Read the whole file once, in order, and yield those of ``wanted`` whose data does not match, or is another's.

    ``on_bytes`` is told how many bytes were looked at.
    """
    with contextlib.closing(direct.read_chunks(descriptor, size_bytes)) as chunks:
        stream, at = Stream(chunk for _, chunk in chunks), 0
        for place in sorted(wanted, key=lambda place: place.offset):
            if place.offset < at:
                yield place
                continue
            at += stream.skip(place.offset - at)
            crc = 0
            for piece in stream.pieces(place.size_bytes):
                on_bytes(len(piece))
                crc = isal_zlib.crc32(piece, crc)
                at += len(piece)
            if crc != place.crc or at != place.offset + place.size_bytes:
                yield place


def _agrees(record: Record, offset: int, source: Source) -> bool:
    """Tell whether what stands in front of a record's data, which begins at ``offset``, and behind it, is as listed."""
    header = source.read(record.header_offset, LOCAL.size)
    _, _, flags, method, _, _, crc, packed, size, *_ = LOCAL.unpack(header)
    if method:
        return False
    if not flags & _HAS_DESCRIPTOR:
        return crc == record.crc and {packed, size} <= {record.size_bytes, UINT32_MAX}
    end = offset + record.size_bytes
    behind = (source.read(end, min(form.size, source.size_bytes - end)) for form in _DESCRIPTORS)
    told = (record.crc, record.size_bytes, record.size_bytes)
    return any(_is(form, found, told) for form, found in zip(_DESCRIPTORS, behind, strict=True))


def _is(form: struct.Struct, found: bytes, told: tuple[int, int, int]) -> bool:
    """Tell whether ``found`` is a descriptor of the ``form`` that says what is ``told``."""
    try:
        return found == form.pack(b"PK\x07\x08", *told)
    except struct.error:
        return False
