"""How far the elements of a tensor went from one checkpoint to another: norms, and counts of what changed.

Computed in float64, block by block, in little memory. Knows neither which tensors belong together nor why they changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from safepoint.contents import Tensor
from safepoint.values import Array, are_numbers, bits, blocks, side_by_side

_BLOCK_BYTES = 1 << 20
_AT_ONCE = 1 << 16
"""How many elements: few enough for them, and for what is made of them, to stay in the processor's cache."""
_ROW = 1 << 13
_WHOLE = "biu"
"""The kinds of numpy's dtypes of whole numbers and truth values."""
OPTIMIZERS = ".state.*."
"""What is in the name of what an optimizer keeps, as ``layer`` tells it, behind a dot."""
_SLOT = re.compile(r"(?:^|(?<=\.))(state)\.\d+\.(?=[^.]+$)")


@dataclass(frozen=True, slots=True)
class Drift:
    """How far some elements went; added up, that of several tensors.

    ``changed`` of the ``elements`` are other ones. Of floating-point and complex ones, the ``measured`` are those that
    are finite on both sides: ``squares`` is the sum of the squares of what they changed by, ``base_squares`` of what
    they were, ``most`` the largest change. ``not_finite`` are NaN or infinite in the second checkpoint.
    """

    elements: int = 0
    changed: int = 0
    measured: int = 0
    squares: float = 0.0
    base_squares: float = 0.0
    most: float = 0.0
    not_finite: int = 0

    def __add__(self, other: Drift) -> Drift:
        """Return the drift of both together."""
        return joined((self, other))

    @property
    def norm(self) -> float | None:
        """The L2 norm of the change; ``None`` for whole numbers, of which only the changed ones are counted."""
        return math.sqrt(self.squares) if self.measured else None

    @property
    def base_norm(self) -> float | None:
        """The L2 norm of what there was in the first checkpoint."""
        return math.sqrt(self.base_squares) if self.measured else None

    @property
    def relative(self) -> float | None:
        """The norm of the change in that of what there was; infinite if that was nothing."""
        if not self.measured:
            return None
        if not self.base_squares:
            return math.inf if self.squares else 0.0
        return math.sqrt(self.squares / self.base_squares)


def joined(drifts: Iterable[Drift]) -> Drift:
    """Return the drift of all together."""
    each = tuple(drifts)
    sums: dict[str, Any] = {field.name: sum(getattr(drift, field.name) for drift in each) for field in fields(Drift)}
    return Drift(**sums | {"most": max((drift.most for drift in each), default=0.0)})


def of(a: Tensor, b: Tensor) -> Drift:
    """Return how far ``b`` is from ``a``, which has as many elements.

    Elements of one dtype are changed if their bytes are others; of two dtypes, if their values are.

    Raises:
        CheckpointError: the elements cannot be read.
        OSError: likewise.

    """
    if not (are_numbers(a) and are_numbers(b)):
        return joined(_of_bits(*two) for two in side_by_side(bits(a, _BLOCK_BYTES), bits(b, _BLOCK_BYTES)))
    room = np.empty((2, min(_AT_ONCE, a.count)), np.complex128)  # made once: fresh pages take longer than all else
    two_by_two = side_by_side(blocks(a, _BLOCK_BYTES), blocks(b, _BLOCK_BYTES))
    return joined(_of_block(*two, room) for both in two_by_two for two in _cut(*both))


def layer(path: str) -> str:
    """Return what the tensor at ``path`` belongs to: its module, or what an optimizer keeps of that name.

    ``model.0.weight`` is of ``model.0``, ``optimizer.state.7.exp_avg`` of ``optimizer.state.*.exp_avg``.
    """
    slot, found = _SLOT.subn(r"\1.*.", path)
    return slot if found else path.rpartition(".")[0] or path


def by_layer(paths: Sequence[str], drifts: Sequence[Drift]) -> dict[str, list[Drift]]:
    """Return the drifts of the tensors at ``paths`` by the layer that each is of, in the order of the state."""
    found: dict[str, list[Drift]] = {}
    for path, drift in zip(paths, drifts, strict=True):
        found.setdefault(layer(path), []).append(drift)
    return found


def _cut(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    for first in range(0, a.size, _AT_ONCE):
        yield a[first : first + _AT_ONCE], b[first : first + _AT_ONCE]


def _of_bits(a: Array, b: Array) -> Drift:
    return Drift(a.size, int(np.count_nonzero(a != b)))


def _of_block(a: Array, b: Array, room: Array) -> Drift:
    if a.dtype.kind in _WHOLE and b.dtype.kind in _WHOLE:
        return _of_bits(a, b)
    wide = np.complex128 if "c" in {a.dtype.kind, b.dtype.kind} else np.float64
    base, step = (row.view(wide)[: a.size] for row in room)
    with np.errstate(all="ignore"):  # what is not finite is counted
        base[:], step[:] = a, b
        changed = _changed(a, b) if a.dtype == b.dtype else _unequal(base, step)
        step -= base
        squares, base_squares = _squares(step), _squares(base)
        if math.isfinite(squares + base_squares):
            return Drift(a.size, changed, a.size, squares, base_squares, _largest(step))
        is_finite = np.isfinite(step)
        step, base = step[is_finite], base[is_finite]
        not_finite = int(np.count_nonzero(~np.isfinite(b.astype(wide))))
        return Drift(a.size, changed, step.size, _squares(step), _squares(base), _largest(step), not_finite)


def _changed(a: Array, b: Array) -> int:
    """Return how many elements of one dtype have other bytes."""
    words = min(a.itemsize, 8)
    others = a.view(f"u{words}") != b.view(f"u{words}")
    return int(np.count_nonzero(others.reshape(a.size, -1).any(axis=1) if a.itemsize > words else others))


def _unequal(a: Array, b: Array) -> int:
    """Return how many elements are other numbers; NaN is itself."""
    return int(np.count_nonzero((a != b) & ~(np.isnan(a) & np.isnan(b))))


def _squares(values: Array) -> float:
    """Return the sum of the squares of moduli: row by row, as BLAS would have threads wait for each other otherwise."""
    parts = values.view(np.float64)
    whole = parts.size // _ROW * _ROW
    rows, rest = parts[:whole].reshape(-1, _ROW), parts[whole:]
    return float(np.vecdot(rows, rows).sum() + np.vecdot(rest, rest))


def _largest(values: Array) -> float:
    """Return the largest modulus, 0 of none."""
    if not values.size:
        return 0.0
    return float(np.abs(values).max() if values.dtype.kind == "c" else max(values.max(), -values.min()))
