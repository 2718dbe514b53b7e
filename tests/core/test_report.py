"""What a restore reports, as a value and as a table; and where a run is, as a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safepoint.records import Progress
from safepoint.report import Difference, RestoreReport, told_of_dtypes

PATH = Path("/runs/a/x.ckpt")


def test_report_of_a_whole_restore_is_a_line() -> None:
    """Where everything matched there is no table."""
    report = RestoreReport(restored=("model",), matched=1234)
    assert report.is_whole
    assert report.is_exact
    assert str(report) == "1,234 matched, 0 missing, 0 unexpected, 0 of another shape or kind"


def test_report_is_a_table_of_what_differs() -> None:
    """Each kind of difference has its rows: entry, key, and what it is on either side."""
    report = RestoreReport(
        matched=2,
        missing=(Difference("model", "head.bias", "(10,)", ""),),
        unexpected=(Difference("ema", "", "", "dict"),),
        reshaped=(Difference("model", "head.weight", "(10, 4)", "(5, 4)"),),
    )
    assert not report.is_whole
    assert not report.is_exact
    assert str(report).splitlines() == [
        "2 matched, 1 missing, 1 unexpected, 1 of another shape or kind",
        "  entry  key          here     in the checkpoint",
        "missing in the checkpoint:",
        "  model  head.bias    (10,)    -",
        "in the checkpoint only:",
        "  ema    (all)        -        dict",
        "of another shape or kind:",
        "  model  head.weight  (10, 4)  (5, 4)",
    ]


def test_table_shows_thirty_of_a_kind() -> None:
    """However many there are, a person can read it; the rest is a number."""
    many = tuple(Difference("model", f"layer.{number}", "(2,)", "") for number in range(1264))
    lines = str(RestoreReport(missing=many, unexpected=many[:30])).splitlines()
    assert len(lines) == 2 + 1 + 30 + 1 + 1 + 30
    assert lines[32] == "  model  layer.29  (2,)  -"
    assert lines[33] == "  and 1,234 more"


def test_table_stays_within_a_screen_and_in_its_lines() -> None:
    """A key that a file brings can be anything: it does not widen the table for all, nor break its lines."""
    rows = (Difference("model", "a\nb" * 300, "(2,)", ""), Difference("model", "c", "(2,)", ""))
    first, second = str(RestoreReport(missing=rows)).splitlines()[3:]
    assert "a\\nba" in first
    assert len(second) < 90


def test_report_tells_what_is_not_exact() -> None:
    """What matched may still not be gone on from exactly."""
    report = RestoreReport(matched=1, inexact={"loader": "has no state"})
    assert report.is_whole
    assert not report.is_exact
    assert str(report).splitlines()[1:] == ["not exactly as it was:", "  loader: has no state"]


def test_report_tells_thirty_parts_that_are_not_exact() -> None:
    """A file can say so of any number."""
    lines = str(RestoreReport(inexact={f"part {number}": "left out" for number in range(35)})).splitlines()
    assert lines[-2:] == ["  part 29: left out", "  and 5 more"]


def test_dtypes_are_told_by_the_first() -> None:
    """How many there are, and what the first is on either side; its key is kept in the line."""
    one = ("a\nb", "torch.float16", "torch.float32")
    told = "of another dtype here: float32 in the checkpoint, float16 here, first: a\\nb"
    assert told_of_dtypes([one]) == f"1 tensor is {told}"
    assert told_of_dtypes([one] * 1200) == f"1,200 tensors are {told}"


def test_progress_is_a_sentence() -> None:
    """What was restored, from which file, and where the run goes on."""
    report = RestoreReport(Path("/runs/a"), restored=("model", "optimizer"))
    assert str(Progress()) == "no checkpoint: starting at step 0"
    assert str(Progress(report=report)) == "no checkpoint in /runs/a: starting at step 0"
    told = "restored model, optimizer from /runs/a/x.ckpt"
    assert str(Progress(7, 1, 3, path=PATH, report=report)) == f"{told}: going on at step 7, epoch 1, batch 3"
    assert str(Progress(path=PATH, report=report)) == f"{told}: starting at step 0"
    in_part = replace(report, missing=(Difference("model", "a", "(2,)", ""), Difference("ema", "", "Linear", "")))
    assert str(Progress(path=PATH, report=in_part)).startswith("restored in part: model, optimizer from ")
    beside = replace(report, missing=(Difference("ema", "", "Linear", ""),))
    assert str(Progress(path=PATH, report=beside)) == f"{told}: starting at step 0"
    assert str(Progress(7, path=PATH)) == "/runs/a/x.ckpt: going on at step 7, epoch 0, batch 0"


def test_progress_is_the_same_whatever_is_reported() -> None:
    """Two that say the same of where to go on are equal."""
    assert Progress(7, report=RestoreReport(matched=1)) == Progress(7)
