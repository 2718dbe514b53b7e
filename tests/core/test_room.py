"""Whether there is room for what comes: sentences from numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from safepoint import keep
from safepoint.room import shortage_ahead, shortage_at_start

GB = 10**9
DIRECTORY = Path("run")


@pytest.mark.parametrize(
    ("free_gb", "at_most", "held_gb", "short"),
    [
        (2, None, 0, False),
        (1, None, 5, True),  # what is there already makes no room where nothing is sure to go
        (8, 3, 0, False),
        (7.9, 3, 0, True),
        (4, 3, 4, False),
        (3.9, 3, 4, True),
    ],
)
def test_shortage_at_start_counts_old_and_new_together(
    free_gb: float, at_most: int | None, held_gb: float, *, short: bool
) -> None:
    """What is kept and one more have to fit, into what is free and what the run's own take by now."""
    found = shortage_at_start(DIRECTORY, int(free_gb * GB), 2 * GB, at_most=at_most, held_bytes=int(held_gb * GB))
    assert (found is not None) is short


def test_shortage_at_start_says_how_much_is_missing() -> None:
    """The sentence names the directory, what is free, what is needed, and what to do."""
    found = shortage_at_start(DIRECTORY, 6 * GB, 2 * GB, at_most=3, held_bytes=GB)
    assert found == (
        "run has 6 GB free, and checkpoints take 2 GB each: not enough for 3 that are kept and one while it is written "
        "(8 GB). Saves will fail, with nothing lost; free 1 GB or keep fewer."
    )


def test_shortage_ahead_is_told_when_the_next_will_not_fit() -> None:
    """One byte too few is too few."""
    assert shortage_ahead(Path("a.ckpt"), 2 * GB, 2 * GB) is None
    found = shortage_ahead(Path("a.ckpt"), 2 * GB - 1, 2 * GB)
    assert found is not None
    assert found.startswith("a.ckpt is saved, and the next will not fit: it takes about 2 GB, and 2 GB are free.")


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        (keep.latest(2), 2),
        (keep.best("loss", 3), 3),
        (keep.latest(2) | keep.best("loss", 3), 5),
        (keep.latest(2) | keep.every(steps=5), None),
        (keep.all(), None),
        (keep.within(gigabytes=1), None),
    ],
)
def test_policies_say_how_many_they_keep_at_most(policy: keep.PreservationPolicy, count: int | None) -> None:
    """A sum of bounds is a bound; one part without a bound leaves none."""
    assert policy.at_most == count
