"""What is a checkpoint in a tree of files: Safepoint's as its catalog tells, other programs' as ``formats`` does.

Where to look is ``search``'s. Reads what tells of checkpoints and none of their data. Knows no command, and no policy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safepoint import reader
from safepoint.catalog import Catalog, name_in
from safepoint.contents import Format, Outline
from safepoint.errors import CheckpointError, NotACheckpointError, plain
from safepoint.records import Fate, Record
from safepoint.search import found_below, is_checkpoint


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint, or what is called one and cannot be read.

    ``directory`` is where its run saves, or where it lies. ``outline`` is ``None`` where ``problem`` says why it cannot
    be read. ``record`` is what a checkpoint of Safepoint's says, and ``fate`` what its run has to say of it: ``None``
    for other programs', and for a copy or a link that somebody made.
    """

    path: Path
    directory: Path
    outline: Outline | None
    record: Record | None = None
    fate: Fate | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """What it is called in ``directory``."""
        return name_in(self.directory, self.path)

    @property
    def why(self) -> str:
        """Why it is kept, "" if another program wrote it."""
        record, fate = self.record, self.fate
        if record is None:
            return ""
        if fate is not None and not fate.kept and not record.pinned:
            return f"to be removed by its run: {fate.reason}"
        told = "copied, renamed, or counted no more: no policy touches it" if fate is None else fate.reason
        return f"{'pinned' if record.pinned else told}{f'; not gone on from: {record.flaw}' if record.flaw else ''}"


@dataclass(frozen=True, slots=True)
class Survey:
    """The checkpoints in ``directory`` and below.

    ``entries`` are in the order of their directories; in each, oldest first, and what cannot be read at the end.
    ``runs`` are the catalogs of the directories into which Safepoint has saved, by directory.
    """

    directory: Path
    entries: tuple[Entry, ...]
    runs: Mapping[Path, Catalog]

    @classmethod
    def of(cls, path: Path) -> Survey:
        """Look through the directory at ``path``, or at the one checkpoint that it is, a file or a directory.

        Directories that are hidden, or reached through a symbolic link, are not looked into, unless ``path`` is one.

        Raises:
            NotACheckpointError: it is a file, or the directory of a checkpoint, that cannot be read as one.
            OSError: it is not there, or a directory cannot be read.

        """
        if not path.is_dir() or is_checkpoint(path, os.listdir(path)):
            return _of_one(path)
        found = found_below(path)
        catalog = Catalog.reading(path, found.named_as_ours, found.pins)
        runs = _runs(catalog)
        entries = [*_of_safepoint(catalog, runs)]
        entries += _others(catalog.unreadable)
        entries += _others(dict.fromkeys(found.others, ""))
        return cls(path, _in_order(entries), runs)

    def removed(self) -> dict[Path, Fate]:
        """Return what was removed since, by its path, as the newest checkpoint of each run tells."""
        told = (fate for catalog in self.runs.values() for run in catalog.runs() for fate in catalog.gone(run))
        there = {entry.path for entry in self.entries}
        return {fate.record.path: fate for fate in told if fate.record.path not in there}


Sizes = dict[tuple[int, int], int]
"""The sizes of files, by device and inode, so that one is counted once whatever names it has."""


def size_on_disk(entries: Iterable[Entry]) -> int:
    """Return how many bytes the files of ``entries`` have, each counted once whatever names it has."""
    sizes: Sizes = {}
    for entry in entries:
        sizes.update(sizes_on_disk(entry))
    return sum(sizes.values())


def sizes_on_disk(entry: Entry) -> Sizes:
    """Return the sizes of the files of ``entry`` that are still there."""
    sizes: Sizes = {}
    for path in _files(entry):
        try:
            status = os.stat(path)
        except OSError:  # a running job has removed it
            continue
        sizes[status.st_dev, status.st_ino] = status.st_size
    return sizes


def _files(entry: Entry) -> Iterator[str | Path]:
    if entry.record is not None or not entry.path.is_dir():
        yield entry.path
        return
    for place, _, names in os.walk(entry.path):
        yield from (os.path.join(place, name) for name in names)


def _of_one(path: Path) -> Survey:
    """Return the survey of the one checkpoint at ``path``."""
    from safepoint import formats

    try:
        outline = formats.outline(path)
    except NotACheckpointError as error:
        raise NotACheckpointError(f"{path}: {_without(path, error)}") from None
    if outline.format is not Format.SAFEPOINT:
        return Survey(path, (Entry(path, path.parent, outline),), {})
    record = reader.read_summary(path).record(path, outline.size_bytes)
    directory = _saved_into(record)
    catalog = Catalog.of(directory, below=path.parent != directory)
    runs = {directory: catalog} if path in catalog.fates else {}
    found = [entry for entry in _of_safepoint(catalog, runs) if entry.path == path]
    return Survey(path, tuple(found) or (Entry(path, path.parent, outline, record),), runs)


def _runs(catalog: Catalog) -> dict[Path, Catalog]:
    """Return the catalogs of the directories into which runs have saved.

    The names in a run's history are those below its directory, which may be below the one that was asked for.
    """
    found = {catalog.directory: catalog} if catalog.fates else {}
    by_parent: dict[str, list[Record]] = {}
    for record in catalog.records:
        if record.path not in catalog.fates:
            by_parent.setdefault(os.path.dirname(record.path), []).append(record)
    while by_parent:
        parent = min(by_parent)
        directory, records = Path(parent), by_parent.pop(parent)
        if directory in found:  # its runs do not count them
            continue
        run = catalog.part(directory, records)
        if not run.fates and (directory := _saved_into(records[-1])) != Path(parent):
            inside = [place for place in by_parent if place.startswith(os.path.join(directory, ""))]
            records = [*records, *(record for place in inside for record in by_parent.pop(place))]
            known = found[directory].records if directory in found else ()
            run = catalog.part(directory, [*known, *records])
        if run.fates:
            found[directory] = run
    return found


def _saved_into(record: Record) -> Path:
    """Return the directory from which the history names the checkpoint of ``record``, or where it lies."""
    try:
        history = reader.read_history(record.path)
    except (CheckpointError, OSError):
        return record.path.parent
    parts = record.path.parts
    for told in history:
        named = Path(told.name).parts
        if told.step == record.step and parts[-len(named) :] == named:
            return Path(*parts[: -len(named)])
    return record.path.parent


def _of_safepoint(catalog: Catalog, runs: Mapping[Path, Catalog]) -> Iterator[Entry]:
    told: dict[Path, tuple[Path, Record, Fate]] = {}
    for directory, run in runs.items():
        own = {record.path: record for record in run.records}
        told.update((path, (directory, own[path], fate)) for path, fate in run.fates.items())
    for record in catalog.records:
        directory, complete, fate = told.get(record.path, (record.path.parent, record, None))
        yield Entry(record.path, directory, _outline(complete), complete, fate)


def _outline(record: Record) -> Outline:
    return Outline(
        record.path, Format.SAFEPOINT, record.size_bytes, record.time, record.step, record.epoch, record.metrics
    )


def _others(problems: Mapping[Path, str]) -> Iterator[Entry]:
    """Yield what Safepoint did not write, or cannot read any more; ``problems`` is what is known of that."""
    if not problems:
        return
    from safepoint import formats  # takes as long as all the rest, where there is nothing but Safepoint's

    for path, known in problems.items():
        try:
            yield Entry(path, path.parent, formats.outline(path))
        except FileNotFoundError:
            continue  # removed since
        except (CheckpointError, OSError) as error:
            told = _without(path, error)
            yield Entry(path, path.parent, None, problem=told if isinstance(error, CheckpointError) else known or told)


def _without(path: Path, error: Exception) -> str:
    """Return what ``error`` says, without the path in front that it may begin with."""
    return plain(str(error)).removeprefix(plain(f"{path}: "))


def _in_order(entries: list[Entry]) -> tuple[Entry, ...]:
    by_directory: dict[Path, list[Entry]] = {}
    for entry in entries:
        by_directory.setdefault(entry.directory, []).append(entry)
    return tuple(entry for directory in sorted(by_directory) for entry in _oldest_first(by_directory[directory]))


def _oldest_first(entries: list[Entry]) -> list[Entry]:
    """Return the entries of one directory in the order in which they were saved, the unreadable ones behind.

    Safepoint's tell when that was. The times of other programs' files are those of the files, which copying changes:
    where every one tells its step, the steps decide.
    """
    readable = [(entry, entry.outline) for entry in entries if entry.outline is not None]
    by_step = all(outline.step is not None and entry.record is None for entry, outline in readable)

    def age(found: tuple[Entry, Outline]) -> tuple[float, float]:
        outline = found[1]
        step = -1 if outline.step is None else outline.step
        return (step, outline.time) if by_step else (outline.time, step)

    unreadable = sorted((entry for entry in entries if entry.outline is None), key=lambda entry: entry.path)
    return [entry for entry, _ in sorted(readable, key=age)] + unreadable
