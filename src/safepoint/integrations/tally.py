"""What has been measured so far in an epoch: the framework's means and sums, and the states of torchmetrics' objects.

The framework keeps neither over a restart, so that the epoch's mean would be of the batches since then. Its private
names are here, with contract tests.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_LEFT = "_safepoint_left"
_PARTS = ("value", "cumulated_batch_size")


def tally(trainer: Any) -> dict[str, Any]:
    """Return what has been measured in the training epoch so far, as plain values and tensors on the CPU."""
    logged = {
        key: {part: _copied(getattr(result, part)) for part in _PARTS if hasattr(result, part)}
        for key, result in trainer.fit_loop.epoch_loop._results.items()  # noqa: SLF001
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }
    metrics = {
        path: {"state": _copied(metric.metric_state), "count": metric.update_count}
        for path, metric in _metrics(trainer)
        if metric.update_count
    }
    return {"logged": logged, "metrics": metrics}


def put_back(trainer: Any, saved: Mapping[str, Any]) -> None:
    """Go on from what ``tally`` returned: what is logged by the same names is added to it."""
    results = trainer.fit_loop.epoch_loop._results  # noqa: SLF001
    trainer._logger_connector._first_loop_iter = False  # noqa: SLF001  # at the first batch it would begin anew
    for path, metric in _metrics(trainer):
        if path in saved["metrics"]:
            state, metric._update_count = saved["metrics"][path]["state"], saved["metrics"][path]["count"]  # noqa: SLF001
            metric._computed = None  # noqa: SLF001
            for name in metric.metric_state.keys() & state.keys():
                setattr(metric, name, _moved(state[name], metric.device))
    if saved["logged"]:
        vars(results)[_LEFT] = dict(saved["logged"])
        kind: Any = type(results)
        results.__class__ = _going_on(kind)


def problem_of(saved: Any) -> str | None:
    """Return why ``saved`` is not what ``tally`` returns, ``None`` if it is."""
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), dict) for part in ("logged", "metrics")):
        return "it tells of no measurements"
    for parts in saved["logged"].values():
        if not isinstance(parts, dict) or not parts.keys() <= set(_PARTS) or not _are_tensors(parts):
            return "what was logged is none"
    for metric in saved["metrics"].values():
        is_one = isinstance(metric, dict) and type(metric.get("count")) is int and isinstance(metric.get("state"), dict)
        if not is_one or not all(_are_tensors({0: value}) for value in metric["state"].values()):
            return "the state of a metric is none"
    return None


def _are_tensors(found: Mapping[Any, Any]) -> bool:
    flat = (each for value in found.values() for each in (value if isinstance(value, list) else [value]))
    return all(isinstance(each, Tensor) for each in flat)


def _metrics(trainer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the metrics of the module by path, but for those that validation logs: these begin anew each time."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return
    validation = trainer.fit_loop.epoch_loop.val_loop._results.values()  # noqa: SLF001
    theirs = {id(result.value) for result in validation if not result.is_tensor}
    for path, module in trainer.lightning_module.named_modules():
        if isinstance(module, torchmetrics.Metric) and id(module) not in theirs:
            yield path, module


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value.detach().cpu().clone()


def _moved(value: Any, device: Any) -> Any:
    return [each.to(device) for each in value] if isinstance(value, list) else value.to(device)


@functools.cache
def _going_on(base: type[Any]) -> type[Any]:
    """Return a class below ``base``, a collection of results, in which a new one begins with what is left of it."""

    class GoingOn(base):  # type: ignore[misc]
        def __setitem__(self, key: str, result: Any) -> None:
            left = vars(self)[_LEFT]
            for part, value in left.pop(key, {}).items() if result.is_tensor and result.meta.on_epoch else ():
                if hasattr(result, part):
                    setattr(result, part, value)
            super().__setitem__(key, result)

        def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:  # noqa: FBT001 - the framework's
            super().reset(metrics, fx)
            if fx is None:  # the epoch is over
                del self.__dict__[_LEFT]
                self.__class__ = base

    return GoingOn
