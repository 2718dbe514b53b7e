"""Checkpointing for PyTorch training: durable, verified, in the background.

The names here are the public ones. What needs torch is imported when first asked for, so that the command line and the
policies start without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from safepoint import keep, when
from safepoint.errors import (
    CaptureError,
    CheckpointError,
    ConfigurationError,
    DamagedCheckpointError,
    MissingMetricError,
    NotACheckpointError,
    RestoreError,
    SafepointError,
    SaveError,
    StateMismatchError,
)
from safepoint.reader import verify
from safepoint.records import Progress, Record

if TYPE_CHECKING:
    from safepoint.checkpointer import Checkpointer
    from safepoint.loading import load

__all__ = [
    "CaptureError",
    "CheckpointError",
    "Checkpointer",
    "ConfigurationError",
    "DamagedCheckpointError",
    "MissingMetricError",
    "NotACheckpointError",
    "Progress",
    "Record",
    "RestoreError",
    "SafepointError",
    "SaveError",
    "StateMismatchError",
    "keep",
    "load",
    "verify",
    "when",
]

_NEEDS_TORCH = {"Checkpointer": "safepoint.checkpointer", "load": "safepoint.loading"}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(importlib.import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module 'safepoint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
