"""Whether a checkpoint is sound, whoever wrote it, and what that answer is worth: formats differ in what they tell.

Safepoint's files have a digest of everything. torch's archives have a CRC-32 of each record, unless they were written
without. safetensors have none: only their structure can be checked. A directory is checked file by file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safepoint import crcs, formats, reader, search
from safepoint.archive import ForeignFileError, Source
from safepoint.crcs import Place
from safepoint.errors import CheckpointError, NotACheckpointError, plain, shortened
from safepoint.formats import distributed, torch_file
from safepoint.formats.files import opened
from safepoint.formats.zips import Archive

OnBytes = Callable[[int], object]
"""Is told how many bytes more have been looked at; what it raises ends the check."""

_REFUSED = (errno.EACCES, errno.EPERM)
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_CALLED_SO = (".ckpt", ".safetensors", ".distcp", ".pt", ".pth")
_BY_CRC = "sound: all match their CRC-32"
_MOST_NAMED = 3

Verdict = Literal["sound", "damaged", "not checkable"]
Check = Literal["digests", "crc-32", "structure"]
"""What was compared, the best first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of checking one checkpoint.

    ``problems`` are all that was found, or why it cannot be checked: it is no checkpoint, or cannot be read.
    ``check``: what was compared; ``None`` if nothing was. ``worth`` tells in words what it is worth to be sound.
    """

    path: Path
    verdict: Verdict
    check: Check | None = None
    problems: tuple[str, ...] = ()
    worth: str = ""


def checked(path: Path, on_bytes: OnBytes | None = None) -> Finding:
    """Read every byte of the checkpoint at ``path``, a file or the directory of one, and return what was found.

    Raises:
        FileNotFoundError: nothing is there.

    """
    on_bytes = on_bytes or _ignore
    try:
        return _checked(path, on_bytes)
    except FileNotFoundError as error:
        if not os.path.exists(path):
            raise
        return Finding(path, "damaged", problems=(f"half-written: {error.filename} is not there",))
    except OSError as error:
        verdict: Verdict = "not checkable" if error.errno in _REFUSED else "damaged"
        return Finding(path, verdict, problems=(f"cannot be read: {error.strerror or error}",))


def size_of(path: Path) -> int:
    """Return how many bytes the checkpoint at ``path`` has, a file or a directory of files; of what is gone, 0."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(size_of(Path(place, name)) for place, _, names in os.walk(path) for name in names)
    except OSError:
        return 0


def _ignore(_: int) -> None:
    pass


def _checked(path: Path, on_bytes: OnBytes) -> Finding:
    if path.is_dir():
        return _of_directory(path, on_bytes)
    try:
        with opened(path) as descriptor:
            return _of_file(path, descriptor, on_bytes)
    except CheckpointError as error:  # what is no file, is not opened
        return Finding(path, "not checkable", problems=(_alone(path, error),))


def _of_file(path: Path, descriptor: int, on_bytes: OnBytes) -> Finding:
    head = os.pread(descriptor, len(_ZIP), 0)
    try:
        return _of_archive(path, descriptor, on_bytes) if head == _ZIP else _of_structure(path)
    except CheckpointError as error:
        is_remains = head == _ZIP or (path.name.endswith(_CALLED_SO) and not head.startswith(_PICKLE))
        return Finding(path, "damaged" if is_remains else "not checkable", problems=(_alone(path, error),))


def _of_directory(path: Path, on_bytes: OnBytes) -> Finding:
    """Check each file of a checkpoint that is a directory, and what they tell of the whole."""
    refusal, names = _refusal(path), os.listdir(path)
    if refusal and not search.is_checkpoint(path, names):
        return Finding(path, "not checkable", problems=(refusal,))
    check = _of_shards if distributed.is_one(set(names)) else _of_files
    found = check(path, on_bytes)
    return _verdict(path, found.check or "structure", found.problems or tuple(filter(None, [refusal])), found.worth)


def _of_files(path: Path, on_bytes: OnBytes) -> Finding:
    files = sorted(Path(place, name) for place, _, names in os.walk(path) for name in names)
    findings = [_checked(file, on_bytes) for file in files]
    damaged = [finding for finding in findings if finding.verdict == "damaged"]
    problems = [f"{each.path.relative_to(path)}: {problem}" for each in damaged for problem in each.problems]
    without = [finding.path.relative_to(path) for finding in findings if finding.check == "structure"]
    return _verdict(path, "structure" if without else "crc-32", problems, _worth(without))


def _of_shards(path: Path, on_bytes: OnBytes) -> Finding:
    """Check the archives in the files of a checkpoint of ``torch.distributed.checkpoint``'s."""
    try:
        archives, others = distributed.archives(path)
    except CheckpointError:
        return Finding(path, "damaged")  # why, was told before
    problems: list[str] = []
    without = [Path(file) for file in others]
    for file, places in sorted(archives.items()):
        with opened(path / file) as descriptor:
            found, has_crcs = _of_shard(descriptor, places, on_bytes)
        problems += [f"{file}: {problem}" for problem in found]
        without += [] if has_crcs else [Path(file)]
    return _verdict(path, "structure" if without else "crc-32", problems, _worth(without))


def _of_shard(descriptor: int, places: Mapping[tuple[int, int], str], on_bytes: OnBytes) -> tuple[list[str], bool]:
    """Return what is wrong with the archives at ``places`` (offset, size) of a file, and whether all have CRC-32s."""
    problems: list[str] = []
    wanted: dict[Place, str] = {}
    has_crcs = True
    for (offset, size_bytes), entry in places.items():
        source = Source(descriptor, offset, size_bytes)
        try:
            archive = Archive(source)
        except NotACheckpointError as error:
            problems.append(f"{shortened(entry)!r}: {error}")
            continue
        found, wrong = crcs.places(archive, source)
        problems += [f"{shortened(entry)!r}: {problem}" for problem in wrong]
        has_crcs = has_crcs and archive.has_crcs
        wanted |= dict.fromkeys(found, entry) if archive.has_crcs else {}
    for place in crcs.mismatches(descriptor, os.fstat(descriptor).st_size, wanted, on_bytes):
        problems.append(f"{shortened(wanted[place])!r} ({place.name}) does not match its CRC-32")
    return problems, has_crcs


def _refusal(path: Path) -> str:
    """Return why nobody can tell what the checkpoint at ``path`` holds, "" if somebody can."""
    try:
        formats.contents(path)
    except CheckpointError as error:
        return _alone(path, error)
    return ""


def _worth(without: Sequence[Path]) -> str:
    """Say what it is worth to be sound, where the files ``without`` have no checksums."""
    if not without:
        return _BY_CRC
    more = f" and {len(without) - _MOST_NAMED} more" if len(without) > _MOST_NAMED else ""
    return f"structure sound; no checksums in {', '.join(map(str, without[:_MOST_NAMED]))}{more}"


def _verdict(path: Path, check: Check, problems: Sequence[str], worth: str) -> Finding:
    return Finding(path, "damaged" if problems else "sound", check, tuple(problems), worth)


def _alone(path: Path, error: CheckpointError) -> str:
    """Return what is wrong, without the path that it begins with."""
    return str(error).removeprefix(plain(f"{path}: ")).removesuffix(".")


def _of_structure(path: Path) -> Finding:
    """Check what the format of a file tells of the places of its tensors."""
    formats.contents(path)
    return _verdict(path, "structure", (), "structure sound; the format has no checksums")


def _of_archive(path: Path, descriptor: int, on_bytes: OnBytes) -> Finding:
    try:
        with reader.opened(path) as checkpoint:
            return _verdict(path, "digests", list(reader.problems(checkpoint, _counting(on_bytes))), "sound")
    except ForeignFileError:
        return _of_torchs(path, descriptor, on_bytes)


def _of_torchs(path: Path, descriptor: int, on_bytes: OnBytes) -> Finding:
    source = Source(descriptor)
    archive = Archive(source)
    if torch_file.PICKLE not in archive.records:
        return Finding(path, "not checkable", problems=(_refusal(path),))
    wanted, problems = crcs.places(archive, source)
    if not archive.has_crcs:
        problems += filter(None, [_refusal(path)])
        return _verdict(path, "structure", problems, "structure sound; it was written without checksums")
    damaged = list(crcs.mismatches(descriptor, source.size_bytes, wanted, on_bytes))
    called = _subjects(path) if damaged else str
    problems += [f"{called(place)} does not match its CRC-32" for place in damaged]
    return _verdict(path, "crc-32", problems, _BY_CRC)


def _subjects(path: Path) -> Callable[[Place], str]:
    """Return what tells what a person calls a record of the archive at ``path``, as far as its pickle can be read."""
    paths: dict[int, list[str]] = {}
    with contextlib.suppress(CheckpointError):
        for tensor in formats.contents(path).tensors:
            for part in tensor.parts:
                paths.setdefault(part.storage.offset, []).append(tensor.path)

    def called(place: Place) -> str:
        if place.name == torch_file.PICKLE:
            return "the structure of the state (data.pkl)"
        if place.offset in paths:
            return reader.storage_called(place.name, paths[place.offset])
        return f"its record {shortened(place.name)!r}"

    return called


def _counting(on_bytes: OnBytes) -> reader.Sink:
    def sink(_: int, __: int, piece: memoryview) -> Callable[[], None]:
        on_bytes(len(piece))
        return _nothing

    return sink


def _nothing() -> None:
    pass
