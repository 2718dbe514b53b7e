"""The writer's own order, without a disk: in the shipped store in memory every step fails, and the power is cut."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch
from invariants import whole_checkpoints

from safepoint import SaveError, keep
from safepoint.catalog import Catalog
from safepoint.ledger import Ledger
from safepoint.pipeline import Options, Pipeline, Snapshot
from safepoint.randomness import rng_state
from safepoint.run import Run
from safepoint.stores.memory import MemoryStore
from safepoint.writer import Names

POLICY = keep.latest(1) | keep.best("loss", 1)
LOSSES = (3.0, 1.0, 2.0, 4.0)
FAULTS = {
    "EIO once": (errno.EIO, 1),
    "ENOSPC once": (errno.ENOSPC, 1),
    "EIO from then on": (errno.EIO, 10_000),
    "EROFS from then on": (errno.EROFS, 10_000),
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writer try again at once."""
    monkeypatch.setattr("safepoint.writer.RETRY_AFTER_S", (0.0,) * 3)


def failing_store(at: int, fault: str) -> MemoryStore:
    """Return a store whose step ``at`` fails, and perhaps each one behind it."""
    store = MemoryStore()
    code, times = FAULTS[fault]
    store.failures_at = {step: OSError(code, os.strerror(code)) for step in range(at, at + times)}
    return store


def live(store: MemoryStore, directory: Path) -> tuple[dict[str, float], list[SaveError]]:
    """Save four times, the last one also as ``last``; return what was acknowledged, and the errors that were told.

    The run goes on with what is in ``directory``, which is what ``store`` held before.
    """
    run = Run(Pipeline(directory, Options(), store))
    catalog = Catalog.of(directory)
    newest = catalog.latest()
    if newest is not None:
        gone = tuple(fate for fate in catalog.history(newest.run) if not fate.kept)
        run.adopt(newest.run, Ledger(records=catalog.written_by(newest.run), removed=gone))
    acknowledged: dict[str, float] = {}
    errors: list[SaveError] = []
    first = 1 if newest is None else newest.step + 1
    for step, loss in enumerate(LOSSES, first):
        snapshot = Snapshot(step, 0, (step, 0, 0), {"loss": loss}, ("test",))
        record = run.candidate(snapshot, f"{step}.ckpt")
        state = {"model": {"weight": torch.full((4,), float(step))}, "safepoint": {"rng": rng_state()}}
        proposed = run.ledger.propose(record, POLICY)
        run.save(state, snapshot, Names(f"{step}.ckpt", links=("last.ckpt",)), proposed)
        settled = run.wait()
        errors += settled.errors
        acknowledged |= {name: record.time for names in settled.durable for name in names.all}
    run.close()
    return acknowledged, errors


def put(store: MemoryStore, directory: Path) -> Path:
    """Make ``directory`` hold what ``store`` does."""
    shutil.rmtree(directory)
    directory.mkdir()
    for name, data in store.files.items():
        (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_at_any_step_in_memory_costs_no_checkpoint(tmp_path: Path, fault: str) -> None:
    """Whichever step fails: what was acknowledged is there, an error tells of the rest, and later saves mend it."""
    untouched = MemoryStore()
    live(untouched, tmp_path)
    for at in itertools.count():
        put(MemoryStore(), tmp_path)
        store = failing_store(at, fault)
        acknowledged, errors = live(store, tmp_path)
        whole_checkpoints(put(store, tmp_path), acknowledged)
        assert errors or store.files.keys() == untouched.files.keys(), store.log[at]
        assert not errors or fault != "EIO once", store.log[at]
        if len(store.log) <= at:
            return
        store.failures_at.clear()
        again, errors = live(store, tmp_path)
        assert errors == []
        whole_checkpoints(put(store, tmp_path), acknowledged | again)


def test_power_cut_after_any_step_in_memory_loses_nothing_that_was_told(tmp_path: Path) -> None:
    """Whenever the power fails, what was acknowledged is there, and another run goes on with it."""
    for at in itertools.count():
        put(MemoryStore(), tmp_path)
        store = failing_store(at, "EROFS from then on")
        acknowledged, _ = live(store, tmp_path)
        store.power_cut()
        whole_checkpoints(put(store, tmp_path), acknowledged)
        if len(store.log) <= at:
            return
        store.failures_at.clear()
        again, errors = live(store, tmp_path)
        assert errors == []
        store.power_cut()
        whole_checkpoints(put(store, tmp_path), acknowledged | again)
