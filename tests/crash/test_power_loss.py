"""The power fails at any moment, on a disk that keeps as little as it may: see ``power``."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import disks
import power
import pytest
import scenarios
from invariants import temporaries, whole_checkpoints
from scenarios import LIVES, LOOP, Life

RUN = Path("made") / "run"
SAMPLES = 10
CHANCES = 150


def recorded(
    life: Life, ground: Path, medium: str, *, made_by_others: bool = False, failing_sync: int = -1
) -> list[power.Event]:
    """Live through ``life`` once; return what was done to the disk, and what was told in between."""
    base = ground / "recorded"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    disk = power.RecordingDisk(base, medium, failing_sync)
    if made_by_others:  # who do not care for its being durable
        for path in ((base / RUN).parent, base / RUN):
            disk.make_directory(path)
    session = scenarios.Session(announce=disk.told)
    with disks.using(disk):
        life.live(base / RUN, session)
    assert session.errors == []
    return disk.events


def cuts(
    events: list[power.Event], fates: Callable[[power.Disk], Iterable[power.Fate]]
) -> Iterator[tuple[int, power.Tree, dict[str, float]]]:
    """Yield what may be left by a cut after each event, with what had been told to be durable by then; each once."""
    disk, seen = power.Disk(), set[int]()
    for number, event in enumerate(events):
        event(disk)
        for fate in fates(disk):
            tree = power.after_cut(disk, fate)
            looks = hash((frozenset(tree.items()), frozenset(disk.acknowledged.items())))
            if looks not in seen:
                seen.add(looks)
                yield number, tree, disk.acknowledged


def survived(life: Life, ground: Path, tree: power.Tree, acknowledged: dict[str, float]) -> None:
    """Assert that after a cut all that was told is there, and that the next run begins with the newest."""
    base = ground / "cut"
    shutil.rmtree(base, ignore_errors=True)
    power.materialised(tree, base)
    directory = base / RUN
    whole_checkpoints(directory, acknowledged)
    newest = life.begin(directory)
    session = scenarios.Session()
    with disks.using(disks.SteppedDisk()):
        life.go_on(directory, session)
    assert session.errors == []
    assert session.resumed == [newest]
    whole_checkpoints(directory, acknowledged | session.acknowledged)
    assert temporaries(directory) == []


def survives(
    life: Life,
    ground: Path,
    events: list[power.Event],
    found: Iterable[tuple[int, power.Tree, dict[str, float]]],
) -> int:
    """Look at each of the states ``found``; return how many they are."""
    count = 0
    for number, tree, acknowledged in found:
        try:
            survived(life, ground, tree, acknowledged)
        except BaseException as error:
            error.add_note(f"cut after event {number} of {len(events)}: {sorted(map(str, tree))}")
            raise
        count += 1
    return count


@pytest.mark.parametrize(
    ("life", "medium"),
    [
        (LOOP, "named"),
        (scenarios.SUPERSEDED, "unnamed"),
        (scenarios.LIGHTNING, "unnamed"),
        (scenarios.LIGHTNING_LINK, "unnamed"),
    ],
    ids=str,
)
def test_power_cut_after_any_step_loses_nothing_that_was_told(ground: Path, life: Life, medium: str) -> None:
    """Whatever is not fsynced is there, or not, or half: what was told to be durable loads, and the run goes on."""
    events = recorded(life, ground, medium)
    assert survives(life, ground, events, cuts(events, power.every)) > len(events) // 4


def test_power_cut_loses_no_directory_that_somebody_else_has_just_made(ground: Path) -> None:
    """A job script's ``mkdir`` is not durable: the first save sees to it."""
    events = recorded(LOOP, ground, "unnamed", made_by_others=True)
    survives(LOOP, ground, events, cuts(events, power.every))


@pytest.mark.parametrize("failing_sync", range(5))
def test_power_cut_loses_nothing_after_a_failed_fsync(ground: Path, failing_sync: int) -> None:
    """A disk that has lost what it was to sync says so once: what is tried again is a new file."""
    events = recorded(LOOP, ground, "unnamed", failing_sync=failing_sync)
    survives(LOOP, ground, events, cuts(events, lambda _: (power.NOTHING, power.EVERYTHING)))


@pytest.mark.parametrize("medium", disks.MEDIA)
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_power_cut_at_some_step_loses_nothing_that_was_told(ground: Path, life: Life, medium: str) -> None:
    """The same on every kind of file system, with chance deciding when, and what has come to the disk."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    events = recorded(life, ground, medium)
    moments = sorted(random.Random(seed).choices(range(len(events)), k=SAMPLES))
    survives(life, ground, events, at_moments(events, moments, seed))


def at_moments(
    events: list[power.Event], moments: list[int], seed: int
) -> Iterator[tuple[int, power.Tree, dict[str, float]]]:
    """Yield what a cut may leave after each of the events ``moments``."""
    disk, done = power.Disk(), 0
    for moment in moments:
        for event in events[done : moment + 1]:
            event(disk)
        done = moment + 1
        seed += 1
        yield moment, power.after_cut(disk, power.by_chance(seed)), disk.acknowledged


@pytest.mark.torture
@pytest.mark.parametrize("medium", disks.MEDIA)
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_power_cut_in_every_way_loses_nothing_that_was_told(ground: Path, life: Life, medium: str) -> None:
    """The same after every step, in every way that names can be, and in many by chance that files can be."""
    seed = random.randrange(10**9)
    events = recorded(life, ground, medium)
    chances = [*map(power.by_chance, range(seed, seed + CHANCES))]
    found = cuts(events, lambda disk: (*power.every(disk), *chances))
    print(f"seed {seed}: {survives(life, ground, events, found)} states")
