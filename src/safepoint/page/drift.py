"""How far the weights moved from one kept checkpoint to the next, layer by layer: the L2 norm of the change, relative.

Reads tensors through ``values``, never more than a limit; those whose digests are equal are not read. What is left out
is told. Knows no format and no page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from safepoint.contents import Contents, Tensor
from safepoint.errors import CheckpointError

MOST_PAIRS = 24
MOST_BYTES = 2 << 30
MOST_LAYERS = 48
_BLOCK_ELEMENTS = 1 << 20
_FLOATING = re.compile(r"b?float\d|complex")
_OF_AN_OPTIMIZER = re.compile(r"(^|\.)state\.\d+\.")
_NO_WEIGHTS = ("optimizer", "optimizer_states", "callbacks", "loops", "lr_schedulers", "safepoint", "safepoint_resume")


class Move(NamedTuple):
    """How a tensor moved: the squared norm of what it was, and of the change, over the elements that were read."""

    was: float
    change: float


@dataclass(frozen=True, slots=True)
class Drift:
    """The relative change of each layer (row) in each pair of checkpoints (column), given by their places.

    A share is ``None`` where the layer is not in both, 0 where nothing changed, NaN where one has no finite weights,
    and infinite where it was zero before.
    """

    layers: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    shares: tuple[tuple[float | None, ...], ...]
    read_bytes: int
    notes: tuple[str, ...]


Moves = Mapping[str, Move]


def drift_of(
    paths: Sequence[Path],
    pairs: Sequence[tuple[int, int]],
    read: Callable[[Path], Contents],
    told: Callable[[int, int], None],
) -> Drift:
    """Return the drift between ``pairs`` of ``paths``, oldest first, of which the newest are read within the limits.

    ``told`` is called before each pair with how many are done, and how many there are.
    """
    reading = _Reading(read)
    wanted = list(pairs)[-MOST_PAIRS:]
    moves: dict[tuple[int, int], Moves] = {}
    for done, (before, after) in enumerate(reversed(wanted)):
        told(done, len(wanted))
        found = reading.moves(paths[before], paths[after])
        if found is None:
            break
        if found:
            moves[before, after] = found
    shown = tuple(pair for pair in wanted if pair in moves)
    layers = layers_of({path: None for pair in shown for path in moves[pair]})
    shares = [_shares(layers, moves[pair]) for pair in shown]
    rows = tuple(zip(*shares, strict=True)) if shares else ()
    notes = (*_left_out(len(pairs), len(shown), reading), *reading.notes)
    return Drift(tuple(layers), shown, rows, reading.read_bytes, notes)


def layers_of(paths: Iterable[str], most: int = MOST_LAYERS) -> dict[str, list[str]]:
    """Return the tensors of each layer: of the container of each, cut to the depth at which there are at most ``most``.

    Of more on the uppermost level, the first stay.
    """
    containers = {path: path.split(".")[:-1] or [path] for path in paths}
    deepest = max(map(len, containers.values()), default=1)
    for depth in range(min(deepest, 16), 0, -1):
        layers: dict[str, list[str]] = {}
        for path, parts in containers.items():
            layers.setdefault(".".join(parts[:depth]), []).append(path)
        if len(layers) <= most:
            return layers
    return dict(list(layers.items())[:most])


def is_weight(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` may be a weight: floating-point, and not part of an optimizer's or a loop's state."""
    if not _FLOATING.match(tensor.dtype) or not tensor.count or not tensor.parts:
        return False
    return tensor.path.partition(".")[0] not in _NO_WEIGHTS and not _OF_AN_OPTIMIZER.search(tensor.path)


def is_known_unchanged(before: Tensor, after: Tensor) -> bool:
    """Tell whether two tensors have the same elements as far as the digests of their storages say."""
    return len(before.parts) == len(after.parts) and all(
        bool(old.storage.digest)
        and (old.storage.digest, old.storage.size_bytes) == (new.storage.digest, new.storage.size_bytes)
        and (old.start, old.shape, old.offset, old.strides) == (new.start, new.shape, new.offset, new.strides)
        for old, new in zip(before.parts, after.parts, strict=True)
    )


class _Reading:
    """Reads pairs until the limit is reached; keeps what one checkpoint tells for the next pair, and what went wrong."""

    def __init__(self, read: Callable[[Path], Contents]) -> None:
        self._read = read
        self._weights = lru_cache(2)(self._weights_at)  # the older one of a pair is the newer one of the next
        self.read_bytes = 0
        self.refused_bytes = 0
        self.notes: list[str] = []

    def moves(self, before: Path, after: Path) -> Moves | None:
        """Return how the tensors moved; nothing where one cannot be read, ``None`` where it is too much to read."""
        try:
            newer = self._weights(after)
            common = list(_common(self._weights(before), newer))
            changed = [pair for pair in common if not is_known_unchanged(*pair)]
            needed = sum(map(_bytes_of, changed))
            if self.read_bytes + needed > MOST_BYTES:
                self.refused_bytes = needed
                return None
            self.read_bytes += needed
            still = {old.path: Move(0.0, 0.0) for old, _ in common}
            return still | {old.path: _move(old, new) for old, new in changed}
        except (CheckpointError, OSError) as error:
            self.notes.append(str(error))
            return {}

    def _weights_at(self, path: Path) -> dict[str, Tensor]:
        return {tensor.path: tensor for tensor in self._read(path).tensors if is_weight(tensor)}


def _common(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for path, old in before.items():
        new = after.get(path)
        if new is not None and (old.dtype, old.shape) == (new.dtype, new.shape):
            yield old, new


def _bytes_of(pair: tuple[Tensor, Tensor]) -> int:
    from safepoint.values import item_bytes

    return 2 * pair[0].count * item_bytes(pair[0])


def _move(before: Tensor, after: Tensor) -> Move:
    import numpy as np

    from safepoint.values import blocks, item_bytes

    most_bytes = _BLOCK_ELEMENTS * item_bytes(before)
    wide = np.complex128 if before.dtype.startswith("complex") else np.float64
    was = change = 0.0
    for old, new in zip(blocks(before, most_bytes), blocks(after, most_bytes), strict=True):
        here, there = old.astype(wide), new.astype(wide)
        with np.errstate(all="ignore"):
            there -= here
            was += float(np.vdot(here, here).real)
            change += float(np.vdot(there, there).real)
    return Move(was, change)


def _shares(layers: Mapping[str, Sequence[str]], moves: Moves) -> list[float | None]:
    return [_share([moves[path] for path in paths if path in moves]) for paths in layers.values()]


def _share(moves: Sequence[Move]) -> float | None:
    if not moves:
        return None
    was, change = sum(move.was for move in moves), sum(move.change for move in moves)
    if not (math.isfinite(was) and math.isfinite(change)):
        return math.nan
    if not was:
        return math.inf if change else 0.0
    return math.sqrt(change / was)


def _left_out(wanted: int, shown: int, reading: _Reading) -> Iterator[str]:
    from safepoint.page import words

    if reading.refused_bytes:
        yield (
            f"{wanted - shown} of {wanted} pairs are left out: at most {words.size(MOST_BYTES)} are read, and the next pair "
            f"has {words.size(reading.refused_bytes)}. 'safepoint diff --values A B' compares two of any size."
        )
    elif wanted > MOST_PAIRS:
        yield f"The newest {MOST_PAIRS} of {wanted} pairs are shown."
