"""Ask a running job to save: a file called ``.save-now`` in its directory, which the job takes away at its next step.

Looked for once a second at most. Knows files; knows no checkpoint and no torch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from safepoint.errors import warn

REQUEST_NAME = ".save-now"
_LOOK_EVERY_S = 1.0


class Requests:
    """What is asked of the run that saves into ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / REQUEST_NAME
        self._looked_s = -_LOOK_EVERY_S
        self._stuck: tuple[int, int] | None = None
        self._has_warned = False

    def taken(self) -> bool:
        """Return whether somebody asks for a save, and take the request; at most once a second is it looked for."""
        now = time.monotonic()
        if now - self._looked_s < _LOOK_EVERY_S:
            return False
        self._looked_s = now
        return self.taken_now()

    def taken_now(self) -> bool:
        """Do as ``taken`` does, whenever that was asked the last time.

        What cannot be taken away counts once, and again when somebody has touched it.
        """
        try:
            os.unlink(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            return self._is_new_though_stuck(error)
        return True

    def _is_new_though_stuck(self, error: OSError) -> bool:
        try:
            found = self._path.lstat()
        except OSError:  # nobody can tell what is there
            return False
        before, self._stuck = self._stuck, (found.st_ino, found.st_mtime_ns)
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"{self._path} asks for a save and cannot be removed ({error.strerror}): it counts once, and again "
                "when it is touched. Remove it by hand.",
                stacklevel=4,
            )
        return before != self._stuck


def ask(directory: Path) -> None:
    """Ask the run that saves into ``directory`` for a save.

    Raises:
        OSError: the request cannot be put there.

    """
    (directory / REQUEST_NAME).touch()


def withdraw(directory: Path) -> bool:
    """Take a request back; return whether it was still there.

    Raises:
        OSError: the request cannot be removed.

    """
    try:
        (directory / REQUEST_NAME).unlink()
    except FileNotFoundError:
        return False
    return True
