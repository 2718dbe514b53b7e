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
    """Return what the ``ModelCheckpoint`` callbacks say of the file's monitored metrics.

    A callback's list of the best names files with their metrics: where one names this file, the others' last metrics
    may be another's. A file that is on no list, as one that was renamed, has the metric that each callback saw last;
    but not one that is called ``last``, which may have been saved later.

    Raises:
        OSError: a metric that is a tensor cannot be read.

    """
    monitored = [(state["monitor"], state) for state in _callbacks(tree) if isinstance(state.get("monitor"), str)]
    found = [(monitor, _listed(state, path.name)) for monitor, state in monitored]
    if all(measured is None for _, measured in found) and not path.name.startswith(_LAST):
        found = [(monitor, number(state.get("current_score"))) for monitor, state in monitored]
    return {monitor: measured for monitor, measured in reversed(found) if measured is not None}


def _listed(state: Mapping[Any, Any], name: str) -> float | None:
    """Return the metric that a callback's list of the best has for a file called ``name``."""
    best = state.get("best_k_models")
    for listed, measured in best.items() if isinstance(best, dict) else ():
        if isinstance(listed, str) and Path(listed).name == name:
            return number(measured)
    return None


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
