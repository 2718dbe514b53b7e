"""The state of a run's decisions as plain data: versioned, and of nothing but what JSON knows.

Whoever keeps the decisions of a run elsewhere (a service, another process) stores this. A run itself needs no such
file: the manifests in its directory are enough to rebuild its ledger, see ``Catalog``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safepoint.errors import ConfigurationError
from safepoint.ledger import Ledger
from safepoint.records import Fate, Record, SaveStats, ScheduleState, decoded_metrics, encoded_metrics

STATE_VERSION = 1


def encode(schedule: ScheduleState, ledger: Ledger) -> dict[str, Any]:
    """Return both as JSON can hold them; times stay those of the clocks that the caller reads."""
    return {
        "version": STATE_VERSION,
        "schedule": asdict(schedule),
        "records": [_encoded(record) for record in ledger.records],
        "pending": sorted(path.as_posix() for path in ledger.pending),
        "removed": [{"record": _encoded(fate.record), "reason": fate.reason} for fate in ledger.removed],
        "kept": {path.as_posix(): reason for path, reason in ledger.kept.items()},
        "lost": [
            {"path": path.as_posix(), "time": time, "replaced": None if replaced is None else _encoded(replaced)}
            for (path, time), replaced in ledger.lost.items()
        ],
    }


def decode(data: Mapping[str, Any]) -> tuple[ScheduleState, Ledger]:
    """Return what ``encode`` was given.

    Raises:
        ConfigurationError: ``data`` is of a newer version, or not such a state.

    """
    version = data.get("version")
    if version != STATE_VERSION:
        raise ConfigurationError(
            f"a state of version {version!r}; this Safepoint reads version {STATE_VERSION}: use the one that wrote it."
        )
    try:
        tuples = {name: tuple(data["schedule"][name]) for name in ("last_position", "secured_position", "waiting")}
        schedule = ScheduleState(**{**data["schedule"], **tuples})
        ledger = Ledger(
            records=tuple(_decoded(record) for record in data["records"]),
            pending=frozenset(Path(path) for path in data["pending"]),
            removed=tuple(
                Fate(_decoded(fate["record"]), kept=False, reason=fate["reason"]) for fate in data["removed"]
            ),
            kept={Path(path): reason for path, reason in data["kept"].items()},
            lost={
                (Path(entry["path"]), entry["time"]): None if entry["replaced"] is None else _decoded(entry["replaced"])
                for entry in data["lost"]
            },
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"not the state of a run ({error!r}): pass what encode() returned.") from None
    return schedule, ledger


def _encoded(record: Record) -> dict[str, Any]:
    return {
        **{name: getattr(record, name) for name in Record.__slots__},
        "path": record.path.as_posix(),
        "metrics": encoded_metrics(record.metrics),
        "reasons": list(record.reasons),
        "measured_at": dict(record.measured_at),
        "stats": None if record.stats is None else {**asdict(record.stats), "path": record.stats.path.as_posix()},
    }


def _decoded(data: Mapping[str, Any]) -> Record:
    stats = data.get("stats")
    return Record(
        **{
            **data,
            "stats": None if stats is None else SaveStats(**{**stats, "path": Path(stats["path"])}),
            "path": Path(data["path"]),
            "metrics": decoded_metrics(data["metrics"]),
            "reasons": tuple(data["reasons"]),
        }
    )
