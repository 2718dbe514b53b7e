"""Saves of a state on a GPU: the stall of ``copy`` beside a copy to pinned memory, that of ``deferred`` in ms.

Written for a machine with CUDA; without one there is nothing to measure.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from estimates import estimate, paired, values
from harness import Entry, Figures, Measured, interleave
from ours import MODES, Safepoint
from report import Report, Table, at_most, median, spread
from saves import added, baseline, window
from states import Training

_RING_BYTES = 1 << 30


def run(size_bytes: int, rounds: int, width: int, directory: Path) -> Report:
    """Measure ours and the pinned copy, for a state of ``size_bytes`` on the current device."""
    training = Training(size_bytes, width=width, batch=4096, device="cuda")
    ring = torch.empty(min(_RING_BYTES, size_bytes), dtype=torch.uint8, pin_memory=True)
    ours = {mode: Safepoint(training, directory / mode, mode) for mode in MODES}
    entries = {"no save": Entry(partial(baseline, training)), "pinned": Entry(partial(_pinned, training, ring))}
    for mode, contender in ours.items():
        contender.check()
        entries[f"Safepoint, {mode}"] = Entry(partial(window, training, contender))
    try:
        measured = interleave(entries, rounds)
    finally:
        for contender in ours.values():
            contender.close()
    return _report(measured, training.size_bytes, rounds)


def _pinned(training: Training, ring: torch.Tensor) -> Figures:
    """Copy every tensor into pinned memory, around a ring if there is more."""
    training.settle()
    began, offset = time.perf_counter(), 0
    for tensor in training.tensors():
        flat = tensor.reshape(-1).view(torch.uint8)
        offset = offset if offset + flat.numel() <= ring.numel() else 0
        ring[offset : offset + flat.numel()].copy_(flat, non_blocking=True)
        offset += flat.numel()
    training.settle()
    return {"seconds": time.perf_counter() - began}


def _report(measured: Measured, size_bytes: int, rounds: int) -> Report:
    size, samples = f"{size_bytes / 2**30:.2f} GiB", measured.samples
    report = Report(f"Saves of {size} on {torch.cuda.get_device_name()}", rounds, measured.load)
    pinned_s = values(samples, "pinned", "seconds")
    rows = [["copy to pinned memory", spread(median(pinned_s)), "", ""]]
    for mode in MODES:
        name = f"Safepoint, {mode}"
        called_s = values(samples, name, "called_s")
        stall_s = {number: seconds + samples[name][number]["barrier_s"] for number, seconds in called_s.items()}
        extra = added(samples, name, size_bytes)
        rows.append([name, spread(median(called_s)), spread(median(stall_s)), spread(median(extra))])
        if mode == "copy":
            ratio = estimate(paired(called_s, pinned_s))
            report.targets.append(at_most("GPU: stall per save, copy", 1.1, "x a copy to pinned memory", ratio))
        else:
            stall_ms = estimate([seconds * 1e3 for seconds in stall_s.values()])
            report.targets.append(at_most(f"GPU: stall per save, {mode}", 5, "ms", stall_ms))
    columns = ["", "s in the call", "s in the call and at the barrier", "training time added, s/GiB"]
    report.tables = [Table(report.title, columns, rows)]
    return report
