"""Putting a state back into the live objects, from a cold page cache: figure 7."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from contender import drop_cache, sync
from estimates import Samples, estimate, paired, values
from harness import Entry, Figures, Measured, interleave
from limits import Limits
from ours import NEVER
from report import Report, Table, Target, at_most, median, spread
from states import Training, flat

from safepoint import Checkpointer, keep

_OURS = "Safepoint restore(), verified"
_TORCH = "torch.load + load_state_dict"
_MAPPED = "torch.load(mmap=True), copied in place"
_LIMIT = "raw O_DIRECT read"


def run(size_bytes: int, rounds: int, every: int, width: int, directory: Path) -> Report:
    """Measure ours, torch's two ways and the raw read; torch takes part in every ``every``-th round."""
    training = Training(size_bytes, width=width)
    limits = Limits(list(training.tensors()), directory)
    limits.write()
    ours, theirs = directory / "ours", directory / "theirs.pt"
    with _checkpointer(training, ours) as saver:
        saver.save()
    torch.save(training.state(), theirs)
    for path in (ours, theirs):
        sync(path)
    entries = {
        _LIMIT: Entry(limits.read),
        _OURS: Entry(partial(_cold, ours, partial(restore, training, ours))),
        _TORCH: Entry(partial(_cold, theirs, partial(load, training, theirs)), every),
        _MAPPED: Entry(partial(_cold, theirs, partial(load_mapped, training, theirs)), every),
    }
    report = _report(interleave(entries, rounds), training.size_bytes, rounds)
    limits.clean()
    return report


def _checkpointer(training: Training, directory: Path) -> Checkpointer:
    state = {"model": training.model, "optimizer": training.optimizer}
    return Checkpointer(directory, state=state, save=NEVER, keep=keep.latest(1))


def restore(training: Training, directory: Path) -> Figures:
    """Restore ours in place, as a run does that starts again."""
    with _checkpointer(training, directory) as saver:
        began = time.perf_counter()
        if saver.restore().path is None:
            raise AssertionError("nothing was restored; the benchmark has lost its file.")
        return {"seconds": time.perf_counter() - began}


def load(training: Training, path: Path) -> Figures:
    """Load a file of ``torch.save``, unverified, and put it back."""
    own = training.optimizer.state_dict()
    began = time.perf_counter()
    state = torch.load(path)
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    elapsed = time.perf_counter() - began
    training.optimizer.load_state_dict(own)  # the next contender finds the memory that it has always had
    return {"seconds": elapsed}


def load_mapped(training: Training, path: Path) -> Figures:
    """Map a file of ``torch.save``, unverified, and copy it in place: the optimizer would only keep the mapping."""
    began = time.perf_counter()
    saved = flat(torch.load(path, mmap=True))
    with torch.no_grad():
        for name, tensor in training.flat().items():
            tensor.copy_(saved[name])
    return {"seconds": time.perf_counter() - began}


def _cold(path: Path, measure: Callable[[], Figures]) -> Figures:
    drop_cache(path)
    return measure()


def _report(measured: Measured, size_bytes: int, rounds: int) -> Report:
    size = f"{size_bytes / 2**30:.2f} GiB"
    report = Report(f"Restoring {size}", rounds, measured.load)
    samples = measured.samples
    read_s = values(samples, _LIMIT, "seconds")
    rows = [_row(samples, name) for name in samples]
    report.tables = [Table(f"Restoring {size}, page cache cold", ["", "rounds", "s", "to the raw read"], rows)]
    ours = values(samples, _OURS, "seconds")
    beside = f"ours {median(ours).median:.3f} s, raw read {median(read_s).median:.3f} s"
    report.targets = [
        at_most("restore in place, verified", 1.3, "x a raw O_DIRECT read", estimate(paired(ours, read_s)), beside),
        _faster(samples, _TORCH),
        _faster(samples, _MAPPED),
    ]
    return report


def _faster(samples: Samples, peer: str) -> Target:
    theirs = values(samples, peer, "seconds")
    ratio = estimate(paired(values(samples, _OURS, "seconds"), theirs))
    return at_most(f"restore in place, to {peer}", 1, "x", ratio, f"theirs {median(theirs).median:.3f} s")


def _row(samples: Samples, name: str) -> list[str]:
    seconds = values(samples, name, "seconds")
    ratio = estimate(paired(seconds, values(samples, _LIMIT, "seconds")))
    return [name, str(len(seconds)), spread(estimate(list(seconds.values()))), spread(ratio)]
