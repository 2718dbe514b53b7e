"""``safepoint ls``: what checkpoints a directory holds, and why each is kept."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output
from safepoint.errors import in_line

if TYPE_CHECKING:
    from safepoint.catalog import Catalog
    from safepoint.records import Fate, Record


def ls(
    directory: Annotated[Path, typer.Argument(help="The directory of a run.", show_default=False)],
    *,
    removed: Annotated[bool, typer.Option("--removed", help="List the removed ones too, with why they went.")] = False,
) -> None:
    """List the checkpoints in DIRECTORY, oldest first: name, step, epoch, metrics, size, age, and why each is kept.

    Reads manifests only, never tensor data, and unpickles nothing. What is listed is not verified: see 'safepoint
    verify'.

    EXIT STATUS: 0 if the directory was read; 2 if it is not there or is no directory.
    """
    from safepoint.catalog import Catalog

    if not output.existing(directory).is_dir():
        output.fail(f"{directory} is a file; give its directory, or check it with 'safepoint verify {directory}'.")
    try:
        catalog = Catalog.of(directory)
    except OSError as error:
        output.fail(f"{directory} cannot be read: {error.strerror or error}.")
    if catalog.records:
        heading, *rows = _table(catalog)
        output.line(heading, bold=True)
        typer.echo("\n".join(rows))  # in one go: each call is a write
    output.line(_summary(catalog))
    for path, problem in catalog.unreadable.items():
        output.line(f"not Safepoint's: {path.relative_to(directory)}: {problem}", "yellow")
    if removed:
        for path, fate in _removed(catalog).items():
            output.line(f"removed: {path.relative_to(directory)} (step {fate.record.step}): {fate.reason}", dim=True)


def _table(catalog: Catalog) -> Iterator[str]:
    from safepoint.cli.columns import Column, lines

    columns = (
        Column("name", folds=True),
        Column("step", right=True),
        Column("epoch", right=True),
        Column("metrics", folds=True),
        Column("size", right=True),
        Column("age", right=True),
        Column("why it is kept", folds=True),
    )
    now = time.time()
    rows = [_row(record, catalog, now) for record in catalog.records]
    return lines(columns, rows, output.width())


def _row(record: Record, catalog: Catalog, now: float) -> tuple[str, ...]:
    return (
        in_line(record.path.relative_to(catalog.directory).as_posix()),
        str(record.step),
        str(record.epoch),
        in_line(output.metrics(record.metrics)),
        output.size(record.size_bytes),
        output.age(now - record.time),
        in_line(_why(record, catalog.fates.get(record.path))),
    )


def _why(record: Record, fate: Fate | None) -> str:
    if record.pinned:
        return "pinned"
    if fate is None:
        return "copied or renamed by hand: no policy touches it"
    flaw = f"; not gone on from: {record.flaw}" if record.flaw else ""
    return f"{fate.reason}{flaw}" if fate.kept else f"to be removed by its run: {fate.reason}"


def _removed(catalog: Catalog) -> dict[Path, Fate]:
    """Return what was removed since, by its path, as the newest checkpoint of each run tells."""
    told = (fate for run in catalog.runs() for fate in catalog.history(run))
    return {fate.record.path: fate for fate in told if fate.record.path not in catalog.manifests}


def _statuses(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """Yield the status of each file, but for those that a running job has removed by now."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield path.stat()


def _summary(catalog: Catalog) -> str:
    """Return the count and the bytes on disk, those of several names for one file counted once."""
    there = list(_statuses(catalog.manifests))
    files = {(status.st_dev, status.st_ino): status.st_size for status in there}
    names = len(there)
    if not names:
        return "no checkpoints"
    one = f"{names} checkpoint{'s' if names > 1 else ''}"
    shared = f" ({len(files)} files, some with several names)" if len(files) < names else ""
    return f"{one}{shared}, {output.size(sum(files.values()))} on disk"
