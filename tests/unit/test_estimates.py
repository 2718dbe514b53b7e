"""The statistics of the benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from estimates import estimate, least, paired, values
from harness import Entry, interleave


def test_estimate_is_the_median_within_its_interval() -> None:
    """One wild round moves neither the median nor, among fifteen, the interval's ends beyond the other rounds."""
    found = estimate([1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.0, 1.1, 0.9, 1.0, 1.0, 1.0, 1.0, 500.0])
    assert found.median == 1.0
    assert 0.9 <= found.low <= 1.0 <= found.high <= 1.1
    assert found.rounds == 15


def test_estimate_is_the_same_each_time() -> None:
    """The interval is drawn at random, but always in the same way."""
    row = [0.3, 0.1, 0.7, 0.2]
    assert estimate(row) == estimate(row)


def test_paired_ratios_are_taken_within_rounds() -> None:
    """A machine that is twice as slow in one round slows both sides, and the ratio stays."""
    assert paired({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 3: 9.0}) == [2.0, 2.0]


def test_paired_refuses_what_has_no_round_in_common() -> None:
    """Without a common round there is no ratio, and the error says what to do."""
    with pytest.raises(ValueError, match="give more rounds"):
        paired({0: 1.0}, {1: 1.0})


def test_least_takes_the_fastest_way_of_each_round() -> None:
    """The limit of a round is the fastest way in it."""
    assert least({0: 1.0, 1: 5.0}, {0: 2.0, 1: 4.0}) == {0: 1.0, 1: 4.0}


def test_values_leave_out_rounds_without_the_figure() -> None:
    """A contender that took part in some rounds has values for those only."""
    assert values({"a": {0: {"s": 1.0}, 5: {"s": 2.0}, 6: {}}}, "a", "s") == {0: 1.0, 5: 2.0}
    assert values({}, "a", "s") == {}


def counting() -> tuple[list[str], Callable[[str], Entry]]:
    """Return a list of who was measured, and what makes an entry that adds to it."""
    calls: list[str] = []

    def entry(name: str, **options: Any) -> Entry:
        def measure() -> dict[str, float]:
            calls.append(name)
            return {"s": float(len(calls))}

        return Entry(measure, **options)

    return calls, entry


def test_interleave_warms_up_once_and_measures_every_round_in_another_order() -> None:
    """Each entry runs once uncounted, then once a round; the orders differ."""
    calls, entry = counting()
    measured = interleave({name: entry(name) for name in "abcdef"}, rounds=4)
    rounds = ["".join(calls[at : at + 6]) for at in range(0, 30, 6)]
    assert all(sorted(order) == list("abcdef") for order in rounds)
    assert len(set(rounds)) > 1
    assert list(measured.samples) == list("abcdef")
    assert all(list(row) == [0, 1, 2, 3] for row in measured.samples.values())


def test_interleave_counts_the_first_run_without_a_warm_up() -> None:
    """Where nothing is to be warmed, each entry runs as often as there are rounds."""
    calls, entry = counting()
    interleave({"fresh": entry("fresh")}, rounds=3, warm_up=False)
    assert calls == ["fresh"] * 3


def test_interleave_lets_the_slow_take_part_rarely() -> None:
    """An entry with ``every=3`` is measured in every third round."""
    _, entry = counting()
    measured = interleave({"slow": entry("slow", every=3)}, rounds=7)
    assert list(measured.samples["slow"]) == [0, 3, 6]


def test_interleave_lists_a_peer_that_fails_and_raises_for_ours() -> None:
    """A peer that fails is taken out with its reason; what must not fail ends the run."""

    def broken() -> dict[str, float]:
        raise OSError("refused")

    _, entry = counting()
    measured = interleave({"peer": Entry(broken, may_fail=True), "ours": entry("ours")}, rounds=2)
    assert measured.failures == {"peer": "OSError: refused"}
    assert list(measured.samples) == ["ours"]
    with pytest.raises(OSError, match="refused"):
        interleave({"ours": Entry(broken)}, rounds=1)
