"""Every step of the commit protocol fails once, or from some moment on, in whole lives of a directory."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disks
import pytest
import scenarios
from invariants import temporaries, whole_checkpoints
from leaks import held, left_since
from scenarios import LIVES, LOOP, Life

from safepoint.stores.local import LocalStore

FAULTS: dict[str, Callable[[int], None]] = {
    "EIO once": disks.fail(errno.EIO, lasting=False),
    "ENOSPC once": disks.fail(errno.ENOSPC, lasting=False),
    "EIO from then on": disks.fail(errno.EIO, lasting=True),
    "EROFS from then on": disks.fail(errno.EROFS, lasting=True),
}
UNNOTICED = "EIO once"
"""The fault that passes when it is tried again: no error may come out."""
SAMPLES = 6


def lived(life: Life, directory: Path, disk: disks.CountedDisk) -> scenarios.Session:
    """Live through ``life`` on ``disk``, which is well again before the last save; nothing may be left open."""

    def heal() -> None:
        disk.strike = lambda _: None

    before = held()
    session = scenarios.Session(heal=heal)
    with disks.using(disk):
        life.live(directory, session)
    assert not left_since(before)
    return session


def names_of(life: Life, medium: str, directory: Path) -> tuple[list[Path], int]:
    """Live through ``life`` without a fault; return the names that it leaves, and how many steps it has."""
    disk = disks.CountedDisk(0, lambda _: None, medium)
    session = lived(life, directory, disk)
    assert session.errors == []
    found = whole_checkpoints(directory, session.acknowledged)
    return [path.relative_to(directory) for path in found], len(disk.steps)


def outlived(life: Life, medium: str, directory: Path, fault: str, at: int, expected: list[Path]) -> bool:
    """Live through ``life`` with a fault at step ``at``, and look at what it leaves; ``False``: it did not occur.

    What no error tells of makes no difference: the names are those that were ``expected`` without a fault.
    """
    disk = disks.CountedDisk(at, FAULTS[fault], medium)
    session = lived(life, directory, disk)
    where = f"{fault} at step {at}, {disk.steps[at : at + 1]}: {session.errors}"
    found = [path.relative_to(directory) for path in whole_checkpoints(directory, session.acknowledged)]
    assert temporaries(directory) == [], where
    assert session.errors or found == expected, where
    assert not session.errors or fault != UNNOTICED, where
    return len(disk.steps) > at


def outlives_all(life: Life, medium: str, fault: str, ground: Path) -> None:
    """Let step 0, 1, ... fail until there is none left."""
    expected, _ = names_of(life, medium, ground / "untouched")
    for at in itertools.count():
        if not outlived(life, medium, ground / str(at), fault, at, expected):
            return
        shutil.rmtree(ground / str(at))


@pytest.mark.parametrize("fault", ["EIO once", "ENOSPC once", "EROFS from then on"])
def test_fault_at_any_step_of_a_loop_costs_no_checkpoint(ground: Path, fault: str) -> None:
    """Whichever step fails: nothing is lost or left behind, nothing stays open, and what passes by itself is unseen."""
    outlives_all(LOOP, "unnamed", fault, ground)


@pytest.mark.parametrize("medium", disks.MEDIA)
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_fault_at_some_step_of_any_life_costs_no_checkpoint(ground: Path, life: Life, medium: str) -> None:
    """The same for the drop-in, for replaced checkpoints, and on poorer file systems, at steps chosen by chance."""
    expected, steps = names_of(life, medium, ground / "untouched")
    for sample in range(SAMPLES):
        fault, at = random.choice([*FAULTS]), random.randrange(steps)
        outlived(life, medium, ground / str(sample), fault, at, expected)


@pytest.mark.torture
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("medium", disks.MEDIA)
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_fault_at_any_step_of_any_life_costs_no_checkpoint(ground: Path, life: Life, medium: str, fault: str) -> None:
    """The same at every step."""
    outlives_all(life, medium, fault, ground)


def test_directory_made_where_its_name_cannot_be_made_durable_is_an_error(ground: Path) -> None:
    """Where we may make directories and not read, nobody can say that what is saved there will be there: no save is."""

    class Unreadable(disks.SteppedDisk):
        """Refuse to open what is above the new directory."""

        def before(self, step: str, *arguments: Any) -> None:
            if (step, *arguments) == ("sync_directory", ground):
                raise PermissionError

    store = LocalStore(ground / "new", Unreadable())
    for _ in range(2):
        with pytest.raises(PermissionError):
            store.write("a.ckpt", [b"data"], 4, replace=False)


@pytest.mark.parametrize(
    "give",
    [
        lambda store: store.write("b.ckpt", [b"data"], 4, replace=True),
        lambda store: store.link("a.ckpt", "b.ckpt"),
        lambda store: store.symlink("a.ckpt", "b.ckpt"),
    ],
    ids=["write", "link", "symlink"],
)
def test_new_name_that_cannot_be_made_durable_is_taken_back(ground: Path, give: Callable[[LocalStore], object]) -> None:
    """Also where another might have had it: whoever goes on without it may remove what a symbolic link points to."""

    class Failing(disks.SteppedDisk):
        """Make no name durable."""

        def before(self, step: str, *arguments: Any) -> None:
            if (step, *arguments) == ("sync_directory", ground):
                raise OSError(errno.EIO, "Input/output error")

    LocalStore(ground, disks.SteppedDisk()).write("a.ckpt", [b"data"], 4, replace=False)
    with pytest.raises(OSError, match="Input/output"):
        give(LocalStore(ground, Failing()))
    assert [path.name for path in ground.iterdir()] == ["a.ckpt"]
