"""Kill forked children of one process that has imported everything once: hundreds of kills in the time of a few starts.

What the children live through are the ``scenarios``; ``campaigns`` says when they die. No other thread may be there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import disks
import scenarios
from invariants import temporaries, whole_checkpoints
from scenarios import Life, Scenario

from safepoint.stores.disk import Disk


class Child:
    """A forked process that lives through a scenario; what it was told to be durable survives it, in a file."""

    def __init__(self, live: Scenario, directory: Path, disk: Disk, told: Path) -> None:
        assert threading.active_count() == 1
        told.write_bytes(b"")
        self._told = told
        self._begun, begins = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _live(live, directory, disk, told, begins)
        os.close(begins)

    def killed(self, after_s: float | None = None) -> bool:
        """Wait for the end; return whether it was SIGKILL. ``after_s``: send that, so long after life has begun."""
        with contextlib.closing(os.fdopen(self._begun, "rb")) as begun:
            begun.read(1)
        if after_s is not None:
            time.sleep(after_s)
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, -signal.SIGKILL}, f"the child ended with {code}"
        return code == -signal.SIGKILL

    @property
    def acknowledged(self) -> dict[str, float]:
        """What it was told to be durable before it died."""
        lines = self._told.read_text().splitlines()
        return json.loads(lines[-1]) if lines else {}


def _live(live: Scenario, directory: Path, disk: Disk, told: Path, begins: int) -> NoReturn:
    code = 1
    try:
        with told.open("a") as file, disks.using(disk), warnings.catch_warnings():
            warnings.simplefilter("ignore")

            def announce(acknowledged: dict[str, float]) -> None:
                file.write(json.dumps(acknowledged) + "\n")
                file.flush()

            os.write(begins, b"b")
            live(directory, scenarios.Session(announce))
        code = os.EX_OK
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def look(life: Life, directory: Path, acknowledged: dict[str, float], where: str) -> dict[str, float]:
    """Look at what a kill has left, and let another child go on; return all that is acknowledged then."""
    told = directory.with_suffix(".told")
    with _noted(where):
        whole_checkpoints(directory, acknowledged)
        assert len(temporaries(directory)) <= 1
        begin = life.begin(directory)

        def go_on(directory: Path, session: scenarios.Session) -> None:
            life.go_on(directory, session)
            assert session.resumed == [begin]
            assert session.errors == []

        child = Child(go_on, directory, disks.SteppedDisk(), told)
        assert not child.killed()
        acknowledged = acknowledged | child.acknowledged
        whole_checkpoints(directory, acknowledged)
        assert temporaries(directory) == []
    return acknowledged


@contextlib.contextmanager
def _noted(where: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(where)
        raise
