"""A file written in one go, whole and durable or not there at all, while what it is made from stays the same.

By the store's own protocol (``stores.local``): room is reserved first, the bytes get a name when they are on the disk,
and whatever goes wrong, nothing is left behind. Knows bytes and files; knows no tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safepoint.errors import CheckpointError, ConfigurationError
from safepoint.memory import HostMemory
from safepoint.stores.direct import IN_FLIGHT
from safepoint.stores.local import LocalStore

Advance = Callable[[int], object]
"""Is told how many further bytes were made."""

_SLAB_BYTES = 8 << 20


class Origins:
    """What is read of a checkpoint at ``place``: files, each as it was when it was first looked at."""

    def __init__(self, place: Path) -> None:
        self._directory = place.resolve() if place.is_dir() else None
        self._known: dict[Path, tuple[int, ...]] = {}
        if self._directory is None:
            self.add(place)

    def add(self, path: Path) -> None:
        """Take note of the file at ``path``, unless it is known."""
        if path not in self._known:
            self._known[path] = _identity(path)

    def include(self, path: Path) -> bool:
        """Tell whether what is at ``path`` is a part of the checkpoint, by whatever name."""
        if not path.exists():
            return False
        is_inside = self._directory is not None and path.resolve().is_relative_to(self._directory)
        return is_inside or _identity(path) in self._known.values()

    def check(self) -> None:
        """Raise a CheckpointError if one is another by now: a name such as ``last.ckpt`` leads to the next at once."""
        for path, before in self._known.items():
            if _identity(path) != before:
                raise CheckpointError(
                    f"{path} was replaced or changed while it was read. Nothing was written; export it once more, by a "
                    "name that stays."
                )


def _identity(path: Path) -> tuple[int, ...]:
    """Return what tells one file, and one state of it, from another; a further name of it changes nothing."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_place(out: Path, origins: Origins, *, replace: bool) -> None:
    """Raise a ConfigurationError if nothing can be written at ``out``, or nothing should; touches nothing."""
    if out.is_dir() or not out.name:
        raise ConfigurationError(f"{out} is a directory: give the name of a file with -o.")
    if not out.parent.is_dir():
        raise ConfigurationError(f"{out.parent} is no directory: make it, or give another name with -o.")
    if origins.include(out):
        raise ConfigurationError(f"{out} belongs to the checkpoint itself: give another name with -o.")
    if os.path.lexists(out) and not replace:
        raise ConfigurationError(f"{out} is there already: give another name with -o, or --force to replace it.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{out.parent} is not writable: change its mode, or give another name with -o.")


def check_room(out: Path, size_bytes: int) -> None:
    """Raise a ConfigurationError if the disk has no room for ``size_bytes`` at ``out``."""
    free_bytes = LocalStore(out.parent).free_bytes()
    if free_bytes is not None and free_bytes < size_bytes:
        raise ConfigurationError(
            f"{out} takes {size_bytes / 1e9:.3g} GB, and {out.parent} has {free_bytes / 1e9:.3g} GB free: free some, "
            "or give another place with -o."
        )


def write(
    out: Path,
    pieces: Iterable[bytes | memoryview],
    size_bytes: int,
    origins: Origins,
    *,
    replace: bool,
    advance: Advance,
) -> None:
    """Let ``pieces``, ``size_bytes`` in all, be the file at ``out``, if ``origins`` are then what they were.

    Raises:
        FileExistsError: something has the name by now, and ``replace`` says no.
        CheckpointError: a file that was read has changed meanwhile.
        OSError: it cannot be written. Whatever is raised, also by ``pieces``: nothing has been left behind.

    """
    store = LocalStore(out.parent)
    chunks = _in_slabs(pieces, advance)
    try:
        store.write(out.name, chunks, size_bytes, replace=replace, check=lambda _: origins.check())
    finally:
        store.let_go()


def _in_slabs(pieces: Iterable[bytes | memoryview], advance: Advance) -> Iterator[memoryview]:
    """Yield ``pieces`` in slabs of whole pages; one is used again once it is written, as ``write_chunks`` has it."""
    slabs = [HostMemory(_SLAB_BYTES).view(0, _SLAB_BYTES) for _ in range(IN_FLIGHT + 2)]
    turn = filled = 0
    for piece in pieces:
        left = memoryview(piece)
        while left:
            count = min(len(left), _SLAB_BYTES - filled)
            slabs[turn][filled : filled + count] = left[:count]
            left, filled = left[count:], filled + count
            if filled == _SLAB_BYTES:
                yield slabs[turn]
                advance(filled)
                turn, filled = (turn + 1) % len(slabs), 0
    yield slabs[turn][:filled]
    advance(filled)
