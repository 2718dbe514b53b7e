"""Pin a checkpoint, or lift its pin, by whichever of its names; durable when it returns.

The pin lies beside the name that the checkpoint's run goes by, so that it is found wherever that is about to go.
"""

from __future__ import annotations

import enum

from safepoint import pins
from safepoint.errors import CheckpointError
from safepoint.pins import Pin
from safepoint.places import Place, is_same
from safepoint.stores.local import LocalStore


class Pinning(enum.Enum):
    """Name what became of it."""

    DONE = "done"
    AS_BEFORE = "as before"
    UNKNOWN = "unknown"


def is_pinned(place: Place) -> bool:
    """Tell whether the checkpoint at ``place`` is pinned, by somebody or as it was saved."""
    if place.record is None:
        return False
    return _is_pinned(place, pins.read(LocalStore(place.record.parent), place.record.name))


def set_pinned(place: Place, *, pinned: bool) -> Pinning:
    """Let the checkpoint at ``place`` be ``pinned`` or not; of a copy, which no policy touches, that is unknown.

    Raises:
        CheckpointError: its run has removed it meanwhile.
        OSError: the pin cannot be written, or not be removed.

    """
    if place.record is None:
        return Pinning.UNKNOWN
    store, name = LocalStore(place.record.parent), place.record.name
    before = pins.read(store, name)
    if _is_pinned(place, before) == pinned:
        return Pinning.AS_BEFORE
    summary = place.summary
    if pinned or summary.pinned:
        pins.put(store, name, Pin(summary.run, summary.step, summary.time, pinned))
    else:
        pins.drop(store, name)
    if pinned and not is_same(place.record, summary):
        pins.drop(store, name)
        raise CheckpointError(f"{place.record} was removed by its run in the moment before: there is nothing to pin.")
    return Pinning.DONE


def _is_pinned(place: Place, pin: Pin | None) -> bool:
    verdict = None if pin is None else pin.verdict(place.summary.run, (place.summary.time,))
    return place.summary.pinned if verdict is None else verdict
