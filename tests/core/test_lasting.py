"""How long reasons last: what is read back from the words of policies, and from what they said of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from safepoint import keep, lasting
from safepoint.keep import PreservationPolicy
from safepoint.lasting import Places
from safepoint.ledger import plan_retention
from safepoint.records import Record

UNKNOWN = "how many its policy keeps, no file says"


def _records(count: int) -> list[Record]:
    return [
        Record(Path(f"{n}.ckpt"), n, n, {"loss": float(n)}, time=float(n), size_bytes=10**9, reasons=())
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("policy", "kept", "until"),
    [
        (keep.best("loss", 2), 0, "until 2 more are better by loss"),
        (keep.best("loss", 2), 1, "until one more is better by loss"),
        (keep.best("loss"), 0, "until one more is better by loss"),
        (keep.latest(2), 3, "until one more is saved"),
        (keep.latest(2), 4, "until 2 more are saved"),
        (keep.latest(), 4, "until one more is saved"),
        (keep.every(steps=2), 2, "for good"),
        (keep.every(epochs=2), 1, "for good, unless its epoch is saved once more"),
        (keep.within(seconds=2), 3, "until one is saved more than 2 s after it"),
        (keep.within(gigabytes=2), 3, "until later ones fill 2 GB"),
        (keep.all(), 3, "for as long as its policy keeps everything"),
        (keep.best("loss"), 4, "until the next save: its policy has no place for it"),
    ],
    ids=str,
)
def test_words_of_a_policy_tell_how_long_it_keeps(policy: PreservationPolicy, kept: int, until: str) -> None:
    """Of five with rising losses, with what was said of all of them."""
    records = _records(5)
    plan = plan_retention(policy, records)
    known = lasting.places([*plan.keep.values(), *plan.remove.values()])
    assert lasting.until(plan.keep[records[kept].path], 4 - kept, known) == until


@pytest.mark.parametrize(
    ("reason", "until"),
    [
        ("best by loss (0.5)", f"until enough are better by loss: {UNKNOWN}"),
        ("number 3 by loss (nan)", f"until enough are better by loss: {UNKNOWN}"),
        ("the latest", f"until enough are saved after it: {UNKNOWN}"),
        ("the best by val (loss) (0.5)", "until one is better by val (loss)"),
        ("among the best 3 by loss (0.5)", "until one that is better by loss needs its place"),
        ("pinned", "until it is unpinned"),
        ("the run was resumed from it", "for as long as the process lives that was resumed from it"),
        ("saved at an exception (ValueError), until the run saves again", "until its run saves again"),
        ("every step", ""),
        ("best by \\1 (0.5)", f"until enough are better by \\1: {UNKNOWN}"),
        ("best by " + " (" * 10**6, ""),
    ],
    ids=lambda text: text[:30],
)
def test_words_without_others_tell_what_they_can(reason: str, until: str) -> None:
    """Where nothing was said of others, how many places there are is not known."""
    assert lasting.until(reason, 0, Places()) == until


def test_places_are_those_that_were_told_last() -> None:
    """A later process may have another policy; what cannot be honest is passed over."""
    told = (
        "not among the best 3 by loss (0.5) and not the latest",
        "not the best by accuracy (0.5)",
        "among the latest 4",
        "not among the best 2 by loss (not measured at its step)",
        "not among the best 9 by loss (" + " (" * 1000,
    )
    assert lasting.places(told) == Places(4, {"loss": 2, "accuracy": 1})
    assert lasting.until("number 3 by loss (1)", 0, lasting.places(told)).startswith("until enough")


def test_joined_reasons_come_apart() -> None:
    """As a union has joined them."""
    joined = (keep.best("loss") | keep.latest()).select(_records(1))[Path("0.ckpt")]
    assert lasting.reasons_in(joined) == ["best by loss (0)", "the latest"]
    assert lasting.reasons_in("") == []


@pytest.mark.parametrize("act", [lasting.places, lambda told: lasting.until(told[0], 0, Places())])
def test_absurd_words_take_no_time(act: Callable[[tuple[str]], object]) -> None:
    """However long a reason is that somebody has forged."""
    act(("not among the best 1 by " + " by (" * 10**6,))
