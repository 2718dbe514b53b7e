"""Read a run's directory for the page: what is there, what was removed, the newest's tree, and the drift.

Reads manifests and histories; tensors are read by ``drift`` alone. Knows no HTML and no chart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from safepoint import formats
from safepoint.anatomy import folded, grown
from safepoint.catalog import Catalog
from safepoint.contents import Format, Outline
from safepoint.errors import CheckpointError
from safepoint.manifest import HISTORY_LIMIT
from safepoint.page.data import MOST_CHECKPOINTS, Checkpoint
from safepoint.page.drift import Drifts, drifts_of
from safepoint.page.tree import Row, rows_of
from safepoint.records import ANOTHER_NAME, Fate, Record
from safepoint.survey import Entry, Survey, size_on_disk

Told = Callable[[int, int], None]

_BY = {
    Format.LIGHTNING: "Lightning",
    Format.TORCH: "torch.save",
    Format.SAFETENSORS: "safetensors",
    Format.DCP: "torch.distributed.checkpoint",
    Format.HUGGING_FACE: "Hugging Face",
}


@dataclass(frozen=True, slots=True)
class Newest:
    """The checkpoint saved last: what is in it, or why that cannot be told."""

    checkpoint: Checkpoint
    rows: Row | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page tells. ``checkpoints`` are the newest of all, oldest first; the counts are of all.

    ``forgets``: more were removed than a history tells. ``unreadable`` are the files that are called checkpoints and
    are none, by name, each with why. ``drift`` is ``None`` where it was not asked for, or there is none to tell.
    """

    directory: Path
    made_at: float
    checkpoints: tuple[Checkpoint, ...]
    left_out: int
    kept: int
    removed: int
    forgets: bool
    runs: int
    disk_bytes: int
    newest: Newest | None
    drift: Drifts | None
    unreadable: dict[str, str]


def page_of(directory: Path, told: Told, *, drift: bool = True) -> Page:
    """Return what the page of ``directory`` tells; ``told`` hears how many pairs of the drift are read, of how many.

    Raises:
        OSError: the directory is not there, or cannot be read.

    """
    survey = Survey.of(directory)
    if any(entry.path == directory for entry in survey.entries):  # a checkpoint that is a directory
        survey = replace(survey, directory=directory.parent)
    readable = [entry for entry in survey.entries if entry.outline is not None]
    found = _Directory(survey, readable)
    everything = sorted((*found.kept(), *found.removed()), key=_age)
    shown = tuple(everything[-MOST_CHECKPOINTS:])
    kept = [checkpoint for checkpoint in everything if checkpoint.kept]
    return Page(
        directory=directory,
        made_at=time.time(),
        checkpoints=shown,
        left_out=len(everything) - len(shown),
        kept=len(kept),
        removed=len(everything) - len(kept),
        forgets=any(_forgets(catalog) for catalog in survey.runs.values()),
        runs=len({checkpoint.run for checkpoint in everything}),
        disk_bytes=size_on_disk(readable),
        newest=_newest(kept, survey.directory),
        drift=_drift(shown, survey.directory, told) if drift else None,
        unreadable={
            _name(entry.path, survey.directory): entry.problem for entry in survey.entries if entry.outline is None
        },
    )


class _Directory:
    """Makes the checkpoints of the page of what a survey has found; runs are told apart where there are several."""

    def __init__(self, survey: Survey, entries: Sequence[Entry]) -> None:
        self._survey = survey
        self._entries = entries
        self._labels: dict[tuple[Path, str], str] = {}
        for directory, run in self._runs():
            same_place = sum(place == directory for place, _ in self._labels)
            label = _name(directory, survey.directory)
            self._labels[directory, run] = f"{label} ({same_place + 1})" if same_place else label
        if len(self._labels) == 1:
            self._labels = dict.fromkeys(self._labels, "")

    def kept(self) -> Iterator[Checkpoint]:
        """Yield what is on disk."""
        for entry in self._entries:
            if entry.outline is not None:
                found = self._there(entry, entry.outline)
                yield found if entry.record is None else _with_own(found, entry.record)

    def removed(self) -> Iterator[Checkpoint]:
        """Yield what was removed since, as the newest checkpoint of each run tells."""
        there = {(record.path, record.time) for entry in self._entries if (record := entry.record)}
        for directory, catalog in self._survey.runs.items():
            for run in catalog.runs():
                for fate in catalog.history(run):
                    is_link = fate.kept and fate.reason.startswith(ANOTHER_NAME)
                    if not is_link and (fate.record.path, fate.record.time) not in there:
                        yield self._gone(fate, self._labels.get((directory, run), ""))

    def _there(self, entry: Entry, outline: Outline) -> Checkpoint:
        return Checkpoint(
            name=_name(entry.path, self._survey.directory),
            run=self._labels[_run_of(entry)],
            time=outline.time,
            kept=True,
            why=_why(entry, outline),
            step=outline.step,
            epoch=outline.epoch,
            metrics=outline.metrics,
            size_bytes=outline.size_bytes,
        )

    def _gone(self, fate: Fate, run: str) -> Checkpoint:
        record = fate.record
        return Checkpoint(
            name=_name(record.path, self._survey.directory),
            run=run,
            time=record.time,
            kept=False,
            why=f"somebody has taken it away; its run kept it: {fate.reason}" if fate.kept else fate.reason,
            step=record.step,
            epoch=record.epoch,
            metrics=record.metrics,
            size_bytes=record.size_bytes,
            stats=record.stats,
        )

    def _runs(self) -> Iterator[tuple[Path, str]]:
        yield from dict.fromkeys(map(_run_of, self._entries))


def _forgets(catalog: Catalog) -> bool:
    """Tell whether a history has as many of the removed as it ever does: there were more, or are with the next."""
    removed = (sum(not fate.kept for fate in catalog.history(run)) for run in catalog.runs())
    return any(count >= HISTORY_LIMIT for count in removed)


def _age(checkpoint: Checkpoint) -> tuple[float, int]:
    return checkpoint.time, checkpoint.step or 0


def _name(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix() if path.is_relative_to(directory) else str(path)


def _run_of(entry: Entry) -> tuple[Path, str]:
    return entry.directory, entry.record.run if entry.record else ""


def _with_own(found: Checkpoint, record: Record) -> Checkpoint:
    """Return ``found`` with what only a checkpoint of Safepoint's tells."""
    return replace(
        found,
        measured_at=record.measured_at,
        reasons=record.reasons,
        emergency=record.emergency,
        pinned=record.pinned,
        stats=record.stats,
    )


def _why(entry: Entry, outline: Outline) -> str:
    written_by = _BY.get(outline.format, "another program")
    return entry.why or f"written by {written_by}: no policy of Safepoint's touches it"


def _newest(kept: Sequence[Checkpoint], directory: Path) -> Newest | None:
    if not kept:
        return None
    newest = _each_once(kept)[-1]
    try:
        contents = formats.contents(directory / newest.name)
    except (CheckpointError, OSError) as error:
        return Newest(newest, None, str(error))
    return Newest(newest, rows_of(folded(grown(contents.tree))))


def _each_once(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return those that are on disk without the further names (``last.ckpt``) of others of them."""
    kept = [checkpoint for checkpoint in checkpoints if checkpoint.kept]
    own = {(each.run, each.time) for each in kept if not each.why.startswith(ANOTHER_NAME)}
    return [each for each in kept if (each.run, each.time) not in own or not each.why.startswith(ANOTHER_NAME)]


def _drift(shown: Sequence[Checkpoint], directory: Path, told: Told) -> Drifts | None:
    by_run: dict[str, list[int]] = {}
    once = {id(checkpoint) for checkpoint in _each_once(shown)}
    for place, checkpoint in enumerate(shown):
        if id(checkpoint) in once:
            by_run.setdefault(checkpoint.run, []).append(place)
    pairs = [pair for places in by_run.values() for pair in pairwise(places)]
    if not pairs:
        return None
    return drifts_of([directory / checkpoint.name for checkpoint in shown], pairs, formats.contents, told)
