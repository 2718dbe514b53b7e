"""What a shell completes besides commands, options and files: the metrics that the checkpoints of a run have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

ORDERS = ("name", "step", "epoch", "time", "size")


def metrics(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Yield the metrics in the directories that were given, or here, that begin with ``incomplete``."""
    from safepoint.choice import metrics_of
    from safepoint.errors import SafepointError, in_line
    from safepoint.survey import Survey

    for path in _given(context):
        try:
            found = metrics_of(Survey.of(path).entries)
        except (SafepointError, OSError):
            continue  # there is nobody to tell it
        yield from (name for name in sorted(found) if name.startswith(incomplete) and name == in_line(name))


def orders(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Yield what a list can be put in order by."""
    yield from (name for name in ORDERS if name.startswith(incomplete))
    yield from metrics(context, incomplete)


def _given(context: typer.Context) -> list[Path]:
    """Return the paths on the line that is not complete yet: what was not taken for anything else, or parsed."""
    parsed = context.params.get("run") or context.params.get("paths") or ()
    parsed = parsed if isinstance(parsed, list | tuple) else [parsed]
    return [Path(path) for path in (*parsed, *context.args) if not str(path).startswith("-")] or [Path()]
