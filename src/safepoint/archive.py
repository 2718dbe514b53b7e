"""Where the manifest lies in a ``.ckpt``, found from the end of the file in two small reads.

The manifest is the last record of the archive and the last entry of its directory, so that neither the directory (long
if there are many storages) nor any tensor is read. Nothing in the file is trusted: every offset is checked against the
file's size, every signature and name is compared, and the manifest must match its CRC-32. This file knows zip records
and bytes; what the manifest says is ``manifest``'s, and whether the rest of the file holds is ``reader``'s.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

from isal import isal_zlib

from safepoint.errors import NotACheckpointError
from safepoint.image import MANIFEST_RECORD
from safepoint.zip_records import CENTRAL, END, END64, LOCAL, LOCATOR, UINT16_MAX, UINT32_MAX

MANIFEST_LIMIT_BYTES = 64 << 20
"""What a manifest has at most: some 300,000 tensors. More is not saved, and not read."""

_NAME = MANIFEST_RECORD.encode()
_EXTRA64 = struct.Struct("<2HQ")
_STORED = 0
_DESCRIPTOR_LIMIT_BYTES = 24
_TAIL_BYTES = 16 << 10
# Behind an end record there may be a comment, or what somebody appended.
_LONGEST_TAIL_BYTES = END.size + UINT16_MAX


class ForeignFileError(NotACheckpointError):
    """Say that another program wrote the file: it is whole, as far as was looked, and nothing of ours is in it."""


class _Location(NamedTuple):
    """Where the header of the manifest's record begins, where the directory does, and what the directory says of it."""

    header_offset: int
    directory_offset: int
    size_bytes: int
    crc: int


def open_regular(path: str | os.PathLike[str]) -> int:
    """Return a descriptor of the file at ``path``, for reading; what is no file is refused and never waited for.

    It is looked at before it is opened, which alone does something to some devices, and again afterwards: another thing
    may have got the name meanwhile. Files of the kernel's that make their content up have no size.
    """
    if not _is_regular(os.stat(path)):
        raise ForeignFileError("not a regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not _is_regular(os.fstat(descriptor)):
        os.close(descriptor)
        raise ForeignFileError("not a regular file")
    return descriptor


def _is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def manifest_at(path: str | os.PathLike[str]) -> memoryview:
    """Return the bytes of the manifest in the file at ``path``; the errors are those of ``manifest_bytes``."""
    descriptor = open_regular(path)
    try:
        return _manifest(descriptor)
    finally:
        os.close(descriptor)


def manifest_bytes(descriptor: int) -> bytes:
    """Return the bytes of the manifest in an open file.

    Raises:
        NotACheckpointError: there is none, or the archive around it is not whole; the message says which.
        OSError: the file cannot be read.

    """
    return bytes(_manifest(descriptor))


def _manifest(descriptor: int) -> memoryview:
    source = Source(descriptor)
    location = _locate(source)
    record = source.read(location.header_offset, location.directory_offset - location.header_offset)
    start = _data_offset(record)
    # A view: a second copy of a long manifest would take longer than its checksum does.
    data = memoryview(record)[start : start + location.size_bytes]
    if len(data) != location.size_bytes or isal_zlib.crc32(data) != location.crc:
        raise _broken("the manifest does not match its CRC-32")
    return data


class Source:
    """A file's bytes by offset, bounds checked; the last of them are read once.

    ``start`` and ``size_bytes`` are those of the archive, where it is only a part of the file.
    """

    def __init__(self, descriptor: int, start: int = 0, size_bytes: int | None = None) -> None:
        self.start = start
        self.size_bytes = os.fstat(descriptor).st_size if size_bytes is None else size_bytes
        self._descriptor = descriptor
        self._tail_offset = max(self.size_bytes - _TAIL_BYTES, 0)
        # Of nothing, nothing is read: files of the kernel's have no size, and some would be waited for.
        wanted_bytes = min(_TAIL_BYTES, self.size_bytes)
        self._tail = _read_at(descriptor, wanted_bytes, start + self._tail_offset) if wanted_bytes else b""

    def tail(self, limit_bytes: int) -> bytes:
        """Return at most the last ``limit_bytes``."""
        size_bytes = min(limit_bytes, self.size_bytes)
        return self.read(self.size_bytes - size_bytes, size_bytes)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return exactly ``size_bytes`` from ``offset``; what would lie outside is refused before it is asked for."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise _broken("what it speaks of lies outside")
        if offset >= self._tail_offset:
            data = self._tail[offset - self._tail_offset :][:size_bytes]
        else:
            data = _read_at(self._descriptor, size_bytes, self.start + offset)
        if len(data) != size_bytes:
            raise _broken("it became shorter while it was read")
        return data


def _read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Return at most ``size_bytes`` from ``offset``, fewer only at the end of the file.

    In front of a block that cannot be read, one call stops short without an error; the next one tells it.
    """
    data = os.pread(descriptor, size_bytes, offset)
    while len(data) < size_bytes and (more := os.pread(descriptor, size_bytes - len(data), offset + len(data))):
        data += more
    return data


def _locate(source: Source) -> _Location:
    """Return what the last entry of the directory says, which is the manifest's in a file of ours."""
    start, end = directory_of(source)
    for extra_bytes in (0, _EXTRA64.size):
        offset = end - extra_bytes - len(_NAME) - CENTRAL.size
        if offset >= start:
            entry = source.read(offset, end - offset)
            if (found := _entry(entry, extra_bytes)) is not None:
                return _checked(*found, directory_offset=start)
            if _resembles(entry):
                raise _broken("the manifest's entry in its directory is not what it must be")
    if not _ends_with_an_entry(source, start, end):
        raise _broken("the last entry of its directory is not whole")
    raise ForeignFileError("it holds no Safepoint manifest: another program wrote it")


def directory_of(source: Source) -> tuple[int, int]:
    """Return where the directory begins and ends, as the records at the end of the archive say."""
    offset = _end_record(source)
    *_, size_bytes, start, _ = END.unpack(source.read(offset, END.size))
    end = offset
    locator = offset - LOCATOR.size
    if locator >= 0 and source.read(locator, 4) == b"PK\x06\x07":
        end = locator - END64.size
        signature, *_, size_bytes, start = END64.unpack(source.read(end, END64.size))
        if signature != b"PK\x06\x06":
            raise _broken("its long end record is missing")
    if start + size_bytes != end:
        raise _broken("its directory is not where its end record says")
    return start, end


def _ends_with_an_entry(source: Source, start: int, end: int) -> bool:
    """Tell whether the directory is empty or its last entry is whole; one that is damaged may have been the manifest's.

    It ends where the directory ends, and the header that it points to bears the same name.
    """
    if start == end:
        return True
    tail = source.read(max(start, end - _TAIL_BYTES), min(end - start, _TAIL_BYTES))
    found = tail.rfind(b"PK\x01\x02")
    if not 0 <= found <= len(tail) - CENTRAL.size:
        return False
    *_, name_bytes, extra_bytes, comment_bytes, _, _, _, offset = CENTRAL.unpack_from(tail, found)
    name_offset = found + CENTRAL.size
    if name_offset + name_bytes + extra_bytes + comment_bytes != len(tail):
        return False
    if offset == UINT32_MAX:  # it stands elsewhere, and what is so large is not looked at any closer
        return True
    header = source.read(offset, LOCAL.size + name_bytes)
    return header.startswith(b"PK\x03\x04") and header[LOCAL.size :] == tail[name_offset:][:name_bytes]


def _end_record(source: Source) -> int:
    for limit_bytes in (_TAIL_BYTES, _LONGEST_TAIL_BYTES):
        tail = source.tail(limit_bytes)
        found = tail.rfind(b"PK\x05\x06")
        if found >= 0:
            return source.size_bytes - len(tail) + found
    raise _broken("it has no end record")


def _entry(entry: bytes, extra_bytes: int) -> tuple[int, int, int, int] | None:
    """Return method, CRC-32, size and offset of the manifest's entry, ``None`` if it is another's."""
    signature, _, _, _, method, _, _, crc, _, size_bytes, *lengths, _, _, _, offset = CENTRAL.unpack_from(entry)
    name = entry[CENTRAL.size : CENTRAL.size + len(_NAME)]
    if signature != b"PK\x01\x02" or name != _NAME or lengths != [len(_NAME), extra_bytes, 0]:
        return None
    if extra_bytes and offset == UINT32_MAX:
        *_, offset = _EXTRA64.unpack_from(entry, CENTRAL.size + len(_NAME))
    return method, crc, size_bytes, offset


def _resembles(entry: bytes) -> bool:
    """Tell whether it is the manifest's entry but for a byte: a damaged file of ours, and not another program's."""
    name = entry[CENTRAL.size : CENTRAL.size + len(_NAME)]
    return sum(a != b for a, b in zip(name, _NAME, strict=True)) <= 1


def _checked(method: int, crc: int, size_bytes: int, offset: int, *, directory_offset: int) -> _Location:
    if method != _STORED or size_bytes > MANIFEST_LIMIT_BYTES:
        raise NotACheckpointError("its manifest is compressed or absurdly long: not written by Safepoint")
    around = directory_offset - offset - size_bytes
    # What is read in one go is bounded by this: a header with its padding, the manifest, and its descriptor.
    if not 0 <= around <= LOCAL.size + 2 * UINT16_MAX + _DESCRIPTOR_LIMIT_BYTES:
        raise _broken("its manifest does not lie in front of its directory")
    return _Location(offset, directory_offset, size_bytes, crc)


def _data_offset(record: bytes) -> int:
    """Return where the data begins in a record of the manifest that begins with its header."""
    if len(record) < LOCAL.size + len(_NAME):
        raise _broken("the manifest's header is cut off")
    signature, *_, name_bytes, extra_bytes = LOCAL.unpack_from(record)
    if signature != b"PK\x03\x04" or record[LOCAL.size : LOCAL.size + name_bytes] != _NAME:
        raise _broken("the manifest's header is not where the directory says")
    return LOCAL.size + int(name_bytes) + int(extra_bytes)


def _broken(why: str) -> NotACheckpointError:
    return NotACheckpointError(f"no whole zip archive ({why}): cut off, damaged, or no checkpoint")
