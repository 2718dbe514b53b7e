"""What wrote a checkpoint, and what is in it: one file a format, each of which makes the values of ``contents``.

Reads what tells of the tensors (directories of archives, headers, pickles, which are walked through and never
executed) and none of their data. Imports no torch; what reads other programs' files is imported when it is needed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from safepoint import archive
from safepoint.archive import ForeignFileError
from safepoint.contents import Contents, Format, Outline
from safepoint.errors import CheckpointError, NotACheckpointError
from safepoint.formats import foreign
from safepoint.formats.files import opened

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
    """Return the module that reads the checkpoint at ``path``."""
    return _reader_of_directory(path) if path.is_dir() else _reader_of_file(path)


def _reader_of_directory(path: Path) -> ModuleType:
    from safepoint.formats import distributed, hugging_face

    names = set(os.listdir(path))
    if distributed.is_one(names):
        return distributed
    if hugging_face.is_one(path, names):
        return hugging_face
    raise NotACheckpointError(
        "a directory that is no checkpoint by itself: give one that is, or the directory of a run"
    )


def _reader_of_file(path: Path) -> ModuleType:
    with opened(path) as descriptor:
        head = os.pread(descriptor, foreign.HEAD_BYTES, 0)
        if head.startswith(foreign.ZIP) and _is_of_safepoint(descriptor):
            from safepoint.formats import safepoint

            return safepoint
    from safepoint.formats import safetensors, torch_file

    if head.startswith(foreign.ZIP):
        return torch_file
    if head and (path.suffix == _SAFETENSORS or safetensors.may_be_one(head)):
        return safetensors
    raise NotACheckpointError(foreign.told(head))


def _is_of_safepoint(descriptor: int) -> bool:
    """Tell whether a whole zip archive is Safepoint's."""
    try:
        archive.manifest_bytes(descriptor)
    except ForeignFileError:
        return False
    except NotACheckpointError as error:
        raise NotACheckpointError(f"{error}. Take another checkpoint of the run") from None
    return True
