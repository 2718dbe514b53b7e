"""A callback that stands before all others: deferred copies must have ended before any of them acts.

A checkpoint callback comes last in the trainer's list, and others may exchange the weights before it is asked: at the
start of a validation, at the end of an epoch or of the fit. Which of these follows a batch is not known for certain at
its end: the module may stop the fit, or skip the rest of the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

HOOKS = ("on_validation_start", "on_train_epoch_end", "on_train_end", "on_fit_end", "on_exception")


def vanguard(base: type[Any], hold_back: Callable[[], None], hooks: Sequence[str] = HOOKS) -> Any:
    """Return such a callback, below the framework's class ``base``, that calls ``hold_back`` at ``hooks``."""

    def wait(self: Any, *_: Any) -> None:  # noqa: ARG001 - a method
        hold_back()

    return type("Vanguard", (base,), {"__doc__": __doc__, **dict.fromkeys(hooks, wait)})()
