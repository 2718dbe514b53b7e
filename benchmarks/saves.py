"""What a save costs the training, and how long it takes to be durable: figures 1 to 4 and 8, with every peer.

One process, one training, everything interleaved. A window is a save and the steps after it until all that the save
does in the background has ended; what it adds to the training is its wall time less as many steps without a save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from contender import Contender
from estimates import Samples, estimate, least, paired, values
from harness import Entry, Figures, Measured, interleave
from limits import Limits
from ours import MODES, Safepoint
from peers import PEERS
from report import ABSENT, Report, Table, Target, at_least, at_most, median, spread
from states import Training

_GIB = 2**30
_BASELINE_STEPS = 8
_LEAST_STEPS = 2
LIGHTNING = "Lightning ModelCheckpoint"


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of the state, and in which rounds which peers take part: every round, or every so many."""

    size_bytes: int
    rounds: int
    peers: Mapping[str, int]
    max_images: int = 2
    width: int = 2048


def run(plan: Plan, directory: Path) -> Report:
    """Measure everything and return the report."""
    training = Training(plan.size_bytes, width=plan.width)
    limits = Limits(list(training.tensors()), directory)
    ours = {f"Safepoint, {mode}": Safepoint(training, directory / mode, mode, plan.max_images) for mode in MODES}
    entries = {
        "no save": Entry(partial(baseline, training)),
        "copy": Entry(limits.copy),
        "write": Entry(_cleaned(limits.write, limits.clean)),
        "hash": Entry(limits.hash),
    }
    for name, contender in ours.items():
        contender.check()
        entries[name] = Entry(partial(window, training, contender))
        entries[f"{name}, alone"] = Entry(partial(alone, training, contender))
    opened: list[Contender] = list(ours.values())
    entries |= {
        name: Entry(_Peer(name, training, directory, opened), every, may_fail=True)
        for name, every in plan.peers.items()
    }
    try:
        measured = interleave(entries, plan.rounds)
    finally:
        for contender in opened:
            contender.close()
    return _report(measured, training.size_bytes, plan)


class _Peer:
    """A peer's window; the peer is opened at its first use, so that one that cannot be is listed with the reason."""

    def __init__(self, name: str, training: Training, directory: Path, opened: list[Contender]) -> None:
        self._name, self._training, self._directory, self._opened = name, training, directory, opened
        self._contender: Contender | None = None

    def __call__(self) -> Figures:
        if self._contender is None:
            self._contender = PEERS[self._name](self._training, self._directory / "peer" / self._name)
            self._opened.append(self._contender)
        return window(self._training, self._contender)


def baseline(training: Training) -> Figures:
    """Return what a step takes without any save."""
    training.settle()
    began = time.perf_counter()
    for _ in range(_BASELINE_STEPS):
        training.step()
    training.settle()
    return {"step_s": (time.perf_counter() - began) / _BASELINE_STEPS}


def window(training: Training, contender: Contender) -> Figures:
    """Save, and train on until everything is durable; at least two steps."""
    training.settle()
    began = time.perf_counter()
    contender.save()
    waited_s, steps = 0.0, 0
    while steps < _LEAST_STEPS or not contender.is_done():
        waited_s += training.step(contender.guard)
        steps += 1
    contender.wait()
    training.settle()
    elapsed = time.perf_counter() - began
    return _sound(training, contender) | {"barrier_s": waited_s, "elapsed_s": elapsed, "steps": float(steps)}


def alone(training: Training, contender: Contender) -> Figures:
    """Save with no training beside it; ``cpu_s`` is what other threads have used of the CPUs since."""
    contender.save()
    process, thread = time.process_time(), time.thread_time()
    contender.wait()
    cpu_s = time.process_time() - process - (time.thread_time() - thread)
    return _sound(training, contender) | {"cpu_s": cpu_s}


def _sound(training: Training, contender: Contender) -> dict[str, float]:
    """Return the times, once it is sure that the whole state was written, and remove the files."""
    if contender.written_bytes() < training.size_bytes:
        raise AssertionError(f"{contender.written_bytes()} bytes were written of a state of {training.size_bytes}.")
    contender.clean()
    times = {"called_s": contender.called_s, "complete_s": contender.complete_s, "durable_s": contender.durable_s}
    fsync_s = contender.durable_s - contender.complete_s
    return times | {"fsync_s": fsync_s, "fsync_in_call_s": 0.0 if contender.in_background else fsync_s}


def _cleaned(measure: Callable[[], Figures], clean: Callable[[], None]) -> Callable[[], Figures]:
    def measure_and_clean() -> Figures:
        try:
            return measure()
        finally:
            clean()

    return measure_and_clean


def added(samples: Samples, name: str, size_bytes: int, *, as_shipped: bool = False) -> dict[int, float]:
    """Return the seconds that a save adds to training per GiB, by round.

    ``as_shipped``: less the fsync that was added to a peer that writes in the calling thread.
    """
    step_s = values(samples, "no save", "step_s")
    found = {}
    for number, row in samples.get(name, {}).items():
        extra_s = row["elapsed_s"] - row["steps"] * step_s[number] - (row["fsync_in_call_s"] if as_shipped else 0.0)
        found[number] = extra_s * _GIB / size_bytes
    return found


def _stall(samples: Samples, name: str) -> dict[int, float]:
    return {number: row["called_s"] + row["barrier_s"] for number, row in samples.get(name, {}).items()}


def _report(measured: Measured, size_bytes: int, plan: Plan) -> Report:
    samples, size = measured.samples, f"{size_bytes / _GIB:.2f} GiB"
    report = Report(f"Saves of {size}", plan.rounds, measured.load, failures=measured.failures)
    copy_s = least(values(samples, "copy", "torch_s"), values(samples, "copy", "memmove_s"))
    for mode in MODES:
        report.targets += _targets(samples, mode, copy_s, size_bytes)
    report.tables = [_limits_table(samples, size_bytes), _peers_table(samples, copy_s, size_bytes, plan)]
    return report


def _targets(samples: Samples, mode: str, copy_s: Mapping[int, float], size_bytes: int) -> list[Target]:
    name, gib = f"Safepoint, {mode}", size_bytes / _GIB
    ours = added(samples, name, size_bytes)
    by_itself = {figure: values(samples, f"{name}, alone", figure) for figure in ("called_s", "durable_s", "cpu_s")}
    targets = _stall_targets(samples, mode, copy_s, gib)
    targets.append(at_most(f"training time added per save, {mode}", 0.3, "s/GiB", median(ours)))
    targets += _peer_targets(samples, mode, ours, size_bytes)
    write_s = values(samples, "write", "seconds")
    durable = estimate(paired(by_itself["durable_s"], write_s))
    beside = f"ours {_brief(by_itself['durable_s'])} s, raw write {_brief(write_s)} s"
    targets.append(at_most(f"time to durable, {mode}", 1.25, "x a raw O_DIRECT write + fsync", durable, beside))
    hash_s = values(samples, "hash", "cpu_s")
    rest = estimate([(cpu_s - hash_s[number]) / gib for number, cpu_s in by_itself["cpu_s"].items()])
    beside = f"hashing {_brief(hash_s)} CPU-s"
    targets.append(at_most(f"background CPU beside hashing, {mode}", 0.1, "CPU-s/GiB", rest, beside))
    return targets


def _stall_targets(samples: Samples, mode: str, copy_s: Mapping[int, float], gib: float) -> list[Target]:
    name, unit = f"Safepoint, {mode}", "x a warm memcpy"
    if mode != "copy":
        stall_s = _stall(samples, name)
        extra = {number: value * gib for number, value in added(samples, name, round(gib * _GIB)).items()}
        beside = f"ours {_brief(stall_s)} s, memcpy {_brief(copy_s)} s"
        return [
            at_most(f"stall, {mode}: save() and barrier", 0.3, unit, estimate(paired(stall_s, copy_s)), beside),
            at_most(f"stall, {mode}: training time added", 0.3, unit, estimate(paired(extra, copy_s))),
        ]
    stall_s = values(samples, f"{name}, alone", "called_s")
    beside = f"ours {_brief(stall_s)} s, memcpy {_brief(copy_s)} s"
    targets = [at_most("stall per save, copy", 1.3, unit, estimate(paired(stall_s, copy_s)), beside)]
    if LIGHTNING in samples:
        theirs = values(samples, LIGHTNING, "called_s")
        beside = f"Lightning {_brief(theirs)} s"
        targets.append(
            at_least("stall of Lightning to that of copy", 20, "x", estimate(paired(theirs, stall_s)), beside)
        )
    return targets


def _peer_targets(samples: Samples, mode: str, ours: Mapping[int, float], size_bytes: int) -> list[Target]:
    targets = []
    for guarantee, as_shipped in (("with fsync", False), ("as shipped", True)):
        if best := _best_peer(samples, size_bytes, as_shipped=as_shipped):
            theirs = added(samples, best, size_bytes, as_shipped=as_shipped)
            figure = f"training time added, {mode}, less a third of the best peer's {guarantee}"
            beside = f"ours {_brief(ours)} s/GiB, {best} {_brief(theirs)} s/GiB"
            # A difference, since what a save adds can be less than the noise: a ratio to that would say nothing.
            less = estimate([ours[number] - theirs[number] / 3 for number in ours.keys() & theirs.keys()])
            targets.append(at_most(figure, 0, "s/GiB", less, beside))
    return targets


def _best_peer(samples: Samples, size_bytes: int, *, as_shipped: bool) -> str | None:
    """Return the peer that adds least."""
    medians = {
        name: median(added(samples, name, size_bytes, as_shipped=as_shipped)).median
        for name in PEERS
        if name in samples
    }
    return min(medians, key=lambda name: medians[name]) if medians else None


def _limits_table(samples: Samples, size_bytes: int) -> Table:
    rows = [
        [label, spread(median(values(samples, name, figure)), " s")]
        for label, name, figure in (
            ("warm memcpy, torch's copy_", "copy", "torch_s"),
            ("warm memcpy, memmove in one thread", "copy", "memmove_s"),
            ("raw O_DIRECT write + fsync", "write", "seconds"),
            ("CRC-32 and xxh3-128, CPU time", "hash", "cpu_s"),
            ("one training step without a save", "no save", "step_s"),
        )
    ]
    return Table(f"Limits, {size_bytes / _GIB:.2f} GiB", ["limit", "median (95% interval)"], rows)


def _peers_table(samples: Samples, copy_s: Mapping[int, float], size_bytes: int, plan: Plan) -> Table:
    rows: list[list[str]] = []
    ours = [f"Safepoint, {mode}" for mode in MODES]
    for name in (*ours, *(peer for peer in plan.peers if peer in samples)):
        rows += _rows(samples, name, copy_s, size_bytes, fsyncs=name in ours or name.startswith("dcp"))
    columns = [
        "",
        "rounds",
        "stall, s",
        "stall to memcpy",
        "until written, s",
        "until durable, s",
        "training time added, s/GiB",
    ]
    notes = [
        "Stall: time in the call and at the barrier before the next optimizer step. Everything while training goes on.",
        "A peer that does not fsync is shown as shipped, and with an fsync of its files and directories added.",
        "The fsync is in the call where the peer writes there, else in a thread behind it, whose cost is in both rows.",
        "Not all peers take part in every round: see the column.",
    ]
    return Table(f"While training, {size_bytes / _GIB:.2f} GiB", columns, rows, notes)


def _rows(
    samples: Samples, name: str, copy_s: Mapping[int, float], size_bytes: int, *, fsyncs: bool
) -> list[list[str]]:
    stall_s, durable = _stall(samples, name), spread(median(values(samples, name, "durable_s")))
    with_fsync = {number: seconds + samples[name][number]["fsync_in_call_s"] for number, seconds in stall_s.items()}
    label = name if fsyncs else f"{name} + fsync"
    rows = [_row(label, with_fsync, copy_s, (ABSENT, durable), added(samples, name, size_bytes))]
    if not fsyncs:
        written = spread(median(values(samples, name, "complete_s")))
        extra = added(samples, name, size_bytes, as_shipped=True)
        rows.insert(0, _row(f"{name} (not durable)", stall_s, copy_s, (written, "never"), extra))
    return rows


def _row(
    name: str,
    stall_s: Mapping[int, float],
    copy_s: Mapping[int, float],
    ends: tuple[str, str],
    extra: Mapping[int, float],
) -> list[str]:
    to_copy = estimate(paired(stall_s, copy_s))
    stall, added_s = spread(median(stall_s)), spread(median(extra), digits=2)
    return [name, str(len(stall_s)), stall, spread(to_copy, digits=1), *ends, added_s]


def _brief(row: Mapping[int, float]) -> str:
    return f"{median(row).median:.3f}"
