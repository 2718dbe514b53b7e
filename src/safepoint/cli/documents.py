"""What the commands print with ``--json``: one document each, named and versioned.

``schema`` is the name and version of a document, such as ``safepoint.ls/1``. Fields may be added under one version;
what is renamed, removed or means something else gets the next. Metrics that JSON cannot hold are ``"nan"``, ``"inf"``
and ``"-inf"``; times are Unix seconds, sizes are bytes, and paths are as the command line was given them.
``docs/cli.md`` is made from these classes.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Document(msgspec.Struct, frozen=True, tag_field="schema"):
    """What every document is."""


Answer = Literal["asked", "saved", "not-saved"]


class SaveNow(Document, frozen=True, tag="safepoint.save-now/1"):
    """What became of a request: ``path`` is the checkpoint that was made for it, once ``answer`` is ``"saved"``.

    ``"not-saved"``: it was waited for in vain; ``told`` says so in words.
    """

    directory: str
    answer: Answer
    path: str | None
    told: str


class ExportedTensor(msgspec.Struct, frozen=True):
    """A tensor in a file that was made: its ``name`` there, its ``path`` in the checkpoint, its ``dtype`` there."""

    name: str
    path: str
    dtype: str
    shape: tuple[int, ...]


class Export(Document, frozen=True, tag="safepoint.export/1"):
    """A file that was made: ``path``, of the checkpoint ``source``, of the kind ``to``, and what is in it.

    ``tied`` maps names under which the file holds nothing to those of the same tensor under which it does: such a name
    is among ``tensors``, too. ``left_out`` are the paths of what was chosen and is no tensor, for which the file has no
    place. ``overflowed`` are the paths of tensors with numbers too large for their new dtype.
    """

    path: str
    source: str
    to: Literal["safetensors", "torch", "weights"]
    size_bytes: int
    tensors: tuple[ExportedTensor, ...]
    tied: dict[str, str]
    left_out: tuple[str, ...]
    overflowed: tuple[str, ...]


class Report(Document, frozen=True, tag="safepoint.report/1"):
    """A page that was written: ``path``, of the run or runs in ``directory``.

    ``kept`` checkpoints are on disk and ``removed`` were, of so many ``runs``; ``left_out`` of them are too many for
    the page. ``unreadable`` files are called checkpoints and cannot be read as such. The drift is that of ``layers`` in
    ``pairs`` of checkpoints, for which ``read_bytes`` of tensors were read.
    """

    path: str
    directory: str
    size_bytes: int
    kept: int
    removed: int
    runs: int
    left_out: int
    unreadable: int
    layers: int
    pairs: int
    read_bytes: int
