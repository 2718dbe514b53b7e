"""What ``ls`` prints as text: a table, by directory where several hold more than a checkpoint or two, and a sum.

All columns are as wide in every directory, and those that would be empty are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from safepoint.cli import output
from safepoint.cli.columns import Column, blocks
from safepoint.cli.listed import Listing
from safepoint.contents import Format, Outline
from safepoint.errors import in_line
from safepoint.survey import Entry, Sizes, sizes_on_disk

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
    is_alone = directories == list(paths)
    is_grouped = not is_alone and not is_sorted and len(directories) * _TO_A_DIRECTORY <= len(shown)
    if shown:
        heading, *rows = _table(listing, now, with_directory=not is_alone and not is_grouped)
        for line in heading.split("\n"):
            output.line(line, bold=True)
        if is_grouped:
            _show_groups(shown, rows)
        else:
            typer.echo("\n".join(rows))  # in one go: each call is a write
    output.line(_summary(shown) if listing.findings or not shown else f"{_summary(shown)}; not checked")
    _show_the_rest(listing, paths)


def _show_groups(shown: Sequence[tuple[Entry, Sizes]], rows: Sequence[str]) -> None:
    groups: dict[Path, list[int]] = {}
    for index, (entry, _) in enumerate(shown):
        groups.setdefault(entry.directory, []).append(index)
    for directory, own in groups.items():
        output.line(f"{directory}: {_summary([shown[index] for index in own])}", bold=True)
        typer.echo("\n".join(rows[index] for index in own) + "\n")


def _show_the_rest(listing: Listing, paths: Sequence[Path]) -> None:
    base = paths[0] if len(paths) == 1 else None

    def name(path: Path) -> str:
        return str(path if base is None or not path.is_relative_to(base) else path.relative_to(base))

    for entry in listing.unreadable:
        output.line(f"cannot be read: {name(entry.path)}: {entry.problem}", "yellow")
    for path, finding in listing.findings.items():
        for problem in finding.problems:
            is_damaged = finding.verdict == "damaged"
            output.line(f"{finding.verdict}: {name(path)}: {problem}", "red" if is_damaged else "yellow")
    for fate in listing.removed or ():
        output.line(f"removed: {name(fate.record.path)} (step {fate.record.step}): {fate.reason}", dim=True)


def _table(listing: Listing, now: float, *, with_directory: bool) -> Iterator[str]:
    rows = [_row(listing, *each, now, with_directory=with_directory) for each in listing.readable]
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


def _row(listing: Listing, entry: Entry, outline: Outline, now: float, *, with_directory: bool) -> tuple[str, ...]:
    finding = listing.findings.get(entry.path)
    return (
        in_line(str(entry.path) if with_directory else entry.name),
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
