"""The checkpoints that ``resume_from=`` means: found, and in the order in which they are tried. Changes nothing."""

from __future__ import annotations

from pathlib import Path

from safepoint.archive import ForeignFileError
from safepoint.catalog import Catalog
from safepoint.errors import ConfigurationError, NotACheckpointError
from safepoint.nearby import meant_by
from safepoint.reader import read_summary
from safepoint.restore import Candidates
from safepoint.source import Source


def candidates(source: Source) -> Candidates:
    """Return what ``source``, with an absolute path, means.

    Raises:
        ConfigurationError: there is no such file or directory, or nothing in it is meant; says what there is.
        NotACheckpointError: it is a file without a manifest.

    """
    path = source.path
    if path.is_dir():
        return _in_directory(source)
    if not path.exists():
        near = meant_by(path)
        hint = "" if near is None else f" Did you mean {near}?"
        raise ConfigurationError(f"resume_from={str(path)!r} does not exist.{hint}")
    if source.pick != "latest":
        raise ConfigurationError(f"resume_from={str(path)!r} is a file: give it as it is, or its directory.")
    return _file(path)


def _in_directory(source: Source) -> Candidates:
    path = source.path
    catalog = Catalog.of(path, below=False)
    if not catalog.records and not catalog.unreadable:
        raise ConfigurationError(
            f"resume_from={str(path)!r} holds no checkpoint: give the directory of a run, or a file."
        )
    if not catalog.records and catalog.foreign == catalog.unreadable.keys():
        raise NotACheckpointError(_foreign(path))
    return Candidates.of(catalog, source.candidates(catalog.records) if catalog.records else ())


def _file(path: Path) -> Candidates:
    try:
        record = read_summary(path).record(path, path.stat().st_size)
    except ForeignFileError:
        raise NotACheckpointError(_foreign(path)) from None
    except NotACheckpointError as error:
        raise NotACheckpointError(f"resume_from={str(path)!r}: {error}.") from None
    return Candidates(path.parent, (record,), {}, {})


def _foreign(path: Path) -> str:
    return (
        f"resume_from={str(path)!r} is no checkpoint of Safepoint's: load it with torch.load() and put what you need "
        "of it into the objects in state= before restore()."
    )
