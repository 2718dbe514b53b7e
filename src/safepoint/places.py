"""Where a checkpoint belongs: which run's it is, in which directory, and which of its names the run goes by.

A file tells that itself, whatever it is called by now: its history has the names that its run gave it. Reads manifests;
changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safepoint import reader
from safepoint.errors import CheckpointError
from safepoint.manifest import HistoryEntry, Summary
from safepoint.records import ANOTHER_NAME


@dataclass(frozen=True, slots=True)
class Place:
    """What is at ``path``, and where its run has it.

    ``directory`` is the run's; ``entry`` is what the file itself says of the name that it has, ``None`` where its run
    gave it another: somebody has copied, renamed or linked it. ``record`` is the path that the run goes by, ``None``
    for a copy, which no run knows.
    """

    path: Path
    summary: Summary
    directory: Path
    entry: HistoryEntry | None
    record: Path | None

    @property
    def shown(self) -> Path:
        """The path that the run goes by, as it is to be printed: beside ``path`` as that was given."""
        record = self.record or self.path
        beside = self.path.with_name(record.name)
        return beside if Path(os.path.abspath(beside)) == record else record


def place_of(path: Path) -> Place:
    """Return where the checkpoint at ``path`` belongs.

    Raises:
        NotACheckpointError: it is none of Safepoint's; the message says why.
        OSError: it cannot be read.

    """
    summary = reader.read_summary(path)
    own = [entry for entry in reader.read_history(path) if entry.step == summary.step]
    whole = Path(os.path.abspath(path))
    entry = _named(whole, own)
    if entry is not None:
        directory = whole.parents[len(PurePosixPath(entry.name).parts) - 1]
        return Place(path, summary, directory, entry, _record(whole, summary, directory, entry))
    if path.is_symlink():
        there = place_of(Path(os.path.realpath(path)))
        return Place(path, summary, there.directory, None, there.record)
    linked = next(_links(whole, own), None)
    return Place(path, summary, whole.parent, None, linked)


def is_same(path: Path, summary: Summary) -> bool:
    """Tell whether what is at ``path`` is the checkpoint of ``summary``."""
    try:
        found = reader.read_summary(path)
    except (CheckpointError, OSError):
        return False
    return (found.run, found.time) == (summary.run, summary.time)


def _named(path: Path, own: list[HistoryEntry]) -> HistoryEntry | None:
    """Return which of ``own`` is called as ``path`` is; of several, the one whose name says most."""
    called = [entry for entry in own if _ends_with(path, entry.name)]
    return max(called, key=lambda entry: len(PurePosixPath(entry.name).parts), default=None)


def _ends_with(path: Path, name: str) -> bool:
    parts = PurePosixPath(name).parts
    return path.parts[-len(parts) :] == parts


def _record(path: Path, summary: Summary, directory: Path, entry: HistoryEntry) -> Path:
    """Return the path that the run goes by: that of which ``path`` is another name, if it is still there."""
    if not entry.reason.startswith(ANOTHER_NAME):
        return path
    record = directory / entry.reason.removeprefix(ANOTHER_NAME)
    return record if is_same(record, summary) else path


def _links(path: Path, own: list[HistoryEntry]) -> Iterator[Path]:
    """Yield the records beside ``path`` that are the same file."""
    for entry in own:
        record = path.parent / entry.name
        if not entry.reason.startswith(ANOTHER_NAME) and record.exists() and record.samefile(path):
            yield record
