"""Which directory was perhaps meant by one that holds no checkpoint."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from safepoint.catalog import found_in

_TRIED = 5
_ALIKE = 0.7
_NUMBER = re.compile("[0-9]+")


def meant_by(directory: Path) -> Path | None:
    """Return the directory with checkpoints that ``directory``, which is not there, may be a slip of.

    That is one beside it with a name much like its own, or the one that it would be in. One whose name differs in
    numbers only is another run.
    """
    try:
        if directory.exists():
            return None
        parent = directory.parent
        names = [path.name for path in parent.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(directory.name, names, n=_TRIED, cutoff=_ALIKE)
        beside = [parent / name for name in near if _without_numbers(name) != _without_numbers(directory.name)]
        return next((found for found in (*beside, parent) if found_in(found, below=False)), None)
    except OSError:  # only a hint
        return None


def _without_numbers(name: str) -> str:
    return _NUMBER.sub("0", name)
