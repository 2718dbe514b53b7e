"""A pin is written while every step fails, and while the power is cut: it says what it did, or what it was to say."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import disks
import files
import power
import pytest
from invariants import temporaries

from safepoint import pins
from safepoint.catalog import Catalog
from safepoint.pins import Pin
from safepoint.stores import Store
from safepoint.stores.disk import Disk
from safepoint.stores.local import LocalStore

NAME = "a.ckpt"
TIME = 1.5e9
SAYS = (False, True, False, True, False)
"""Whether the checkpoint is pinned before each of ``ACTS``, and after the last."""
ACTS: tuple[Callable[[Store], None], ...] = (
    lambda store: pins.put(store, NAME, Pin("run", 1, TIME)),
    lambda store: pins.put(store, NAME, Pin("run", 1, TIME, pinned=False)),
    lambda store: pins.put(store, NAME, Pin("run", 1, TIME)),
    lambda store: pins.drop(store, NAME),
)


def store_in(directory: Path, disk: Disk) -> LocalStore:
    """Return a store with a checkpoint that nobody has pinned."""
    files.write(directory.parent / "made.ckpt", files.manifest(time=TIME))
    data = (directory.parent / "made.ckpt").read_bytes()
    LocalStore(directory, disk).write(NAME, [data], len(data), replace=False)
    return LocalStore(directory, disk)


def is_pinned(directory: Path) -> bool:
    """Tell whether the checkpoint, which must be there, is pinned, as a catalog says."""
    (record,) = Catalog.of(directory).records
    return record.pinned


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("medium", disks.MEDIA)
def test_fault_at_any_step_of_a_pin_leaves_it_or_the_one_before(
    ground: Path, medium: str, code: int, *, lasting: bool
) -> None:
    """Of every act, each step fails; the next attempt succeeds, and nothing is left of the one that did not."""
    for number, act in enumerate(ACTS):
        for at in itertools.count():
            directory = ground / f"{number}-{at}" / "run"
            directory.parent.mkdir()
            store_in(directory, disks.SteppedDisk(medium))
            for earlier in ACTS[:number]:
                earlier(LocalStore(directory, disks.SteppedDisk(medium)))
            failing = disks.CountedDisk(at, disks.fail(code, lasting=lasting), medium)
            try:
                act(LocalStore(directory, failing))
            except OSError:
                assert is_pinned(directory) in SAYS[number : number + 2]
            else:
                assert is_pinned(directory) is SAYS[number + 1]
            act(LocalStore(directory, disks.SteppedDisk(medium)))
            assert is_pinned(directory) is SAYS[number + 1]
            assert temporaries(directory) == []
            if len(failing.steps) <= at:
                break
        shutil.rmtree(ground)
        ground.mkdir()


@pytest.mark.parametrize("medium", ["unnamed", "named"])
def test_power_cut_at_any_step_of_a_pin_leaves_it_or_the_one_before(ground: Path, medium: str) -> None:
    """What was told to be pinned is, and what was told not to be is not, whatever the disk keeps of the rest."""
    base = ground / "recorded"
    base.mkdir()
    disk = power.RecordingDisk(base, medium)
    store = store_in(base / "run", disk)
    for number, act in enumerate(ACTS):
        disk.told({"acts": number})
        act(store)
    disk.told({"acts": len(ACTS)})
    held, count = power.Disk(), 0
    for event in disk.events:
        event(held)
        if "acts" not in held.acknowledged:
            continue
        done = int(held.acknowledged["acts"])
        for fate in power.every(held):
            shutil.rmtree(ground / "cut", ignore_errors=True)
            power.materialised(power.after_cut(held, fate), ground / "cut")
            assert is_pinned(ground / "cut" / "run") in SAYS[done : done + 2]
            assert len(temporaries(ground / "cut")) <= 2
            count += 1
    assert count > len(ACTS)
