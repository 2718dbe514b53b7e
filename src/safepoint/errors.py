"""The errors of Safepoint, all below one root.

::

    SafepointError
    ├── ConfigurationError (ValueError)     an argument is wrong; nothing on disk was touched
    │   └── MissingMetricError              a policy or a template names a metric that was not given
    ├── CaptureError                        the state holds something that cannot be saved
    ├── SaveError                           a checkpoint did not become durable; earlier ones are intact
    ├── CheckpointError                     a file cannot be used
    │   ├── NotACheckpointError             no Safepoint manifest in it
    │   └── DamagedCheckpointError          it does not match its own digests
    ├── RestoreError                        checkpoints are there, and none of them verifies
    ├── RunAliveError                       the run to go on with is still alive in another process
    └── StateMismatchError                  a sound checkpoint, of another model or optimizer

``Preempted`` is none of them, but a SystemExit: a signal ends the process, and what it has saved is durable.

Every message says what is wrong, where, and what to do about it. What it repeats of a file (a name, a metric, a path)
can be anything: ``plain`` takes from it what a terminal would obey, in errors, warnings, and what is logged or printed.
"""

from __future__ import annotations

import difflib
import signal
import traceback
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


_LONGEST_MESSAGE = 100_000
_LONGEST_NAME = 500


class SafepointError(Exception):
    """Be the root of every error that Safepoint raises on purpose."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(plain(found) if isinstance(found, str) else found for found in arguments))

    def add_note(self, note: str) -> None:
        """Add a note, as plain text."""
        super().add_note(plain(note))


def plain(text: str) -> str:
    """Return ``text`` without what a terminal obeys, escaped as in Python; its lines stay lines, absurd length goes.

    Escaped is what cannot be seen: control codes, what changes the direction of writing, and bytes of a file's name
    that are no Unicode. Letters of every language stay.
    """
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[:_LONGEST_MESSAGE]}... (cut off)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def cause(error: Exception) -> Exception:
    """Return ``error`` as the cause of another: itself, unless a terminal would obey what its traceback says.

    What stands in for it has its traceback, and its text as plain text.
    """
    told = "".join(traceback.format_exception(error))
    if plain(told) == told:
        return error
    return SafepointError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)


def shortened(name: str) -> str:
    """Return ``name``, cut where no honest one is that long."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def in_line(text: str) -> str:
    """Return ``text`` as ``plain`` does, in one line."""
    return plain(text).replace("\n", "\\n")


def warn(message: str, stacklevel: int) -> None:
    """Warn of ``message``, as plain text; ``stacklevel`` counts from the caller on, as in ``warnings.warn``."""
    warnings.warn(plain(message), RuntimeWarning, stacklevel=stacklevel + 1)


class ConfigurationError(SafepointError, ValueError):
    """Say that an argument is wrong, before anything on disk is touched."""


class MissingMetricError(ConfigurationError):
    """Say that a metric is asked for by name and is not among those given."""

    def __init__(self, metric: str, asked_by: str, present: Iterable[str], remedy: str) -> None:
        self.metric = metric
        self.present = tuple(sorted(present))
        self._wording = (asked_by, remedy)
        there = ", ".join(repr(name) for name in self.present) or "none at all"
        near = "".join(f" Did you mean {name!r}?" for name in nearest(metric, self.present))
        super().__init__(f"{asked_by} needs the metric {metric!r}, and the metrics given are: {there}.{near} {remedy}")

    def __reduce__(self) -> tuple[type[MissingMetricError], tuple[str, str, tuple[str, ...], str]]:
        """Let the error reach another process, with all it was made of."""
        asked_by, remedy = self._wording
        return type(self), (self.metric, asked_by, self.present, remedy)


def nearest(name: str, present: Iterable[str]) -> list[str]:
    """Return the one of ``present`` that ``name`` may be a slip of, or nothing."""
    return difflib.get_close_matches(name, present, n=1, cutoff=0.8)


class CaptureError(SafepointError):
    """Say that the state holds something that cannot be put into a checkpoint."""


class SaveError(SafepointError):
    """Say that a checkpoint did not become durable; the cause carries the original traceback."""


class CheckpointError(SafepointError):
    """Say that a file cannot be used as a checkpoint."""


class NotACheckpointError(CheckpointError):
    """Say that a file holds no Safepoint manifest."""


class DamagedCheckpointError(CheckpointError):
    """Say that a checkpoint does not match its own digests."""


class RestoreError(SafepointError):
    """Say that a directory holds checkpoints of which none verifies."""


class RunAliveError(SafepointError):
    """Say that the run to go on with is still alive in another process, which saves into the same directory."""


class StateMismatchError(SafepointError):
    """Say that a sound checkpoint does not fit the live objects."""


class Preempted(SystemExit):
    """End the process as a signal asks for: with the status 128 + its number, as a shell tells of one that it killed.

    ``signal`` is the name of the signal; ``path`` the checkpoint to go on from, ``None`` where this step could not be
    saved. All that was saved is durable. A SystemExit, so that ``except Exception`` lets it pass.
    """

    def __init__(self, signal_name: str, path: Path | None) -> None:
        super().__init__(signal_name, path)
        self.signal = signal_name
        self.path = path
        self.code = 128 + signal.Signals[signal_name]

    def __str__(self) -> str:
        """Tell it in a line."""
        saved = "this step could not be saved" if self.path is None else f"{self.path} is durable"
        return plain(f"{self.signal} ends this run: {saved}; the process ends with the status {self.code}.")
