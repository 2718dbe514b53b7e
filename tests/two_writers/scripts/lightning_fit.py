"""Fit with the drop-in until told to end, saying when the first epochs' checkpoints are durable."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import lightning.pytorch as pl
from models import FRAMEWORKS, fit

from safepoint.lightning import ModelCheckpoint

warnings.simplefilter("ignore")


class Pause(pl.Callback):
    """Stop in the third epoch, with two saved, until a line comes."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Say what is there."""
        if trainer.current_epoch == 2:
            trainer.checkpoint_callback._wait(trainer)
            print("ready", flush=True)
            sys.stdin.readline()


if __name__ == "__main__":
    (framework,) = (found for found in FRAMEWORKS if found.name == "lightning.pytorch")
    fit(framework, ModelCheckpoint(sys.argv[1], save_last=True), Pause(), epochs=3)
    print("ended", flush=True)
