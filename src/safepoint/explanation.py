"""Why a checkpoint is kept and what would remove it or, of one that is gone, when and why it went.

Told from files alone: by the newest checkpoint of its run, by its pin, and by which of the others still have it among
those that are kept. Knows no command; how long a reason lasts is ``lasting``'s.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safepoint import lasting, pins, reader
from safepoint.archive import ForeignFileError
from safepoint.catalog import Catalog, found_in
from safepoint.contents import Format, Outline
from safepoint.errors import CheckpointError, NotACheckpointError
from safepoint.manifest import HistoryEntry
from safepoint.places import Place, place_of
from safepoint.records import ANOTHER_NAME, MISSING, REMOVED_BY_OTHERS, Fate, Record
from safepoint.stores.local import LocalStore


class Answer(enum.StrEnum):
    """Name what can be said of a checkpoint."""

    KEPT = "kept"
    PINNED = "pinned"
    GOES = "goes"
    UNTOUCHED = "untouched"
    REMOVED = "removed"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say of the checkpoint at ``path``: ``why`` in a line, and ``more`` in others.

    ``outline`` is what it was or is, ``reasons`` why it was saved. ``after`` and ``by``, of one that is gone: the last
    save known to be before that, and the first behind; ``is_exact``: it went with that very save.
    """

    path: Path
    answer: Answer
    why: str
    more: tuple[str, ...]
    outline: Outline
    reasons: tuple[str, ...] = ()
    after: Record | None = None
    by: Record | None = None
    is_exact: bool = False


def explain(path: Path) -> Explanation:
    """Return what there is to say of ``path``.

    Raises:
        CheckpointError: it is no checkpoint, or nothing tells of one that is gone.
        OSError: it cannot be read.

    """
    if not os.path.lexists(path):
        return _of_one_gone(path)
    try:
        return _of_one_there(place_of(path))
    except (ForeignFileError, IsADirectoryError):
        return _of_another_program(path)
    except NotACheckpointError as error:
        raise NotACheckpointError(f"{path}: {error}.") from None


# What is there.


def _of_one_there(place: Place) -> Explanation:
    size_bytes = place.path.stat().st_size
    record = place.summary.record(place.path, size_bytes)
    if place.record is None:
        why = "copied or renamed: its run knows no checkpoint of that name, and no policy touches it"
        return Explanation(place.path, Answer.UNTOUCHED, why, (), _outline(record), record.reasons)
    catalog = Catalog.of(place.directory, below=place.record.parent != place.directory)
    record = next((found for found in catalog.records if found.path == place.record), record)
    answer, why, more = _verdict(catalog, place, record)
    own = () if place.shown == place.path else (f"it is another name of {place.shown}, which is what its run goes by",)
    told = (*own, *more, *_told_of_flaw(record))
    return Explanation(place.path, answer, why, told, _outline(record), record.reasons)


def _verdict(catalog: Catalog, place: Place, record: Record) -> tuple[Answer, str, tuple[str, ...]]:
    fate = catalog.fates.get(record.path)
    if record.pinned:
        return Answer.PINNED, f"pinned, {_by_whom(record)}: no policy removes it", (_without_pin(fate, place.shown),)
    if fate is None:
        why = "its run counts it no more, or never did: no policy touches it"
        return Answer.UNTOUCHED, why, ()
    if not fate.kept:
        newest = _newest(catalog, record.run)
        decided = f"its run decided that with the save at step {newest.step} ({newest.path.name}), or before"
        return Answer.GOES, f"to be removed by its run: {fate.reason}", (decided,)
    if fate.reason.startswith(ANOTHER_NAME):  # of what is not there any more
        return Answer.KEPT, "the last of its names, until its run gives that to another checkpoint", ()
    return Answer.KEPT, fate.reason, (*_lasting(catalog, record, fate.reason), _how_to_keep(place.shown))


def _lasting(catalog: Catalog, record: Record, told: str) -> Iterator[str]:
    """Say how long each of the reasons that are told lasts."""
    own = (other for other in catalog.written_by(record.run) if not other.emergency and other.time > record.time)
    later = len({other.time for other in own})
    known = lasting.places(fate.reason for fate in catalog.history(record.run))
    reasons = lasting.reasons_in(told)
    for reason in reasons:
        if until := lasting.until(reason, later, known):
            yield f"it stays {until}" if len(reasons) == 1 else f"{reason}: {until}"


def _how_to_keep(path: Path) -> str:
    return f"whatever comes, it stays with 'safepoint pin {path}'"


def _by_whom(record: Record) -> str:
    pin = pins.read(LocalStore(record.path.parent), record.path.name)
    if pin is None or pin.verdict(record.run, (record.time,)) is None:
        return "as it was saved"
    return "by 'safepoint pin'" if pin.is_legible else "by a file that cannot be read"


def _without_pin(fate: Fate | None, path: Path) -> str:
    unpinned = f"once it is unpinned ('safepoint unpin {path}'), "
    if fate is None or (fate.kept and fate.reason == "pinned"):
        return f"{unpinned}nothing else is known to keep it"
    return f"{unpinned}{'it stays' if fate.kept else 'it goes'}: {fate.reason}"


def _told_of_flaw(record: Record) -> Iterator[str]:
    if record.emergency:
        yield f"it was saved at an exception ({record.emergency}), and counts for no policy"
    if record.flaw:
        yield f"it is not gone on from: {record.flaw}"


def _newest(catalog: Catalog, run: str) -> Record:
    return next(record for record in reversed(catalog.records) if record.run == run)


def _of_another_program(path: Path) -> Explanation:
    from safepoint import formats

    outline = formats.outline(path)
    held = _held_by_a_run(path)
    if held is not None:
        why = f"another program's ({outline.format}), with which a run of Safepoint's goes on: {held.reason}"
        return Explanation(path, Answer.KEPT if held.kept else Answer.GOES, why, (), outline)
    more = "a fit with the drop-in that resumes from such files goes on with their top k, and counts them there"
    told = (more,) if outline.format is Format.LIGHTNING else ()
    why = f"another program's ({outline.format}): no policy of Safepoint's touches it"
    return Explanation(path, Answer.UNTOUCHED, why, told, outline)


def _held_by_a_run(path: Path) -> Fate | None:
    """Return what a run beside ``path`` has to say of it: one may go on with what Lightning wrote."""
    catalog = Catalog.of(path.parent, below=False)
    told = (fate for run in catalog.runs() for fate in catalog.history(run))
    return next((fate for fate in told if fate.record.path == path), None)


# What is gone.


def _of_one_gone(path: Path) -> Explanation:
    whole = Path(os.path.abspath(path))
    for directory, below in dict.fromkeys(_directories_of_runs(whole)):
        catalog = Catalog.of(directory, below=below)
        told = [fate for run in catalog.runs() for fate in catalog.history(run) if fate.record.path == whole]
        if told:
            return _told_of_one_gone(catalog, path, max(told, key=lambda fate: fate.record.time))
    raise CheckpointError(f"{path}: no such file, and no checkpoint near it tells of one that was there.")


def _directories_of_runs(path: Path) -> Iterator[tuple[Path, bool]]:
    """Yield where runs may save that have had a checkpoint at ``path``, and whether to look below it, too.

    Their names may lead into directories.
    """
    yield path.parent, False
    for place in (path.parent, *_below(path.parent), *_below(path.parent.parent)):
        with contextlib.suppress(CheckpointError, OSError):
            for file in found_in(place, below=False)[:1]:
                directory = place_of(file).directory
                yield from ((directory, True),) if path.is_relative_to(directory) else ()


def _below(directory: Path) -> list[Path]:
    try:
        return sorted(place for place in directory.iterdir() if place.is_dir())
    except OSError:
        return []


def _told_of_one_gone(catalog: Catalog, path: Path, fate: Fate) -> Explanation:
    after, by, is_exact = _when(catalog, fate)
    outline = _outline(fate.record)
    if not fate.kept:
        is_by_hand = fate.reason in (MISSING, REMOVED_BY_OTHERS)
        why = f"removed{'' if is_by_hand else ' by its run'}: {fate.reason}"
        return Explanation(path, Answer.REMOVED, why, (), outline, (), after, by, is_exact and not is_by_hand)
    if fate.reason.startswith(ANOTHER_NAME):
        why = f"gone: it was {fate.reason}, and its run has not removed it"
        return Explanation(path, Answer.MISSING, why, (), outline, (), after)
    by_hand = MISSING if fate.record.stats is None else REMOVED_BY_OTHERS
    why = f"gone, though its run keeps it ({fate.reason}): removed {by_hand}"
    more = "its run finds that out before its next save, and counts it no more"
    return Explanation(path, Answer.MISSING, why, (more,), outline, (), after)


def _when(catalog: Catalog, fate: Fate) -> tuple[Record | None, Record | None, bool]:
    """Return the last save that still kept what is gone, the first that did not, and whether none came between.

    Each checkpoint that is there tells what its run kept when it was saved.
    """
    later = [record for record in catalog.written_by(fate.record.run) if record.time > fate.record.time]
    last: Record = fate.record
    first: tuple[Record, tuple[HistoryEntry, ...]] | None = None
    while later:
        middle = later[len(later) // 2]
        history = _history(middle)
        is_kept = _keeps(history, fate)
        if is_kept is None:
            later.remove(middle)
        elif is_kept:
            last, later = middle, [record for record in later if record.time > middle.time]
        else:
            first, later = (middle, history), [record for record in later if record.time < middle.time]
    if first is None:
        return last, None, False
    record, history = first
    return last, record, not any(last.time < entry.time < record.time for entry in history)


def _history(record: Record) -> tuple[HistoryEntry, ...]:
    try:
        return reader.read_history(record.path)
    except (CheckpointError, OSError):
        return ()


def _keeps(history: Sequence[HistoryEntry], fate: Fate) -> bool | None:
    """Return whether ``history`` keeps what ``fate`` is about, ``None`` if it does not tell."""
    return next(
        (entry.kept for entry in history if entry.time == fate.record.time and entry.step == fate.record.step), None
    )


def _outline(record: Record) -> Outline:
    return Outline(
        record.path, Format.SAFEPOINT, record.size_bytes, record.time, record.step, record.epoch, record.metrics
    )
