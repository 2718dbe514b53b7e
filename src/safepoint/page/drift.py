"""How far the weights moved from each kept checkpoint to the next, layer by layer, for as many pairs as are read.

Plans what is read, newest first, within limits, and says what is left out. What a change is, ``safepoint.drift`` knows;
what did not change by its digests is not read. Knows no format and no chart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safepoint.background import each
from safepoint.contents import Contents, Tensor
from safepoint.difference import Verdict
from safepoint.difference import told as verdict_on
from safepoint.drift import Drift, joined, layer, of
from safepoint.errors import CheckpointError
from safepoint.page import words
from safepoint.pairing import Pair, paired
from safepoint.values import are_numbers, item_bytes

MOST_PAIRS = 24
MOST_BYTES = 2 << 30
MOST_LAYERS = 48
_DEEPEST = 16
_FLOATING = ("float", "bfloat", "complex")
_OPTIMIZERS_SLOT = ".state.*."
_NO_WEIGHTS = ("optimizer_states", "callbacks", "loops", "lr_schedulers", "safepoint", "safepoint_resume")

Moves = Mapping[str, Drift]
"""How far each tensor moved, by its path; those that did not, not at all."""


@dataclass(frozen=True, slots=True)
class Drifts:
    """The change of each layer (row) in each pair of checkpoints (column), which are told by their places.

    A share is the L2 norm of the change relative to that of what changed, as it was before: ``None`` where the layer is
    not in both, 0 where nothing changed, infinite where it was zero before, and NaN where a number of it is not finite.
    ``notes`` say what is left out.
    """

    layers: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    shares: tuple[tuple[float | None, ...], ...]
    read_bytes: int
    notes: tuple[str, ...]


def drifts_of(
    paths: Sequence[Path],
    pairs: Sequence[tuple[int, int]],
    read: Callable[[Path], Contents],
    told: Callable[[int, int], None],
) -> Drifts:
    """Return the drift between ``pairs`` of ``paths``, oldest first, of which the newest are read within the limits.

    ``told`` hears before each pair how many are done, and how many there are.
    """
    reading = _Reading(read)
    wanted = pairs[-MOST_PAIRS:]
    found: dict[tuple[int, int], Moves] = {}
    for done, (before, after) in enumerate(reversed(wanted)):
        told(done, len(wanted))
        moves = reading.moves(paths[before], paths[after])
        if moves is None:
            break
        if moves:
            found[before, after] = moves
    shown = tuple(pair for pair in wanted if pair in found)
    layers = layers_of(path for pair in shown for path in found[pair])
    columns = [[_share(found[pair], own) for own in layers.values()] for pair in shown]
    rows = tuple(zip(*columns, strict=True))
    return Drifts(tuple(layers), shown, rows, reading.read_bytes, (*_left_out(pairs, shown, reading), *reading.notes))


def layers_of(paths: Iterable[str], most: int = MOST_LAYERS) -> dict[str, list[str]]:
    """Return the paths of each layer, whose names are cut to the depth at which there are at most ``most``.

    Of more than that on the uppermost level, the first stay.
    """
    names = {path: layer(path).split(".") for path in paths}
    deepest = min(max(map(len, names.values()), default=1), _DEEPEST)
    layers: dict[str, list[str]] = {}
    for depth in range(deepest, 0, -1):
        layers = {}
        for path, parts in names.items():
            layers.setdefault(".".join(parts[:depth]), []).append(path)
        if len(layers) <= most:
            break
    return dict(list(layers.items())[:most])


def is_weight(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` may be a weight: floating-point, and not part of an optimizer's or a trainer's state."""
    is_number = tensor.dtype.startswith(_FLOATING) and are_numbers(tensor)
    is_elsewhere = tensor.path.startswith(tuple(f"{name}." for name in _NO_WEIGHTS))
    is_slot = _OPTIMIZERS_SLOT in f".{layer(tensor.path)}"
    return is_number and bool(tensor.count and tensor.parts) and not is_elsewhere and not is_slot


class _Reading:
    """Reads pairs up to the limit, and remembers what was read, what was too much, and what could not be read."""

    def __init__(self, read: Callable[[Path], Contents]) -> None:
        self._read = read
        self._weights = lru_cache(2)(self._weights_at)  # the older one of a pair is the newer one of the next
        self.read_bytes = 0
        self.refused_bytes = 0
        self.notes: list[str] = []

    def moves(self, before: Path, after: Path) -> Moves | None:
        """Return how the weights moved: nothing where they cannot be read, ``None`` where it is too much to read."""
        try:
            newer = self._weights(after)
            alike = [pair for pair in paired(self._weights(before), newer).pairs if pair.a.shape == pair.b.shape]
            changed = [pair for pair in alike if verdict_on(pair) is not Verdict.SAME]
            needed_bytes = sum(tensor.count * item_bytes(tensor) for pair in changed for tensor in pair)
            if self.read_bytes + needed_bytes > MOST_BYTES:
                self.refused_bytes = needed_bytes
                return None
            found = dict.fromkeys((pair.b.path for pair in alike), Drift())
            found |= zip((pair.b.path for pair in changed), each("drift", _drift, changed), strict=True)
        except (CheckpointError, OSError) as error:
            self.notes.append(str(error))
            return {}
        self.read_bytes += needed_bytes
        return found

    def _weights_at(self, path: Path) -> tuple[Tensor, ...]:
        return tuple(filter(is_weight, self._read(path).tensors))


def _drift(pair: Pair) -> Drift:
    return of(pair.a, pair.b)


def _share(moves: Moves, paths: Iterable[str]) -> float | None:
    own = [moves[path] for path in paths if path in moves]
    if not own:
        return None
    drift = joined(own)
    if drift.measured < drift.elements:
        return math.nan
    return drift.relative or 0.0


def _left_out(pairs: Sequence[tuple[int, int]], shown: Sequence[tuple[int, int]], reading: _Reading) -> Iterator[str]:
    if reading.refused_bytes:
        yield (
            f"{len(pairs) - len(shown)} of {len(pairs)} pairs are left out: at most {words.size(MOST_BYTES)} are read, "
            f"and the next has {words.size(reading.refused_bytes)}. 'safepoint diff --values A B' compares any two."
        )
    elif not shown and not reading.notes:
        yield "The checkpoints that were compared have no weights in common."
    elif len(pairs) > MOST_PAIRS:
        yield f"The newest {MOST_PAIRS} of {len(pairs)} pairs are shown."
