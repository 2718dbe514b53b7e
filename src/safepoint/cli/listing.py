"""What ``ls`` prints as text: a table, by directory where several hold more than a checkpoint or two, and a sum.

All columns are as wide in every directory, and those that would be empty are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from safepoint.cli import output
from safepoint.cli.columns import Column, blocks
from safepoint.cli.listed import Listing
from safepoint.contents import Format, Outline
from safepoint.errors import in_line
from safepoint.survey import Entry, Sizes, sizes_on_disk

if TYPE_CHECKING:
    from safepoint.soundness import Finding

_TO_A_DIRECTORY = 2
_COLUMNS = (
    Column("name", folds=True),
    Column("step", right=True),
    Column("epoch", right=True),
    Column("metrics", folds=True),
    Column("size", right=True),
    Column("age", right=True),
    Column("format"),
    Column("sound", folds=True),
    Column("why it is kept", folds=True),
)


def show(listing: Listing, paths: Sequence[Path], now: float, *, is_sorted: bool) -> None:
    """Print ``listing``, which was asked for at ``paths``; ``now`` is in Unix seconds.

    ``is_sorted``: in an order of its own, in which directories do not count.
    """
    shown = [(entry, sizes_on_disk(entry)) for entry, _ in listing.readable]
    directories = list(dict.fromkeys(entry.directory for entry, _ in shown))
    base = paths[0] if len(paths) == 1 else None
    is_grouped = directories != [base] and not is_sorted and len(directories) * _TO_A_DIRECTORY <= len(shown)
    if shown:
        names = [entry.name if is_grouped else _name(entry.path, base) for entry, _ in shown]
        heading, *rows = _table(listing, names, now)
        for line in heading.split("\n"):
            output.line(line, bold=True)
        if is_grouped:
            _show_groups(shown, rows)
        else:
            typer.echo("\n".join(rows))  # in one go: each call is a write
    output.line(_summary(shown) if listing.findings or not shown else f"{_summary(shown)}; not checked")
    _show_the_rest(listing, base)


def _name(path: Path, base: Path | None) -> str:
    """Return what ``path`` is called from ``base``, the one directory that was asked for; as it is, without one."""
    return str(path) if base is None else str(path).removeprefix(f"{base}/")


def _show_groups(shown: Sequence[tuple[Entry, Sizes]], rows: Sequence[str]) -> None:
    groups: dict[Path, list[int]] = {}
    for index, (entry, _) in enumerate(shown):
        groups.setdefault(entry.directory, []).append(index)
    for directory, own in groups.items():
        output.line(f"{directory}: {_summary([shown[index] for index in own])}", bold=True)
        typer.echo("\n".join(rows[index] for index in own) + "\n")


def _show_the_rest(listing: Listing, base: Path | None) -> None:
    for entry in listing.unreadable:
        output.line(f"cannot be read: {_name(entry.path, base)}: {entry.problem}", "yellow")
    for path, finding in listing.findings.items():
        for problem in finding.problems:
            is_damaged = finding.verdict == "damaged"
            output.line(f"{finding.verdict}: {_name(path, base)}: {problem}", "red" if is_damaged else "yellow")
    for fate in listing.removed or ():
        output.line(f"removed: {_name(fate.record.path, base)} (step {fate.record.step}): {fate.reason}", dim=True)


def _table(listing: Listing, names: Sequence[str], now: float) -> Iterator[str]:
    rows = [
        _row(name, *each, listing.findings.get(each[0].path), now)
        for name, each in zip(names, listing.readable, strict=True)
    ]
    is_foreign = any(outline.format is not Format.SAFEPOINT for _, outline in listing.readable)
    is_filled = [any(cells) for cells in zip(*rows, strict=True)]
    told = [
        index
        for index, column in enumerate(_COLUMNS)
        if is_filled[index] and (is_foreign or column.heading != "format")
    ]
    if len(told) < len(_COLUMNS):
        rows = [tuple(row[index] for index in told) for row in rows]
    return blocks([_COLUMNS[index] for index in told], rows, output.width())


def _row(name: str, entry: Entry, outline: Outline, finding: Finding | None, now: float) -> tuple[str, ...]:
    return (
        in_line(name),
        "" if outline.step is None else str(outline.step),
        "" if outline.epoch is None else str(outline.epoch),
        in_line(output.metrics(outline.metrics)),
        output.size(outline.size_bytes),
        output.age(now - outline.time),
        outline.format.value,
        "" if finding is None else finding.worth or finding.verdict,
        in_line(entry.why),
    )


def _summary(shown: Sequence[tuple[Entry, Sizes]]) -> str:
    """Return the count and the bytes on disk, those of several names for one file counted once."""
    if not shown:
        return "no checkpoints"
    there = [own for _, own in shown if own]
    count, sizes = len(there), dict(each for own in there for each in own.items())
    is_shared = len(sizes) < sum(map(len, there))
    some = f"{count} checkpoint{'s' if count > 1 else ''}"
    shared = f" ({len(sizes)} files, some with several names)" if is_shared else ""
    return f"{some}{shared}, {output.size(sum(sizes.values()))} on disk"
