"""What ``show`` knows of a checkpoint, as its JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from safepoint import anatomy
from safepoint.cli.documents import Show, ShowEntry, ShowPart, ShowRun, ShowStats, ShowTensor
from safepoint.contents import Part, Tensor
from safepoint.overview import Overview
from safepoint.overview import Part as Entry
from safepoint.records import Record, encoded_metrics

_EXACT = 2**63
_DEEPEST = 100


def document(overview: Overview) -> Show:
    """Return the document of ``overview``."""
    contents, outline = overview.contents, overview.contents.outline
    return Show(
        path=str(outline.path),
        format=outline.format.value,
        size_bytes=outline.size_bytes,
        time=outline.time,
        names=overview.names,
        step=outline.step,
        epoch=outline.epoch,
        metrics=encoded_metrics(outline.metrics),
        producer=dict(contents.producer),
        run=None if overview.entry.record is None else _run(overview, overview.entry.record),
        hyperparameters=_Json().mapping(contents.hyperparameters, 0),
        entries=tuple(map(_entry, overview.parts())),
        values=dict(_values(overview.state, "")),
        tensors=tuple(map(_tensor, contents.tensors)),
    )


def _run(overview: Overview, record: Record) -> ShowRun:
    fate, manifest = overview.entry.fate, overview.manifest
    return ShowRun(
        run=record.run,
        reasons=record.reasons,
        pinned=record.pinned,
        kept=None if fate is None else fate.kept,
        why=why(overview.entry),
        measured_at=dict(record.measured_at),
        emergency=record.emergency,
        flaw=record.flaw,
        inexact={} if manifest is None else manifest.inexact,
        excluded={} if manifest is None else manifest.excluded,
        stats=_stats(record.stats),
    )


def _stats(stats: SaveStats | None) -> ShowStats | None:
    if stats is None:
        return None
    return ShowStats(**{field: getattr(stats, field) for field in ShowStats.__struct_fields__})


def _entry(part: Entry) -> ShowEntry:
    node = part.node
    parameters = node.parameters if part.is_model else 0
    return ShowEntry(part.name, node.tensors, node.elements, parameters, node.size_bytes)


def _tensor(tensor: Tensor) -> ShowTensor:
    size_bytes, parts = anatomy.size_of(tensor), tuple(_part(part, tensor) for part in tensor.parts)
    told = ShowTensor(tensor.path, tensor.dtype, tensor.shape, tensor.count, size_bytes, note=tensor.note)
    if len(parts) != 1:
        return msgspec.structs.replace(told, parts=parts)
    one = msgspec.structs.asdict(parts[0])
    return msgspec.structs.replace(told, **{name: one[name] for name in _PLACE})


def _part(part: Part, tensor: Tensor) -> ShowPart:
    storage = part.storage
    offset = storage.offset + part.offset * anatomy.item_bytes(tensor.dtype)
    return ShowPart(part.start, part.shape, str(storage.path), offset, part.strides, storage.digest, storage.crc)


def _values(node: Node, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the plain values below ``node``, each with its path."""
    for child in node.children.values():
        inner = f"{path}.{child.name}" if path else child.name
        if child.children:
            yield from _values(child, inner)
        elif child.tensor is None:
            yield inner, child.value if child.plain is None else plain(child.plain)


def plain(value: Any, depth: int = 0) -> Any:
    """Return ``value`` as JSON can hold it; what it has nothing for is told in words."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        return value
    if isinstance(value, float):
        return encoded_metrics({"": value})[""]
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {key if isinstance(key, str) else anatomy.told(key): plain(inner, depth + 1) for key, inner in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | Set):
        return [plain(inner, depth + 1) for inner in value]
    return anatomy.told(value)
