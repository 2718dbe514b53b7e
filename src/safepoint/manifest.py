"""The manifest: what a checkpoint says about itself, as JSON inside the file.

It is the truth about a checkpoint (its name is cosmetic) and enough to rebuild a run's records from a directory alone.
It also carries the run's short history, so that the newest file can tell of those that were removed. This file builds,
encodes, parses and validates; it reads no disk and no tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from safepoint.errors import CaptureError, ConfigurationError, NotACheckpointError
from safepoint.naming import check_contained
from safepoint.records import Fate, Progress, Record, SaveStats, decoded_metrics, encoded_metrics

FORMAT_VERSION = 1
HISTORY_LIMIT = 1000
"""How many removed checkpoints a manifest remembers; those still kept are always listed."""

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

COUNT_LIMIT = 2**62
METRICS_LIMIT = 10_000
"""How many metrics, and how many reasons, a checkpoint has at most: a catalog keeps them all in memory."""
Count = Annotated[int, msgspec.Meta(ge=0, lt=COUNT_LIMIT)]
# A run counts on from where it is restored, and what it saves then must be readable again.
Start = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]
Measure = float | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | Literal["nan", "inf", "-inf"]
Metrics = Annotated[dict[str, Measure], msgspec.Meta(max_length=METRICS_LIMIT)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Blob(msgspec.Struct, frozen=True):
    """A run of bytes: its size and its xxh3-128 digest."""

    size_bytes: Count
    digest: Digest


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor: its path in the state, dtype, shape, and where in which storage it lies (in elements).

    ``strides`` is left out where the tensor is contiguous.
    """

    path: str
    dtype: str
    shape: tuple[Count, ...]
    storage: Count
    offset: Count = 0
    strides: tuple[Count, ...] | None = None


class Position(msgspec.Struct, frozen=True):
    """Where the run goes on: see ``records.Progress``."""

    step: Start
    epoch: Start
    batch: Start


class Stats(msgspec.Struct, frozen=True):
    """What a save cost: see ``records.SaveStats``."""

    size_bytes: Count
    written_bytes: Count
    waited_s: float
    stalled_s: float
    staged_s: float
    written_s: float
    committed_s: float


class HistoryEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A checkpoint of the run and what became of it: ``reason`` says why it is kept or why it was removed."""

    name: str
    step: Count
    epoch: Count
    metrics: Metrics
    time: float
    kept: bool
    reason: str
    stats: Stats | None = None


class Summary(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a list needs of a manifest; the fields of ``records.Record`` mean the same here.

    ``position`` is ``None`` where a framework keeps track of where to go on in its own part of the state;
    ``measured_at``, ``emergency`` and ``flaw`` are left out where they are empty.
    """

    format_version: Annotated[int, msgspec.Meta(ge=1)]
    run: str
    step: Count
    epoch: Count
    metrics: Metrics
    time: float
    reasons: Annotated[tuple[str, ...], msgspec.Meta(max_length=METRICS_LIMIT)]
    pinned: bool
    position: Position | None
    measured_at: Annotated[dict[str, Count], msgspec.Meta(max_length=METRICS_LIMIT)] = {}
    emergency: str = ""
    flaw: str = ""

    def record(self, path: Path, size_bytes: int) -> Record:
        """Return the record of the checkpoint that was found at ``path``."""
        return Record(
            path=path,
            step=self.step,
            epoch=self.epoch,
            metrics=decoded_metrics(self.metrics),
            time=self.time,
            size_bytes=size_bytes,
            reasons=self.reasons,
            pinned=self.pinned,
            run=self.run,
            measured_at=self.measured_at,
            emergency=self.emergency,
            flaw=self.flaw,
        )

    def progress(self, path: Path) -> Progress | None:
        """Return where a plain loop that restores the checkpoint at ``path`` goes on, ``None`` if a framework knows."""
        position = self.position
        if position is None:
            return None
        return Progress(position.step, position.epoch, position.batch, decoded_metrics(self.metrics), path)


class Manifest(Summary, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a checkpoint says about itself.

    ``excluded`` are the frozen parameters that were left out of the state, by path, with the digest of their content.
    ``inexact`` are the entries of the state from which a run does not go on exactly, each with why; one of them that is
    not in the state was left out.
    """

    producer: dict[str, str]
    pickle: Blob
    storages: tuple[Blob, ...]
    tensors: tuple[Tensor, ...]
    history: tuple[HistoryEntry, ...]
    excluded: dict[str, str] = {}
    inexact: dict[str, str] = {}


T = TypeVar("T", "Summary", "Manifest", "_Told")


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON."""
    return msgspec.json.encode(manifest)


def check_readable(manifest: Manifest) -> None:
    """Raise a CaptureError if ``manifest`` says what ``decode`` refuses: nobody could read the checkpoint again."""
    if max(manifest.step, manifest.epoch) >= COUNT_LIMIT:
        raise CaptureError(f"step {manifest.step} of epoch {manifest.epoch} is none that a training comes to.")
    counts = (len(manifest.metrics), len(manifest.reasons), len(manifest.measured_at))
    if max(counts) > METRICS_LIMIT:
        raise CaptureError(
            f"{max(counts)} metrics are more than the {METRICS_LIMIT} that a checkpoint holds: pass less."
        )
    summary = Summary(**{name: getattr(manifest, name) for name in Summary.__struct_fields__})
    try:
        msgspec.json.decode(msgspec.json.encode(summary), type=Summary)
    except _MALFORMED as error:
        raise CaptureError(f"a checkpoint that says this of itself could not be read again: {error}.") from None


def decode(data: bytes | memoryview) -> Manifest:
    """Return the manifest in ``data``.

    Raises:
        NotACheckpointError: it is not one, is of a newer format, or a field is missing or of the wrong kind.

    """
    manifest = _decoded(data, Manifest)
    if any(tensor.storage >= len(manifest.storages) for tensor in manifest.tensors):
        raise NotACheckpointError("its manifest is malformed: a tensor names a storage that is not there")
    _check_names(manifest.history)
    return manifest


def decode_summary(data: bytes | memoryview) -> Summary:
    """Return what a list needs of the manifest in ``data``: a small part of it, where there are many.

    Raises:
        NotACheckpointError: as ``decode`` does, for the fields of a summary.

    """
    return _decoded(data, Summary)


def decode_history(data: bytes | memoryview) -> tuple[HistoryEntry, ...]:
    """Return the history in the manifest in ``data``.

    Raises:
        NotACheckpointError: as ``decode`` does, for the history.

    """
    history = _decoded(data, _Told).history
    _check_names(history)
    return history


def _check_names(history: tuple[HistoryEntry, ...]) -> None:
    """Refuse a history with a name that is none in its directory: a run that goes on with it may remove or replace."""
    try:
        for entry in history:
            check_contained(entry.name, owner="a name in its history")
    except ConfigurationError as error:
        raise NotACheckpointError(f"its manifest is malformed: {error}") from None


def encoded_history(fates: tuple[Fate, ...], directory: Path) -> tuple[HistoryEntry, ...]:
    """Return the history to embed: what is kept, and the last ``HISTORY_LIMIT`` that were removed, oldest first."""
    removed = [fate for fate in fates if not fate.kept]
    forgotten = {id(fate) for fate in removed[:-HISTORY_LIMIT]}
    return tuple(_entry(fate, directory) for fate in fates if id(fate) not in forgotten)


def decoded_history(history: tuple[HistoryEntry, ...], directory: Path, run: str) -> tuple[Fate, ...]:
    """Return the history of ``run`` as fates of records in ``directory``; of one without statistics, the size is 0."""
    return tuple(decoded_fate(entry, directory / entry.name, run) for entry in history)


def decoded_fate(entry: HistoryEntry, path: Path, run: str) -> Fate:
    """Return what the history of ``run`` tells of the checkpoint at ``path``; as ``decoded_history`` does."""
    return Fate(_record(entry, path, run), entry.kept, entry.reason)


class _Head(msgspec.Struct):
    format_version: Annotated[int, msgspec.Meta(ge=1)]


class _Told(_Head):
    history: tuple[HistoryEntry, ...]


def _decoded(data: bytes | memoryview, kind: type[T]) -> T:
    """Return the fields of ``kind`` in ``data``, the others skipped; that it is of a newer format is told first."""
    try:
        decoded = msgspec.json.decode(data, type=kind)
    except _MALFORMED as error:
        _refuse_newer(_format_version(data))
        raise NotACheckpointError(f"its manifest is malformed: {error}") from None
    _refuse_newer(decoded.format_version)
    return decoded


def _format_version(data: bytes | memoryview) -> int:
    """Return the format of a manifest that may be malformed otherwise, or 0."""
    try:
        return msgspec.json.decode(data, type=_Head).format_version
    except _MALFORMED:
        return 0


def _refuse_newer(format_version: int) -> None:
    if format_version > FORMAT_VERSION:
        raise NotACheckpointError(
            f"written in format {format_version}; this Safepoint reads up to {FORMAT_VERSION}: upgrade it"
        )


def _record(entry: HistoryEntry, path: Path, run: str) -> Record:
    stats = None
    if entry.stats is not None:
        stats = SaveStats(path=path, step=entry.step, **msgspec.structs.asdict(entry.stats))
    return Record(
        path=path,
        step=entry.step,
        epoch=entry.epoch,
        metrics=decoded_metrics(entry.metrics),
        time=entry.time,
        size_bytes=0 if stats is None else stats.size_bytes,
        reasons=(),
        run=run,
        stats=stats,
    )


def _entry(fate: Fate, directory: Path) -> HistoryEntry:
    record = fate.record
    inside = record.path.is_relative_to(directory)
    name = record.path.relative_to(directory).as_posix() if inside else record.path.name
    metrics = encoded_metrics(record.metrics)
    stats = None
    if record.stats is not None:
        stats = Stats(**{field: getattr(record.stats, field) for field in Stats.__struct_fields__})
    return HistoryEntry(name, record.step, record.epoch, metrics, record.time, fate.kept, fate.reason, stats)
