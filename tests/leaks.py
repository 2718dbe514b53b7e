"""What a run must give back when it ends: descriptors and threads."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections import Counter
from pathlib import Path


def left_since(before: tuple[list[str], list[str]]) -> list[str]:
    """Return the files and threads that are there now and were not ``before``; what went meanwhile is no leak."""
    new = [Counter(now) - Counter(then) for now, then in zip(held(), before, strict=True)]
    return [name for names in new for name in names.elements()]


def held() -> tuple[list[str], list[str]]:
    """Return the open files of this process, but for those of pytest's own capture, and its threads."""
    gc.collect()  # what nobody has closed, of earlier tests, too, closes by itself
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]  # not that of the listing itself
    files = sorted(os.readlink(path) for path in links)
    captures = f"{tempfile.gettempdir()}/#"
    files = [path for path in files if path.startswith("/") and not path.startswith(captures)]
    return files, sorted(thread.name for thread in threading.enumerate())
