"""What has been measured so far in an epoch: the framework's means and sums, and the states of torchmetrics' objects.

The framework keeps neither over a restart, so that the epoch's mean would be of the batches since then. Its private
names are here, with contract tests.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

from torch import Tensor

_LEFT = "_safepoint_left"
_PARTS = ("value", "cumulated_batch_size")
_FIELDS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "add_dataloader_idx", "metric_attribute")
_REDUCTIONS = ("mean", "sum", "min", "max")


def tally(trainer: Any) -> dict[str, Any]:
    """Return what has been measured in the training epoch so far, as plain values and tensors on the CPU."""
    metrics = dict(_metrics(trainer))
    paths = {id(metric): path for path, metric in metrics.items()}
    logged: dict[str, Any] = {}
    for key, result in trainer.fit_loop.epoch_loop._results.items():  # noqa: SLF001
        if not result.meta.on_epoch or result.has_reset or not (result.is_tensor or id(result.value) in paths):
            continue
        logged[key] = {
            "meta": {field: getattr(result.meta, field) for field in _FIELDS},
            "reduction": result.meta.reduce_fx.__name__,
            "synced": bool(result.meta.sync.should),
            "metric": None if result.is_tensor else paths[id(result.value)],
            "parts": _copied({part: getattr(result, part) for part in _PARTS if hasattr(result, part)})
            if result.is_tensor
            else {},
        }
    states = {
        path: {"state": _copied(metric.metric_state), "count": metric.update_count}
        for path, metric in metrics.items()
        if metric.update_count
    }
    return {"logged": logged, "metrics": states}


def put_back(trainer: Any, saved: Mapping[str, Any]) -> None:
    """Go on from what ``tally`` returned: what is logged by the same names is added to it."""
    metrics = dict(_metrics(trainer))
    for path, metric in metrics.items():
        if path in saved["metrics"]:
            state, metric._update_count = saved["metrics"][path]["state"], saved["metrics"][path]["count"]  # noqa: SLF001
            metric._computed = None  # noqa: SLF001
            for name in metric.metric_state.keys() & state.keys():
                setattr(metric, name, _moved(state[name], metric.device))
    trainer._logger_connector._first_loop_iter = False  # noqa: SLF001  # at the first batch all would begin anew
    results = trainer.fit_loop.epoch_loop._results  # noqa: SLF001
    if not saved["logged"]:
        return
    kind: Any = type(results)
    left: dict[str, Any] = {}
    for key, found in saved["logged"].items():
        if found["metric"] is None or found["metric"] in metrics:
            results[key] = _result(kind, found, metrics, trainer.strategy)
            left[key] = found["parts"]
    vars(results)[_LEFT] = left
    results.__class__ = _going_on(kind)


def _result(kind: Any, found: Mapping[str, Any], metrics: Mapping[str, Any], strategy: Any) -> Any:
    """Return what stands for a value that was logged, until it is logged again or its epoch ends."""
    framework = vars(sys.modules[kind.__module__])
    meta = framework["_Metadata"](**found["meta"], reduce_fx=found["reduction"])
    meta.sync = framework["_Sync"](_should=found["synced"], fn=strategy.reduce)
    result = framework["_ResultMetric"](meta, found["metric"] is None)
    if found["metric"] is not None:
        result.value = metrics[found["metric"]]
    for part, value in found["parts"].items():
        setattr(result, part, value)
    result._update_count = 1  # noqa: SLF001
    return result.to(strategy.root_device)


def problem_of(saved: Any) -> str | None:
    """Return why ``saved`` is not what ``tally`` returns, ``None`` if it is."""
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), dict) for part in ("logged", "metrics")):
        return "it tells of no measurements"
    if not all(_is_logged(found) for found in saved["logged"].values()):
        return "what was logged is none"
    for metric in saved["metrics"].values():
        is_one = isinstance(metric, dict) and type(metric.get("count")) is int and isinstance(metric.get("state"), dict)
        if not is_one or not _are_tensors(metric["state"]):
            return "the state of a metric is none"
    return None


def _is_logged(found: Any) -> bool:
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in ("meta", "parts")):
        return False
    meta, metric = found["meta"], found.get("metric", 0)
    are_plain = all(type(value) in (str, bool, NoneType) for value in (*meta.values(), metric, found.get("synced")))
    is_whole = meta.keys() == set(_FIELDS) and found.get("reduction") in _REDUCTIONS and meta["on_epoch"] is True
    return are_plain and is_whole and found["parts"].keys() <= set(_PARTS) and _are_numbers(found["parts"])


def _are_numbers(found: Mapping[Any, Any]) -> bool:
    return all(isinstance(each, Tensor) and each.numel() == 1 for each in found.values())


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
    """Return a class below ``base``, a collection of results, in which what is logged goes on from what is left of it.

    What was put there is taken out when its name is logged, so that the framework makes it anew, with the arguments
    that ``log`` is given now.
    """

    class GoingOn(base):  # type: ignore[misc]
        def log(self, fx: str, name: str, *args: Any, **kwargs: Any) -> None:
            if (key := f"{fx}.{name}") in vars(self)[_LEFT]:
                del self[key]
            super().log(fx, name, *args, **kwargs)

        def __setitem__(self, key: str, result: Any) -> None:
            for part, value in vars(self)[_LEFT].pop(key, {}).items():
                if result.is_tensor and result.meta.on_epoch and hasattr(result, part):
                    setattr(result, part, value)
            super().__setitem__(key, result)

        def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:  # noqa: FBT001 - the framework's
            super().reset(metrics, fx)
            if fx is None:  # the epoch is over
                for key in self.__dict__.pop(_LEFT):
                    del self[key]  # its name was not logged again
                self.__class__ = base

    return GoingOn
