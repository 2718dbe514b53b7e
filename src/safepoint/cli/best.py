"""``safepoint best`` and ``safepoint latest``: the path of one checkpoint of a run, for ``$(...)``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from safepoint.cli import output
from safepoint.cli.completion import metrics

if TYPE_CHECKING:
    from safepoint.survey import Entry

_Run = Annotated[
    Path, typer.Argument(metavar="RUN", readable=False, help="The directory of a run.", show_default=False)
]
_NONE = "holds no checkpoint that can be read; give the directory of a run, or see 'safepoint ls'."


def best(
    run: _Run,
    *,
    metric: Annotated[
        str, typer.Option("--metric", metavar="METRIC", help="What they are ranked by.", autocompletion=metrics)
    ],
    mode: Annotated[Literal["min", "max"], typer.Option("--mode", help="Whether less is better, or more.")] = "min",
    as_json: Annotated[bool, typer.Option("--json", help="Print a document, safepoint.best/1.")] = False,
) -> None:
    """Print the path of the best checkpoint in RUN and below it, whoever wrote it; of equals, the earlier.

    Never the best is NaN, what was saved at an exception, and, in Safepoint's own, what was measured at another step
    than was saved.

    Piped, the path is printed as it is, whatever is in its name; on a terminal, control characters are written out.

    EXIT STATUS: 0 if there is one; 2 if RUN is not there or holds no checkpoint, or none that has METRIC as a number.
    """
    from safepoint import choice
    from safepoint.cli.documents import Best
    from safepoint.cli.listed import listed
    from safepoint.records import encoded_metrics

    entries = _entries(run)
    found = choice.best(entries, metric, mode)
    if found is None or found.outline is None:
        output.fail(f"no checkpoint in {run} has {metric} as a number, measured at its own step and at no exception.")
    if as_json:
        value = encoded_metrics(found.outline.metrics)[metric]
        output.document(Best(metric, mode, value, listed(found, found.outline)))
    else:
        _print(found.path)


def latest(
    run: _Run,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a document, safepoint.latest/1.")] = False,
) -> None:
    """Print the path of the newest checkpoint in RUN that can be gone on from, as restore() would take it, unverified.

    Of several runs below RUN, it is that of the run that saved last. Of other programs' checkpoints in one directory,
    it is the one with the greatest step, or, where one tells none, the file that was changed last. What an exception
    left counts, unless it has a flaw (NaN, an interrupted update): such a one is taken only if there is nothing else,
    and a line on standard error says so.

    Piped, the path is printed as it is, whatever is in its name; on a terminal, control characters are written out.

    EXIT STATUS: 0 if there is one; 2 if RUN is not there or holds none that can be read.
    """
    from safepoint import choice
    from safepoint.cli.documents import Latest
    from safepoint.cli.listed import listed

    found = choice.newest(_entries(run))
    if found is None or found.outline is None:
        output.fail(f"{run} {_NONE}")
    if found.record is not None and found.record.flaw:
        output.note(f"{found.path} is not to be gone on from: {found.record.flaw}; there is no other.")
    if as_json:
        output.document(Latest(listed(found, found.outline)))
    else:
        _print(found.path)


def _entries(run: Path) -> tuple[Entry, ...]:
    from safepoint.survey import Survey

    entries = Survey.of(output.existing(run)).entries
    if not any(entry.outline for entry in entries):
        output.fail(f"{run} {_NONE}")
    return entries


def _print(path: Path) -> None:
    """Print a path: its very bytes, or, on a terminal, with what that would obey written out."""
    if sys.stdout.isatty():
        output.line(str(path))
    else:
        typer.echo(os.fsencode(path))
