"""``safepoint show``: all that one checkpoint is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output
from safepoint.errors import in_line, shortened

if TYPE_CHECKING:
    from safepoint.overview import Overview

_GAP = "  "
_MOST = 100
"""How much of what is in one container is shown, unless all of it is asked for."""


def show(
    path: Annotated[Path, typer.Argument(metavar="FILE", readable=False, help="A checkpoint.", show_default=False)],
    *,
    depth: Annotated[
        int | None, typer.Option("--depth", metavar="N", min=1, help="How far down the tree of the state is shown.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Show every tensor, those too that differ from others by a number only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: safepoint.show/1.")] = False,
) -> None:
    """Show what the checkpoint FILE is: when and why it was saved, what becomes of it, and all that is in it.

    FILE is a checkpoint of Safepoint's, Lightning's or torch.save's, a safetensors file, or a directory of
    torch.distributed.checkpoint's or of the Hugging Face Trainer's. No tensor is read, and nothing is unpickled.
    Siblings that differ only in a number at the end of their names and in their elements are shown as one. Parameters
    are the elements of a model's floating-point tensors, its buffers among them; what several names have is counted
    once.

    EXIT STATUS: 0 if the checkpoint was read; 2 if it is not there, is no checkpoint, or is a directory of several.
    """
    from safepoint.overview import Overview

    overview = Overview.of(output.existing(path))
    if as_json:
        from safepoint.cli.shown import document

        output.document(document(overview))
        return
    _print_head(overview)
    _print_tree(overview, depth, full=full)


def _print_head(overview: Overview) -> None:
    from safepoint.cli import head
    from safepoint.cli.columns import cells, folded, padded

    output.line(str(overview.contents.outline.path), bold=True)
    told = [(in_line(shortened(label)), in_line(text)) for label, text in head.told(overview, time.time())]
    wide = min(max(cells(label) for label, _ in told), output.width() // 3)
    before = ""
    for label, text in told:
        labels = folded("" if label == before else label, wide)
        before = label
        texts = folded(text, output.width() - wide - len(_GAP))
        for one, other in zip_longest(labels, texts, fillvalue=""):
            output.line(f"{padded(one, wide, right=False)}{_GAP}{other}".rstrip())


def _print_tree(overview: Overview, depth: int | None, *, full: bool) -> None:
    from safepoint import anatomy
    from safepoint.cli import trees

    root = overview.state if full else anatomy.folded(overview.state)
    most = None if full else _MOST
    guides = trees.DRAWN if (sys.stdout.encoding or "").lower().startswith("utf") else trees.PLAIN
    if overview.contents.hyperparameters:
        output.line("")
        output.line("hyperparameters", bold=True)
        told = trees.rows(anatomy.grown(overview.contents.hyperparameters), most=most, guides=guides)
        _print(line for line, _ in trees.lines(told, output.width()))
    if root.children:
        output.line("")
        found = trees.lines(trees.rows(root, depth=depth, most=most, guides=guides), output.width())
        _print(typer.style(line, bold=True) if row.is_heading else line for line, row in found)


def _print(lines: Iterable[str]) -> None:
    """Print lines in one go: each call is a write."""
    typer.echo("\n".join(lines), color=False if os.environ.get("NO_COLOR") else None)
