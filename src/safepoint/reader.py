"""Read what a checkpoint says about itself, and verify that it holds.

Reads files and never unpickles: nothing in a checkpoint can run code from here. Imports no torch, so that the command
line answers at once; ``restore`` is where tensors are loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from safepoint import archive, image
from safepoint.checksums import Checksums, checksums
from safepoint.errors import NotACheckpointError
from safepoint.image import Entry, Layout
from safepoint.manifest import HistoryEntry, Manifest, Summary, decode, decode_history, decode_summary

_CHUNK_BYTES = 4 << 20


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of the checkpoint at ``path``, reading no tensor data.

    Raises:
        NotACheckpointError: the file is no whole Safepoint checkpoint; the message says why.
        OSError: it cannot be opened.

    """
    return decode(archive.manifest_at(path))


def read_summary(path: str | os.PathLike[str]) -> Summary:
    """Return what a list needs of the manifest of the checkpoint at ``path``; raises what ``read_manifest`` raises."""
    return decode_summary(archive.manifest_at(path))


def read_history(path: str | os.PathLike[str]) -> tuple[HistoryEntry, ...]:
    """Return the history that the checkpoint at ``path`` tells; raises what ``read_manifest`` raises."""
    return decode_history(archive.manifest_at(path))


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Return the problems of the checkpoint at ``path``: empty if every byte of it is accounted for and matches.

    The data is checked against the digests in the manifest; everything else (headers, padding, directory) follows from
    the manifest and is compared byte by byte.

    Raises:
        OSError: the file cannot be opened or read.

    """
    try:
        with os.fdopen(archive.open_regular(path), "rb") as file:
            data = archive.manifest_bytes(file.fileno())
            return list(_problems(file, decode(data), data))
    except NotACheckpointError as error:
        return [str(error)]


def _problems(file: BinaryIO, manifest: Manifest, manifest_bytes: bytes) -> Iterator[str]:
    layout = image.lay_out(
        manifest.pickle.size_bytes, [blob.size_bytes for blob in manifest.storages], len(manifest_bytes)
    )
    size = os.fstat(file.fileno()).st_size
    if layout.manifest.end > size:
        yield f"cut off: its manifest speaks of {layout.manifest.end} bytes or more, and the file has {size}"
        return
    crcs = {entry.name: checksums(content).crc for entry, content in layout.constants}
    crcs[layout.manifest.name] = checksums(manifest_bytes).crc
    blobs = ((layout.pickle, manifest.pickle), *zip(layout.storages, manifest.storages, strict=True))
    for entry, blob in blobs:
        sums = _checksums_of(file, entry)
        crcs[entry.name] = sums.crc
        if sums.digest != blob.digest:
            crcs[entry.name] = _stored_crc(file, entry)  # one problem, told once
            yield f"{_subject(entry, layout, manifest)} does not match its digest"
    yield from _frame_problems(file, layout, crcs, manifest_bytes, size)


def _frame_problems(
    file: BinaryIO, layout: Layout, crcs: dict[str, int], manifest_bytes: bytes, size: int
) -> Iterator[str]:
    """Compare everything that is not data with what the manifest says it must be."""
    end = 0
    for offset, expected in (*image.frame(layout, crcs), (layout.manifest.data_offset, manifest_bytes)):
        file.seek(offset)
        if file.read(len(expected)) != expected:
            yield f"the archive's own bytes at offset {offset} are not what they must be (header, padding or checksum)"
        end = max(end, offset + len(expected))
    if size != end:
        yield f"it has {size} bytes where {end} are accounted for"


def _checksums_of(file: BinaryIO, entry: Entry) -> Checksums:
    sums = Checksums()
    file.seek(entry.data_offset)
    left = entry.size_bytes
    while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
        sums.update(chunk)
        left -= len(chunk)
    return sums


def _stored_crc(file: BinaryIO, entry: Entry) -> int:
    """Return the CRC-32 that stands behind the data."""
    file.seek(entry.data_offset + entry.size_bytes + 4)
    return int.from_bytes(file.read(4), "little")


def _subject(entry: Entry, layout: Layout, manifest: Manifest) -> str:
    if entry is layout.pickle:
        return "the structure of the state (data.pkl)"
    key = layout.storages.index(entry)
    named = [repr(tensor.path) for tensor in manifest.tensors if tensor.storage == key]
    if not named:
        return f"storage {key}"
    more = f" (and {len(named) - 1} more on its storage)" if len(named) > 1 else ""
    return f"tensor {named[0]}{more}"
