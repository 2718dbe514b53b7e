"""What the commands print with ``--json``: one document each, named and versioned.

``schema`` is the name and version of a document, such as ``safepoint.ls/1``. Fields may be added under one version;
what is renamed, removed or means something else gets the next. Metrics that JSON cannot hold are ``"nan"``, ``"inf"``
and ``"-inf"``; times are Unix seconds, sizes are bytes, and paths are as the command line was given them.
``docs/cli.md`` is made from these classes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from safepoint.records import Number


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


Sound = Literal["not checked", "sound", "damaged", "not checkable"]


class Listed(msgspec.Struct, frozen=True):
    """A checkpoint in a list: ``path``, and ``name``, its path from ``directory``, in which its run saves or it lies.

    ``time`` is when its state was captured, or the file's modification if it does not tell; ``step`` and ``epoch`` are
    null and ``metrics`` empty if it tells none. ``size_bytes`` counts all its files. ``kept`` is what its run decided,
    null for one that no run speaks for, and ``why`` says why in words. Of Safepoint's own alone: ``run``, ``reasons``
    (why it was saved), ``pinned``, ``emergency`` (the exception at which it was saved) and ``flaw`` (why it is not gone
    on from). ``sound`` is ``"not checked"`` without ``--verify``; ``problems`` says what is damaged.
    """

    path: str
    directory: str
    name: str
    format: str
    step: int | None
    epoch: int | None
    metrics: dict[str, Number]
    size_bytes: int
    time: float
    kept: bool | None
    why: str
    run: str
    reasons: tuple[str, ...]
    pinned: bool
    emergency: str
    flaw: str
    sound: Sound
    problems: tuple[str, ...]


class Unreadable(msgspec.Struct, frozen=True):
    """What is called a checkpoint and cannot be read as one, and why."""

    path: str
    problem: str


class Removed(msgspec.Struct, frozen=True):
    """A checkpoint that is gone, as the newest of its run tells: where it was, what it had, and why it went."""

    path: str
    step: int
    epoch: int
    metrics: dict[str, Number]
    time: float
    why: str


class Ls(Document, frozen=True, tag="safepoint.ls/1"):
    """What checkpoints there are, in the order asked for.

    ``size_bytes``: what the files of ``checkpoints`` have on disk together, each counted once whatever names it has.
    ``removed`` is null without ``--removed``.
    """

    checkpoints: tuple[Listed, ...]
    unreadable: tuple[Unreadable, ...]
    removed: tuple[Removed, ...] | None
    size_bytes: int


class Best(Document, frozen=True, tag="safepoint.best/1"):
    """The checkpoint with the best ``metric``, and its ``value``; ``mode`` is ``"min"`` or ``"max"``."""

    metric: str
    mode: Literal["min", "max"]
    value: Number
    checkpoint: Listed


class Latest(Document, frozen=True, tag="safepoint.latest/1"):
    """The newest checkpoint that can be gone on from; one with a ``flaw`` only if all have one."""

    checkpoint: Listed


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
