"""Run contenders side by side: interleaved rounds in random order, with the machine's load noted.

No round is discarded, whatever it shows. Each contender runs once before the first round, which warms its buffers and
is not counted; where each run has a process of its own, there is nothing to warm up. A peer that fails is taken out and
listed with its error; one of ours that fails ends the benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender: ``measure`` runs it once; it takes part in every ``every``-th round."""

    measure: Callable[[], Figures]
    every: int = 1
    may_fail: bool = False


@dataclass(slots=True)
class Measured:
    """What the rounds gave: contender to round to figure to value; what failed and why; the load before and after."""

    samples: dict[str, dict[int, Figures]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    load: tuple[float, float] = (0.0, 0.0)


def interleave(entries: Mapping[str, Entry], rounds: int, *, warm_up: bool = True) -> Measured:
    """Measure every entry in ``rounds`` rounds, each in a random order of its own."""
    measured = Measured()
    order = np.random.default_rng(0)
    before = os.getloadavg()[0]
    for name, entry in entries.items() if warm_up else ():
        _measure(measured, name, entry, None)
    for number in range(rounds):
        print(f"  round {number + 1} of {rounds}", flush=True)
        for name in order.permutation(list(entries)):
            if number % entries[name].every == 0:
                _measure(measured, str(name), entries[name], number)
    measured.load = (before, os.getloadavg()[0])
    measured.samples = {name: measured.samples[name] for name in entries if name in measured.samples}
    return measured


def _measure(measured: Measured, name: str, entry: Entry, number: int | None) -> None:
    if name in measured.failures:
        return
    try:
        figures = entry.measure()
    except Exception as error:
        if not entry.may_fail:
            raise
        measured.failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        measured.samples.pop(name, None)
    else:
        if number is not None:
            measured.samples.setdefault(name, {})[number] = figures
