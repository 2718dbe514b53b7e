"""``safepoint scan``: whether files are safe to load, found out without loading them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from safepoint.cli import output
from safepoint.errors import CheckpointError, NotACheckpointError

if TYPE_CHECKING:
    from safepoint.cli.documents import Scan, ScannedName
    from safepoint.scanning import Scanned

UNSAFE = 1
_MOST_NAMED = 20
_COLOURS = {"nothing": None, "safe": "green", "refused": "yellow", "needs": "yellow", "runs": "red"}


def scan(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", readable=False, help="Files, or directories of them.", show_default=False),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: safepoint.scan/1.")] = False,
) -> None:
    """Tell which classes and functions each FILE would import when it is loaded. Nothing is loaded, or imported.

    Looks at every pickle in it: in files of Safepoint, Lightning and torch.save, also of before torch 1.6, in plain
    pickles, and in all files of a directory. What is on the list of torch.load(weights_only=True) is safe. A name
    beyond it is code of whoever wrote that class, which gets what the file says: load such a file only if you trust who
    made it, and name the classes with safepoint.load(trust=[...]). Names such as os.system or eval are no class of a
    checkpoint's: the file is made to run code. One that cannot be read to its end is not safe either. safetensors hold
    nothing that could run.

    EXIT STATUS: 0 if weights_only=True loads every file, or there is nothing to run; 1 if one needs more, would run
    code, or cannot be read to its end; 2 if one is not there, may not be read, or holds no pickle.
    """
    found: list[Scanned] = []
    unusable: list[Path] = []
    for path in [output.existing(path) for path in paths]:
        for scanned in _scanned(path, unusable):
            found.append(scanned)
            if not as_json:
                output.line(f"{scanned.path}: {_told(scanned)}", _COLOURS[scanned.verdict])
    if as_json:
        output.document(_document(found))
    elif len(found) > 1:
        output.line(_summary(found))
    if not all(scanned.is_safe for scanned in found):
        raise typer.Exit(UNSAFE)
    if unusable:
        raise typer.Exit(output.UNUSABLE)


def _in_words(path: Path, error: CheckpointError | OSError) -> str:
    return f"{error.filename or path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _scanned(path: Path, unusable: list[Path]) -> Iterator[Scanned]:
    """Yield what is found of each file at ``path``; tell what cannot be looked at, and add it to ``unusable``."""
    from safepoint import scanning

    def tell(error: CheckpointError | OSError) -> None:
        output.note(_in_words(path, error))
        unusable.append(path)

    if path.is_dir():
        found = False
        for scanned in scanning.scan_below(path, tell):
            found = True
            yield scanned
        if not (found or unusable):
            tell(
                NotACheckpointError(f"{path} holds no file with a pickle in it, and no safetensors; give a checkpoint.")
            )
        return
    try:
        scanned = scanning.scan(path)
    except (CheckpointError, OSError) as error:
        tell(error)
        return
    yield scanned


def _told(scanned: Scanned) -> str:
    """Return the verdict on a file in words."""
    match scanned.verdict:
        case "nothing":
            return "nothing in it can run: safetensors"
        case "safe" if scanned.what == "torch":
            return "loads with weights_only=True"
        case "safe":
            return "a pickle that names nothing beyond what weights_only=True allows"
        case "needs":
            return f"needs classes beyond weights_only=True: {_named(scanned.beyond)}{_also(scanned.problems)}"
        case "runs":
            return f"would run code: {_named(scanned.dangerous)}: do not load it{_also(scanned.problems)}"
        case _:
            return f"not safe to load: {'; '.join(scanned.problems[:_MOST_NAMED])}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _also(problems: Sequence[str]) -> str:
    return f" ({'; '.join(problems[:_MOST_NAMED])})" if problems else ""


def _summary(found: Sequence[Scanned]) -> str:
    unsafe = sum(not scanned.is_safe for scanned in found)
    return f"{unsafe} of {len(found)} not safe" if unsafe else f"all {len(found)} safe"


def _document(found: Sequence[Scanned]) -> Scan:
    from safepoint.cli.documents import Scan, ScannedFile

    files = tuple(
        ScannedFile(str(scanned.path), scanned.what, scanned.verdict.value, tuple(_names(scanned)), scanned.problems)
        for scanned in found
    )
    return Scan(files, all(scanned.is_safe for scanned in found))


def _names(scanned: Scanned) -> Iterator[ScannedName]:
    from safepoint.cli.documents import ScannedName

    kinds: dict[str, Literal["needs", "runs"]] = dict.fromkeys(scanned.beyond, "needs")
    kinds |= dict.fromkeys(scanned.dangerous, "runs")
    for name, is_called in sorted(scanned.names.items()):
        yield ScannedName(name, kinds.get(name, "safe"), is_called)
