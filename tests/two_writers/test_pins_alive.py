"""Somebody pins a checkpoint of a run that is alive: every policy leaves it, whenever the pin comes."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from invariants import whole_checkpoints
from loop import Training
from other_process import Start
from pinned import command, pin

from safepoint import Checkpointer, keep, pins, when
from safepoint.catalog import Catalog
from safepoint.stores.disk import Disk


def names(directory: Path) -> list[str]:
    """Return the names of the checkpoints in ``directory``, all of which must be whole."""
    return [path.name for path in whole_checkpoints(directory)]


def saver(directory: Path, kept: int = 1) -> Checkpointer:
    """Return what saves when it is told to, and keeps the latest."""
    return Checkpointer(directory, state=Training().state, save=when.train_end(), keep=keep.latest(kept))


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return what lets an act happen once while the next checkpoint is written, after its bytes are on the disk."""

    def arrange(act: Callable[[], object]) -> None:
        sync, acts = Disk.sync, [act]

        def synced(disk: Disk, descriptor: int) -> None:
            sync(disk, descriptor)
            while acts:
                acts.pop()()

        monkeypatch.setattr(Disk, "sync", synced)

    return arrange


def test_pinned_checkpoint_of_a_living_run_stays_until_it_is_unpinned(tmp_path: Path, start: Start) -> None:
    """The job's policy leaves it from then on; unpinned, it goes with the next save, and its pin with it."""
    other = start(tmp_path)
    first = Path(other.ask("step"))
    assert "no policy removes it" in command("pin", first)
    for _ in range(3):
        other.ask("step")
    assert names(tmp_path) == [f"epoch=0-step={step}.ckpt" for step in (1, 3, 4)]
    assert Catalog.of(tmp_path).fates[first].reason == "pinned"
    command("unpin", first)
    other.ask("step")
    assert names(tmp_path) == [f"epoch=0-step={step}.ckpt" for step in (4, 5)]
    assert len(os.listdir(tmp_path)) == 2


def test_pinned_checkpoint_outlives_a_killed_run_and_the_one_that_goes_on(tmp_path: Path, start: Start) -> None:
    """Pinned while nobody looks, it counts for the process that goes on with the run, and for the next one."""
    other = start(tmp_path)
    other.ask("step")
    second = Path(other.ask("step"))
    other.kill()
    command("pin", second)
    for _ in range(2):
        with saver(tmp_path) as ours:
            ours.restore()
            for _ in range(3):
                ours.step()
                ours.save()
    assert names(tmp_path)[0] == second.name
    assert next(record for record in Catalog.of(tmp_path).records if record.pinned).path == second


def test_pin_travels_with_the_directory(tmp_path: Path, start: Start) -> None:
    """A copy of the directory, made by whatever copies files, has it, and the run that goes on there leaves it."""
    other = start(tmp_path / "here")
    first = Path(other.ask("step"))
    command("pin", first)
    other.ask("step")
    subprocess.run(["cp", "-r", tmp_path / "here", tmp_path / "there"], check=True)
    with saver(tmp_path / "there") as ours:
        ours.restore()
        ours.step()
        ours.save()
    assert first.name in names(tmp_path / "there")


def test_pin_in_the_last_moment_counts(
    tmp_path: Path, during: Callable[[Callable[[], object]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It comes when the plan is made and the next one is on its way: a last look finds it, and the ledger has it."""
    with saver(tmp_path) as ours, caplog.at_level(logging.INFO, "safepoint"):
        ours.step()
        first = ours.save()
        ours.wait()
        during(lambda: pin(first))
        for _ in range(2):
            ours.step()
            last = ours.save()
            ours.wait()
            assert names(tmp_path) == [first.name, last.name]
        assert "is kept: pinned" in ours.explain(first)
        pin(first, pinned=False)
        assert "goes with the next save: not the latest" in ours.explain(first)
        ours.step()
        ours.save()
    assert first.name not in names(tmp_path)
    assert caplog.text.count("was pinned since it was let go, and stays") == 1


def test_pin_that_is_lifted_counts_less_than_its_absence(tmp_path: Path) -> None:
    """What was saved as pinned goes once that is lifted, and stays if somebody thinks better of it in time."""
    with saver(tmp_path) as ours:
        ours.step()
        first = ours.save(pinned=True)
        ours.wait()
        pin(first, pinned=False)
        pin(first)
        ours.step()
        ours.save()
        ours.wait()
        assert first.name in names(tmp_path)
        pin(first, pinned=False)
        (tmp_path / pins.name_of(first.name)).unlink()
        ours.step()
        ours.save()
        ours.wait()
        assert first.name in names(tmp_path)
        pin(first, pinned=False)
        ours.step()
        ours.save()
    assert len(names(tmp_path)) == 1
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("how", ["as it was saved", "since"])
def test_save_of_the_same_step_leaves_a_pinned_one_its_name(tmp_path: Path, how: str) -> None:
    """The later one of a step usually takes the name of the earlier one; here it gets a version."""
    with saver(tmp_path) as ours:
        ours.step()
        first = ours.save(pinned=how == "as it was saved")
        ours.wait()
        if how == "since":
            pin(first)
        before = first.read_bytes()
        second = ours.save()
        ours.wait()
        third = ours.save()
    assert (first.name, second.name, third.name) == (
        "epoch=0-step=1.ckpt",
        "epoch=0-step=1-v1.ckpt",
        "epoch=0-step=1-v1.ckpt",
    )
    assert first.read_bytes() == before
    assert sorted(names(tmp_path)) == sorted([first.name, second.name])


def test_pin_in_the_moment_of_a_replacement_costs_no_save(
    tmp_path: Path, during: Callable[[Callable[[], object]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The name is in the new file's history already: the pinned one goes on under another, with its pin."""
    with saver(tmp_path) as ours:
        ours.step()
        first = ours.save()
        ours.wait()
        before = first.read_bytes()
        during(lambda: pin(first))
        assert ours.save() == first
        ours.wait()
    aside = tmp_path / "epoch=0-step=1-v1.ckpt"
    assert names(tmp_path) == [aside.name, first.name]
    assert aside.read_bytes() == before
    assert [record.path for record in Catalog.of(tmp_path).records if record.pinned] == [aside]
    assert "is called epoch=0-step=1-v1.ckpt from now on" in caplog.text


def test_pins_of_one_run_are_nothing_to_another(tmp_path: Path) -> None:
    """What another run saves later under the name that a pinned one had goes as its policy says."""
    with saver(tmp_path) as first:
        first.step()
        path = first.save()
        first.wait()
        pin(path)
    path.unlink()
    with saver(tmp_path) as second:
        for _ in range(2):
            second.step()
            second.save()
    assert names(tmp_path) == ["epoch=0-step=2.ckpt"]
