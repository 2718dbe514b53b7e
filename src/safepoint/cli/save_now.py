"""``safepoint save-now``: ask a running job to save at its next step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output

if TYPE_CHECKING:
    from safepoint.catalog import Catalog

ENDED = 1
_LOOK_EVERY_S = 0.2


def save_now(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.", show_default=False)],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the checkpoint, and print its path.")] = False,
) -> None:
    """Ask the job that saves into RUN to save at its next step, as 'touch RUN/.save-now' does; training goes on.

    The job looks for requests once a second at most. In Lightning with several processes it looks at every 50th step,
    and the checkpoint is one besides the top k, which stays until you remove it.

    EXIT STATUS: 0 if the job is asked and, with --wait, the checkpoint is there; 1 if the job ended meanwhile; 2 if RUN
    is no directory, or no living job saves there.
    """
    from safepoint import requests

    if not output.existing(directory).is_dir():
        output.fail(f"{directory} is a file; give the directory of a run.")
    catalog = _read(directory)
    if catalog.records and not _is_alive(catalog):
        output.fail(
            f"no living job saves into {directory}: nobody holds a checkpoint there. If one has just begun and not "
            f"saved yet, ask it with 'touch {directory / requests.REQUEST_NAME}'."
        )
    try:
        requests.ask(directory)
    except OSError as error:
        output.fail(f"{directory / requests.REQUEST_NAME} cannot be made: {error.strerror or error}.")
    if not catalog.records:
        output.line(f"asked; whether a job is alive in {directory} shows with its first checkpoint")
    elif not wait:
        output.line("asked")
    if wait:
        output.line(str(_answer(directory, catalog)))


def _answer(directory: Path, before: Catalog) -> Path:
    """Return the checkpoint that the request leads to, or fail once nobody is there to make one."""
    from safepoint import requests

    known = {(record.path, record.time) for record in before.records}
    was_alive = False
    while True:
        is_alive = _is_alive(catalog := _read(directory))
        for record in reversed(catalog.records):
            is_new = (record.path, record.time) not in known
            if is_new and any(requests.REQUEST_NAME in reason for reason in record.reasons):
                return record.path
        if was_alive and not is_alive and not _is_alive(_read(directory)):
            output.line(f"the job in {directory} has ended without it", "red")
            raise typer.Exit(ENDED)
        was_alive = was_alive or is_alive
        time.sleep(_LOOK_EVERY_S)


def _read(directory: Path) -> Catalog:
    from safepoint.catalog import Catalog

    try:
        return Catalog.of(directory)
    except OSError as error:
        output.fail(f"{directory} cannot be read: {error.strerror or error}.")


def _is_alive(catalog: Catalog) -> bool:
    from safepoint.claim import held_elsewhere

    return held_elsewhere(catalog) is not None
