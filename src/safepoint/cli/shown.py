"""What ``show`` knows of a checkpoint, as its JSON document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from safepoint import anatomy
from safepoint.anatomy import Node
from safepoint.cli.documents import Show, ShowEntry, ShowPart, ShowRun, ShowStats, ShowTensor
from safepoint.contents import Part, Tensor
from safepoint.overview import Overview
from safepoint.overview import Part as Entry
from safepoint.records import Record, SaveStats, encoded_metrics

_INTEGER_LIMIT = 2**63
_DEEPEST = 100
_BEFORE = "..."
_PLACE = ("file", "offset", "strides", "digest", "crc")


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
        hyperparameters=_Plain().of(contents.hyperparameters) if contents.hyperparameters else {},
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
        why=overview.entry.why,
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
            yield _text(inner), _Plain().of(child.plain)


class _Plain:
    """Makes values such that JSON can hold them, told in words where it has nothing for them.

    A container that was met before is not gone into again: a state can be made to hold the same without end.
    """

    def __init__(self) -> None:
        self._met: set[int] = set()

    def of(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, Mapping | list | tuple | AbstractSet) and value:
            return self._of_container(value, depth)
        if isinstance(value, str):
            return _text(value)
        if (
            value is None
            or isinstance(value, bool)
            or (isinstance(value, int) and -_INTEGER_LIMIT <= value < _INTEGER_LIMIT)
        ):
            return value
        return encoded_metrics({"": value})[""] if isinstance(value, float) else anatomy.told(value)

    def _of_container(self, value: Any, depth: int) -> Any:
        if id(value) in self._met or depth > _DEEPEST:
            return _BEFORE
        self._met.add(id(value))
        if isinstance(value, Mapping):
            return {_key(key): self.of(inner, depth + 1) for key, inner in value.items()}
        return [self.of(inner, depth + 1) for inner in value]


def _key(key: Any) -> str:
    return _text(key) if isinstance(key, str) else anatomy.told(key)


def _text(text: str) -> str:
    """Return ``text`` with what is no Unicode written out, which JSON cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()
