"""Read what a checkpoint says about itself, and verify that it holds, in one pass over the file.

Reads files and never unpickles: nothing in a checkpoint can run code from here. Imports no torch, so that the command
line answers at once; ``loading`` is where the bytes that pass by become tensors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from safepoint import archive, image
from safepoint.archive import ForeignFileError
from safepoint.checksums import Checksums, checksums
from safepoint.errors import NotACheckpointError, shortened
from safepoint.image import Layout
from safepoint.manifest import HistoryEntry, Manifest, Summary, decode, decode_history, decode_summary
from safepoint.stores import direct

Sink = Callable[[int, int, memoryview], Callable[[], object]]
"""Takes bytes of a storage as they pass by (its number, where in it they belong, the bytes) while they are hashed.

What it returns is called then, and must return when it has done with them.
"""

_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Opened:
    """An open checkpoint, its manifest, and where everything lies in it.

    The open file stays the same one, whatever happens to its name.
    """

    file: BinaryIO
    manifest: Manifest
    manifest_bytes: bytes
    layout: Layout

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return os.fstat(self.file.fileno()).st_size

    def sound_pickle(self) -> bytes | None:
        """Return ``data.pkl``, which tells how the state is built, ``None`` if it does not match its digest."""
        entry = self.layout.pickle
        data = self._read(entry.data_offset, entry.size_bytes)
        return data if checksums(data).digest == self.manifest.pickle.digest else None

    def has_sound_index(self) -> bool:
        """Tell whether any reader of zip archives finds in the file what the manifest speaks of, and where it does.

        What tells where the records are is compared byte by byte, and so is what torch reads besides ``data.pkl`` and
        the storages. The storages' own headers are left to ``problems``.
        """
        layout = self.layout
        for entry, content in ((layout.pickle, b""), *layout.constants):
            wanted = image.local_header(entry) + content
            if self._read(entry.header_offset, len(wanted)) != wanted:
                return False
        start = layout.manifest.end
        directory = self._read(start, self.size_bytes - start)
        return directory == image.directory(layout, image.crcs_in(directory, layout))

    def _read(self, offset: int, size_bytes: int) -> bytes:
        """Return as much of ``size_bytes`` as is there."""
        pieces: list[bytes] = []
        while size_bytes > 0 and (piece := os.pread(self.file.fileno(), min(size_bytes, _PIECE_BYTES), offset)):
            pieces.append(piece)
            offset, size_bytes = offset + len(piece), size_bytes - len(piece)
        return b"".join(pieces)

    @property
    def digests(self) -> dict[str, str]:
        """The digest that the data of each record must have, by the record's name."""
        layout, manifest = self.layout, self.manifest
        known = {layout.pickle.name: manifest.pickle.digest}
        known |= {e.name: blob.digest for e, blob in zip(layout.storages, manifest.storages, strict=True)}
        known |= {e.name: checksums(content).digest for e, content in layout.constants}
        return {**known, layout.manifest.name: checksums(self.manifest_bytes).digest}

    def subjects(self) -> dict[str, str]:
        """Return what a person calls each record, by the record's name: all at once, as there may be a million."""
        paths: list[list[str]] = [[] for _ in self.layout.storages]
        for tensor in self.manifest.tensors:
            paths[tensor.storage].append(tensor.path)
        called = {entry.name: f"the archive's own record {entry.name!r}" for entry in self.layout.entries}
        called |= {
            e.name: storage_called(key, on_it)
            for key, (e, on_it) in enumerate(zip(self.layout.storages, paths, strict=True))
        }
        return {**called, self.layout.pickle.name: "the structure of the state (data.pkl)"}


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Opened]:
    """Open the checkpoint at ``path``.

    Raises:
        NotACheckpointError: the file is no whole Safepoint checkpoint; the message says why.
        OSError: it cannot be opened.

    """
    with os.fdopen(archive.open_regular(path), "rb") as file:
        yield _taken_in(file)


def _taken_in(file: BinaryIO) -> Opened:
    data = archive.manifest_bytes(file.fileno())
    manifest = decode(data)
    sizes = [blob.size_bytes for blob in manifest.storages]
    _check_fits(manifest.pickle.size_bytes, sizes, os.fstat(file.fileno()).st_size)
    return Opened(file, manifest, data, image.lay_out(manifest.pickle.size_bytes, sizes, len(data)))


def _check_fits(pickle_bytes: int, storage_bytes: list[int], size_bytes: int) -> None:
    """Refuse a manifest that speaks of more data than the file has, before anybody makes room for it."""
    data_bytes = pickle_bytes + sum(storage_bytes)
    if max(data_bytes, len(storage_bytes) * image.ALIGNMENT_BYTES) > size_bytes:  # each begins a page
        raise NotACheckpointError(f"cut off: its manifest speaks of {data_bytes} bytes of data in {size_bytes} bytes")


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
        with opened(path) as checkpoint:
            return list(problems(checkpoint))
    except NotACheckpointError as error:
        return [str(error)]


def verify_open(descriptor: int) -> list[str]:
    """Do as ``verify`` does with an open file, which stays open."""
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        try:
            return list(problems(_taken_in(file)))
        except NotACheckpointError as error:
            return [str(error)]


class Origin(NamedTuple):
    """Which run wrote a file, "" for another program, and what else its manifest tells: as in ``Record``."""

    run: str
    time: float = 0.0
    pinned: bool = False
    step: int = 0


def origin_of(descriptor: int) -> Origin | None:
    """Return where an open file comes from, ``None`` if nobody can tell."""
    try:
        summary = decode_summary(archive.manifest_bytes(descriptor))
        return Origin(summary.run, summary.time, summary.pinned, summary.step)
    except ForeignFileError:
        return Origin("")
    except (NotACheckpointError, OSError):
        return None


def problems(checkpoint: Opened, sink: Sink | None = None) -> Iterator[str]:
    """Read the whole file once, in order, and yield what is wrong with it; ``sink`` gets the storages on the way.

    What it got is verified only when the iterator has ended without a problem.
    """
    end = checkpoint.layout.manifest.end
    size = checkpoint.size_bytes
    if end > size:
        yield f"cut off: its manifest speaks of {end} bytes or more, and the file has {size}"
        return
    with contextlib.closing(direct.read_chunks(checkpoint.file.fileno(), size)) as chunks:
        stream = Stream(chunk for _, chunk in chunks)
        crcs: dict[str, int] = {}
        yield from _record_problems(checkpoint, stream, crcs, sink)
        expected = image.directory(checkpoint.layout, crcs)
        if stream.read(len(expected)) != expected:
            yield _own_bytes(end)
    if size != end + len(expected):
        yield f"it has {size} bytes where {end + len(expected)} are accounted for"


def _record_problems(checkpoint: Opened, stream: Stream, crcs: dict[str, int], sink: Sink | None) -> Iterator[str]:
    """Take every record from ``stream``, and its CRC-32 into ``crcs``."""
    digests, keys = checkpoint.digests, {entry.name: key for key, entry in enumerate(checkpoint.layout.storages)}
    subjects: dict[str, str] = {}
    for entry in checkpoint.layout.entries:
        if stream.read(entry.data_offset - entry.header_offset) != image.local_header(entry):
            yield _own_bytes(entry.header_offset)
        sums, offset, key = Checksums(), 0, keys.get(entry.name)
        for piece in stream.pieces(entry.size_bytes):
            taken = None if sink is None or key is None else sink(key, offset, piece)
            sums.update(piece)
            if taken is not None:
                taken()
            offset += len(piece)
        behind = stream.read(len(image.descriptor(entry, 0)))
        crcs[entry.name] = sums.crc
        if sums.digest != digests[entry.name]:
            crcs[entry.name] = int.from_bytes(behind[4:8], "little")  # one problem, told once
            subjects = subjects or checkpoint.subjects()
            yield f"{subjects[entry.name]} does not match its digest"
        if behind != image.descriptor(entry, crcs[entry.name]):
            yield _own_bytes(entry.data_offset + entry.size_bytes)


def storage_called(key: int | str, paths: Sequence[str]) -> str:
    """Return what a person calls the storage ``key``, on which the tensors at ``paths`` lie."""
    if not paths:
        return f"storage {key}"
    more = f" (and {len(paths) - 1} more on its storage)" if len(paths) > 1 else ""
    return f"tensor {shortened(paths[0])!r}{more}"


class Stream:
    """The bytes of a file in order, whatever chunks they come in; fewer if it ends early."""

    def __init__(self, chunks: Iterator[memoryview]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Take the next ``size_bytes`` without a copy; a piece is valid until the next is asked for."""
        while size_bytes:
            self._left = self._left or next(self._chunks, self._left)
            if not self._left:
                return
            piece, self._left = self._left[:size_bytes], self._left[size_bytes:]
            size_bytes -= len(piece)
            yield piece

    def skip(self, size_bytes: int) -> int:
        """Pass over the next ``size_bytes``; return how many there were."""
        return sum(map(len, self.pieces(size_bytes)))

    def read(self, size_bytes: int) -> bytes:
        """Take the next ``size_bytes``."""
        return b"".join(self.pieces(size_bytes))


def _own_bytes(offset: int) -> str:
    return f"the archive's own bytes at offset {offset} are not what they must be (header, padding or checksum)"
