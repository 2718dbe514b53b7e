"""Checkpoint files made for a test from a manifest alone: laid out as Safepoint does, with data as small as can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safepoint import image
from safepoint.checksums import checksums
from safepoint.manifest import Blob, HistoryEntry, Manifest, encode

PICKLE = b"pickle"
EMPTY = Blob(0, checksums(b"").digest)


def manifest(**changes: Any) -> Manifest:
    """Return a manifest of a checkpoint without tensors."""
    fields: dict[str, Any] = {
        "format_version": 1,
        "run": "run",
        "step": 1,
        "epoch": 0,
        "metrics": {},
        "time": 1.5e9,
        "reasons": ("every step",),
        "pinned": False,
        "position": None,
        "producer": {},
        "pickle": Blob(len(PICKLE), checksums(PICKLE).digest),
        "storages": (),
        "tensors": (),
        "history": (),
    }
    return Manifest(**(fields | changes))


def told(name: str, step: int, **metrics: float) -> HistoryEntry:
    """Return a line of a history: of a checkpoint that is kept, captured as many seconds late as its step."""
    return HistoryEntry(name, step, 0, dict(metrics), 1.5e9 + step, kept=True, reason=f"kept for step {step}")


def write(path: Path, content: Manifest | bytes, storage_bytes: tuple[int, ...] = ()) -> None:
    """Write the checkpoint that ``content`` tells of; its storages are holes, however long."""
    data = content if isinstance(content, bytes) else encode(content)
    layout = image.lay_out(len(PICKLE), storage_bytes, len(data))
    known = {layout.pickle: PICKLE, layout.manifest: data} | dict(layout.constants)
    crcs = dict.fromkeys((entry.name for entry in layout.entries), 0)
    crcs |= {entry.name: checksums(record).crc for entry, record in known.items()}
    with path.open("wb") as file:
        for offset, record in (*image.frame(layout, crcs), *((e.data_offset, d) for e, d in known.items())):
            file.seek(offset)
            file.write(record)
