"""Run a case in a process of its own, as a script that is started again and again; leave the outcome in a file."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import lightning_case as script
import torch
from models import FRAMEWORKS


def main(name: str, package: str, directory: Path) -> None:
    """Go on from the last checkpoint, if there is one; save at every step, and say so."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    framework = next(found for found in FRAMEWORKS if found.name == package)

    class Tell(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, *_: object) -> None:
            print("batch", flush=True)

    run = directory / "run"
    callback = framework.ModelCheckpoint(dirpath=run, every_n_train_steps=1, save_last=True)
    logger = script.curve(framework, directory / "curve")
    script.seed(1)
    fitted = script.trainer(framework, script.CASES[name], logger, callback, Tell())
    goes_on = (run / "last.ckpt").exists()
    fitted.fit(script.module(framework, script.CASES[name]), ckpt_path="last" if goes_on else None)
    torch.save(script.outcome(fitted), directory / "outcome")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
