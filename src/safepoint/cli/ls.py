"""``safepoint ls``: what checkpoints there are in a tree, whoever wrote them, and why each is kept."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output
from safepoint.cli.completion import orders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safepoint.cli.listed import Listing
    from safepoint.filters import Filter
    from safepoint.soundness import Finding
    from safepoint.survey import Entry, Survey

DAMAGED = 1


def ls(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH", readable=False, help="Directories of runs, or checkpoints; what is here by default."
        ),
    ] = None,
    *,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="KEY",
            help="By name, step, epoch, time, size, or a metric; not by directory.",
            autocompletion=orders,
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The greatest first.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="Only those with, say, 'val_loss<0.3', 'step>=1000', 'size>1GB', 'age<2d', 'format=lightning' or "
            "'name=best*'; of several, all must be true.",
        ),
    ] = None,
    removed: Annotated[bool, typer.Option("--removed", help="List the removed ones too, with why they went.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte, and say which are sound.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a document, safepoint.ls/1.")] = False,
) -> None:
    """List the checkpoints at each PATH and below it: name, step, epoch, metrics, size, age, and why each is kept.

    By directory, and there from the oldest to the newest. Other programs' files are listed beside Safepoint's: those of
    Lightning and torch.save, safetensors, and directories of torch.distributed.checkpoint and Hugging Face. Hidden
    directories are looked into only if given, and links to directories never.

    Reads what tells of the tensors, never their data, and unpickles nothing. What is listed is not verified without
    '--verify'. Bytes that several names share are counted once in the sum.

    EXIT STATUS: 0, also if files are named that cannot be read; 1 if, with --verify, a checkpoint is damaged; 2 if a
    PATH is not there or is a file that is no checkpoint, or a CONDITION or KEY is none, or is about a metric that no
    checkpoint has.
    """
    from safepoint.survey import Survey

    now = time.time()
    conditions = _parsed(filters or [])
    paths = [output.existing(path) for path in paths or [Path()]]
    surveys = [Survey.of(path) for path in paths]
    entries = list({entry.path: entry for survey in surveys for entry in survey.entries}.values())
    if conditions or sort is not None:
        entries = _chosen(entries, conditions, now, sort, is_reversed=reverse)
    elif reverse:
        entries.reverse()
    listing = _listing(entries, surveys, removed=removed, verify=verify)
    if as_json:
        output.document(listing.document())
    else:
        from safepoint.cli import listing as text

        text.show(listing, paths, now, is_sorted=sort is not None)
    if verify and listing.is_damaged:
        raise typer.Exit(DAMAGED)


def _parsed(filters: Sequence[str]) -> list[Filter]:
    if not filters:
        return []
    from safepoint.filters import parsed

    return [parsed(each) for each in filters]


def _chosen(
    entries: Sequence[Entry], filters: Sequence[Filter], now: float, sort: str | None, *, is_reversed: bool
) -> list[Entry]:
    from safepoint import choice

    chosen = choice.filtered(entries, filters, now)
    return chosen if sort is None else choice.ordered(chosen, sort, is_reversed=is_reversed)


def _listing(entries: Sequence[Entry], surveys: Sequence[Survey], *, removed: bool, verify: bool) -> Listing:
    from safepoint.cli.listed import Listing

    return Listing(
        [(entry, entry.outline) for entry in entries if entry.outline is not None],
        [entry for entry in entries if entry.outline is None],
        [fate for survey in surveys for fate in survey.removed().values()] if removed else None,
        _findings(entries) if verify else {},
    )


def _findings(entries: Sequence[Entry]) -> dict[Path, Finding]:
    """Read every byte of ``entries``; what is not found any more is left out."""
    from safepoint.checks import check_all, total_bytes
    from safepoint.cli.bar import bar

    paths = [entry.path for entry in entries]
    with (
        bar("verifying", total_bytes(paths)) as advance,
        contextlib.closing(check_all(paths, os.cpu_count() or 1, advance)) as checks,
    ):
        return {finding.path: finding for finding in filter(None, checks)}
