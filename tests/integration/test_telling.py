"""What a user gets to see of the saves: the bar while the end is awaited, log lines, and the loggers' figures."""

from __future__ import annotations

import importlib
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import OLD_TREESPEC, Framework, fit

from safepoint import Checkpointer, keep, when

SLOW = """
import sys, time, torch
from safepoint import Checkpointer, keep, when
from safepoint.stores.local import LocalStore
write = LocalStore.write
def slow(store, name, chunks, size_bytes, **options):
    def late():
        for chunk in chunks:
            yield chunk
            time.sleep(1.5)
    return write(store, name, late(), size_bytes, **options)
LocalStore.write = slow
state = {"a": {"x": torch.ones(1000)}}
with Checkpointer(sys.argv[1], state=state, save=when.train_end(), keep=keep.all()) as saver:
    saver.step()
print("done")
"""


def _on_a_terminal(directory: Path) -> str:
    """Run ``SLOW`` with a terminal for standard error, and return what it shows there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SLOW, str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.communicate()[0] == b"done\n"
    return shown.decode()


def test_close_shows_what_it_waits_for_on_a_terminal(tmp_path: Path) -> None:
    """A bar with bytes and speed appears when the end takes more than a second."""
    shown = _on_a_terminal(tmp_path)
    assert "making checkpoints durable" in shown
    assert "kB" in shown


def test_close_shows_nothing_where_there_is_no_terminal(tmp_path: Path) -> None:
    """A log file gets no bar."""
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_checkpointer_logs_a_line_for_each_durable_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The logger ``safepoint`` gets at level INFO what each save cost."""
    state = {"a": {"x": torch.ones(10)}}
    with (
        caplog.at_level(logging.INFO, "safepoint"),
        Checkpointer(tmp_path, state=state, save=when.every(steps=1), keep=keep.all()) as saver,
    ):
        saver.step()
        saver.step()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" is durable: ")[0] for line in lines] == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"]


@OLD_TREESPEC
def test_model_checkpoint_gives_its_costs_to_the_loggers(framework: Framework, tmp_path: Path) -> None:
    """With ``log_stats=True`` each logger gets every figure of each save, at the save's step."""
    seen: list[tuple[int, dict[str, float]]] = []

    class Log(importlib.import_module(f"{framework.name}.loggers").CSVLogger):  # type: ignore[misc, name-defined]
        """Keep what is logged of checkpoints."""

        def log_metrics(self, metrics: dict[str, float], step: Any = None) -> None:
            if any(name.startswith("checkpoint/") for name in metrics):
                seen.append((step, metrics))

    callback = framework.ModelCheckpoint(dirpath=tmp_path / "ckpts", save_top_k=-1, log_stats=True)
    fit(framework, callback, epochs=2, logger=Log(tmp_path))
    assert [step for step, _ in seen] == [2, 4]
    assert all(figures["checkpoint/committed_s"] > figures["checkpoint/staged_s"] > 0 for _, figures in seen)
    files = sorted((tmp_path / "ckpts").iterdir())
    assert [int(figures["checkpoint/size_bytes"]) for _, figures in seen] == [path.stat().st_size for path in files]
