"""Lightning's top-k as a preservation policy: the rules of its ``ModelCheckpoint``, stated over records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from safepoint.keep import Mode, PreservationPolicy
from safepoint.records import Record


@dataclass(frozen=True, slots=True)
class TopK(PreservationPolicy):
    """Keep the ``k`` best by ``metric``, in the order in which they came.

    A newcomer is kept while fewer than ``k`` are held, or if it is strictly better than the worst held, which then
    goes; among equally bad ones the oldest goes. NaN is worse than every number.
    """

    metric: str
    k: int
    mode: Mode

    @property
    def at_most(self) -> int:
        """As many as there are places."""
        return self.k

    def select(self, records: Sequence[Record]) -> dict[Path, str]:
        """Return those that hold a place after all have come, oldest first."""
        held: list[Record] = []
        for record in records:
            if len(held) == self.k:
                worst = self.worst(held)
                if self.value(record) >= self.value(worst):
                    continue
                held.remove(worst)
            held.append(record)
        return {record.path: f"{self._place} by {self.metric} ({self._shown(record)})" for record in held}

    def why_not(self, record: Record) -> str:
        """Say that better ones hold the places."""
        return f"not {self._place} by {self.metric} ({self._shown(record)})"

    def takes(self, record: Record, records: Sequence[Record]) -> str:  # noqa: ARG002 - one signature for all policies
        """Name the value to beat, which is the worst that holds a place."""
        held = [other for other in records if other.path in self.select(records)]
        if len(held) < self.k:
            return f"a free one of the {self.k} places"
        return f"{self.metric} {'below' if self.mode == 'min' else 'above'} {self._shown(self.worst(held))}"

    @property
    def metrics(self) -> frozenset[str]:
        """The one metric."""
        return frozenset((self.metric,))

    def best(self, held: Sequence[Record]) -> Record:
        """Return the best of ``held``, the oldest of equals."""
        return min(held, key=self.value)

    def worst(self, held: Sequence[Record]) -> Record:
        """Return the worst of ``held``, the oldest of equals."""
        return max(held, key=self.value)

    def shown(self, score: Tensor) -> Tensor:
        """Return the score as the framework shows it: infinitely bad instead of NaN."""
        if not bool(score.isnan()):
            return score
        return score.new_tensor(math.inf if self.mode == "min" else -math.inf)

    def value(self, record: Record) -> tuple[bool, float]:
        """Return what is less the better the record is; NaN, and no metric at all, is worse than any number."""
        value = record.metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return True, 0.0
        return False, value if self.mode == "min" else -value

    @property
    def _place(self) -> str:
        return "the best" if self.k == 1 else f"among the best {self.k}"

    def _shown(self, record: Record) -> str:
        return f"{record.metrics[self.metric]:.6g}" if self.metric in record.metrics else "not measured"
