"""The files of a checkpoint: opened, read whole if they are small, counted, and named in an error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safepoint.archive import open_regular
from safepoint.errors import CheckpointError, NotACheckpointError, shortened


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open the file at ``path``, for reading; what is no file is refused and never waited for."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def size_bytes(directory: Path) -> int:
    """Return how many bytes the files in ``directory`` and below have."""
    return sum(
        os.stat(path).st_size
        for place, _, names in os.walk(directory)
        for name in names
        if os.path.exists(path := os.path.join(place, name))
    )


def read_whole(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a small file.

    Raises:
        NotACheckpointError: it is absurdly long, or no file.
        OSError: it cannot be read.

    """
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit_bytes:
            raise NotACheckpointError(f"absurdly long ({size} bytes)")
        return os.pread(descriptor, size, 0)


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Have each error say that it is about the file called ``name`` in the directory."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{shortened(name)}: {error}") from None


def is_file_name(name: object) -> bool:
    """Tell whether it is the name of a file in a directory: none that leads out of it."""
    return isinstance(name, str) and name == os.path.basename(name) and name not in {"", ".", ".."} and "\0" not in name
