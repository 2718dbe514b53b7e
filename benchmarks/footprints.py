"""The memory that saving takes above training: figure 6.

Each contender runs in a process of its own and saves three times; Safepoint with two images saves twice each time
without waiting, so that it uses both. Memory is that of the process and of its children, what they share counted once,
sampled every few milliseconds, or the high-water mark of the process if that is more. One run each: it hardly varies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from contender import Contender
from ours import MODES, Safepoint
from peers import PEERS
from processes import in_fresh_process, peak_bytes, tree_bytes
from report import Report, Table, Target
from states import Training

_SAMPLING_S = 0.02
_SAVES = 3
_IMAGES = (1, 2)
_LIMIT = 1.1


def run(size_bytes: int, peers: Sequence[str], width: int, directory: Path) -> Report:
    """Measure the footprint of ours and of ``peers``."""
    before = os.getloadavg()[0]
    names = [f"Safepoint, {mode}, {images}" for mode in MODES for images in _IMAGES]
    report = Report("Memory above training", 1, (before, before))
    rows = []
    for name in (*names, *peers):
        try:
            extra = in_fresh_process(footprint, name, size_bytes, directory, width)
        except Exception as error:
            if name in names:
                raise
            report.failures[name] = f"{type(error).__name__}: {error}"
            continue
        rows.append([_label(name), f"{extra:.2f}"])
        if name in names:
            images = int(name.rpartition(", ")[2])
            figure, ratio = f"peak memory above training, {_label(name)}", extra / images
            report.targets.append(
                Target(figure, "at most 1.1 x the state per image", f"{ratio:.3f} x", ratio <= _LIMIT)
            )
    report.load = (before, os.getloadavg()[0])
    size = f"{size_bytes / 2**30:.2f} GiB"
    report.tables = [Table(f"Peak memory above training, {size}", ["", "x the state"], rows)]
    return report


def _label(name: str) -> str:
    return f"{name} image{'s' * name.endswith('2')}" if name.startswith("Safepoint") else name


def footprint(name: str, size_bytes: int, directory: Path, width: int) -> float:
    """Return the peak memory that saving adds to the training in this process, as a multiple of the state."""
    training = Training(size_bytes, width=width)
    before = max(peak_bytes(), tree_bytes())
    at_once = int(name[-1]) if name.startswith("Safepoint") else 1
    with _sampled() as samples:
        contender = _open(name, training, directory / "footprint")
        for _ in range(_SAVES):
            for _ in range(at_once):
                contender.save()
            training.step(contender.guard)
            contender.wait()
        samples.append(tree_bytes())
        contender.close()
        contender.clean()
    return (max(*samples, peak_bytes()) - before) / training.size_bytes


def _open(name: str, training: Training, directory: Path) -> Contender:
    if not name.startswith("Safepoint"):
        return PEERS[name](training, directory)
    _, mode, images = name.split(", ")
    return Safepoint(training, directory, mode, int(images))


@contextmanager
def _sampled() -> Iterator[list[int]]:
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLING_S):
            samples.append(tree_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
