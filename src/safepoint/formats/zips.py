"""The records of a zip archive of torch's: what is where in the file, as its directory and its headers tell.

Nothing in the file is trusted: every offset is checked against the file's size, and names are compared. What is
compressed, encrypted or there twice is refused when it is asked for, as torch writes none of that.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from isal import isal_zlib

from safepoint.archive import Source, directory_of
from safepoint.errors import DamagedCheckpointError, NotACheckpointError, shortened
from safepoint.zip_records import CENTRAL, END, END64, LOCAL, LOCATOR, UINT16_MAX, UINT32_MAX

DIRECTORY_LIMIT_BYTES = 256 << 20
_FIELD = struct.Struct("<2H")
_ZIP64 = 1
_UNREADABLE_FLAGS = 0x2061
"""Encrypted in one of three ways, or a patch: what torch refuses to read."""
_DIRECTORY = 0x10
"""Said of a record, it has torch load whatever was in memory in its place."""


class Record(NamedTuple):
    """A record as the directory tells of it: where its header begins, and how long it is."""

    name: str
    header_offset: int
    size_bytes: int
    crc: int
    is_plain: bool


class Archive:
    """The records of an archive by name, in the order of its directory.

    ``root`` is the folder that torch puts all of them into; their names are given without it.

    Raises:
        NotACheckpointError: it is cut off, damaged, or none.

    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._directory_offset, end = directory_of(source)
        if end - self._directory_offset > DIRECTORY_LIMIT_BYTES:
            raise NotACheckpointError("its directory is absurdly long")
        listed = _listed(source.read(self._directory_offset, end - self._directory_offset))
        _check_end(source, len(listed), self._directory_offset, end)
        self.root = listed[0].name.partition("/")[0] + "/" if listed else ""
        self.records: dict[str, Record] = {}
        for record in listed:
            name = record.name.removeprefix(self.root)
            if name in self.records:
                raise NotACheckpointError(f"it has two records called {shortened(name)!r}: damaged, or forged")
            self.records[name] = record

    def place(self, name: str) -> tuple[int, int]:
        """Return where in the file the data of a record begins, and its size.

        Raises:
            NotACheckpointError: it is compressed or encrypted, or not where the directory says.
            KeyError: there is none.

        """
        record = self.records[name]
        if not record.is_plain:
            raise NotACheckpointError(
                f"its record {shortened(name)!r} is compressed or encrypted, which torch never does: unpack it, and "
                "pack it again with 'zip -0'"
            )
        raw = record.name.encode("utf-8", "surrogateescape")
        header = self._source.read(record.header_offset, LOCAL.size + len(raw))
        signature, *_, name_bytes, extra_bytes = LOCAL.unpack_from(header)
        if signature != b"PK\x03\x04" or name_bytes != len(raw) or header[LOCAL.size :] != raw:
            raise NotACheckpointError(f"its record {shortened(name)!r} is not where its directory says: damaged")
        start = record.header_offset + LOCAL.size + int(name_bytes) + int(extra_bytes)
        if start + record.size_bytes > self._directory_offset:
            raise NotACheckpointError(f"its record {shortened(name)!r} reaches beyond the file: cut off, or damaged")
        return self._source.start + start, record.size_bytes

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Return the content of a record; raises what ``place`` raises.

        Raises:
            DamagedCheckpointError: it does not match its CRC-32.

        """
        start, size_bytes = self.place(name)
        if size_bytes > limit_bytes:
            raise NotACheckpointError(f"its record {shortened(name)!r} is absurdly long ({size_bytes} bytes)")
        data = self._source.read(start - self._source.start, size_bytes)
        crc = self.records[name].crc
        if self.has_crcs and isal_zlib.crc32(data) != crc:
            raise DamagedCheckpointError(f"its record {shortened(name)!r} does not match its CRC-32: damaged")
        return data

    @property
    def has_crcs(self) -> bool:
        """Whether it tells CRC-32s: ``torch.serialization.set_crc32_options(False)`` leaves all of them out."""
        return any(record.crc for record in self.records.values())


def _check_end(source: Source, count: int, start: int, end: int) -> None:
    """Refuse end records that do not tell of ``count`` entries from ``start`` to ``end``, as torch does."""
    tail = source.read(end, source.size_bytes - end)
    told = count, count, end - start, start
    longer = END64.size + LOCATOR.size if tail.startswith(b"PK\x06\x06") else 0
    if longer:
        _, own_bytes, _, _, *long = END64.unpack_from(tail)
        _, *locator = LOCATOR.unpack_from(tail, END64.size)
        if (own_bytes, *long, *locator) != (END64.size - 12, 0, 0, *told, 0, end, 1):
            raise NotACheckpointError("no whole zip archive (its long end records are damaged)")
    _, disk, first_disk, *short, _ = END.unpack_from(tail, longer)
    limits = (UINT16_MAX, UINT16_MAX, UINT32_MAX, UINT32_MAX)
    is_so = all(found in {min(true, limit), limit} for found, true, limit in zip(short, told, limits, strict=True))
    if disk or first_disk or not is_so:
        raise NotACheckpointError("no whole zip archive (its end record is damaged)")


def _listed(directory: bytes) -> list[Record]:
    found: list[Record] = []
    at = 0
    while at < len(directory):
        try:
            record, at = _entry(directory, at)
        except struct.error:
            raise NotACheckpointError("no whole zip archive (its directory is damaged)") from None
        found.append(record)
    return found


def _entry(directory: bytes, at: int) -> tuple[Record, int]:
    """Return the entry that begins at ``at``, and where the next one does; a struct.error if there is none."""
    signature, _, _, flags, method, _, _, crc, packed, size, *rest = CENTRAL.unpack_from(directory, at)
    name_bytes, extra_bytes, comment_bytes, disk, _, attributes, offset = rest
    start = at + CENTRAL.size
    end = start + name_bytes + extra_bytes
    if signature != b"PK\x01\x02" or disk or attributes & _DIRECTORY or end + comment_bytes > len(directory):
        raise struct.error
    name = directory[start : start + name_bytes].decode("utf-8", "surrogateescape")
    size, packed, offset = _widened(directory[start + name_bytes : end], (size, packed, offset))
    is_plain = not (method or flags & _UNREADABLE_FLAGS) and size == packed
    return Record(name, offset, size, crc, is_plain), end + comment_bytes


def _widened(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return sizes and offset as the zip64 field of an entry gives those of them that need more than 32 bits."""
    if UINT32_MAX not in values:
        return values
    at = 0
    while at + _FIELD.size <= len(extra):
        kind, size_bytes = _FIELD.unpack_from(extra, at)
        at += _FIELD.size
        if kind == _ZIP64:
            wide = iter(struct.unpack_from(f"<{size_bytes // 8}Q", extra, at))
            size, packed, offset = (next(wide, value) if value == UINT32_MAX else value for value in values)
            return size, packed, offset
        at += size_bytes
    return values
