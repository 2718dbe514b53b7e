"""``safepoint explain``: why a checkpoint is kept and what would remove it, or when and why it went."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output

if TYPE_CHECKING:
    from safepoint.cli import documents
    from safepoint.explanation import Explanation
    from safepoint.records import Record

_COLOURS = {"kept": "green", "pinned": "green", "goes": "yellow", "missing": "yellow"}


def explain(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", readable=False, help="A checkpoint, there or gone by now.", show_default=False),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a document, safepoint.explain/1.")] = False,
) -> None:
    """Say why FILE is kept, and what would remove it; of one that is gone, when and why it went.

    That is told by the newest checkpoint of its run: what its policy decided with the last save, and why. The policy
    itself is in no file. When a checkpoint went is known as closely as the others that are left tell.

    EXIT STATUS: 0 if there is something to say, also of one that is gone; 2 if FILE is no checkpoint, cannot be read,
    or is not there and nothing tells of it.
    """
    from safepoint.explanation import explain as explained

    if file.is_dir():
        _check_directory(file)
    found = explained(file)
    if as_json:
        output.document(_document(found))
        return
    now = time.time()
    output.line(_told(found, now))
    verdict = f"kept: {found.why}" if found.answer == "kept" else found.why
    output.line(verdict, _COLOURS.get(found.answer), bold=True)
    if found.after is not None:
        output.line(f"  {_when(found, now)}")
    for each in found.more:
        output.line(f"  {each}")


def _check_directory(directory: Path) -> None:
    """Refuse a directory that is no checkpoint."""
    import os

    from safepoint.search import is_checkpoint

    if not is_checkpoint(directory, os.listdir(directory)):
        output.fail(
            f"{directory} is a directory; give a checkpoint in it, or see them with 'safepoint ls {directory}'."
        )


def _told(found: Explanation, now: float) -> str:
    """Say what the checkpoint is, or was."""
    told = found.outline
    parts = [
        "" if told.step is None else f"step {told.step}",
        "" if told.epoch is None else f"epoch {told.epoch}",
        output.metrics(told.metrics),
        f"saved {output.age(now - told.time)} ago",
    ]
    why = f" ({'; '.join(found.reasons)})" if found.reasons else ""
    return f"{found.path}: {', '.join(filter(None, parts))}{why}"


def _when(found: Explanation, now: float) -> str:
    """Say when it went."""
    after, by = found.after, found.by
    if after is None or by is None:
        return "" if after is None else f"since the save at {_save(after, now)}"
    if found.is_exact:
        return f"with the save at {_save(by, now)}"
    return f"after the save at {_save(after, now)}, and with that at {_save(by, now)} at the latest"


def _save(record: Record, now: float) -> str:
    return f"step {record.step} ({record.path.name}), {output.age(now - record.time)} ago"


def _document(found: Explanation) -> documents.Explain:
    from safepoint.cli import documents
    from safepoint.records import encoded_metrics

    def save(record: Record | None) -> documents.ExplainSave | None:
        return None if record is None else documents.ExplainSave(str(record.path), record.step, record.time)

    told = found.outline
    return documents.Explain(
        str(found.path),
        found.answer.value,
        found.why,
        found.more,
        told.format.value,
        told.step,
        told.epoch,
        encoded_metrics(told.metrics),
        told.time,
        found.reasons,
        save(found.after),
        save(found.by),
        found.is_exact,
    )
