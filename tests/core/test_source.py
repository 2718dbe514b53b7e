"""Where ``resume_from=`` says that a run starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safepoint.errors import ConfigurationError, MissingMetricError
from safepoint.records import Record
from safepoint.source import Source, parsed


def record(step: int, **metrics: float) -> Record:
    """Return a record of a step."""
    return Record(Path(f"/runs/a/{step}.ckpt"), step, 0, metrics, float(step), 1, ())


EMERGENCY = replace(record(9, loss=0.1), emergency="ValueError")
RECORDS = (record(1, loss=0.5), record(2, loss=0.3, acc=0.1), record(3, loss=float("nan")), record(3, loss=0.4))


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("../run", Source(Path("../run"))),
        ("../run@latest", Source(Path("../run"))),
        ("../run@best:val_loss", Source(Path("../run"), "best", "val_loss")),
        ("../run@best:val_acc:max", Source(Path("../run"), "best", "val_acc", "max")),
        ("../run@best:val/acc:min", Source(Path("../run"), "best", "val/acc", "min")),
        ("../run@best:a:b", Source(Path("../run"), "best", "a:b")),
        ("../run@best:acc@5", Source(Path("../run"), "best", "acc@5")),
        ("me@home/run@step:1200", Source(Path("me@home/run"), "step", step=1200)),
        ("me@home/run", Source(Path("me@home/run"))),
        ("a\nb@latest", Source(Path("a\nb"))),
        (Path("run@v2"), Source(Path("run@v2"))),
        (record(1), Source(Path("/runs/a/1.ckpt"))),
    ],
)
def test_source_is_parsed(value: Any, source: Source) -> None:
    """A text names a checkpoint of a directory; a path and a record are what they are."""
    assert parsed(value) == source


@pytest.mark.parametrize(
    "value",
    ["", "run@", "run@best", "run@best:", "run@step:", "run@step:x", "run@step:-1", "run@newest", "@latest", "a\0b", 3],
)
def test_wrong_source_is_refused(value: Any) -> None:
    """Whatever is no such text says which there are."""
    with pytest.raises(ConfigurationError, match=r"resume_from=.*PATH@best:METRIC"):
        parsed(value)


def _steps(value: str) -> list[int]:
    return [found.step for found in parsed(value).candidates(RECORDS)]


def test_candidates_are_in_the_order_in_which_they_are_tried() -> None:
    """The newest first; the best first; of a step, the one saved last first."""
    assert _steps("run") == [3, 3, 2, 1]
    assert _steps("run@best:loss") == [2, 3, 1]
    assert _steps("run@best:loss:max") == [1, 3, 2]
    assert [found.step for found in parsed("run@best:loss").candidates((*RECORDS, EMERGENCY))] == [2, 3, 1]
    assert next(iter(parsed("run@step:3").candidates(RECORDS))).metrics["loss"] == 0.4


def test_what_is_not_there_is_told_with_what_is() -> None:
    """A missing step, and a missing metric with a near one."""
    with pytest.raises(ConfigurationError, match="no checkpoint of step 4; the last are of 1, 2, 3"):
        _steps("run@step:4")
    with pytest.raises(MissingMetricError, match=r"'acc', 'loss'\. Did you mean 'loss'"):
        _steps("run@best:los")
