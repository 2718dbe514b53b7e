"""``safepoint report``: what is known of a run, as one page for a browser."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output

if TYPE_CHECKING:
    from safepoint.page.gather import Page

_NEEDED = ("plotly", "jinja2", "numpy", "ml_dtypes")
_ERASED = "\r\x1b[K"


def report(
    directory: Annotated[
        Path,
        typer.Argument(metavar="RUN", readable=False, help="The directory of a run, or of many.", show_default=False),
    ],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", readable=False, help="What to call the page.")
    ] = Path("report.html"),
    drift: Annotated[
        bool, typer.Option("--drift/--no-drift", help="Read weights, to show how far each layer moved.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT, also if it is no report.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write one page that shows RUN: every checkpoint on its metrics' curves, kept or removed and why.

    The page is one file, which asks nothing of any network: open it from disk, or send it to somebody. It also has the
    tree of the newest checkpoint, and how far each layer moved from one kept checkpoint to the next; for this at most
    the newest 24 pairs and 2 GB of weights are read, and the page says what is left out.

    Nothing is unpickled. A page of an earlier time is replaced, whole or not at all; any other file with --force only.

    EXIT STATUS: 0 if the page is written; 2 if RUN holds no checkpoint, or OUT cannot be written.
    """
    _check_libraries()
    from safepoint.page.file import checked_place, write
    from safepoint.page.gather import page_of

    place = checked_place(out, force=force)
    if not output.existing(directory).is_dir():
        output.fail(f"{directory} is a file; give the directory of a run.")
    page = page_of(directory, _tell, drift=drift)
    _erase()
    if not page.checkpoints:
        output.fail(f"{directory} holds no checkpoint{_unreadable(page)}; give the directory of a run.")
    from safepoint.page.html import rendered

    try:
        size_bytes = write(place, rendered(page))
    except OSError as error:
        output.fail(f"{out} cannot be written: {error.strerror or error}. Make room, or give another place with -o.")
    if as_json:
        _print_document(out, size_bytes, page)
    else:
        counts = f"{page.kept:,} on disk, {page.removed:,}{' or more' if page.forgets else ''} removed"
        output.line(f"{out}: {counts}; {output.size(size_bytes)}, for any browser")


def _unreadable(page: Page) -> str:
    name, problem = next(iter(page.unreadable.items()), ("", ""))
    return f" that can be read ({name}: {problem})" if name else ""


def _check_libraries() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        output.fail(f"the report needs {' and '.join(missing)}: pip install 'safepoint[report]'")


def _tell(done: int, count: int) -> None:
    """Show, on a terminal, how many pairs of checkpoints are compared."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{_ERASED}drift: comparing pair {done + 1} of {count}")
        sys.stderr.flush()


def _erase() -> None:
    if sys.stderr.isatty():
        sys.stderr.write(_ERASED)
        sys.stderr.flush()


def _print_document(out: Path, size_bytes: int, page: Page) -> None:
    from safepoint.cli.documents import Report

    drift = page.drift
    output.document(
        Report(
            path=str(out),
            directory=str(page.directory),
            size_bytes=size_bytes,
            kept=page.kept,
            removed=page.removed,
            runs=page.runs,
            left_out=page.left_out,
            unreadable=len(page.unreadable),
            layers=len(drift.layers) if drift else 0,
            pairs=len(drift.pairs) if drift else 0,
            read_bytes=drift.read_bytes if drift else 0,
        )
    )
