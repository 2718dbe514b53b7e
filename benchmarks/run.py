"""Run the benchmarks and render RESULTS.md: each section in a process of its own, its findings kept as JSON.

python benchmarks/run.py                        everything, as `make bench` does
python benchmarks/run.py --sections fits        one section again; the others stay as they were found
python benchmarks/run.py --sections             nothing but RESULTS.md, from what was found and notes.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import comparing
import footprints
import restores
import saves
import torch
from fits import Case
from fits import run as run_fits
from peers import PEERS
from processes import in_fresh_process
from render import render
from report import TARGET_COLUMNS, Report, target_rows, text

HERE = Path(__file__).parent
_MIB = 1 << 20
_GPU_MIB = 8192
_RARELY = 5
"""Lightning's share of the rounds where it would take most of the time: every fifth."""


def sections(options: argparse.Namespace) -> dict[str, Callable[[Path], Report]]:
    """Return every section by its name; of several sizes, the first runs with all peers, the others with one."""
    rounds, width, sizes = options.rounds, options.width, options.mib
    plan = saves.Plan(sizes[0] * _MIB, rounds, dict.fromkeys(options.peers, 1), width=width)
    found: dict[str, Callable[[Path], Report]] = {f"saves-{sizes[0]}": partial(saves.run, plan)}
    for mib in sizes[1:]:
        few = saves.Plan(mib * _MIB, rounds, {saves.LIGHTNING: _RARELY}, max_images=1, width=width)
        found[f"saves-{mib}"] = partial(saves.run, few)
    found["fits"] = partial(run_fits, Case(width=width), rounds=rounds, every=_RARELY)
    found["footprints"] = partial(footprints.run, sizes[0] * _MIB // 2, options.peers, width)
    for mib in sizes:
        every = 1 if mib == sizes[0] else _RARELY
        found[f"restores-{mib}"] = partial(restores.run, mib * _MIB, rounds, every, width)
    found[f"comparing-{sizes[0]}"] = partial(comparing.run, sizes[0] * _MIB, rounds, width)
    if torch.cuda.is_available():
        import gpu

        found["gpu"] = partial(gpu.run, _GPU_MIB * _MIB, rounds, width)
    for script in ("step_cost", "listing"):
        if (HERE / f"{script}.py").exists():
            found[script] = partial(_printed, script)
    return found


def measure(name: str, options: argparse.Namespace) -> None:
    """Run one section in this process and keep what it found; its warnings and its children's logs go to a file."""
    warnings.simplefilter("ignore")
    with (options.directory / f"{name}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    files = options.directory / "files"
    files.mkdir(exist_ok=True)
    try:
        sections(options)[name](files).write(options.directory / f"{name}.json")
    finally:
        shutil.rmtree(files, ignore_errors=True)


def _printed(script: str, _: Path) -> Report:
    """Run a benchmark that prints its own table."""
    before = os.getloadavg()[0]
    printed = io.StringIO()
    sys.argv = [script]
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(HERE / f"{script}.py"), run_name="__main__")
    return Report(f"{script}.py", 1, (before, os.getloadavg()[0]), printed=printed.getvalue())


def _show(report: Report) -> None:
    for table in report.tables:
        print(f"\n{table.title}\n{text(table.columns, table.rows)}")
    for name, error in report.failures.items():
        print(f"\n{name} does not work here: {error}")
    print(report.printed)


def main() -> None:
    """Run the sections asked for, print all tables, and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mib", type=int, nargs="+", default=[1024, 4096], help="sizes of the state")
    parser.add_argument("--width", type=int, default=2048, help="width of the network; its layers follow")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, metavar="PEER", help="only these")
    parser.add_argument("--sections", nargs="*", help="only these")
    parser.add_argument("--directory", type=Path, default=Path("runs/bench"), help="on the disk to be measured")
    parser.add_argument("--results", type=Path, default=HERE / "RESULTS.md")
    options = parser.parse_args()
    options.directory = options.directory.resolve()
    options.directory.mkdir(parents=True, exist_ok=True)
    names = list(sections(options))
    for name in names if options.sections is None else options.sections:
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        in_fresh_process(measure, name, options)
        print(f"  {time.monotonic() - began:.0f} s")
    kept = [Report.read(path) for name in names if (path := options.directory / f"{name}.json").exists()]
    for report in kept:
        _show(report)
    targets = [target for report in kept for target in report.targets]
    print(f"\n{text(TARGET_COLUMNS, target_rows(targets))}")
    options.results.write_text(render(kept, options.directory, (HERE / "notes.md").read_text()))


if __name__ == "__main__":
    main()
