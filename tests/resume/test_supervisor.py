"""A supervisor kills a training 25 times at random moments, and starts it again: it ends as if undisturbed."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from invariants import whole_checkpoints
from lives import Forker, curve, differences, entries

from safepoint.catalog import Catalog

SCRIPT = Path(__file__).parent / "scripts" / "supervised.py"
KILLS = 25
EPOCHS, EVERY, STEPS, PAUSE_S = 6, 5, 300, 0.004
"""What the script says."""

PREEMPTED = 128 + signal.SIGTERM
MOST_REPEATED = {True: EVERY, False: 3 * EVERY}
"""How many steps a kill may cost, by ``blocking``: those since the newest durable checkpoint. A save that is not
blocking waits for one of two images, so that two checkpoints at most are on their way while the third is due."""
MOST_STEPS = 2 * STEPS // KILLS
RESERVE = 30
"""So many steps a kill leaves to do at least, lest it comes when all is done."""
TIMEOUT_S = 120


class Starter(Protocol):
    """Starts the script, one process at a time."""

    def start(self, call: str, **arguments: object) -> int:
        """Return the number of the process, which leads a group."""

    def wait(self) -> int:
        """Return how it has ended."""


class Starts:
    """Start a Python of its own each time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes]

    def start(self, call: str, **arguments: object) -> int:
        """Begin the script."""
        command = [sys.executable, str(SCRIPT), *map(str, arguments.values())]
        self._process = subprocess.Popen(command, start_new_session=True)
        return self._process.pid

    def wait(self) -> int:
        """Wait for its end."""
        return self._process.wait()


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    """Start trainings without waiting for torch."""
    forker = Forker()
    yield forker
    forker.end()


Send = Callable[[int, int], None]
"""Sends a signal: ``os.kill`` or ``os.killpg``."""


class Supervisor:
    """Start a training again and again, kill it, and look at what each kill has left and cost."""

    def __init__(self, starter: Starter, directory: Path, *, workers: int = 0, blocking: bool = True) -> None:
        self._starter = starter
        self._directory = directory
        self._arguments = {"directory": directory, "workers": workers, "blocking": int(blocking)}
        self._blocking = blocking
        self._logged = 0
        self.repeated = 0
        self.start_s = 0.0
        directory.mkdir()

    def live(self) -> None:
        """Let it come to its end; from how long it took to begin follows when kills are drawn."""
        begun_s = time.monotonic()
        self._start()
        self._await(1)
        self.start_s = time.monotonic() - begun_s
        assert self._starter.wait() == 0
        assert self._done()[-1] == STEPS

    def kill(self, drawn: random.Random, number: int, send: Send, *, trains: bool) -> int:
        """Start it, and end it at a moment, soon after the start or once it ``trains``; return how it has ended."""
        before = self._newest()
        pid = self._start()
        left = STEPS - RESERVE - max(before, self._last())
        steps, longest_s = 0, self.start_s
        if trains:
            steps, longest_s = min(drawn.randint(1, MOST_STEPS), left), 2 * PAUSE_S
        self._await(steps)
        time.sleep(min(drawn.uniform(0, longest_s), PAUSE_S * max(left, 0)))
        send(pid, number)
        code = self._starter.wait()
        whole_checkpoints(self._directory / "run")
        done, durable = self._done(), self._newest()
        assert done == list(range(before + 1, before + 1 + len(done))), "it goes on where the newest checkpoint is"
        repeated = (done[-1] if done else before) - durable
        assert 0 <= repeated <= (0 if code == PREEMPTED else MOST_REPEATED[self._blocking])
        self.repeated += repeated
        return code

    def outcome(self) -> Any:
        """Return the curve and the final state."""
        return {"curve": curve(self._directory / "log"), **torch.load(self._directory / "final", weights_only=True)}

    def _start(self) -> int:
        self._logged = len(entries(self._directory / "log"))
        return self._starter.start("supervised:main", **self._arguments)

    def _done(self) -> list[int]:
        """Return the steps of this life."""
        return [int(step) for step, _ in entries(self._directory / "log")[self._logged :]]

    def _last(self) -> int:
        """Return the last step that was logged."""
        return max((int(step) for step, _ in entries(self._directory / "log")), default=0)

    def _await(self, steps: int) -> None:
        """Wait until it has made so many."""
        ends_s = time.monotonic() + TIMEOUT_S
        while len(self._done()) < steps:
            assert time.monotonic() < ends_s, "it makes no steps"
            time.sleep(PAUSE_S / 2)

    def _newest(self) -> int:
        """Return the step of the newest checkpoint, 0 if there is none."""
        run = self._directory / "run"
        newest = Catalog.of(run).latest() if run.exists() else None
        return 0 if newest is None else newest.step


def supervised(
    starter: Starter, ground: Path, *, workers: int = 0, blocking: bool = True, whole: bool = False, kills: int = KILLS
) -> None:
    """Kill it again and again, ``whole``: as a group, and compare it with what nobody has killed."""
    seed = random.randrange(10**9)
    undisturbed = Supervisor(starter, ground / "undisturbed", workers=workers)
    undisturbed.live()
    killed = Supervisor(starter, ground / "killed", workers=workers, blocking=blocking)
    killed.start_s = undisturbed.start_s
    drawn = random.Random(seed)
    ways = list(itertools.product([signal.SIGKILL, signal.SIGTERM], [True, False])) * KILLS  # each as often, in turn
    ends: list[int] = []
    while len(ends) < kills:
        number, trains = ways.pop()
        send = send_to_group if whole or number == signal.SIGKILL else os.kill
        if code := killed.kill(drawn, number, send, trains=trains):  # else it had come to its end already
            ends.append(code)
    told = f"seed {seed}: {ends}, {killed.repeated} steps repeated"
    assert {-signal.SIGKILL, PREEMPTED} <= set(ends) <= {-signal.SIGKILL, -signal.SIGTERM, PREEMPTED}, told
    killed.live()
    assert differences(killed.outcome(), undisturbed.outcome()) == [], told
    assert len(entries(ground / "killed" / "log")) == STEPS + killed.repeated


def send_to_group(pid: int, number: int) -> None:
    """Send a signal to a process and its workers, once it leads a group."""
    while os.getpgid(pid) != pid:
        time.sleep(0.001)
    os.killpg(pid, number)


@pytest.mark.parametrize(("workers", "blocking"), [(0, True), (0, False), (2, True)])
def test_killed_25_times(forker: Forker, tmp_path: Path, workers: int, *, blocking: bool) -> None:
    """SIGKILL and SIGTERM mixed."""
    supervised(forker, tmp_path, workers=workers, blocking=blocking)


def test_the_whole_group_is_told(forker: Forker, tmp_path: Path) -> None:
    """The workers of the data loader get SIGTERM, too."""
    supervised(forker, tmp_path, workers=2, whole=True, kills=10)


@pytest.mark.torture
@pytest.mark.parametrize("workers", [0, 2])
def test_started_25_times(tmp_path: Path, workers: int) -> None:
    """A Python of its own each time."""
    supervised(Starts(), tmp_path, workers=workers)
