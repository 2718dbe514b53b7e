"""``safepoint save-now``: ask a running job to save at its next step."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output

if TYPE_CHECKING:
    from safepoint.catalog import Catalog

NOT_SAVED = 1
TIMEOUT_S = 600
_LOOK_EVERY_S = 0.2
_MOST_NAMED = 5


def save_now(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN", readable=False, help="The directory of a run.", show_default=False)
    ],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the checkpoint, and print its path.")] = False,
    timeout: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=1, help="How long --wait waits at most.")
    ] = TIMEOUT_S,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON document instead.")] = False,
) -> None:
    """Ask the job that saves into RUN to save at its next step, as 'touch RUN/.save-now' does; training goes on.

    The job looks for requests once a second at most. In Lightning with several processes it looks at every 50th step,
    and the checkpoint is one besides the top k, which stays until you remove it.

    EXIT STATUS: 0 if the job is asked and, with --wait, the checkpoint is there; 1 if, with --wait, the job ended
    meanwhile, or the time was over, because the save failed or nobody is there: a request that nobody has taken is
    taken back then; 2 if RUN is no directory, no living job saves there, or only runs below it do.
    """
    from safepoint import requests

    if not output.existing(directory).is_dir():
        output.fail(f"{directory} is a file; give the directory of a run.")
    catalog = _read(directory)
    own = _of_the_run(catalog)
    if catalog.records and not own.records:
        output.fail(_told_of_runs_below(catalog))
    if own.records and not _is_alive(own):
        output.fail(f"no living job saves into {directory}: nobody holds a checkpoint there. {_remedy(directory)}")
    try:
        requests.ask(directory)
    except OSError as error:
        output.fail(f"{directory / requests.REQUEST_NAME} cannot be made: {error.strerror or error}.")
    asked = "asked" if own.records else f"asked; whether a job is alive in {directory} shows with its first checkpoint"
    if not (json or (wait and own.records)):
        output.line(asked)
    saved, told = _answer(directory, own, timeout) if wait else (None, asked)
    if json:
        _print_document(directory, saved, told, is_over=wait)
    elif wait:
        output.line(told, None if saved else "red")
    if wait and not saved:
        raise typer.Exit(NOT_SAVED)


def _print_document(directory: Path, saved: Path | None, told: str, *, is_over: bool) -> None:
    from safepoint.cli.documents import Answer, SaveNow

    answer: Answer = "saved" if saved else "not-saved" if is_over else "asked"
    output.document(SaveNow(str(directory), answer, str(saved) if saved else None, told))


def _answer(directory: Path, before: Catalog, timeout_s: int) -> tuple[Path | None, str]:
    """Return the checkpoint that the request leads to, or ``None`` once nobody is there to make one, or time is over.

    With it, what to say.
    """
    from safepoint import requests

    known = {(record.path, record.time) for record in before.records}
    was_alive, ends_s = False, time.monotonic() + timeout_s
    while True:
        is_over = time.monotonic() >= ends_s
        is_alive = _is_alive(catalog := _of_the_run(_read(directory)))
        for record in reversed(catalog.records):
            is_new = (record.path, record.time) not in known
            if is_new and any(requests.REQUEST_NAME in reason for reason in record.reasons):
                return record.path, str(record.path)
        if was_alive and not is_alive and not _is_alive(_of_the_run(_read(directory))):
            return None, _without(directory, f"the job in {directory} has ended without it")
        if is_over:
            return None, _without(directory, f"no checkpoint in {directory} after {timeout_s} s")
        was_alive = was_alive or is_alive
        time.sleep(_LOOK_EVERY_S)


def _without(directory: Path, told: str) -> str:
    """Take the request back, and return what to say."""
    from safepoint import requests

    try:
        if requests.withdraw(directory):
            said = "nobody has taken the request, and it is taken back"
        else:
            said = "the request was taken: the save is still being written, or has failed, as the job's output tells"
    except OSError as error:
        said = f"{directory / requests.REQUEST_NAME} cannot be removed: {error.strerror or error}"
    return f"{told}: {said}"


def _read(directory: Path) -> Catalog:
    from safepoint.catalog import Catalog

    try:
        return Catalog.of(directory)
    except OSError as error:
        output.fail(f"{directory} cannot be read: {error.strerror or error}.")


def _of_the_run(catalog: Catalog) -> Catalog:
    """Return ``catalog`` without what runs below have saved; a run's own names may lead into directories, too."""
    own = (r for r in catalog.records if r.path.parent == catalog.directory or r.path in catalog.fates)
    return replace(catalog, records=tuple(own))


def _told_of_runs_below(catalog: Catalog) -> str:
    below = list(dict.fromkeys(str(record.path.parent) for record in reversed(catalog.records)))
    named = ", ".join(below[:_MOST_NAMED])
    more = f" and {len(below) - _MOST_NAMED} more" if len(below) > _MOST_NAMED else ""
    return (
        f"{catalog.directory} holds no checkpoint itself, but runs below it do: {named}{more}. Give the directory of "
        f"one. {_remedy(catalog.directory)}"
    )


def _remedy(directory: Path) -> str:
    from safepoint import requests

    return (
        f"If one has just begun in {directory} and not saved yet, ask it with "
        f"'touch {directory / requests.REQUEST_NAME}'."
    )


def _is_alive(catalog: Catalog) -> bool:
    from safepoint.claim import held_elsewhere

    return held_elsewhere(catalog) is not None
