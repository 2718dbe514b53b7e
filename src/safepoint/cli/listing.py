"""What ``ls`` prints as text: a table, by directory where several hold more than a checkpoint or two, and a sum.

All columns are as wide in every directory, and those that would be empty are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
_OURS = {Format.SAFEPOINT}
_COLUMNS = (
    Column("name", folds=True, folds_last=True),
    Column("step", right=True),
    Column("epoch", right=True),
    Column("metrics", folds=True),
    Column("size", right=True),
    Column("age", right=True),
    Column("format"),
    Column("sound"),
    Column("why it is kept", folds=True),
)


def show(listing: Listing, paths: Sequence[Path], now: float, *, is_sorted: bool) -> None:
    """Print ``listing``, which was asked for at ``paths``; ``now`` is in Unix seconds.

    ``is_sorted``: in an order of its own, in which directories do not count.
    """
    readable, sizes = listing.readable, [sizes_on_disk(entry) for entry, _ in listing.readable]
    groups = _groups(readable)
    base = paths[0] if len(paths) == 1 else None
    is_grouped = not is_sorted and [*groups] != [base] and len(groups) * _TO_A_DIRECTORY <= len(readable)
    if readable and is_grouped:
        _show_groups(listing, sizes, groups, now)
    elif readable:
        heading, *rows = _table(listing, [_name(entry.path, base) for entry, _ in readable], now)
        _show_heading(heading)
        typer.echo("\n".join(rows))  # in one go: each call is a write
    output.line(_summary(sizes) if listing.findings or not readable else f"{_summary(sizes)}; not checked")
    _show_the_rest(listing, base)


def _groups(readable: Sequence[tuple[Entry, Outline]]) -> dict[Path, list[int]]:
    """Return which of ``readable`` are those of each directory, by their numbers."""
    groups: dict[Path, list[int]] = {}
    for index, (entry, _) in enumerate(readable):
        groups.setdefault(entry.directory, []).append(index)
    return groups


def _name(path: Path, base: Path | None) -> str:
    """Return what ``path`` is called from ``base``, the one directory that was asked for; as it is, without one."""
    return str(path) if base is None else str(path).removeprefix(f"{base}/")


def _show_groups(listing: Listing, sizes: Sequence[Sizes], groups: Mapping[Path, list[int]], now: float) -> None:
    formats = _formats(listing.readable, groups)
    heading, *rows = _table(listing, [entry.name for entry, _ in listing.readable], now, with_format=not formats)
    _show_heading(heading)
    for directory, own in groups.items():
        told = f"{formats[directory].value}, " if formats else ""
        output.line(f"{directory}: {told}{_summary([sizes[index] for index in own])}", bold=True)
        typer.echo("\n".join(rows[index] for index in own) + "\n")


def _formats(readable: Sequence[tuple[Entry, Outline]], groups: Mapping[Path, list[int]]) -> dict[Path, Format]:
    """Return the format of each directory, if each has one alone; there is no column for it then."""
    formats = {directory: {readable[index][1].format for index in own} for directory, own in groups.items()}
    if any(len(several) > 1 for several in formats.values()) or all(each == _OURS for each in formats.values()):
        return {}
    return {directory: own.pop() for directory, own in formats.items()}


def _show_heading(heading: str) -> None:
    for line in heading.split("\n"):
        output.line(line, bold=True)


def _show_the_rest(listing: Listing, base: Path | None) -> None:
    for entry in listing.unreadable:
        output.line(f"cannot be read: {_name(entry.path, base)}: {entry.problem}", "yellow")
    for path, finding in listing.findings.items():
        for problem in finding.problems:
            is_damaged = finding.verdict == "damaged"
            output.line(f"{finding.verdict}: {_name(path, base)}: {problem}", "red" if is_damaged else "yellow")
    for fate in listing.removed or ():
        output.line(f"removed: {_name(fate.record.path, base)} (step {fate.record.step}): {fate.reason}", dim=True)


def _table(listing: Listing, names: Sequence[str], now: float, *, with_format: bool = True) -> Iterator[str]:
    rows = [
        _row(name, *each, listing.findings.get(each[0].path), now)
        for name, each in zip(names, listing.readable, strict=True)
    ]
    with_format = with_format and {outline.format for _, outline in listing.readable} != _OURS
    is_filled = [any(cells) for cells in zip(*rows, strict=True)]
    told = [
        index
        for index, column in enumerate(_COLUMNS)
        if is_filled[index] and (with_format or column.heading != "format")
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
        "" if finding is None else _sound(finding),
        in_line(entry.why),
    )


def _sound(finding: Finding) -> str:
    """Return the verdict, and what was compared, where that is less than everything."""
    return finding.verdict if finding.check in {None, "digests"} else f"{finding.verdict} ({finding.check})"


def _summary(sizes: Sequence[Sizes]) -> str:
    """Return the count and the bytes on disk, those of several names for one file counted once."""
    there = [own for own in sizes if own]
    if not there:
        return "no checkpoints"
    count, files = len(there), dict(each for own in there for each in own.items())
    some = f"{count} checkpoint{'s' if count > 1 else ''}"
    shared = f" ({len(files)} files, some with several names)" if len(files) < sum(map(len, there)) else ""
    return f"{some}{shared}, {output.size(sum(files.values()))} on disk"
