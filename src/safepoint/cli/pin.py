"""``safepoint pin`` and ``safepoint unpin``: protect a checkpoint from every policy, and lift that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safepoint.cli import output

if TYPE_CHECKING:
    from safepoint.pinning import Pinning
    from safepoint.places import Place

File = Annotated[
    Path, typer.Argument(metavar="FILE", readable=False, help="A checkpoint, by any of its names.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document instead.")]


def pin(file: File, *, json: Json = False) -> None:
    """Protect FILE from every policy: of the job that runs, of later ones, and from 'safepoint prune'.

    Works while the job runs, and tells it by a small file beside the checkpoint, .NAME.pin, which is found before each
    removal and travels with the directory. Of several names of one checkpoint (last.ckpt), the one that its run goes by
    is pinned; another one may go on to the next checkpoint.

    EXIT STATUS: 0 if FILE is pinned, now or before, or is a copy that no policy touches; 2 if it is not there, is no
    checkpoint of Safepoint's, was removed in the moment before, or its directory cannot be written to.
    """
    _set(file, pinned=True, json=json)


def unpin(file: File, *, json: Json = False) -> None:
    """Let policies count FILE again as they count others, also if it was saved with save(pinned=True).

    EXIT STATUS: 0 if FILE is not pinned, now or before; 2 if it is not there, is no checkpoint of Safepoint's, or its
    directory cannot be written to.
    """
    _set(file, pinned=False, json=json)


def _set(file: Path, *, pinned: bool, json: bool) -> None:
    from safepoint.errors import CheckpointError
    from safepoint.pinning import is_pinned, set_pinned

    place = _place(file)
    try:
        done = set_pinned(place, pinned=pinned)
    except OSError as error:
        output.fail(
            f"{file} cannot be {'pinned' if pinned else 'unpinned'}: {error.filename or place.directory}: "
            f"{error.strerror or error}. A pin is a small file beside the checkpoint: make that directory writable."
        )
    except CheckpointError as error:
        output.fail(str(error))
    told = _told(place, done, pinned=pinned)
    if json:
        from safepoint.cli.documents import Pin

        record = None if place.record is None else str(place.shown)
        output.document(Pin(str(file), record, is_pinned(place), done.value == "done", told))
    else:
        output.line(told)


def _place(file: Path) -> Place:
    from safepoint.archive import ForeignFileError
    from safepoint.errors import CheckpointError
    from safepoint.places import place_of

    if not file.exists():
        output.fail(f"{file}: no such file; give a checkpoint.")
    if file.is_dir():
        output.fail(f"{file} is a directory; give a checkpoint in it.")
    try:
        return place_of(file)
    except ForeignFileError:
        output.fail(f"{file} was written by another program: it has no policy of Safepoint's, and no pin.")
    except CheckpointError as error:
        output.fail(f"{file} cannot be read: {error}.")


def _told(place: Place, done: Pinning, *, pinned: bool) -> str:
    """Say what became of it."""
    from safepoint.pinning import Pinning

    if done is Pinning.UNKNOWN:
        return f"{place.path} is a copy, or was renamed by hand: no policy touches it, and there is nothing to pin"
    shown = place.shown
    name = "" if shown == place.path else f" ({place.path} is another name of it)"
    word = "pinned" if pinned else "not pinned"
    if done is Pinning.AS_BEFORE:
        return f"{shown} is {'pinned already' if pinned else 'not pinned'}{name}"
    then = "no policy removes it" if pinned else "its run's policy decides at the next save"
    return f"{shown} is {word}: {then}{name}"
