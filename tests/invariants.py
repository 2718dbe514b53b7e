"""What must hold of a checkpoint directory at every moment, also after a crash: one function, used everywhere."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import safepoint
from safepoint import entries, restore
from safepoint.catalog import Catalog
from safepoint.naming import PIN_SUFFIX, TEMPORARY_PREFIX
from safepoint.records import MISSING, REMOVED_BY_OTHERS, Record
from safepoint.training_state import OWN_ENTRY
from safepoint.wanted import Wanted

NOTHING: Mapping[str, float] = MappingProxyType({})


def whole_checkpoints(directory: Path, acknowledged: Mapping[str, float] = NOTHING) -> list[Path]:
    """Return the checkpoints in ``directory``, after asserting that nothing is lost, torn or astray.

    Each is whole: Safepoint verifies it, a plain zip reader finds no error, and PyTorch's restricted loader reads it.
    There is nothing else, pins and hidden temporaries of a dead writer apart. If there is any without a flaw, one is
    restored.
    ``acknowledged`` has the names that a run was told to be durable, with their times of capture: each is there, that
    one or a later one, unless a later one is there that tells that the policy let it go.
    """
    found = [path for path in sorted(directory.rglob("*")) if not path.is_dir() and not _is_hidden(path)]
    for path in found:
        _assert_whole(path)
    catalog = Catalog.of(directory)
    assert catalog.unreadable == {}
    assert sorted(record.path for record in catalog.records) == found
    times = {record.path.relative_to(directory).as_posix(): record.time for record in catalog.records}
    lost = {name for name, time in acknowledged.items() if times.get(name, 0.0) < time}
    assert lost <= _let_go(catalog), f"{sorted(lost - _let_go(catalog))} lost; there are {sorted(times)}"
    assert max(times.values(), default=0.0) >= max(acknowledged.values(), default=0.0), "the newest is lost"
    if (newest := _newest(catalog)) is not None:
        _assert_restored(catalog, newest.path)
    return found


def temporaries(directory: Path) -> list[Path]:
    """Return the temporaries that lie in ``directory``."""
    return sorted(path for path in directory.rglob(f"{TEMPORARY_PREFIX}*"))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(TEMPORARY_PREFIX) or path.suffix == PIN_SUFFIX


def _assert_whole(path: Path) -> None:
    assert path.suffix == ".ckpt", f"{path} is no checkpoint and no temporary"
    assert safepoint.verify(path) == [], path
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, path
    torch.load(path, weights_only=True)


def _let_go(catalog: Catalog) -> set[str]:
    """Return the names that the newest of each run tells to have been removed."""
    fates = [fate for run in catalog.runs() for fate in catalog.history(run) if not fate.kept]
    let_go = [fate for fate in fates if fate.reason not in (MISSING, REMOVED_BY_OTHERS)]
    return {fate.record.path.relative_to(catalog.directory).as_posix() for fate in let_go}


def _newest(catalog: Catalog) -> Record | None:
    """Return the record saved last of those with nothing that speaks against going on from them."""
    return next((record for record in reversed(catalog.records) if not record.flaw), None)


def _assert_restored(catalog: Catalog, newest: Path) -> None:
    """Assert that ``newest`` loads, and that a plain loop (a framework restores by itself) is put back to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of frozen parameters, and of flaws
        _restore(catalog, safepoint.load(newest))


def _restore(catalog: Catalog, state: dict[str, Any]) -> None:
    if OWN_ENTRY in state and "loops" not in state:  # which a framework restores
        objects = entries.adapted({name: value for name, value in state.items() if name != OWN_ENTRY})
        wanted = Wanted(tuple(objects), OWN_ENTRY, catalog.directory)
        restored = restore.restore_first(objects, restore.Candidates.newest_first(catalog), wanted)
        assert restored is not None
        assert restored.record == _newest(catalog)
        assert restored.skipped == {}
