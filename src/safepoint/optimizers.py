"""Whether what was saved of an optimizer, or of a schedule of its learning rate, is the state of such a one.

Neither says of which class it was: its keys tell, and the shapes of what it has gathered. What somebody's own code
loads is left to that code. Knows torch; knows no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler

from safepoint.in_place import has_own_way
from safepoint.report import told_of_dtypes
from safepoint.transfer import tensors_in

Found = tuple[str, str, str]
"""The key at which something does not fit, and what it is on either side."""

_SMALL_BYTES = 64 << 20
_GATHERED = {
    "ASGD": {"ax", "eta", "mu"},
    "Adadelta": {"acc_delta", "square_avg"},
    "Adagrad": {"sum"},
    "Adam": {"exp_avg", "exp_avg_sq"},
    "AdamW": {"exp_avg", "exp_avg_sq"},
    "Adamax": {"exp_avg", "exp_inf"},
    "NAdam": {"exp_avg", "exp_avg_sq", "mu_product"},
    "RAdam": {"exp_avg", "exp_avg_sq"},
    "RMSprop": {"square_avg"},
    "Rprop": {"prev", "step_size"},
    "SparseAdam": {"exp_avg", "exp_avg_sq"},
}
"""What torch's own optimizers have gathered of a parameter after its first step, whatever their options are."""
_LIKE_PARAMETERS = frozenset(
    {
        "acc_delta",
        "ax",
        "exp_avg",
        "exp_avg_sq",
        "exp_inf",
        "grad_avg",
        "max_exp_avg_sq",
        "momentum_buffer",
        "prev",
        "square_avg",
        "step_size",
        "sum",
    }
)
"""What of it has the shape of the parameter."""
_NO_OPTIONS = frozenset(
    {
        "params",
        "param_names",
        *("initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum", "swa_lr"),
    }
)
"""What is in a group, by torch itself or its schedulers, and no option of an optimizer."""
_OF_EVERY_VERSION = frozenset({"betas", "eps", "lr", "weight_decay"})
"""Options that an optimizer of torch's either never had or always."""
_PARTS = "_schedulers"


def optimizer_difference(live: torch.optim.Optimizer, saved: Any) -> Found | None:
    """Return the key at which the state of an optimizer does not fit, and what it is on either side, or ``None``."""
    if has_own_way(live):
        return None
    here, there = [len(group["params"]) for group in live.param_groups], _group_lengths(saved)
    if there is None:
        return "", type(live).__name__, type(saved).__name__
    if here != there:
        return "param_groups", f"of {here} parameters", f"of {there} parameters"
    if any(_is_inflated(tensor) for tensor in tensors_in(saved["state"])):
        return "state", "tensors", "a tensor that has many more elements than data, which no optimizer's has"
    return _options_difference(live, saved) or _gathered_difference(live, saved) or _shapes_difference(live, saved)


def optimizer_change(live: torch.optim.Optimizer, saved: Any) -> str | None:
    """Return why an optimizer whose state fits does not go on exactly: torch gives what it gathered another dtype."""
    if has_own_way(live):
        return None
    found = [
        (f"state.{at}.{key}", str(parameter.dtype), str(tensor.dtype))
        for at, parameter, gathered in _gathered(live, saved)
        if parameter.is_floating_point()
        for key, value in gathered.items()
        if key != "step"
        for tensor in tensors_in(value)
        if tensor.is_floating_point() and tensor.dtype != parameter.dtype
    ]
    return told_of_dtypes(found) if found else None


def scheduler_difference(live: LRScheduler, saved: Any) -> Found | None:
    """Return on which side it is what, if what was saved is no state of such a scheduler, or ``None``."""
    if not _is_of_torch(type(live).load_state_dict):
        return None
    name, here = type(live).__name__, live.state_dict()
    if not isinstance(saved, dict):
        return "", name, type(saved).__name__
    if isinstance(here, dict) and _are_of_two_classes(here, saved):
        return "", f"{name}, with {_listed(_public(here))}", f"of another class, with {_listed(_public(saved))}"
    return None


def _options_difference(live: torch.optim.Optimizer, saved: Any) -> Found | None:
    """Find options that either side alone has; where one side has them only, another version may have saved it."""
    if not _is_of_torch(type(live).__setstate__):  # it may convert them
        return None
    options: Mapping[str, Any] = getattr(live, "defaults", {})
    for mine, group in zip(live.param_groups, saved["param_groups"], strict=True):
        if isinstance(group, dict):
            here, there = options.keys() - group.keys(), group.keys() - options.keys() - mine.keys() - _NO_OPTIONS
            is_lacking = _is_of_torch(type(live).step) and not here.isdisjoint(_OF_EVERY_VERSION)
            if (here and there) or is_lacking:
                with_others = f"of another class, with {_listed(there)}" if there else "of another class, without"
                return "param_groups", f"{type(live).__name__}, with {_listed(here)}", with_others
    return None


def _gathered_difference(live: torch.optim.Optimizer, saved: Any) -> Found | None:
    """Find a parameter of which something is missing that its next step would take for granted."""
    if not _is_of_torch(type(live).step):
        return None
    needed = _GATHERED.get(type(live).__name__, set())
    for at, _, gathered in _gathered(live, saved):
        if gathered and not needed <= gathered.keys():
            return f"state.{at}", f"{type(live).__name__}, with {_listed(needed)}", _listed(gathered)
    return None


def _shapes_difference(live: torch.optim.Optimizer, saved: Any) -> Found | None:
    """Find what has the shape of another parameter: they were given in another order, or are others.

    Somebody else's optimizer may gather less than a parameter has elements: with that, only another order is found.
    """
    shapes = [
        (f"state.{at}.{key}", tuple(parameter.shape), tuple(gathered[key].shape))
        for at, parameter, gathered in _gathered(live, saved)
        for key in sorted(_LIKE_PARAMETERS & gathered.keys())
        if isinstance(gathered[key], torch.Tensor) and not gathered[key].is_nested
    ]
    is_same_in_all = Counter(here for _, here, _ in shapes) == Counter(there for _, _, there in shapes)
    if is_same_in_all or _is_of_torch(type(live).step):
        return next(((key, str(here), str(there)) for key, here, there in shapes if here != there), None)
    return None


def _gathered(live: torch.optim.Optimizer, saved: Any) -> Iterator[tuple[int, torch.Tensor, dict[Any, Any]]]:
    """Yield the number of each parameter, counted over all groups, the parameter, and what was saved of it."""
    first = 0
    for mine, group in zip(live.param_groups, saved["param_groups"], strict=True):
        if isinstance(group["params"], list | tuple):
            for at, (parameter, index) in enumerate(zip(mine["params"], group["params"], strict=True), first):
                gathered = saved["state"].get(index) if type(index) is int else None
                if isinstance(gathered, dict) and not is_lazy(parameter):
                    yield at, parameter, gathered
        first += len(mine["params"])


def _are_of_two_classes(here: Any, there: Any) -> bool:
    """Tell whether no one class of schedulers has both states; of one that has others within, look at these."""
    if not isinstance(here, dict):
        return False
    if not isinstance(there, dict) or (_PARTS in here) != (_PARTS in there):
        return True
    if _PARTS not in here:
        mine, theirs = _public(here), _public(there)
        return bool(mine - theirs and theirs - mine)
    parts, others = here[_PARTS], there[_PARTS]
    if not isinstance(parts, list):
        return False
    if not isinstance(others, list) or len(parts) != len(others):
        return True
    return any(_are_of_two_classes(part, other) for part, other in zip(parts, others, strict=True))


def _public(state: dict[Any, Any]) -> set[Any]:
    """Return the keys by which a scheduler can be told; the others differ between versions of torch."""
    return {key for key in state if key != "verbose" and not (isinstance(key, str) and key.startswith("_"))}


def _is_of_torch(function: object) -> bool:
    return str(getattr(function, "__module__", "")).startswith("torch.optim.")


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(sorted(key if isinstance(key, str) else f"a {type(key).__name__}" for key in keys))


def _is_inflated(tensor: torch.Tensor) -> bool:
    """Tell whether a copy of ``tensor``, as an optimizer makes one to convert it, would take much that no file had."""
    return tensor.nbytes > max(_SMALL_BYTES, tensor.untyped_storage().nbytes())


def _group_lengths(saved: Any) -> list[int] | None:
    """Return how many parameters each group in the state of an optimizer has, ``None`` if it is no such state."""
    try:
        return [len(group["params"]) for group in saved["param_groups"]] if isinstance(saved["state"], dict) else None
    except (TypeError, LookupError):
        return None
