"""Lightning's top-k rules, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from safepoint.integrations.top_k import TopK
from safepoint.records import Record

NAN = math.nan


def _record(index: int, **metrics: float) -> Record:
    return Record(Path(f"{index}.ckpt"), index, 0, metrics, time=float(index), size_bytes=1, reasons=("test",))


def _losses(values: Sequence[float]) -> list[Record]:
    return [_record(index, loss=value) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("k", "mode", "values", "held"),
    [
        (1, "min", [3.0, 1.0, 2.0], [1]),
        (1, "max", [3.0, 1.0, 2.0], [0]),
        (2, "min", [3.0, 1.0, 2.0], [1, 2]),
        (3, "min", [3.0, 1.0], [0, 1]),
        (1, "min", [1.0, 1.0], [0]),
        (1, "max", [1.0, 1.0], [0]),
        (2, "min", [5.0, 5.0, 1.0], [1, 2]),
        (2, "min", [5.0, 5.0, 5.0], [0, 1]),
        (1, "min", [NAN, 2.0], [1]),
        (1, "max", [NAN, 2.0], [1]),
        (1, "min", [2.0, NAN], [0]),
        (2, "min", [NAN, NAN, NAN], [0, 1]),
        (2, "max", [NAN, 1.0, 2.0], [1, 2]),
        (1, "min", [], []),
    ],
)
def test_top_k_holds_the_best_in_the_order_they_came(k: int, mode: Any, values: list[float], held: list[int]) -> None:
    """A newcomer must be strictly better than the worst held; of equally bad ones the oldest goes; NaN is worst."""
    assert list(TopK("loss", k, mode).select(_losses(values))) == [Path(f"{index}.ckpt") for index in held]


def test_top_k_counts_a_missing_metric_as_worst() -> None:
    """A record without the metric holds a place only until a number comes."""
    policy = TopK("loss", 1, "min")
    assert list(policy.select([_record(0)])) == [Path("0.ckpt")]
    assert list(policy.select([_record(0), _record(1, loss=9.0)])) == [Path("1.ckpt")]


def test_top_k_gives_reasons() -> None:
    """Why a record holds a place, and why another does not, with metric and value."""
    assert TopK("loss", 1, "min").select(_losses([0.5])) == {Path("0.ckpt"): "the best by loss (0.5)"}
    assert TopK("loss", 2, "min").select(_losses([NAN])) == {Path("0.ckpt"): "among the best 2 by loss (nan)"}
    assert TopK("loss", 1, "min").why_not(_record(0, loss=2.0)) == "not the best by loss (2)"
    assert TopK("loss", 3, "max").why_not(_record(0)) == "not among the best 3 by loss (not measured)"


@pytest.mark.parametrize(
    ("mode", "values", "best", "worst"),
    [
        ("min", [2.0, 1.0, 3.0], 1, 2),
        ("max", [2.0, 1.0, 3.0], 2, 1),
        ("min", [1.0, 1.0, 2.0, 2.0], 0, 2),
        ("min", [1.0, NAN, 3.0], 0, 1),
        ("max", [1.0, NAN, 3.0], 2, 1),
    ],
)
def test_top_k_knows_best_and_worst(mode: Any, values: list[float], best: int, worst: int) -> None:
    """The best and the worst of those held are the oldest of equals, and NaN is worse than any number."""
    policy, records = TopK("loss", 2, mode), _losses(values)
    assert policy.best(records) == records[best]
    assert policy.worst(records) == records[worst]


def test_top_k_ranks_by_its_metric() -> None:
    """What must be logged is the one metric."""
    assert TopK("loss", 1, "min").metrics == {"loss"}
