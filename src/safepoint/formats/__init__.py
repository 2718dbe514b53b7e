"""What wrote a checkpoint, and what is in it: one file a format, each of which makes the values of ``contents``.

Reads what tells of the tensors (directories of archives, headers, pickles, which are walked through and never
executed) and none of their data. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from safepoint.archive import ForeignFileError
from safepoint.contents import Contents, Format, Outline
from safepoint.errors import NotACheckpointError
from safepoint.formats import safepoint


def format_of(path: Path) -> Format:
    """Return what wrote the checkpoint at ``path``, a file or the directory of a checkpoint that is one.

    Raises:
        NotACheckpointError: it is none, or one that cannot be read; says what it is, and what to do.
        OSError: it cannot be read.

    """
    try:
        safepoint.outline(path)
    except ForeignFileError as error:
        raise NotACheckpointError(f"{path}: {error}.") from None
    return Format.SAFEPOINT


def outline(path: Path) -> Outline:
    """Return what a list shows of the checkpoint at ``path``; raises what ``format_of`` raises."""
    return safepoint.outline(path)


def contents(path: Path) -> Contents:
    """Return all that can be told of the checkpoint at ``path``; raises what ``format_of`` raises."""
    return safepoint.contents(path)
