"""What the state tells that PyTorch Lightning puts into its checkpoints: step, epoch, the monitored metric, versions.

Knows the keys of Lightning's state; knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safepoint.formats.scalars import number
from safepoint.records import Metrics

VERSION = "pytorch-lightning_version"
_LAST = "last"
_HYPERPARAMETERS = ("datamodule_hyper_parameters", "hyper_parameters")


def is_lightning(tree: Any) -> bool:
    """Tell whether Lightning has made the state."""
    return isinstance(tree, dict) and VERSION in tree


def metrics(tree: Mapping[Any, Any], path: Path) -> Metrics:
    """Return what the ``ModelCheckpoint`` callbacks say of the file's monitored metric.

    A callback's list of the best names files with their metrics. A file that is not on it, as one that was renamed, has
    the metric that the callback saw last; but not one that is called ``last``, which may have been saved later.

    Raises:
        OSError: a metric that is a tensor cannot be read.

    """
    found: dict[str, float] = {}
    for state in _callbacks(tree):
        monitor, best = state.get("monitor"), state.get("best_k_models")
        if not isinstance(monitor, str):
            continue
        listed = best if isinstance(best, dict) else {}
        values = [value for name, value in listed.items() if isinstance(name, str) and Path(name).name == path.name]
        if not values and not path.name.startswith(_LAST):
            values = [state.get("current_score")]
        measured = next(map(number, values), None)
        if measured is not None:
            found.setdefault(monitor, measured)
    return found


def _callbacks(tree: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    states = tree.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if isinstance(state, dict):
            yield state


def hyperparameters(tree: Any) -> Mapping[str, Any]:
    """Return what ``save_hyperparameters()`` has put into the state, the module's before the data module's."""
    found: dict[str, Any] = {}
    for key in _HYPERPARAMETERS if isinstance(tree, dict) else ():
        told = tree.get(key)
        found.update(
            (name, value) for name, value in (told if isinstance(told, dict) else {}).items() if type(name) is str
        )
    return found


def producer(tree: Mapping[Any, Any]) -> Mapping[str, str]:
    """Return the version of Lightning."""
    version = tree.get(VERSION)
    return {"lightning": version} if isinstance(version, str) else {}
