"""What somebody has said of a checkpoint since it was saved: that it is to stay, or need not any more.

A pin is a small hidden file beside the checkpoint, ``.NAME.pin`` for ``NAME``. It says which checkpoint it means, by
its run and its time of capture: of a later one that got the name it says nothing. It counts more than the ``pinned`` of
the manifest, which cannot be changed. Knows stores and names; whose a name is, is ``places``'s.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from safepoint.naming import PIN_SUFFIX
from safepoint.stores import NOTE_LIMIT_BYTES, Store


@dataclass(frozen=True, slots=True)
class Pin:
    """What lies beside a checkpoint: which one it means, and whether that is ``pinned``.

    ``is_legible``: a file that cannot be read or understood is taken for a pin of whatever has the name.
    """

    run: str
    step: int
    time: float
    pinned: bool = True
    is_legible: bool = True

    def verdict(self, run: str, times: Collection[float]) -> bool | None:
        """Return whether what ``run`` captured at one of ``times`` is pinned, ``None`` if it is not what is meant."""
        if not self.is_legible:
            return True
        return self.pinned if self.run == run and self.time in times else None


class _Told(msgspec.Struct):
    version: Literal[1]
    run: str
    step: Annotated[int, msgspec.Meta(ge=0)]
    time: float
    pinned: bool


_ILLEGIBLE = Pin("", 0, 0.0, is_legible=False)


def name_of(name: str) -> str:
    """Return the name of the pin of the checkpoint ``name``; both are relative, with ``/`` between parts."""
    directory, slash, last = name.rpartition("/")
    return f"{directory}{slash}.{last}{PIN_SUFFIX}"


def read(store: Store, name: str) -> Pin | None:
    """Return what lies beside the checkpoint ``name``, ``None`` if nothing does."""
    try:
        data = store.noted(name_of(name))
    except OSError:
        return _ILLEGIBLE
    return None if data is None else _decoded(data)


def put(store: Store, name: str, pin: Pin) -> None:
    """Let ``pin`` lie beside the checkpoint ``name``, durably, in the place of what does.

    Raises:
        OSError: it cannot be written; what was there is there.

    """
    told = _Told(1, pin.run, pin.step, pin.time, pin.pinned)
    store.note(name_of(name), msgspec.json.encode(told))


def drop(store: Store, name: str) -> None:
    """Let nothing lie beside the checkpoint ``name``, durably.

    Raises:
        OSError: it cannot be removed, or nobody can tell whether that is durable.

    """
    store.remove(name_of(name))
    store.sync(name)


def _decoded(data: bytes) -> Pin:
    if len(data) >= NOTE_LIMIT_BYTES:
        return _ILLEGIBLE
    try:
        told = msgspec.json.decode(data, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ILLEGIBLE
    return Pin(told.run, told.step, told.time, told.pinned)
