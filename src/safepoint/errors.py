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

Every message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class SafepointError(Exception):
    """Be the root of every error that Safepoint raises on purpose."""


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
