"""The drop-in for ``import lightning.pytorch as pl``: ``from safepoint.lightning import ModelCheckpoint``."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ModelCheckpoint as _Original
from lightning.pytorch.plugins.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from safepoint.errors import ConfigurationError, plain
from safepoint.integrations.framework import Framework, interceptor
from safepoint.integrations.model_checkpoint import ModelCheckpointBody

__all__ = ["MisconfigurationError", "ModelCheckpoint"]


class MisconfigurationError(ConfigurationError, MisconfigurationException):
    """Say that an argument is wrong, to those who catch Safepoint's errors and to those who catch Lightning's."""


class ModelCheckpoint(ModelCheckpointBody, _Original):
    __doc__ = ModelCheckpointBody.__doc__

    framework = Framework(
        misconfiguration=MisconfigurationError,
        info=lambda message: rank_zero_info(plain(message)),
        warn=lambda message: rank_zero_warn(plain(message), stacklevel=5),
        interceptor=interceptor(CheckpointIO),
        torch_io=TorchCheckpointIO,
        async_io=AsyncCheckpointIO,
        callback=Callback,
    )
