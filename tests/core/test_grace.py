"""What fits into the time that a signal leaves, and what goes first if not all does."""

from __future__ import annotations

from pathlib import Path

import pytest

from safepoint.grace import Kind, Part, left_out, seconds_left, seconds_per_byte
from safepoint.records import SaveStats

MODEL_BYTES = 100
BACKBONE = Part(Kind.FROZEN, "model", 50)
AVERAGE = Part(Kind.AVERAGED, "ema", 100)
ADAM = Part(Kind.OPTIMIZER, "adam", 200)
SGD = Part(Kind.OPTIMIZER, "sgd", 100)
PARTS = (ADAM, SGD, AVERAGE, BACKBONE)
TOTAL_BYTES = MODEL_BYTES + sum(part.size_bytes for part in PARTS)


def _saved(size_bytes: int, committed_s: float, waited_s: float = 0.0) -> SaveStats:
    return SaveStats(Path("a.ckpt"), 1, size_bytes, size_bytes, waited_s, 0.0, 0.0, 0.0, committed_s)


@pytest.mark.parametrize(("grace_s", "kept_back_s"), [(30.0, 6.0), (100.0, 20.0), (2.0, 1.0), (0.5, 1.0)])
def test_margin_is_kept_back(grace_s: float, kept_back_s: float) -> None:
    """A fifth of the time, and a second at least; what has passed since the signal came is gone, too."""
    assert seconds_left(1000.0, grace_s, 1000.0) == grace_s - kept_back_s
    assert seconds_left(1000.0, grace_s, 1004.0) == grace_s - kept_back_s - 4.0


def test_speed_is_that_of_the_best_of_the_last_saves() -> None:
    """What a save has waited for does not count, nor does what was long ago; without any, no speed is known."""
    assert seconds_per_byte([]) is None
    assert seconds_per_byte([_saved(0, 1.0)]) is None
    assert seconds_per_byte([_saved(10, 1.0)]) == 0.1
    slower = [_saved(10, 5.0), _saved(10, 9.0, waited_s=7.0), _saved(10, 4.0)]
    assert seconds_per_byte([_saved(10, 1.0), *slower]) == 0.2


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [
        (550.0, ()),
        (549.0, (BACKBONE,)),
        (500.0, (BACKBONE,)),
        (499.0, (BACKBONE, AVERAGE)),
        (399.0, (BACKBONE, AVERAGE, ADAM)),
        (199.0, (BACKBONE, AVERAGE, ADAM, SGD)),
        (99.0, (BACKBONE, AVERAGE, ADAM, SGD)),
        (-5.0, (BACKBONE, AVERAGE, ADAM, SGD)),
    ],
)
def test_parts_go_in_the_stated_order(left_s: float, expected: tuple[Part, ...]) -> None:
    """Frozen parameters, averaged copies, optimizers, the largest first; no more than it takes, and never all."""
    assert left_out(PARTS, TOTAL_BYTES, left_s, 1.0) == expected


def test_nothing_goes_where_no_speed_is_known() -> None:
    """Everything is tried then, however short the time."""
    assert left_out(PARTS, TOTAL_BYTES, -1.0, None) == ()
