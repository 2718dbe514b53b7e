"""Safepoint as a contender, through its public interface, with a proof that what it wrote is the state."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, get_args

import torch
from contender import Contender
from states import Training

import safepoint
from safepoint import Checkpointer, keep, when
from safepoint.pipeline import Staging

MODES: tuple[Any, ...] = get_args(Staging)
NEVER = when.every(steps=10**9)
"""The benchmarks say themselves when to save."""


class Safepoint(Contender):
    """One ``Checkpointer`` for all saves, as a run has it."""

    fsyncs = True

    def __init__(self, training: Training, directory: Path, staging: Any, max_images: int = 2) -> None:
        super().__init__(directory)
        self._training = training
        self._checkpointer = Checkpointer(
            directory,
            state={"model": training.model, "optimizer": training.optimizer},
            save=NEVER,
            keep=keep.latest(1),
            staging=staging,
            max_images=max_images,
        )
        self._path = directory
        self._began = 0.0
        self._began_on_the_wall = 0.0

    def start(self, path: Path) -> Future[object] | None:
        """See ``Contender.start``; ours names the files itself, and is followed by ``is_done`` and ``wait``."""
        raise NotImplementedError

    def save(self) -> None:
        """Save, at a step of its own; return once staged or, with deferred staging, before that."""
        self._checkpointer.step()
        self._began, self._began_on_the_wall = time.perf_counter(), time.time()
        self._path = self._checkpointer.save()
        self.called_s = time.perf_counter() - self._began

    def is_done(self) -> bool:
        """Tell whether the file has its name, which it gets once it is on disk; ``wait`` waits for the entry too."""
        return self._path.exists()

    def wait(self) -> None:
        """Wait until it is durable."""
        idle = not self.is_done()
        self._checkpointer.wait()
        if idle:
            self.durable_s = time.perf_counter() - self._began
        else:  # training went on meanwhile: the name was given at the change time of the file
            self.durable_s = self._path.stat().st_ctime - self._began_on_the_wall
        self.complete_s = self.durable_s

    def check(self) -> None:
        """Save once, and raise unless the file verifies and holds the state to the last bit."""
        self.save()
        self.wait()
        if problems := safepoint.verify(self._path):
            raise AssertionError(f"Safepoint wrote a file that does not verify: {problems}")
        loaded = safepoint.load(self._path, mmap=True)
        expected = self._training.state()
        if not _equal(expected["model"], loaded["model"]) or not _equal(expected["optimizer"], loaded["optimizer"]):
            raise AssertionError("Safepoint wrote a state that is not the one it was given.")
        self.clean()

    def close(self) -> None:
        """Close the run."""
        self._checkpointer.close()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one.cpu(), other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
