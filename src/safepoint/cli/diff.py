"""``safepoint diff``: how two checkpoints differ."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated

import typer

from safepoint.cli import output

DIFFERENT = 1


class Sort(enum.StrEnum):
    """Name the orders in which layers are shown."""

    STATE = "state"
    CHANGE = "change"


def diff(
    a: Annotated[
        Path, typer.Argument(metavar="A", readable=False, help="A checkpoint of any kind.", show_default=False)
    ],
    b: Annotated[
        Path, typer.Argument(metavar="B", readable=False, help="The one to compare with it.", show_default=False)
    ],
    *,
    values: Annotated[
        bool, typer.Option("--values", help="Read the data: how far each layer went, as a bar chart.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="List each tensor, not the parts of the state.")] = False,
    keys: Annotated[
        list[str] | None,
        typer.Option("--keys", metavar="GLOB", help="Compare what matches, and all below it; may be repeated."),
    ] = None,
    except_: Annotated[
        list[str] | None, typer.Option("--except", metavar="GLOB", help="Leave out what matches; may be repeated.")
    ] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="How --values orders the layers.")] = Sort.STATE,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Compare two checkpoints, of the same kind or not: tensors added, removed, moved, reshaped, changed; other values.

    Two of Safepoint's own are compared by the digests in them, at once, and no data is read; 'safepoint verify' tells
    whether the digests hold. What other programs wrote has none, and is read. Elements are the same if their bytes are.

    Where the paths of A and B have nothing in common, as state_dict.model.0.weight and 0.weight, the beginnings that
    make most of them match are taken for the same, and told.

    EXIT STATUS: 0 if they are the same; 1 if they differ; 2 if one cannot be read, or not be compared.
    """
    from safepoint import comparison
    from safepoint.cli import differing
    from safepoint.cli.bar import bar
    from safepoint.export.choice import Choice

    chosen = Choice(keys or (), except_ or ())
    for path in (a, b):
        if not os.path.exists(path):
            output.fail(f"{path}: no such file or directory; give a checkpoint.")
    with comparison.opened(a, b) as (one, other):
        if keys or except_:
            chosen.check([*comparison.paths(one), *comparison.paths(other)])
        found = comparison.compare(one, other, chosen, bar, measures=values)
    if as_json:
        from safepoint.cli import diff_document

        output.document(diff_document.of(found))
    else:
        differing.show(found, every=every, by_change=sort is Sort.CHANGE)
    if found:
        raise typer.Exit(DIFFERENT)
    if found.tensors.uncompared:
        output.fail("what is not compared may differ: nothing that can be read tells.")
