"""What a benchmark found, as plain data: tables and targets; kept as JSON, printed as text, rendered as Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estimates import Estimate, estimate

ABSENT = "-"
TARGET_COLUMNS = ["figure", "target", "measured: median (95% interval)", "", "beside it"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under column names; ``notes`` say how they were measured."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to be reached: what it should be, what it is, whether that is met, and what peers and limits are."""

    figure: str
    target: str
    measured: str
    met: bool
    beside: str = ""


@dataclass(slots=True)
class Report:
    """What one benchmark found."""

    title: str
    rounds: int
    load: tuple[float, float]
    targets: list[Target] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    printed: str = ""

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Report:
        """Return what ``write`` has kept."""
        data: dict[str, Any] = json.loads(path.read_text())
        data["targets"] = [Target(**each) for each in data["targets"]]
        data["tables"] = [Table(**each) for each in data["tables"]]
        return cls(**data)


def spread(found: Estimate, unit: str = "", digits: int = 3) -> str:
    """Return a median and its interval as text."""
    return f"{found.median:.{digits}f}{unit} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def at_most(figure: str, limit: float, unit: str, found: Estimate, beside: str = "") -> Target:
    """Return the target that the median is at most ``limit``; the first word of ``unit`` is that of the figure."""
    return _target(figure, f"at most {limit:g} {unit}", unit, found, beside, met=found.median <= limit)


def at_least(figure: str, limit: float, unit: str, found: Estimate, beside: str = "") -> Target:
    """Return the target that the median is at least ``limit``."""
    return _target(figure, f"at least {limit:g} {unit}", unit, found, beside, met=found.median >= limit)


def _target(figure: str, target: str, unit: str, found: Estimate, beside: str, *, met: bool) -> Target:
    return Target(figure, target, spread(found, f" {unit.partition(' ')[0]}"), met, beside)


def median(row: Mapping[int, float]) -> Estimate:
    """Return the estimate of what every round gave."""
    return estimate(list(row.values()))


def text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in columns as wide as they need."""
    every = [list(columns), *map(list, rows)]
    widths = [max(len(row[index]) for row in every) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in every)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(columns), ["---"] * len(columns), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def target_rows(targets: Sequence[Target]) -> list[list[str]]:
    """Return the rows of the table of targets."""
    return [[each.figure, each.target, each.measured, "met" if each.met else "MISSED", each.beside] for each in targets]
