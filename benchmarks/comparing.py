"""Comparing two checkpoints: ours beside what people do today, with the page cache warm.

Two files of one training, a step apart, in which everything has changed but the random state; and one with its copy, in
which nothing has. Ours tells the tensors apart by their digests; ``--values`` reads all of both, unless they are the
same. The peers load the same files, which are torch's, too. A command is timed as a process of its own, from start to
end; what stands below it without the start is done in one that is there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from contender import sync
from estimates import Samples, estimate, paired, values
from harness import Entry, Figures, Measured, interleave
from ours import NEVER
from report import Report, Table, Target, at_most, median, spread
from states import Training, flat

from safepoint import Checkpointer, formats, keep
from safepoint.comparison import compare
from safepoint.difference import everything

_DIFF = "safepoint diff"
_VALUES = "safepoint diff --values"
_COMPARE = "compare(), without the start"
_MEASURE = "compare(measures=True), without the start"
_EQUAL = "torch.load(mmap=True), torch.equal, without the start"
_NORMS = "torch.load(mmap=True), norm of each change, float32, without the start"
_FIGURES = "torch.load(mmap=True), the same figures, float64, without the start"
_SCRIPT = "torch.load(mmap=True), torch.equal, as a script"
_CMP = "cmp"
_CHANGED, _SAME = "all changed", "the same"
# Of files that differ, cmp and torch.equal stop at the first byte that does.
_OF_CHANGED = (_DIFF, _COMPARE, _VALUES, _MEASURE, _NORMS, _FIGURES)
_OF_SAME = (_DIFF, _COMPARE, _EQUAL, _SCRIPT, _CMP)
_RARELY = {f"{_FIGURES}, {_CHANGED}": 5}
"""What would take most of the time: every fifth round."""
_AT_ONCE_S = 1.0
_EQUAL_SCRIPT = """
import sys, torch
def flat(state):
    if isinstance(state, dict):
        return [tensor for inner in state.values() for tensor in flat(inner)]
    return [state] if isinstance(state, torch.Tensor) else []
a, b = (torch.load(path, mmap=True) for path in sys.argv[1:])
print(sum(not torch.equal(*pair) for pair in zip(flat(a), flat(b))))
"""


def run(size_bytes: int, rounds: int, width: int, directory: Path) -> Report:
    """Measure every contender on both pairs of files."""
    one, other, copy = _files(size_bytes, width, directory)
    differing, alike = _actions(one, other), _actions(one, copy)
    told = {f"{name}, {_CHANGED}": differing[name] for name in _OF_CHANGED}
    told |= {f"{name}, {_SAME}": alike[name] for name in _OF_SAME}
    entries = {name: Entry(partial(_timed, action), _RARELY.get(name, 1)) for name, action in told.items()}
    measured = interleave(entries, rounds)
    return _report(measured, one.stat().st_size, rounds)


def _files(size_bytes: int, width: int, directory: Path) -> tuple[Path, Path, Path]:
    """Write two checkpoints of a training, and a copy of the first."""
    training = Training(size_bytes, width=width)
    state = {"model": training.model, "optimizer": training.optimizer}
    with Checkpointer(directory / "run", state=state, save=NEVER, keep=keep.all()) as saver:
        paths = []
        for _ in range(2):
            training.step()
            saver.step()
            paths.append(saver.save())
    copy = Path(shutil.copy(paths[0], directory / "copy.ckpt"))
    sync(copy)
    return paths[0], paths[1], copy


def _actions(a: Path, b: Path) -> dict[str, Callable[[], object]]:
    command = [sys.executable, "-c", "from safepoint.cli import main; main()", "diff", str(a), str(b)]
    return {
        _DIFF: partial(_command, command),
        _COMPARE: partial(_compare, a, b, measures=False),
        _VALUES: partial(_command, [*command, "--values"]),
        _MEASURE: partial(_compare, a, b, measures=True),
        _EQUAL: partial(_equal, a, b),
        _NORMS: partial(_each, a, b, _norm),
        _FIGURES: partial(_each, a, b, _figures),
        _SCRIPT: partial(_command, [sys.executable, "-c", _EQUAL_SCRIPT, str(a), str(b)]),
        _CMP: partial(_command, ["cmp", "--quiet", str(a), str(b)]),
    }


def _timed(action: Callable[[], object]) -> Figures:
    began = time.perf_counter()
    action()
    return {"seconds": time.perf_counter() - began}


def _command(command: list[str]) -> None:
    """Run a command, whose output goes nowhere; 1 is what most answer if the files differ."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"{command[0]} has failed: {done.returncode}")


def _compare(a: Path, b: Path, *, measures: bool) -> object:
    return compare(formats.contents(a), formats.contents(b), everything, measures=measures)


def _equal(a: Path, b: Path) -> list[bool]:
    one, other = (flat(torch.load(path, mmap=True)) for path in (a, b))
    return [torch.equal(tensor, other[name]) for name, tensor in one.items()]


def _each(a: Path, b: Path, measure: Callable[[torch.Tensor, torch.Tensor], object]) -> list[object]:
    one, other = (flat(torch.load(path, mmap=True)) for path in (a, b))
    return [measure(tensor, other[name]) for name, tensor in one.items()]


def _norm(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the relative change of a tensor, as one would write it down."""
    return ((b - a).norm() / a.norm()).item()


def _figures(a: torch.Tensor, b: torch.Tensor) -> tuple[float, ...]:
    """Return what ``--values`` tells of a tensor."""
    base, new = a.double(), b.double()
    step = new - base
    figures = (step.norm(), base.norm(), step.abs().max(), (a != b).sum(), (~new.isfinite()).sum())
    return tuple(figure.item() for figure in figures)


def _report(measured: Measured, size_bytes: int, rounds: int) -> Report:
    size = f"{size_bytes / 2**30:.2f} GiB"
    report = Report(f"Comparing two of {size}", rounds, measured.load)
    samples = measured.samples
    rows = [_row(samples, name) for name in samples]
    columns = ["", "rounds", "s", "to safepoint diff"]
    report.tables = [Table(f"Comparing two of {size}, page cache warm", columns, rows)]
    ours = values(samples, f"{_DIFF}, {_CHANGED}", "seconds")
    report.targets = [
        at_most("diff of two checkpoints, as a command", _AT_ONCE_S, "s", median(ours)),
        _faster(samples, _DIFF, _SCRIPT, _SAME),
        _faster(samples, _DIFF, _CMP, _SAME),
        _faster(samples, _COMPARE, _EQUAL, _SAME),
        _faster(samples, _MEASURE, _FIGURES, _CHANGED),
    ]
    return report


def _faster(samples: Samples, ours: str, theirs: str, pair: str) -> Target:
    own, peer = (values(samples, f"{name}, {pair}", "seconds") for name in (ours, theirs))
    beside = f"ours {median(own).median:.3f} s, theirs {median(peer).median:.3f} s"
    return at_most(f"{ours}, to {theirs}: {pair}", 1, "x", estimate(paired(own, peer)), beside)


def _row(samples: Samples, name: str) -> list[str]:
    seconds = values(samples, name, "seconds")
    beside = values(samples, f"{_DIFF}, {_CHANGED}", "seconds")
    return [name, str(len(seconds)), spread(median(seconds)), spread(estimate(paired(seconds, beside)), digits=2)]
