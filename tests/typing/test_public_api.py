"""The public API as a type checker sees it: mypy checks this file in strict mode, and pytest runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, assert_type

import pytest
import torch

import safepoint
from safepoint import Checkpointer, Progress, Record, keep, when
from safepoint.keep import PreservationPolicy
from safepoint.records import Metrics
from safepoint.when import SavePolicy


def test_policies_have_one_type_however_they_are_composed() -> None:
    """A composed policy is a policy of its kind, and can be composed again."""
    assert_type(when.every(steps=500), SavePolicy)
    assert_type(when.every(minutes=10), SavePolicy)
    assert_type(when.train_end(), SavePolicy)
    assert_type(when.preempted(30, signals=["SIGTERM"]), SavePolicy)
    assert_type(when.every(epochs=1) | when.train_end() | when.every(seconds=1.5), SavePolicy)
    assert_type(keep.best("val_loss", n=3, mode="min"), PreservationPolicy)
    assert_type(keep.latest(), PreservationPolicy)
    assert_type(keep.every(epochs=10), PreservationPolicy)
    assert_type(keep.all(), PreservationPolicy)
    assert_type(keep.best("val_loss") | keep.latest(2) | keep.every(steps=1000), PreservationPolicy)


def test_checkpointer_is_typed_from_start_to_end(tmp_path: Path) -> None:
    """A training loop of the README's kind needs no cast."""
    model = torch.nn.Linear(2, 1)
    with Checkpointer(
        tmp_path,
        state={"model": model, "extra": {"seen": 0}},
        save=when.every(steps=1) | when.train_end(),
        keep=keep.best("loss") | keep.latest(),
        filename="{epoch}-{step}",
        staging="copy",
        blocking=False,
        max_images=2,
        on_error="raise",
    ) as checkpointer:
        assert_type(checkpointer, Checkpointer)
        progress = checkpointer.restore()
        assert_type(progress, Progress)
        assert_type(progress.step, int)
        assert_type(progress.epoch, int)
        assert_type(progress.batch, int)
        assert_type(progress.metrics, Metrics)
        assert_type(progress.path, Path | None)
        checkpointer.step(loss=torch.tensor(0.5))
        checkpointer.epoch_end(loss=0.25)
        checkpointer.save()
        checkpointer.wait()
        assert_type(checkpointer.records(), tuple[Record, ...])
        assert_type(checkpointer.latest(), Record | None)
        assert_type(checkpointer.best("loss", mode="min"), Record | None)
        assert_type(checkpointer.directory, Path)
    assert progress == Progress()


def test_records_are_typed(tmp_path: Path) -> None:
    """Every field of a record has its type."""
    with Checkpointer(tmp_path, state={"a": {"b": 1}}, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.step(loss=0.5)
    (record,) = checkpointer.records()
    assert_type(record, Record)
    assert_type(record.path, Path)
    assert_type(record.step, int)
    assert_type(record.epoch, int)
    assert_type(record.metrics, Metrics)
    assert_type(record.time, float)
    assert_type(record.size_bytes, int)
    assert_type(record.reasons, tuple[str, ...])
    assert_type(record.pinned, bool)
    assert_type(safepoint.verify(record.path), list[str])
    assert_type(safepoint.verify(str(record.path)), list[str])
    assert_type(safepoint.load(record.path, map_location="cpu", mmap=False, weights_only=True, trust=()), Any)
    assert record.metrics == {"loss": 0.5}


def test_mistakes_are_seen_by_the_type_checker() -> None:
    """What is no mode is an error for mypy (an unused ``ignore`` would be one, too) as for the program."""
    mode: Literal["lowest"] = "lowest"
    with pytest.raises(safepoint.ConfigurationError, match="'lowest'") as caught:
        keep.best("loss", mode=mode)  # type: ignore[arg-type]
    assert_type(caught.value, safepoint.ConfigurationError)
