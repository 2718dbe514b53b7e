"""``safepoint verify``: whether checkpoints are sound, and which tensor is damaged if not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from safepoint.cli import output

DAMAGED = 1


def verify(
    paths: Annotated[list[Path], typer.Argument(help="Checkpoints, or directories of them.", show_default=False)],
) -> None:
    """Read every byte of the checkpoints at PATHS and compare it with their digests. Unpickles nothing.

    EXIT STATUS: 0 if all are sound; 1 if one is not; 2 if a path is not there or a directory holds no checkpoint.
    """
    files = [file for path in paths for file in _checkpoints(output.existing(path))]
    unsound = 0
    for file in files:
        problems = _problems(file)
        unsound += bool(problems)
        for problem in problems:
            output.line(f"{file}: {problem}", "red")
        if not problems:
            output.line(f"{file}: sound")
    if unsound:
        output.line(f"{unsound} of {len(files)} not sound")
        raise typer.Exit(DAMAGED)
    output.line(f"all {len(files)} sound" if len(files) > 1 else "OK")


def _checkpoints(path: Path) -> Iterator[Path]:
    from safepoint.catalog import found_in
    from safepoint.naming import EXTENSION

    if not path.is_dir():
        yield path
        return
    found = found_in(path)
    if not found:
        output.fail(f"{path} holds no {EXTENSION} file; give the directory of a run.")
    yield from found


def _problems(file: Path) -> list[str]:
    from safepoint import reader

    try:
        return reader.verify(file)
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"]
