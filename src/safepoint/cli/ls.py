"""``safepoint ls``: what checkpoints a directory holds, and why each is kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from safepoint.catalog import Catalog
from safepoint.cli import output
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
    if not output.existing(directory).is_dir():
        output.fail(f"{directory} is a file; give its directory, or check it with 'safepoint verify {directory}'.")
    catalog = Catalog.of(directory)
    fates = {fate.record.path: fate for run in catalog.runs() for fate in catalog.history(run)}
    console = output.console()
    if catalog.records:
        console.print(_table(catalog, fates))
    console.print(_summary(catalog))
    for path, problem in catalog.unreadable.items():
        console.print(output.plain(f"not Safepoint's: {path.relative_to(directory)}: {problem}", "yellow"))
    if removed:
        for fate in fates.values():
            if fate.record.path not in catalog.manifests:
                name = fate.record.path.relative_to(directory)
                console.print(output.plain(f"removed: {name} (step {fate.record.step}): {fate.reason}", "dim"))


def _table(catalog: Catalog, fates: dict[Path, Fate]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("name", "left"), ("step", "right"), ("epoch", "right"), ("metrics", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for name in ("size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why it is kept", overflow="fold")
    now = time.time()
    for record in catalog.records:
        table.add_row(
            output.plain(record.path.relative_to(catalog.directory).as_posix()),
            str(record.step),
            str(record.epoch),
            output.plain(output.metrics(record.metrics)),
            output.size(record.size_bytes),
            output.age(now - record.time),
            output.plain(_why(record, fates)),
        )
    return table


def _why(record: Record, fates: dict[Path, Fate]) -> str:
    fate = fates.get(record.path)
    if record.pinned:
        return "pinned"
    if fate is None:
        return "copied or renamed by hand: no policy touches it"
    return fate.reason if fate.kept else f"to be removed by its run: {fate.reason}"


def _summary(catalog: Catalog) -> str:
    """Return the count and the bytes on disk, those of several names for one file counted once."""
    files = {(status.st_dev, status.st_ino): status.st_size for status in map(os.stat, catalog.manifests)}
    names = len(catalog.records)
    if not names:
        return "no checkpoints"
    one = f"{names} checkpoint{'s' if names > 1 else ''}"
    shared = f" ({len(files)} files, some with several names)" if len(files) < names else ""
    return f"{one}{shared}, {output.size(sum(files.values()))} on disk"
