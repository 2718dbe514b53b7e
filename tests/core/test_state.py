"""The state of the decisions as plain data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from safepoint import keep
from safepoint.errors import ConfigurationError
from safepoint.ledger import Ledger
from safepoint.records import Record, SaveStats, ScheduleState
from safepoint.schedule import start
from safepoint.state import STATE_VERSION, decode, encode


def _record(name: str, time: float, **metrics: float) -> Record:
    return Record(Path(f"{name}.ckpt"), int(time), 0, metrics, time, 7, ("every step",), pinned=time == 1, run="r")


def _ledger() -> Ledger:
    """Return a ledger of which every field holds something."""
    ledger = Ledger()
    for time, loss in enumerate((math.inf, 2.0, -math.inf, 0.25), 1):
        ledger, proposal = ledger.propose(_record(str(time), time, loss=loss, count=3), keep.latest())
        ledger = ledger.committed(proposal, 7)
    ledger, lost = ledger.propose(_record("4", 5, loss=1.0), keep.latest())
    ledger, also_lost = ledger.propose(_record("6", 6, loss=1.0), keep.latest())
    ledger = ledger.failed(lost).failed(also_lost)
    return ledger.propose(_record("7", 7, loss=0.5), keep.latest(2))[0]


def test_state_survives_json() -> None:
    """What was encoded, written and read as JSON is the same again, and as strict JSON has it."""
    schedule = ScheduleState((3, 1, 2), 5.0, (2, 1, 1), 4.0, 0.1, 0.2, is_writing=True, waiting=("every 2 steps",))
    ledger = _ledger()
    assert all((ledger.records, ledger.pending, ledger.removed, ledger.kept, ledger.lost))
    text = json.dumps(encode(schedule, ledger), allow_nan=False)
    assert decode(json.loads(text)) == (schedule, ledger)


def test_nan_survives_json() -> None:
    """A metric that is not a number stays one."""
    ledger = Ledger(records=(_record("a", 1, loss=math.nan),))
    _, again = decode(json.loads(json.dumps(encode(start((0, 0, 0), 0.0), ledger), allow_nan=False)))
    assert math.isnan(again.records[0].metrics["loss"])


@pytest.mark.parametrize("version", [0, STATE_VERSION + 1, None, "1"])
def test_another_version_is_refused(version: Any) -> None:
    """A state of a version that this program does not know is not guessed at."""
    data = encode(start((0, 0, 0), 0.0), Ledger()) | {"version": version}
    with pytest.raises(ConfigurationError, match=f"version {version!r}"):
        decode(data)


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": None},
        {"schedule": {}},
        {"records": [{"path": "a"}]},
        {"records": [{}]},
        {"removed": 3},
        {"kept": []},
        {"lost": [{}]},
    ],
)
def test_something_else_is_refused(change: dict[str, Any]) -> None:
    """What is not the state of a run is an error of ours, not of Python's."""
    with pytest.raises(ConfigurationError, match="not the state of a run"):
        decode(encode(start((0, 0, 0), 0.0), Ledger()) | change)


def test_state_keeps_what_a_save_cost() -> None:
    """The statistics of a record survive, and so does a record without them."""
    stats = SaveStats(Path("a.ckpt"), 1, 9, 9, 0.0, 0.1, 0.1, 0.2, 0.3)
    costs = {"a.ckpt": stats, "b.ckpt": None}
    records = tuple(Record(Path(name), 1, 0, {}, 1.0, 9, (), stats=told) for name, told in costs.items())
    schedule = ScheduleState((0, 0, 0), 0.0, (0, 0, 0), 0.0)
    data = json.loads(json.dumps(encode(schedule, Ledger(records=records))))
    assert decode(data)[1].records == records
