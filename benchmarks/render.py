"""Render RESULTS.md: the machine and the versions, the targets, every table, and the notes written by hand."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from report import TARGET_COLUMNS, Report, markdown, target_rows

_PACKAGES = (
    "safepoint",
    "torch",
    "lightning",
    "accelerate",
    "safetensors",
    "torch_checkpointing",
    "xxhash",
    "isal",
    "numpy",
)


def render(reports: Sequence[Report], directory: Path, notes: str) -> str:
    """Return the page; ``directory`` is where the files were written."""
    parts = [
        "# Results of the benchmarks",
        "Written by `make bench`; the last section by hand, in [notes.md](notes.md).",
        "## Machine",
        markdown(["", ""], [*machine(directory), *versions()]),
        "## Targets",
        "Ratios are medians of paired ratios within a round, with a bootstrap 95% interval; a median decides.",
    ]
    for report in reports:
        if report.targets:
            parts += [f"### {report.title}", _how(report), markdown(TARGET_COLUMNS, target_rows(report.targets))]
    parts.append("## Tables")
    for report in reports:
        parts += _tables(report)
    if not torch.cuda.is_available():
        parts.append("## GPU\n\nNot measured: no CUDA device was there. The section `gpu` runs where there is one.")
    return "\n\n".join([*parts, notes.strip()]) + "\n"


def _how(report: Report) -> str:
    before, after = report.load
    rounds = "one run" if report.rounds == 1 else f"{report.rounds} rounds, none discarded"
    return f"{rounds.capitalize()}; load average {before:.2f} before, {after:.2f} after."


def _tables(report: Report) -> list[str]:
    parts = []
    for table in report.tables:
        parts += [f"### {table.title}", markdown(table.columns, table.rows), *(f"- {note}" for note in table.notes)]
    if report.printed:
        parts += [f"### {report.title}", f"```\n{report.printed.rstrip()}\n```"]
    if report.failures:
        parts += [f"- {name} does not work here: {error}" for name, error in report.failures.items()]
    return parts


def machine(directory: Path) -> list[list[str]]:
    """Return what the figures depend on: processor, memory, kernel and disk; nothing that names the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        ["date", dt.datetime.now(tz=dt.UTC).date().isoformat()],
        ["processor", f"{os.cpu_count()} cores, {_field('/proc/cpuinfo', 'model name')}"],
        ["memory", f"{memory:.0f} GiB"],
        ["kernel", f"{platform.system()} {platform.release().partition('-')[0]}"],
        ["disk", _file_system(directory)],
        ["GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"],
    ]


def versions() -> list[list[str]]:
    """Return Python's version and those of the packages."""
    return [["Python", platform.python_version()], *([name, importlib.metadata.version(name)] for name in _PACKAGES)]


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _file_system(directory: Path) -> str:
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [mount for mount in mounts if directory.is_relative_to(mount[1])]
    device, _, kind = max(inside, key=lambda mount: len(mount[1]))
    return f"{kind} on {Path(device).name}"
