"""What a trainer says of what lies ahead: the next batch, a validation, and where checkpoints go."""

from __future__ import annotations

import os
from typing import Any


def directory(trainer: Any, dirpath: Any) -> str:
    """Return ``dirpath``, else ``checkpoints`` below the first logger's directory or the trainer's."""
    if dirpath is not None:
        return str(dirpath)
    if not trainer.loggers:
        return os.path.join(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    root = trainer.default_root_dir if logger.save_dir is None else logger.save_dir
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(root, str(logger.name), version, "checkpoints")


def validates_in_this_epoch(trainer: Any) -> bool:
    """Tell whether validation follows; before the first one, its batches are not counted yet, and none is seen."""
    epochs: int | None = trainer.check_val_every_n_epoch
    in_this_epoch = epochs is None or (trainer.current_epoch + 1) % epochs == 0
    return bool(trainer.enable_validation and in_this_epoch and validation_batches(trainer))


def validation_batches(trainer: Any) -> float:
    """Return how many batches a validation has."""
    batches = trainer.num_val_batches
    return sum(batches) if isinstance(batches, list) else batches


def trains_on(trainer: Any, batch_idx: int) -> bool:
    """Tell whether the next thing after this batch is the next one: no validation, no end of the epoch or the fit."""
    if trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps:
        return False
    if not trainer.enable_validation:
        return True
    every = trainer.val_check_batch  # None where the time decides
    counts = (batch_idx + 1, trainer.fit_loop.total_batch_idx + 1)
    return every is not None and all(count % every for count in counts)
