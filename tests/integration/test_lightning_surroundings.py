"""What stands around the callback in Lightning: the command line that builds it from YAML, and loggers that read it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from models import OLD_TREESPEC, Framework, fit, listing

from safepoint import verify

pytestmark = OLD_TREESPEC

CONFIGURATION = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  limit_train_batches: 2
  callbacks:
    - class_path: {adapter}.ModelCheckpoint
      init_args:
        dirpath: {directory}
        filename: "{{step}}"
        save_last: link
        save_top_k: 1
        train_time_interval: null
        blocking: true
        on_error: warn
"""


@pytest.mark.filterwarnings("ignore")  # of the demonstration's own
def test_lightning_cli_builds_the_callback_from_yaml(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``LightningCLI`` finds the class by its path and passes every argument on, ours too."""
    (tmp_path / "config.yaml").write_text(
        CONFIGURATION.format(adapter=framework.adapter, directory=tmp_path / "checkpoints")
    )
    demos = importlib.import_module(f"{framework.name}.demos.boring_classes")
    cli_class = importlib.import_module(f"{framework.name}.cli").LightningCLI
    monkeypatch.setattr(sys, "argv", ["train"])
    command = ["fit", "--config", str(tmp_path / "config.yaml")]
    cli = cli_class(demos.BoringModel, demos.BoringDataModule, args=command, save_config_callback=None)
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, framework.ModelCheckpoint))
    assert (callback.save_last, callback._options.blocking, callback._options.on_error) == ("link", True, "warn")
    assert listing(tmp_path / "checkpoints") == ["last.ckpt", "step=2.ckpt"]


def test_loggers_that_scan_find_every_checkpoint(framework: Framework, tmp_path: Path) -> None:
    """What the W&B and MLflow loggers scan the callback for is there, on disk and whole, whenever they are told."""
    scan = importlib.import_module(f"{framework.name}.loggers.utilities")._scan_checkpoints
    logged: dict[str, float] = {}
    scores: list[Any] = []

    class Scanning(framework.pl.loggers.CSVLogger):  # type: ignore[misc,name-defined]
        """Do as those loggers do."""

        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            """Scan, and look at each file."""
            for time, path, score, _tag in scan(checkpoint_callback, logged):
                assert verify(path) == []
                logged[path] = time
                scores.append(score)

    callback = framework.ModelCheckpoint(
        dirpath=tmp_path / "c", monitor="val_loss", save_top_k=2, save_last=True, blocking=True, filename="{step}"
    )
    fit(framework, callback, epochs=4, logger=Scanning(tmp_path / "logs"))
    assert {Path(path).name for path in logged} >= set(listing(tmp_path / "c"))
    assert any(score is not None and abs(float(score) - 0.98) < 1e-6 for score in scores)
