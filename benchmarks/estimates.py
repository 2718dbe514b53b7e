"""The statistics of the benchmarks: medians and paired ratios, each with its confidence interval.

Pure: no clock, no disk, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Samples = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Contender to round to figure to value."""

_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median over ``rounds`` values, and the bootstrap interval that holds it with 95% confidence."""

    median: float
    low: float
    high: float
    rounds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median of ``values``; the interval is the same each time it is computed.

    The percentile bootstrap of Efron (1979): medians of resamples drawn with replacement.
    """
    array = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).choice(array, (_RESAMPLES, len(array)))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return Estimate(float(np.median(array)), float(low), float(high), len(array))


def values(samples: Samples, contender: str, figure: str) -> dict[int, float]:
    """Return ``figure`` of ``contender`` in every round that has it."""
    return {number: row[figure] for number, row in samples.get(contender, {}).items() if figure in row}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Return the ratio of ``one`` to ``other`` in every round that has both.

    Raises:
        ValueError: no round has both.

    """
    ratios = [one[number] / other[number] for number in sorted(one.keys() & other.keys())]
    if not ratios:
        raise ValueError("no round measured both; give more rounds.")
    return ratios


def least(*rows: Mapping[int, float]) -> dict[int, float]:
    """Return the least value of every round that all ``rows`` have: the limit is what the fastest way takes."""
    common = set.intersection(*(set(row) for row in rows))
    return {number: min(row[number] for row in rows) for number in common}
