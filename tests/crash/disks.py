"""Disks on which a run is watched, fails or is killed at a chosen step of the commit protocol.

What they do is done by a real file system. Only fsync is left out: neither an error nor a kill takes away what the
kernel holds, and ``power`` builds for itself what a power cut would leave.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EOPNOTSUPP, EPERM
from functools import partial
from typing import Any

import pytest

from safepoint.stores import Chunk
from safepoint.stores.direct import Share
from safepoint.stores.disk import Disk
from safepoint.stores.local import LocalStore, clean

STEPS = (
    "make_directory",
    "create",
    "create_unnamed",
    "reserve",
    "write",
    "sync",
    "link",
    "symlink",
    "rename",
    "unlink",
    "sync_directory",
)
SLAB_BYTES = 32768
"""So small that the checkpoints of a test are written in several pieces."""
MEDIA = ("unnamed", "named", "no links")
"""File systems that take files without names, those that do not, and those that have no links either."""


class SteppedDisk(Disk):
    """Announce every step by its name and arguments, ``before`` it is done and ``after``, with what it returned.

    Each chunk of a write is a step of its own, "chunk", within that.
    """

    def __init__(self, medium: str = "unnamed") -> None:
        self.medium = medium

    def before(self, step: str, *arguments: Any) -> None:
        """Look at a step that is about to be done, and raise what it is to fail with."""

    def after(self, step: str, result: Any, *arguments: Any) -> None:
        """Look at a step that was done."""

    def do(self, step: str, *arguments: Any) -> Any:
        """Do a step."""
        if step == "create_unnamed" and self.medium != "unnamed":
            raise OSError(EOPNOTSUPP, os.strerror(EOPNOTSUPP))
        if step == "link" and self.medium == "no links":
            raise OSError(EPERM, os.strerror(EPERM))
        if step == "sync":
            return os.fstat(*arguments)
        if step == "sync_directory":
            return os.stat(*arguments)
        return getattr(super(), step)(*arguments)

    def write(self, descriptor: int, chunks: Iterable[Chunk], share: Share) -> int:
        """Announce the write, and each of its chunks."""

        def announced() -> Iterator[Chunk]:
            for chunk in chunks:
                self.before("chunk", descriptor, chunk)
                yield chunk
                self.after("chunk", None, descriptor, chunk)

        self.before("write", descriptor)
        written_bytes = super().write(descriptor, announced(), share)
        self.after("write", written_bytes, descriptor)
        return written_bytes


def _announced(step: str) -> Callable[..., Any]:
    def do(self: SteppedDisk, *arguments: Any) -> Any:
        self.before(step, *arguments)
        result = self.do(step, *arguments)
        self.after(step, result, *arguments)
        return result

    return do


for _step in STEPS:
    if _step != "write":
        setattr(SteppedDisk, _step, _announced(_step))


class CountedDisk(SteppedDisk):
    """Strike at step ``at`` of all, "chunk" included, before it is done; ``steps`` lists those there were."""

    def __init__(self, at: int, strike: Callable[[int], None], medium: str = "unnamed") -> None:
        super().__init__(medium)
        self.at = at
        self.strike = strike
        self.steps: list[str] = []

    def before(self, step: str, *arguments: Any) -> None:
        """Count, and strike when it is time."""
        self.steps.append(step)
        if len(self.steps) > self.at:
            self.strike(len(self.steps) - 1 - self.at)


def fail(code: int, *, lasting: bool) -> Callable[[int], None]:
    """Return a strike that raises the error ``code``, at its step only or, if ``lasting``, at each from there on."""

    def strike(late: int) -> None:
        if lasting or late == 0:
            raise OSError(code, os.strerror(code))

    return strike


def kill(_: int) -> None:
    """Kill this process, as nothing can catch."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def using(disk: Disk) -> Iterator[None]:
    """Let every run save on ``disk``, in small pieces, and try again without a wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safepoint.pipeline.LocalStore", partial(LocalStore, disk=disk))
        patch.setattr("safepoint.run.clean", partial(clean, disk=disk))
        patch.setattr("safepoint.writer.RETRY_AFTER_S", (0.0,) * 3)
        patch.setattr("safepoint.sealing.SLAB_BYTES", SLAB_BYTES)
        yield
