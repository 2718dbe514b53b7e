"""What is to go is looked at first: nothing goes that is another's by now, or that somebody has pinned.

Whoever removes or replaces a checkpoint asks here: the writer for what a policy let go, and ``prune``. Knows stores and
manifests.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import PurePosixPath

from safepoint import pins, reader
from safepoint.naming import first_free
from safepoint.stores import Store


@dataclass(frozen=True, slots=True)
class Removal:
    """A name to be removed, unless something is there by then that none of ``runs`` wrote, or that is pinned.

    The run "" stands for another program. Where there are ``times``, it must have been captured at one of them: another
    process may have saved under that name as the same run.
    """

    name: str
    runs: frozenset[str]
    times: frozenset[float] = frozenset()


class Left(enum.Enum):
    """Name what a removal leaves: nothing, what is another's, or what is pinned."""

    NOTHING = "nothing"
    ANOTHERS = "another's"
    PINNED = "pinned"


def remove(store: Store, removal: Removal) -> Left:
    """Remove what ``removal`` names, and its pin, unless a last look at it says no; return what is left.

    Raises:
        OSError: it cannot be looked at, or cannot be removed.

    """
    left: Left = Left.NOTHING
    pin: pins.Pin | None = None

    def is_to_go(descriptor: int) -> bool:
        nonlocal left, pin
        origin = reader.origin_of(descriptor)
        if origin is None or not is_of(origin, removal.runs, removal.times):
            left = Left.ANOTHERS
            return False
        pin = pins.read(store, removal.name)
        if is_pinned(origin, pin):
            left = Left.PINNED
            return False
        return True

    is_gone = store.remove(removal.name, is_own=is_to_go)
    if is_gone and pin is not None:
        store.remove(pins.name_of(removal.name))
    return left


def set_aside(store: Store, name: str) -> str | None:
    """Give what has ``name`` another one, with its pin, if it is pinned so; return that, ``None`` if it is not.

    For what gets the place of something whatever that is: what was pinned in the last moment, and names like ``last``.

    Raises:
        OSError: it cannot be done: ``name`` is not to be taken from what has it.

    """
    pin = pins.read(store, name)
    if pin is None or not pin.pinned:
        return None
    path = PurePosixPath(name)
    try:
        aside = first_free(
            path.with_suffix("").as_posix(),
            lambda other: other == name or not _is_linked(store, name, other),
            extension=path.suffix,
        )
    except FileNotFoundError:  # gone, and its pin is left
        return None
    if store.remove(aside, is_own=lambda descriptor: not _is_meant(pin, descriptor)):
        return None
    pins.put(store, aside, pin)
    pins.drop(store, name)
    return aside


def _is_linked(store: Store, name: str, other: str) -> bool:
    """Give what has ``name`` the further name ``other``; return whether that was free."""
    try:
        store.link(name, other, replace=False)
    except FileExistsError:
        return False
    return True


def _is_meant(pin: pins.Pin, descriptor: int) -> bool:
    origin = reader.origin_of(descriptor)
    return not pin.is_legible if origin is None else bool(pin.verdict(origin.run, (origin.time,)))


def is_of(origin: reader.Origin, runs: frozenset[str], times: frozenset[float] = frozenset()) -> bool:
    """Tell whether ``origin`` is one of ``runs``, and the time of capture one of ``times`` where there are any."""
    return origin.run in runs and (not times or origin.time in times)


def is_pinned(origin: reader.Origin, pin: pins.Pin | None) -> bool:
    """Tell whether what comes from ``origin``, and has ``pin`` beside it, is pinned."""
    verdict = None if pin is None else pin.verdict(origin.run, (origin.time,))
    return origin.pinned if verdict is None else verdict
