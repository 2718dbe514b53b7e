"""The arguments of Lightning's ``ModelCheckpoint``: what is wrong with them, and what they mean as save policies."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

from safepoint import when
from safepoint.errors import ConfigurationError
from safepoint.keep import checked_mode
from safepoint.naming import check_template
from safepoint.records import Event, ScheduleState
from safepoint.when import SavePolicy

_LARGER_IS_BETTER = frozenset(
    "acc acc1 acc5 accuracy ap auc auroc bleu dice f1 iou jaccard map miou precision psnr r2 recall rouge score "  # noqa: SIM905 - read as words
    "ssim".split()
)
_SMALLER_IS_BETTER = frozenset(
    "bce ce cer err error fid kl loss mae mape mse nll perplexity ppl rmse wer".split()  # noqa: SIM905 - read as words
)
_OWNER = "ModelCheckpoint"


def check(
    *,
    dirpath: str | os.PathLike[str] | None,
    filename: str | None,
    monitor: str | None,
    save_last: Any,
    save_top_k: Any,
    mode: Any,
    **intervals: Any,
) -> None:
    """Raise a ConfigurationError that says which argument is wrong and what to give instead; touches nothing."""
    checked_mode(_OWNER, mode)
    _check_top_k(save_top_k, monitor)
    _check_intervals(intervals)
    if save_last not in (None, True, False, "link"):
        raise ConfigurationError(f"{_OWNER}(save_last={save_last!r}): give True, False or 'link'.")
    if dirpath is not None and "://" in str(dirpath):
        raise ConfigurationError(f"{_OWNER}(dirpath={str(dirpath)!r}): only local directories so far; give one.")
    if filename is not None:
        check_template(filename)


def triggers(
    every_n_train_steps: int | None, train_time_interval: timedelta | None, every_n_epochs: int | None
) -> SavePolicy:
    """Return the one trigger that is set; with none set, every epoch. A zero switches its trigger off."""
    if every_n_train_steps is None and train_time_interval is None and every_n_epochs is None:
        return when.EveryEpochs(1)
    if train_time_interval is not None:
        return when.EverySeconds(train_time_interval.total_seconds())
    if every_n_train_steps:
        return when.EverySteps(every_n_train_steps)
    return when.EveryEpochs(every_n_epochs) if every_n_epochs else Never()


def contradiction(monitor: str | None, mode: str) -> str | None:
    """Return a warning if the name of the metric says the opposite of ``mode``, else ``None``."""
    words = set(re.split(r"[^a-z0-9]+", (monitor or "").lower()))
    larger, smaller = words & _LARGER_IS_BETTER, words & _SMALLER_IS_BETTER
    if bool(larger) == bool(smaller) or (larger and mode == "max") or (smaller and mode == "min"):
        return None
    kept, other = ("smallest", "max") if mode == "min" else ("largest", "min")
    return (
        f"{_OWNER}(monitor={monitor!r}, mode={mode!r}) keeps the checkpoints with the {kept} {monitor}, which by its "
        f"name looks like the worst ones. If it is, give mode={other!r}."
    )


class Never(SavePolicy):
    """Be due at no event."""

    def due(self, event: Event, state: ScheduleState) -> str | None:  # noqa: ARG002 - one signature for all policies
        """Return ``None``."""
        return None


def _check_top_k(save_top_k: Any, monitor: str | None) -> None:
    if isinstance(save_top_k, bool) or not isinstance(save_top_k, int) or save_top_k < -1:
        raise ConfigurationError(
            f"{_OWNER}(save_top_k={save_top_k!r}): give -1 to keep all, 0 for none, or how many of the best to keep."
        )
    if monitor is None and save_top_k not in (-1, 0, 1):
        raise ConfigurationError(
            f"{_OWNER}(save_top_k={save_top_k}, monitor=None): the best {save_top_k} of what? Give monitor='val_loss' "
            "or another logged metric; without one, save_top_k is -1 (all), 0 (none) or 1 (the newest)."
        )


def _check_intervals(intervals: dict[str, Any]) -> None:
    for name in ("every_n_train_steps", "every_n_epochs"):
        value = intervals[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ConfigurationError(f"{_OWNER}({name}={value!r}): give a whole number of 1 or more, or 0 for never.")
    interval = intervals["train_time_interval"]
    if interval is not None and not isinstance(interval, timedelta):
        raise ConfigurationError(f"{_OWNER}(train_time_interval={interval!r}): give a datetime.timedelta.")
    chosen = [name for name, value in intervals.items() if value or isinstance(value, timedelta)]
    if len(chosen) > 1:
        given = ", ".join(f"{name}={intervals[name]!r}" for name in chosen)
        raise ConfigurationError(
            f"{_OWNER}({given}): these triggers contradict each other; give one, or one ModelCheckpoint for each."
        )
