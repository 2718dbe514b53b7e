"""What exists in a directory, told from the manifests alone.

Reads manifests, never tensor data, and imports no torch. A moved or copied directory loses nothing: records, reasons
and the history of what was removed are all in the files. Of each file only a summary is kept in memory; the long
histories are read once more, from the newest checkpoint of each run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safepoint import pins, reader
from safepoint.archive import ForeignFileError
from safepoint.background import Background
from safepoint.errors import CheckpointError, plain
from safepoint.manifest import HistoryEntry, Summary, decoded_fate, decoded_history
from safepoint.naming import EXTENSION, PIN_SUFFIX, TEMPORARY_PREFIX
from safepoint.records import ANOTHER_NAME, MISSING, REMOVED_BY_OTHERS, Fate, Record

if TYPE_CHECKING:
    from safepoint.keep import Mode

_THREADS = 8
_FILES_PER_TASK = 64
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR)
_NOTHING_BELOW = (*_NOTHING_THERE, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The checkpoints of one directory.

    ``records`` are oldest first, each pinned or not as it is by now; ``manifests`` are the summaries of theirs;
    ``fates`` are what the run of each has to say of it, with nothing for a copy or a link that somebody made;
    ``unreadable`` are the other ``.ckpt`` files, each with why it has no record, and ``foreign`` those of them that
    another program wrote.
    """

    directory: Path
    records: tuple[Record, ...]
    manifests: Mapping[Path, Summary]
    fates: Mapping[Path, Fate]
    unreadable: Mapping[Path, str]
    foreign: frozenset[Path]

    @classmethod
    def of(cls, directory: Path, extension: str = EXTENSION, *, below: bool = True) -> Catalog:
        """Read the manifests of all that ends in ``extension`` in ``directory``; one that is not there is empty.

        ``below``: in those below it, too.
        """
        return cls.reading(directory, *_scanned(directory, extension, below=below))

    @classmethod
    def reading(cls, directory: Path, paths: list[Path], beside: frozenset[Path] = frozenset()) -> Catalog:
        """Read the manifests of the files at ``paths``, all of them in ``directory`` or below it.

        What lies ``beside`` them and is called like a pin is read, too.
        """
        manifests: dict[Path, Summary] = {}
        unreadable: dict[Path, str] = {}
        foreign: set[Path] = set()
        records: list[Record] = []
        for path, size_bytes, told in _read_all(paths):
            if isinstance(told, Exception):
                unreadable[path] = plain(str(told))
                if isinstance(told, ForeignFileError):
                    foreign.add(path)
            else:
                manifests[path] = told
                records.append(told.record(path, size_bytes))
        if beside:
            records = [_as_pinned(record, beside) for record in records]
        records.sort(key=_age)
        complete, fates = _with_fates(records, directory)
        return cls(directory, complete, manifests, fates, unreadable, frozenset(foreign))

    def part(self, directory: Path, records: Iterable[Record]) -> Catalog:
        """Return what there is of ``records``, some of these, for ``directory``, into which their runs have saved."""
        complete, fates = _with_fates(sorted(records, key=_age), directory)
        manifests = {record.path: self.manifests[record.path] for record in complete}
        return Catalog(directory, complete, manifests, fates, {}, frozenset())

    def latest(self) -> Record | None:
        """Return the record saved last."""
        return self.records[-1] if self.records else None

    def best(self, metric: str, mode: Mode = "min") -> Record | None:
        """Return the record with the best ``metric``, the earlier of equals, or ``None``."""
        return best_of(self.records, metric, mode)

    def history(self, run: str) -> tuple[Fate, ...]:
        """Return the history of ``run`` as its newest checkpoint tells it, oldest first."""
        own = [record for record in self.records if record.run == run]
        return decoded_history(_history(own), self.directory, run)

    def runs(self) -> tuple[str, ...]:
        """Return the runs that wrote the checkpoints, the one that wrote last at the end."""
        return tuple(dict.fromkeys(record.run for record in reversed(self.records)))[::-1]

    def written_by(self, run: str) -> tuple[Record, ...]:
        """Return the records that ``run`` itself wrote under their present names, oldest first.

        A copy or a second link that somebody made bears a name that is not in the run's history: it is not the run's.
        """
        return tuple(record for record in self.records if record.run == run and record.path in self.fates)

    def gone(self, run: str) -> tuple[Fate, ...]:
        """Return what ``run`` has saved and is not there any more, oldest first, with why, as far as that is known."""
        return tuple(
            replace(fate, kept=False, reason=_why_gone(fate)) if fate.kept else fate
            for fate in self.history(run)
            if not os.path.lexists(fate.record.path) and not (fate.kept and fate.reason.startswith(ANOTHER_NAME))
        )


def found_in(directory: Path, extension: str = EXTENSION, *, below: bool = True) -> list[Path]:
    """Return all that is named like a checkpoint in ``directory`` and ``below``, sorted; temporaries are none.

    A symbolic link is followed as a file, never as a directory; a directory below that we may not list (a file
    system's lost+found) has nothing to show, and neither has one that is not there.

    Raises:
        OSError: a directory cannot be read: what is in it must not be taken for nothing.

    """
    return _scanned(directory, extension, below=below)[0]


def _scanned(directory: Path, extension: str, *, below: bool) -> tuple[list[Path], frozenset[Path]]:
    """Return what ``found_in`` does, and the paths of what is named like a pin."""
    found: list[Path] = []
    beside: set[Path] = set()
    pending = [str(directory)]
    while pending:
        place = pending.pop()
        try:
            for entry in _entries(place):
                if entry.name.endswith(extension) and not entry.name.startswith(TEMPORARY_PREFIX):
                    found.append(Path(entry.path))
                elif entry.name.endswith(PIN_SUFFIX):
                    beside.add(Path(entry.path))
                if below and entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
        except OSError as error:
            if error.errno not in (_NOTHING_THERE if place == str(directory) else _NOTHING_BELOW):
                raise
    return sorted(found), frozenset(beside)


def _as_pinned(record: Record, beside: frozenset[Path]) -> Record:
    """Return ``record``, pinned or not as its pin says, if that is among those that lie ``beside`` checkpoints."""
    path = record.path
    if path.parent / pins.name_of(path.name) not in beside:
        return record
    from safepoint.stores.local import LocalStore

    pin = pins.read(LocalStore(path.parent), path.name)
    verdict = None if pin is None else pin.verdict(record.run, (record.time,))
    return record if verdict is None else replace(record, pinned=verdict)


def _entries(place: str) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return list(entries)


def best_of(records: tuple[Record, ...], metric: str, mode: Mode = "min") -> Record | None:
    """Return the best of ``records`` by ``metric``, or ``None`` if none has it as a number; never an emergency one."""
    from safepoint import keep

    ordinary = [record for record in records if not record.emergency]
    ranked = keep.Best(metric, 1, keep.checked_mode("best", mode)).ranked(ordinary)
    return ranked[0] if ranked else None


def _age(record: Record) -> tuple[float, int]:
    return record.time, record.step


class _Reading(NamedTuple):
    """What came of reading one file: its size, and what it told or why it could not be read."""

    path: Path
    size_bytes: int
    told: Summary | CheckpointError | OSError


def _read_all(paths: list[Path]) -> list[_Reading]:
    """Read the summaries of ``paths``, in this order; many of them in threads, as a cold disk has to be waited for."""
    if len(paths) <= _FILES_PER_TASK:
        return _read_some(paths)
    tasks = (paths[first : first + _FILES_PER_TASK] for first in range(0, len(paths), _FILES_PER_TASK))
    readers = Background("catalog", _THREADS)
    try:
        done = [readers.submit(_read_some, task) for task in tasks]
        return [reading for future in done for reading in future.result()]
    finally:
        readers.close()


def _read_some(paths: list[Path]) -> list[_Reading]:
    return [reading for path in paths if (reading := _read(path)) is not None]


def _read(path: Path) -> _Reading | None:
    """Return what the file at ``path`` tells, ``None`` if a running job removed it since the directory was read."""
    try:
        return _Reading(path, path.stat().st_size, reader.read_summary(path))
    except FileNotFoundError:
        return None
    except (CheckpointError, OSError) as error:
        return _Reading(path, 0, error)


def _with_fates(records: list[Record], directory: Path) -> tuple[tuple[Record, ...], dict[Path, Fate]]:
    """Return ``records`` with what later ones tell of them, and their fates; as ``_fates`` does."""
    fates = _fates(records, directory)
    return tuple(_with_what_came_later(record, fates.get(record.path)) for record in records), fates


def _fates(records: Iterable[Record], directory: Path) -> dict[Path, Fate]:
    """Return what the newest of each run tells of those of ``records`` that the run itself wrote under these names."""
    by_run: dict[str, list[Record]] = {}
    for record in records:
        by_run.setdefault(record.run, []).append(record)
    fates: dict[Path, Fate] = {}
    for run, own in by_run.items():
        there = {(name_in(directory, record.path), record.step): record.path for record in own}
        for entry in _history(own):
            if (path := there.get((entry.name, entry.step))) is not None:
                fates[path] = decoded_fate(entry, path, run)
    return fates


def name_in(directory: Path, path: Path) -> str:
    """Return what ``path``, one below ``directory``, is called there: much faster than a path tells it of itself."""
    place = str(directory)
    return str(path) if place == "." else str(path)[len(place.rstrip("/")) + 1 :]


def _history(own: list[Record]) -> tuple[HistoryEntry, ...]:
    """Return the history as the newest of ``own``, the records of a run, tells it: of those that can be read still."""
    for record in reversed(own):
        try:
            return reader.read_history(record.path)
        except (CheckpointError, OSError):
            continue  # removed since, or damaged in what no summary needs
    return ()


def _why_gone(fate: Fate) -> str:
    """Return why what its run has kept is gone: that it was durable once, its statistics tell."""
    return MISSING if fate.record.stats is None else REMOVED_BY_OTHERS


def _with_what_came_later(record: Record, fate: Fate | None) -> Record:
    """Return ``record`` with what later ones tell: what was measured on its weights since, and what its save cost."""
    if fate is None or fate.record.time != record.time:
        return record
    if fate.record.stats is None and fate.record.metrics == record.metrics:
        return record
    return replace(record, metrics={**record.metrics, **fate.record.metrics}, stats=fate.record.stats)
