"""What a restore says of how the checkpoint fits: what matched, what did not, and what cannot be put back exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loop import Training, equal
from nets import make

from safepoint import reader
from safepoint.ledger import Ledger
from safepoint.pipeline import Options, Pipeline, Snapshot
from safepoint.randomness import rng_state
from safepoint.run import Run
from safepoint.writer import Names


def saved_inexact(directory: Path, state: dict[str, Any], inexact: dict[str, str]) -> Path:
    """Save ``state`` as at step 7 of a loop whose checkpoint says that it is ``inexact``."""
    run = Run(Pipeline(directory, Options(blocking=True)))
    snapshot = Snapshot(7, 1, (7, 1, 3), {}, ("requested",), inexact=inexact)
    run.ledger = Ledger()
    run.save({**state, "safepoint": {"rng": rng_state()}}, snapshot, Names("a.ckpt"), None)
    run.report(run.close())
    return directory / "a.ckpt"


def test_entry_that_was_left_out_stays_as_it_is(tmp_path: Path) -> None:
    """What a save had no time for is no mismatch: the live object stays, and a warning tells why."""
    before, live = Training(seed=1), Training(seed=2)
    live.advance()
    kept = live.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    why = "left out: the grace period was too short"
    path = saved_inexact(tmp_path, {"model": before.model.state_dict()}, {"optimizer": why})
    assert reader.read_manifest(path).inexact == {"optimizer": why}
    with (
        make(tmp_path, live.state) as checkpointer,
        pytest.warns(RuntimeWarning, match="(?s)optimizer.*the grace period was too short"),
    ):
        progress = checkpointer.restore()
    assert (progress.step, progress.epoch, progress.batch) == (7, 1, 3)
    assert equal(list(live.model.parameters()), list(before.model.parameters()))
    assert equal([kept], [live.optimizer.state_dict()["state"][0]["exp_avg"]])
