"""``safepoint prune``: remove what a policy does not keep."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output
from safepoint.errors import in_line

if TYPE_CHECKING:
    from safepoint.cli import documents
    from safepoint.prune import Pruned, Pruning

NOT_REMOVED = 1


def prune(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN", readable=False, help="The directory of a run.", show_default=False)
    ],
    *,
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="POLICY",
            help="What stays, as words joined by commas: best:METRIC[:N][:max], latest:N, every:epochs:N, "
            "every:steps:N, within:days:D (or hours, minutes, seconds, gigabytes), pinned, all.",
            show_default=False,
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a document, safepoint.prune/1; with --dry-run or --yes.")
    ] = False,
) -> None:
    """Remove the checkpoints in RUN that --keep does not keep: 'safepoint prune RUN --keep best:val_loss:3,latest:2'.

    Shows what stays and what goes, why, and what that frees, and asks first. Never goes: the newest of a run, what is
    pinned, what a symbolic link in RUN shows, and what the run did not write itself under the name that it has: copies,
    other programs' files. Every byte of the newest is read before: if it is damaged, it counts for nothing, and the one
    before it is the newest. Of several runs in RUN, each is pruned by itself. A run that is alive is left to its own
    policy.

    EXIT STATUS: 0 if all that goes is removed, or nothing goes, or with --dry-run; 1 if the answer is no, or something
    could not be removed; 2 if RUN or POLICY is none, no checkpoint has a metric of POLICY's, RUN is alive, or nobody is
    there to be asked and --yes is not given.
    """
    from safepoint import keep_words
    from safepoint import prune as pruning

    policy = keep_words.parsed(keep)
    if not output.existing(directory).is_dir():
        output.fail(f"{directory} is a file; give the directory of a run.")
    planned = pruning.plan(directory, policy, keep, _problems)
    if not planned.stays:
        output.fail(f"{directory} holds no checkpoint of a run that saves there; give the directory of a run.")
    removes = bool(planned.goes) and not dry_run
    if removes:
        _check(planned, asks=not yes, can_ask=not as_json and sys.stdin.isatty())
    if not as_json:
        _show(planned)
    if removes and not yes and not typer.confirm(_question(planned)):
        output.line("nothing was removed")
        raise typer.Exit(NOT_REMOVED)
    done = pruning.carry_out(planned, policy, keep) if removes else None
    if as_json:
        output.document(_document(planned, done))
    elif done is not None:
        _tell(done)
    if done is not None and done.failed:
        raise typer.Exit(NOT_REMOVED)


def _problems(path: Path) -> tuple[str, ...]:
    """Return what is wrong with the checkpoint at ``path``, every byte of which is read."""
    from safepoint.checks import check_all
    from safepoint.cli.bar import bar
    from safepoint.soundness import size_of

    with bar("verifying the newest", size_of(path)) as advance, closing(check_all([path], 1, advance)) as checks:
        found = next(checks)
    return ("it is gone",) if found is None else found.problems


def _check(planned: Pruning, *, asks: bool, can_ask: bool) -> None:
    """Refuse what cannot be done, before anything is shown."""
    if planned.living:
        from safepoint.claim import whose

        path = planned.living[0]
        output.fail(
            f"{path} is held by {whose(path)}: its run is alive, and removes checkpoints by its own policy. Wait for "
            "its end, or end it; --dry-run says what would go."
        )
    if asks and not can_ask:
        output.fail(
            f"{len(planned.goes)} checkpoints would go, and nobody is there to be asked: give --yes, or --dry-run to "
            "see them."
        )


def _show(planned: Pruning) -> None:
    heading, *rows = _table(planned)
    output.line(heading, bold=True)
    typer.echo("\n".join(rows))
    for path, why in planned.untouched.items():
        output.line(f"not touched: {path.relative_to(planned.directory)}: {why}", dim=True)
    count = len(planned.goes)
    if count:
        output.line(
            f"{count} of {count + len(planned.stays)} checkpoints would go, which frees "
            f"{output.size(planned.frees_bytes)}"
        )
    else:
        stays = len(planned.stays)
        output.line(f"nothing goes: {f'all {stays} checkpoints stay' if stays > 1 else 'the only checkpoint stays'}")
    for path in planned.living:
        output.line(f"{path} is held by another process: its run is alive, and is not pruned now", "yellow")


def _table(planned: Pruning) -> Iterator[str]:
    from safepoint.cli.columns import Column, lines

    columns = (
        Column(""),
        Column("name", folds=True),
        Column("step", right=True),
        Column("metrics", folds=True),
        Column("size", right=True),
        Column("why", folds=True),
    )
    told = [(saved, "stays") for saved in planned.stays] + [(saved, "goes") for saved in planned.goes]
    told.sort(key=lambda each: each[0].record.time)
    rows = [
        (
            what,
            in_line(", ".join(str(name.relative_to(planned.directory)) for name in saved.names)),
            str(saved.record.step),
            in_line(output.metrics(saved.record.metrics)),
            output.size(saved.record.size_bytes),
            in_line(saved.reason),
        )
        for saved, what in told
    ]
    return lines(columns, rows, output.width())


def _question(planned: Pruning) -> str:
    count = len(planned.goes)
    return f"Remove {count} checkpoint{'s' if count > 1 else ''} ({output.size(planned.frees_bytes)})?"


def _tell(done: Pruned) -> None:
    """Say what has become of it."""
    for path, why in done.left.items():
        output.line(f"{path} was left alone: {why}", "yellow")
    for path, why in done.failed.items():
        output.line(f"{path} could not be removed: {why}", "red")
    count = len(done.removed)
    output.line(f"removed {count} checkpoint{'' if count == 1 else 's'}, {output.size(done.freed_bytes)} freed")


def _document(planned: Pruning, done: Pruned | None) -> documents.Prune:
    from safepoint.cli import documents
    from safepoint.prune import Saved
    from safepoint.records import encoded_metrics

    def told(saved: Saved, answer: documents.Answered, why: str | None = None) -> documents.PruneCheckpoint:
        record, names = saved.record, tuple(map(str, saved.names))
        return documents.PruneCheckpoint(
            str(record.path),
            names,
            record.step,
            record.epoch,
            encoded_metrics(record.metrics),
            record.time,
            record.size_bytes,
            answer,
            saved.reason if why is None else why,
        )

    def gone(saved: Saved) -> documents.PruneCheckpoint:
        path = saved.record.path
        if done is None:
            return told(saved, "goes")
        if path in done.failed:
            return told(saved, "failed", done.failed[path])
        return told(saved, "left", done.left[path]) if path in done.left else told(saved, "removed")

    found = [*(told(saved, "stays") for saved in planned.stays), *map(gone, planned.goes)]
    return documents.Prune(
        str(planned.directory),
        tuple(sorted(found, key=lambda each: each.time)),
        {str(path): why for path, why in planned.untouched.items()},
        planned.frees_bytes if done is None else done.freed_bytes,
    )
