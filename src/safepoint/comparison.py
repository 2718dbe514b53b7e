"""Two checkpoints beside each other: their tensors, their plain values, and how far they are apart, if asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from safepoint import difference, formats
from safepoint.background import each
from safepoint.contents import Contents
from safepoint.difference import Chosen, Difference, Reading, unseen
from safepoint.errors import CheckpointError
from safepoint.leaves import Leaf, Leaves, plain_paths
from safepoint.pairing import Pair

if TYPE_CHECKING:
    from safepoint.drift import Drift


@dataclass(frozen=True, slots=True)
class Comparison:
    """How checkpoint ``b`` differs from ``a``.

    ``values`` are the plain values of the states that differ, ``None`` where one of the two has none to compare.
    ``drifts`` are those of ``apart``, in its order; ``None`` if they were not asked for.
    """

    a: Contents
    b: Contents
    tensors: Difference
    values: tuple[Leaf, ...] | None
    hyperparameters: tuple[Leaf, ...]
    apart: tuple[Pair, ...]
    drifts: tuple[Drift, ...] | None

    def __bool__(self) -> bool:
        """Tell whether they differ, as far as can be told."""
        return bool(self.tensors or self.values or self.hyperparameters)


def compare(
    a: Contents, b: Contents, chosen: Chosen, reading: Reading = unseen, *, measures: bool = False
) -> Comparison:
    """Return how ``b`` differs from ``a``, in what is ``chosen`` by its path; ``measures``: with the drifts.

    Raises:
        CheckpointError: data has to be read, and cannot be.
        OSError: likewise.

    """
    tensors = difference.between(a, b, chosen, reading)
    recast = (pair for pair in tensors.reshaped if pair.a.shape == pair.b.shape)
    apart = tuple(pair for pair in (*tensors.changed, *recast) if pair.a.parts and pair.b.parts)
    values, hyperparameters = _leaves(a, b, chosen)
    return Comparison(a, b, tensors, values, hyperparameters, apart, _drifts(apart, reading) if measures else None)


@contextlib.contextmanager
def opened(a: Path, b: Path) -> Iterator[tuple[Contents, Contents]]:
    """Yield what the checkpoints at ``a`` and ``b`` tell; at the end, make sure that they are still the same files.

    Raises:
        NotACheckpointError: one of them is none, or cannot be read.
        CheckpointError: one was replaced or written to in the meantime, as the newest of a run that goes on may be.
        OSError: a file cannot be read.

    """
    before = [(path, _state(path)) for path in (a, b)]
    yield formats.contents(a), formats.contents(b)
    for path, state in before:
        if _state(path) != state:
            raise CheckpointError(f"{path} was replaced or written to while it was looked at: run it again.")


def paths(contents: Contents) -> Sequence[str]:
    """Return the paths of all that is compared: tensors, and plain values."""
    return list(dict.fromkeys(chain((tensor.path for tensor in contents.tensors), plain_paths(contents.tree))))


def _state(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _leaves(a: Contents, b: Contents, chosen: Chosen) -> tuple[tuple[Leaf, ...] | None, tuple[Leaf, ...]]:
    """Return the differing values of the states, and of the hyperparameters, which are not told twice."""
    leaves = Leaves()
    hyperparameters = tuple(leaf for leaf in leaves.between(a.hyperparameters, b.hyperparameters) if chosen(leaf.path))
    if not (leaves.has_any(a.tree) and leaves.has_any(b.tree)):
        return None, hyperparameters
    return tuple(leaf for leaf in leaves.between(a.tree, b.tree) if chosen(leaf.path)), hyperparameters


def _drifts(pairs: Sequence[Pair], reading: Reading) -> tuple[Drift, ...]:
    from safepoint import drift

    def of(pair: Pair) -> Drift:
        return drift.of(*pair)

    with reading("measuring", difference.to_be_read(pairs)) as advance:
        found = []
        for pair, one in zip(pairs, each("diff", of, pairs), strict=True):
            found.append(one)
            advance(difference.to_be_read([pair]))
    return tuple(found)
