"""What the commands print with ``--json``: one document each, named and versioned.

``schema`` is the name and version of a document, such as ``safepoint.ls/1``. Fields may be added under one version;
what is renamed, removed or means something else gets the next. Metrics that JSON cannot hold are ``"nan"``, ``"inf"``
and ``"-inf"``; times are Unix seconds, sizes are bytes, and paths are as the command line was given them.
``docs/cli.md`` is made from these classes.
"""

from __future__ import annotations

from typing import Any, Literal

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


class ExportedTensor(msgspec.Struct, frozen=True):
    """A tensor in a file that was made: its ``name`` there, its ``path`` in the checkpoint, its ``dtype`` there."""

    name: str
    path: str
    dtype: str
    shape: tuple[int, ...]


class Export(Document, frozen=True, tag="safepoint.export/1"):
    """A file that was made: ``path``, of the checkpoint ``source``, of the kind ``to``, and what is in it.

    ``tied`` maps names under which the file holds nothing to those of the same tensor under which it does: such a name
    is among ``tensors``, too. ``left_out`` are the paths below which what was chosen is no tensor, and has no place in
    the file. ``overflowed`` are the paths of tensors with numbers too large for their new dtype.
    """

    path: str
    source: str
    to: Literal["safetensors", "torch", "weights"]
    size_bytes: int
    tensors: tuple[ExportedTensor, ...]
    tied: dict[str, str]
    left_out: tuple[str, ...]
    overflowed: tuple[str, ...]


Sound = Literal["not checked", "sound", "damaged", "not checkable"]


class Listed(msgspec.Struct, frozen=True):
    """A checkpoint in a list: ``path``, and ``name``, its path from ``directory``, in which its run saves or it lies.

    ``time`` is when its state was captured, or the file's modification if it does not tell; ``step`` and ``epoch`` are
    null and ``metrics`` empty if it tells none. ``size_bytes`` counts all its files. ``kept`` is what its run decided,
    null for one that no run speaks for, and ``why`` says why in words. Of Safepoint's own alone: ``run``, ``reasons``
    (why it was saved), ``pinned``, ``emergency`` (the exception at which it was saved) and ``flaw`` (why it is not gone
    on from). ``sound`` is ``"not checked"`` without ``--verify``; ``check`` and ``problems`` are those of ``verify``.
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
    check: Literal["digests", "crc-32", "structure"] | None
    problems: tuple[str, ...]


class Unreadable(msgspec.Struct, frozen=True):
    """What is called a checkpoint and cannot be read as one, and why; ``sound`` is as in a ``Listed``."""

    path: str
    problem: str
    sound: Sound


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


class ShowTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of a checkpoint; what its file does not tell is left out.

    ``elements`` is their number and ``size_bytes`` what they take where they lie. ``file`` and ``offset`` (in bytes)
    are where the first of them is, ``strides`` (in elements) how they follow; ``digest`` is the xxh3-128 of the bytes
    of the storage on which it lies, and ``crc`` their CRC-32. One that lies in several pieces has them in ``parts``.
    ``note``: why its elements cannot be told.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    size_bytes: int
    file: str = ""
    offset: int | None = None
    strides: tuple[int, ...] | None = None
    digest: str = ""
    crc: int | None = None
    parts: tuple[ShowPart, ...] = ()
    note: str = ""


class ShowPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """A box of a tensor: ``start`` is the index of its first element; the rest means the same as in a tensor."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    strides: tuple[int, ...]
    digest: str = ""
    crc: int | None = None


class ShowEntry(msgspec.Struct, frozen=True):
    """What an entry of the state has in it; what lies on another's place is counted once.

    ``parameters``: the elements of floating-point tensors, 0 unless the entry is a model's.
    """

    name: str
    tensors: int
    elements: int
    parameters: int
    size_bytes: int


class ShowStats(msgspec.Struct, frozen=True):
    """What the save cost: seconds from when it was asked for, but for how long training ``waited_s`` and was held up.

    ``written_bytes`` leaves out what the file shares with an earlier one.
    """

    waited_s: float
    stalled_s: float
    staged_s: float
    written_s: float
    committed_s: float
    written_bytes: int


class ShowRun(msgspec.Struct, frozen=True):
    """What a checkpoint of Safepoint's and its run say of it.

    ``reasons`` is why it was saved; ``kept`` whether its run keeps it, and ``why`` why or why not: ``null`` and "" for
    a copy or a link that somebody made. ``measured_at`` is the step of metrics that were measured at another one than
    its own. ``emergency`` is the class of the exception at which it was saved, ``flaw`` why its state is not to be gone
    on from, ``inexact`` what is not gone on with exactly and why, ``excluded`` the digests of the frozen parameters
    that were left out. ``stats`` is ``null`` where no later checkpoint tells.
    """

    run: str
    reasons: tuple[str, ...]
    pinned: bool
    kept: bool | None
    why: str
    measured_at: dict[str, int]
    emergency: str
    flaw: str
    inexact: dict[str, str]
    excluded: dict[str, str]
    stats: ShowStats | None


class Show(Document, frozen=True, tag="safepoint.show/1"):
    """One checkpoint.

    ``format`` is ``safepoint``, ``lightning``, ``torch``, ``safetensors``, ``dcp`` or ``hugging-face``. ``time`` is
    when its state was captured, or its file was modified where it does not tell; ``names`` how many names its file has.
    ``step`` and ``epoch`` are ``null``, and ``metrics``, ``hyperparameters`` and ``producer`` (versions) empty, where
    it does not tell. ``run`` is ``null`` for other programs'. ``entries`` are the parts of the state that have tensors;
    ``tensors`` are all of them, in the order of the state, and ``values`` all else in it, by path. What JSON does not
    have (among hyperparameters and values) is told in words.
    """

    path: str
    format: str
    size_bytes: int
    time: float
    names: int
    step: int | None
    epoch: int | None
    metrics: dict[str, Number]
    producer: dict[str, str]
    run: ShowRun | None
    hyperparameters: dict[str, Any]
    entries: tuple[ShowEntry, ...]
    values: dict[str, Any]
    tensors: tuple[ShowTensor, ...]


class Verified(msgspec.Struct, frozen=True):
    """What came of checking a checkpoint: ``problems`` are what is damaged, or why it cannot be checked.

    ``check`` is what was compared: ``digests`` (xxh3-128 of everything), ``crc-32`` (of each record), or ``structure``
    (sizes and headers alone: there are no checksums); of a directory, what its weakest file allows; ``null`` if
    nothing could be.
    """

    path: str
    verdict: Literal["sound", "damaged", "not checkable"]
    check: Literal["digests", "crc-32", "structure"] | None
    problems: tuple[str, ...]


class Verify(Document, frozen=True, tag="safepoint.verify/1"):
    """Which checkpoints are sound: ``all_sound`` if every one of them is."""

    checkpoints: tuple[Verified, ...]
    all_sound: bool


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


class DiffSide(msgspec.Struct, frozen=True):
    """One of the two checkpoints: ``format`` is what wrote it; what it does not tell is ``null`` or empty."""

    path: str
    format: str
    size_bytes: int
    time: float
    step: int | None
    epoch: int | None
    metrics: dict[str, Number]


class DiffTensor(msgspec.Struct, frozen=True):
    """A tensor: its path in the state, dtype as torch calls it, and shape."""

    path: str
    dtype: str
    shape: tuple[int, ...]


class DiffDrift(msgspec.Struct, frozen=True):
    """How far elements went, in float64.

    Of ``elements``, so many are ``changed``: their bytes are others. ``norm`` is the L2 norm of the change,
    ``base_norm`` of what was there before, ``relative`` the one by the other and ``max_abs`` the largest change (of
    complex elements, the modulus), of elements that are finite on both sides; ``null`` where nothing is floating-point
    or complex. ``not_finite`` are NaN or infinite in the second checkpoint.
    """

    elements: int
    changed: int
    norm: Number | None
    base_norm: Number | None
    relative: Number | None
    max_abs: Number | None
    not_finite: int


class DiffPair(msgspec.Struct, frozen=True):
    """A tensor in the first checkpoint, and the one in the second that it was compared with.

    ``drift`` is ``null`` without ``--values``, and where the shapes differ or there is no data.
    """

    a: DiffTensor
    b: DiffTensor
    drift: DiffDrift | None


class DiffLayer(msgspec.Struct, frozen=True):
    """The ``drift`` of all the changed ``tensors`` of one module, or of what an optimizer keeps under one name."""

    layer: str
    tensors: int
    drift: DiffDrift


class DiffValue(msgspec.Struct, frozen=True):
    """A plain value of the state: what it is in ``a`` and in ``b``, ``null`` where it is not ``there``.

    What JSON does not have is told in words.
    """

    path: str
    there: Literal["both", "a", "b"]
    a: Any
    b: Any


class Diff(Document, frozen=True, tag="safepoint.diff/1"):
    """How the checkpoint ``b`` differs from ``a``.

    ``moved`` are the same elements under another path, ``reshaped`` of another shape or dtype, ``uncompared`` without
    data that could be compared; ``same`` is how many are the same. ``prefixes``: the beginnings of paths, in ``a`` and
    in ``b``, that were taken for the same. ``values`` are the plain values that differ, ``null`` if one of the two has
    none. ``layers`` is ``null`` without ``--values``.
    """

    a: DiffSide
    b: DiffSide
    differs: bool
    prefixes: tuple[str, str] | None
    added: tuple[DiffTensor, ...]
    removed: tuple[DiffTensor, ...]
    moved: tuple[DiffPair, ...]
    reshaped: tuple[DiffPair, ...]
    changed: tuple[DiffPair, ...]
    uncompared: tuple[DiffPair, ...]
    same: int
    values: tuple[DiffValue, ...] | None
    hyperparameters: tuple[DiffValue, ...]
    layers: tuple[DiffLayer, ...] | None


class ScannedName(msgspec.Struct, frozen=True):
    """A class, function or constant that a file names, and whether it would be ``called``.

    ``kind``: ``"safe"`` on the list of weights_only=True, ``"needs"`` beyond it, ``"runs"`` known to run code.
    """

    name: str
    kind: Literal["safe", "needs", "runs"]
    called: bool


class ScannedFile(msgspec.Struct, frozen=True):
    """A file that was looked at; of a directory of torch.distributed.checkpoint's, its parts together.

    ``verdict``: ``"nothing"`` in it can run; ``"safe"`` to load with weights_only=True; ``"refused"`` by it, or cannot
    be read to its end, as ``problems`` say; it ``"needs"`` names beyond the list; it ``"runs"`` code.
    """

    path: str
    what: Literal["torch", "pickle", "safetensors"]
    verdict: Literal["nothing", "safe", "refused", "needs", "runs"]
    names: tuple[ScannedName, ...]
    problems: tuple[str, ...]


class Scan(Document, frozen=True, tag="safepoint.scan/1"):
    """What files would import when they are loaded: ``all_safe`` if nothing beyond what weights_only=True allows."""

    files: tuple[ScannedFile, ...]
    all_safe: bool


class Pin(Document, frozen=True, tag="safepoint.pin/1"):
    """Whether the checkpoint of which ``path`` is a name is ``pinned``, and whether that was ``changed`` just now.

    ``record`` is the name that its run goes by, with its pin beside it; ``null`` for a copy, which no policy touches.
    ``told`` says it in words.
    """

    path: str
    record: str | None
    pinned: bool
    changed: bool
    told: str


Answered = Literal["stays", "goes", "removed", "left", "failed"]


class PruneCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint of a run that is pruned, by all of its ``names``; ``path`` is its own.

    ``answer``: it ``stays`` by the policy, or ``goes``: it was ``removed``, was ``left`` alone in the last moment, or
    its removal ``failed``; ``why`` says why, of each.
    """

    path: str
    names: tuple[str, ...]
    step: int
    epoch: int
    metrics: dict[str, Number]
    time: float
    size_bytes: int
    answer: Answered
    why: str


class Prune(Document, frozen=True, tag="safepoint.prune/1"):
    """What a policy makes of the checkpoints in ``directory``, oldest first, and what has become of those that go.

    ``untouched`` is what else lies there, by path, and why it is left alone. ``freed_bytes``: what removing them frees
    or, once that is done, has freed.
    """

    directory: str
    checkpoints: tuple[PruneCheckpoint, ...]
    untouched: dict[str, str]
    freed_bytes: int


class ExplainSave(msgspec.Struct, frozen=True):
    """A save, by the checkpoint that it made and the ``time`` at which its state was captured."""

    path: str
    step: int
    time: float


class Explain(Document, frozen=True, tag="safepoint.explain/1"):
    """What there is to say of a checkpoint that is or was at ``path``: ``why`` in words, and ``more`` of it.

    ``answer``: ``kept`` by its run's policy; ``pinned``; ``goes``: its run is about to remove it; ``untouched`` by any
    policy, as it is a copy, or another program's; ``removed``; ``missing``: gone, though its run keeps it. ``reasons``
    is why it was saved. Of one that is gone, ``after`` is the last save known to be before that and ``by`` the first
    behind; ``is_exact`` if it went with that very save.
    """

    path: str
    answer: Literal["kept", "pinned", "goes", "untouched", "removed", "missing"]
    why: str
    more: tuple[str, ...]
    format: str
    step: int | None
    epoch: int | None
    metrics: dict[str, Number]
    time: float
    reasons: tuple[str, ...]
    after: ExplainSave | None
    by: ExplainSave | None
    is_exact: bool
