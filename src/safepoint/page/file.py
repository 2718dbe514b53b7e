"""The file of a page: where it may be written, and writing it whole or not at all.

Replaces a page of an earlier time, and nothing else unless it is told to; never a file that is not called a page.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from safepoint.archive import open_regular
from safepoint.errors import CheckpointError, ConfigurationError

SIGN = '<meta name="generator" content="safepoint report">'
"""By this, near its beginning, a page is known to be one of ours."""
_SEARCHED_BYTES = 4096
_EXTENSIONS = (".html", ".htm")


def checked_place(out: Path, *, force: bool) -> Path:
    """Return where a page called ``out`` is to be written: what a link leads to; touches nothing.

    Raises:
        ConfigurationError: nothing can be written there, or nothing should; says what to do.

    """
    place = Path(os.path.realpath(out))
    if out.suffix not in _EXTENSIONS or place.suffix not in _EXTENSIONS:
        raise ConfigurationError(f"{out} is no name for a page: let it end in .html, so that nothing else is replaced.")
    if place.is_dir():
        raise ConfigurationError(f"{out} is a directory: give the name of a file with -o.")
    if not place.parent.is_dir():
        raise ConfigurationError(f"{out.parent} is no directory: make it, or give another name with -o.")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{place.parent} is not writable: change its mode, or give another name with -o.")
    if place.exists() and not force and not _is_ours(place):
        raise ConfigurationError(
            f"{out} is there already, and is no report: give another name with -o, or --force to replace it."
        )
    return place


def write(place: Path, text: str) -> int:
    """Let the page be at ``place``, all of it or, after an error, what was there before; return its size in bytes.

    Raises:
        OSError: it cannot be written.

    """
    data = text.encode()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{place.stem}-", suffix=place.suffix, dir=place.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), _mode(place))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return len(data)


def _is_ours(path: Path) -> bool:
    try:
        descriptor = open_regular(path)
    except (OSError, CheckpointError):
        return False
    try:
        return SIGN.encode() in os.pread(descriptor, _SEARCHED_BYTES, 0)
    finally:
        os.close(descriptor)


def _mode(place: Path) -> int:
    """Return the mode that the file has now, or that a new one gets."""
    try:
        return place.stat().st_mode & 0o777
    except OSError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
