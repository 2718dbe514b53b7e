"""Whether a checkpoint is sound, whoever wrote it, and what that answer is worth: formats differ in what they tell.

Safepoint's files have a digest of everything. torch's archives have a CRC-32 of each record, unless they were written
without. safetensors have none: only their structure can be checked. A directory is checked file by file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safepoint import crcs, formats, reader, search
from safepoint.archive import ForeignFileError, Source, open_regular
from safepoint.background import Background
from safepoint.crcs import Place
from safepoint.errors import CheckpointError, plain, shortened
from safepoint.formats import torch_file
from safepoint.formats.zips import Archive

if TYPE_CHECKING:
    from concurrent.futures import Future

OnBytes = Callable[[int], object]
"""Is told how many bytes more have been looked at; what it raises ends the check."""

_REFUSED = (errno.EACCES, errno.EPERM)
_TICK_S = 0.1
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
    except FileNotFoundError:
        raise
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


def check_all(paths: Sequence[Path], jobs: int, on_bytes: OnBytes | None = None) -> Generator[Finding | None]:
    """Yield what was found of each of ``paths``, in their order, ``None`` for one that is gone; ``jobs`` at once.

    ``on_bytes`` is told from time to time how many bytes more have been looked at, in the caller's thread.
    Whoever closes the iterator ends the checks that go on, without waiting for more than the piece they are at.
    """
    checks = _Checks(len(paths))
    threads = Background("verify", jobs)
    try:
        futures = [threads.submit(checks.check, index, path) for index, path in enumerate(paths)]
        for future in futures:
            while not _is_done(future):
                (on_bytes or _ignore)(checks.further_bytes())
            yield future.result()
    finally:
        checks.are_wanted = False
        threads.close()


class _Stopped(Exception):  # noqa: N818 - no error
    """Nobody wants to know any more."""


class _Checks:
    """What the threads share: how many bytes of each checkpoint were looked at, and whether to go on."""

    def __init__(self, count: int) -> None:
        self.done_bytes = [0] * count  # each changed by the one thread that looks at it
        self.told_bytes = 0
        self.are_wanted = True

    def further_bytes(self) -> int:
        """Return how many bytes were looked at since this was asked the last time."""
        before, self.told_bytes = self.told_bytes, sum(self.done_bytes)
        return self.told_bytes - before

    def check(self, index: int, path: Path) -> Finding | None:
        """Check one; ``None`` if it is gone, or nobody wants to know any more."""

        def on_bytes(count: int) -> None:
            if not self.are_wanted:
                raise _Stopped
            self.done_bytes[index] += count

        try:
            on_bytes(0)
            return checked(path, on_bytes)
        except (FileNotFoundError, _Stopped):
            return None
        finally:
            self.done_bytes[index] = size_of(path)


def _is_done(future: Future[Finding | None]) -> bool:
    try:
        future.exception(_TICK_S)
    except TimeoutError:
        return False
    return True


def _ignore(_: int) -> None:
    pass


def _checked(path: Path, on_bytes: OnBytes) -> Finding:
    if path.is_dir():
        return _of_directory(path, on_bytes)
    descriptor = open_regular(path)
    try:
        head = os.pread(descriptor, len(_ZIP), 0)
        return _of_archive(path, descriptor, on_bytes) if head == _ZIP else _of_structure(path)
    except CheckpointError as error:
        is_remains = head == _ZIP or (path.name.endswith(_CALLED_SO) and not head.startswith(_PICKLE))
        return Finding(path, "damaged" if is_remains else "not checkable", problems=(_alone(path, error),))
    finally:
        os.close(descriptor)


def _of_directory(path: Path, on_bytes: OnBytes) -> Finding:
    """Check each file of a checkpoint that is a directory, and then what they tell of the whole."""
    refusal = _refusal(path)
    if refusal and not search.is_checkpoint(path, os.listdir(path)):
        return Finding(path, "not checkable", problems=(refusal,))
    files = sorted(Path(place, name) for place, _, names in os.walk(path) for name in names)
    findings = [_checked(file, on_bytes) for file in files]
    damaged = [finding for finding in findings if finding.verdict == "damaged"]
    problems = [f"{each.path.relative_to(path)}: {problem}" for each in damaged for problem in each.problems]
    problems += [refusal] if refusal and not problems else []
    return _verdict(path, _weakest(findings), problems, _worth(path, findings))


def _refusal(path: Path) -> str:
    """Return why nobody can tell what the checkpoint at ``path`` holds, "" if somebody can."""
    try:
        formats.contents(path)
    except CheckpointError as error:
        return _alone(path, error)
    return ""


def _weakest(findings: Sequence[Finding]) -> Check:
    """Return what the weakest of the files allows, of those whose kind is known."""
    checks: tuple[Check, ...] = ("structure", "crc-32", "digests")
    return next((check for check in checks if any(finding.check == check for finding in findings)), "structure")


def _worth(path: Path, findings: Sequence[Finding]) -> str:
    if _weakest(findings) != "structure":
        return _BY_CRC
    without = [str(finding.path.relative_to(path)) for finding in findings if finding.check == "structure"]
    more = f" and {len(without) - _MOST_NAMED} more" if len(without) > _MOST_NAMED else ""
    return f"structure sound; no checksums in {', '.join(without[:_MOST_NAMED])}{more}"


def _verdict(path: Path, check: Check, problems: Sequence[str], worth: str) -> Finding:
    return Finding(path, "damaged" if problems else "sound", check, tuple(problems), worth)


def _alone(path: Path, error: CheckpointError) -> str:
    """Return what is wrong, without the path that it begins with."""
    return str(error).removeprefix(plain(f"{path}: "))


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
