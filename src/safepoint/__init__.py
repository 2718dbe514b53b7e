"""Checkpointing for PyTorch training: durable, verified, in the background.

The names here are the public ones. Each is imported when first asked for, so that the command line and the policies
start without torch, and the command line without the policies.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safepoint import data, keep, when
    from safepoint.checkpointer import Checkpointer
    from safepoint.errors import (
        CaptureError,
        CheckpointError,
        ConfigurationError,
        DamagedCheckpointError,
        MissingMetricError,
        NotACheckpointError,
        Preempted,
        RestoreError,
        RunAliveError,
        SafepointError,
        SaveError,
        StateMismatchError,
    )
    from safepoint.loading import load
    from safepoint.reader import verify
    from safepoint.records import Progress, Record, SaveStats
    from safepoint.report import RestoreReport

__all__ = [
    "CaptureError",
    "CheckpointError",
    "Checkpointer",
    "ConfigurationError",
    "DamagedCheckpointError",
    "MissingMetricError",
    "NotACheckpointError",
    "Preempted",
    "Progress",
    "Record",
    "RestoreError",
    "RestoreReport",
    "RunAliveError",
    "SafepointError",
    "SaveError",
    "SaveStats",
    "StateMismatchError",
    "data",
    "keep",
    "load",
    "verify",
    "when",
]

_HOMES = {
    "Checkpointer": "checkpointer",
    "Progress": "records",
    "Record": "records",
    "RestoreReport": "report",
    "SaveStats": "records",
    "load": "loading",
    "verify": "reader",
}
"""Where a name is defined; errors, all the others, are in ``errors``, and modules are themselves."""
_MODULES = ("data", "keep", "when")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'safepoint' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"safepoint.{name}")
    return getattr(importlib.import_module(f"safepoint.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
