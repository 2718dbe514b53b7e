"""What wrote a checkpoint, and what is in it: one file a format, each of which makes the values of ``contents``.

Reads what tells of the tensors (directories of archives, headers, pickles, which are walked through and never
executed) and none of their data. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from safepoint import archive
from safepoint.archive import ForeignFileError, open_regular
from safepoint.contents import Contents, Format, Outline
from safepoint.errors import CheckpointError, NotACheckpointError
from safepoint.formats import safepoint

_HEAD_BYTES = 512
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_TAR = b"ustar"
_TAR_AT = 257
_SAFETENSORS = ".safetensors"


def format_of(path: Path) -> Format:
    """Return what wrote the checkpoint at ``path``, a file or the directory of a checkpoint that is one.

    Raises:
        NotACheckpointError: it is none, or a half-written one; says what it is, and what to do.
        CheckpointError: it is damaged, or built to exhaust whoever reads it.
        OSError: it cannot be read.

    """
    return outline(path).format


def outline(path: Path) -> Outline:
    """Return what a list shows of the checkpoint at ``path``; raises what ``format_of`` raises."""
    with _told(path):
        told: Outline = _reader(path).outline(path)
        return told


def contents(path: Path) -> Contents:
    """Return all that can be told of the checkpoint at ``path``; raises what ``format_of`` raises."""
    with _told(path):
        told: Contents = _reader(path).contents(path)
        return told


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Have each error begin with the path."""
    try:
        yield
    except CheckpointError as error:
        kind = NotACheckpointError if isinstance(error, ForeignFileError) else type(error)
        text = str(error)
        raise kind(text if text.startswith(f"{path}: ") else f"{path}: {text}.") from None


def _reader(path: Path) -> ModuleType:
    """Return the module that reads the checkpoint at ``path``: imported when it is needed, for a quick start."""
    if path.is_dir():
        return _reader_of_directory(path)
    descriptor = open_regular(path)
    try:
        head, size_bytes = os.pread(descriptor, _HEAD_BYTES, 0), os.fstat(descriptor).st_size
        return _reader_of_file(path, descriptor, head, size_bytes)
    finally:
        os.close(descriptor)


def _reader_of_directory(_: Path) -> ModuleType:
    raise NotACheckpointError(
        "a directory that is no checkpoint by itself: give one that is, or the directory of a run"
    )


def _reader_of_file(path: Path, descriptor: int, head: bytes, size_bytes: int) -> ModuleType:
    if not size_bytes:
        raise NotACheckpointError("it is empty: never written, or the disk was full. Take another checkpoint")
    if head.startswith(_ZIP):
        if _is_of_safepoint(descriptor):
            return safepoint
        from safepoint.formats import torch_file

        return torch_file
    from safepoint.formats import safetensors

    if path.suffix == _SAFETENSORS or safetensors.may_be_one(head):
        return safetensors
    raise NotACheckpointError(_foreign(head))


def _foreign(head: bytes) -> str:
    """Say what a file that begins with ``head`` is, as it is not read, and what to do."""
    if head[2:].startswith(_LEGACY):
        return (
            "torch's format from before 1.6 (or _use_new_zipfile_serialization=False), which is not read here: where "
            "you trust it, load it with torch and save it again. 'safepoint scan' tells what it would import"
        )
    if head[_TAR_AT:].startswith(_TAR):
        return (
            "a tar archive: torch's format from before 0.2, or none of torch's. Where you trust it, load it with "
            "torch and save it again"
        )
    if head.startswith(b"\x80"):
        return "a plain pickle, and no file of torch's: 'safepoint scan' tells what it would import"
    return "no checkpoint of any kind that is known here"


def _is_of_safepoint(descriptor: int) -> bool:
    """Tell whether a whole zip archive is Safepoint's."""
    try:
        archive.manifest_bytes(descriptor)
    except ForeignFileError:
        return False
    except NotACheckpointError as error:
        raise NotACheckpointError(f"{error}. Take another checkpoint of the run") from None
    return True
