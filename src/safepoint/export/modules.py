"""Which entry of a state holds the weights of a model, told from what it is made of. Knows trees; knows no file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safepoint.contents import Tensor
from safepoint.errors import ConfigurationError, shortened
from safepoint.export.tree import IsChosen, below, entries

_FRAMEWORKS_ENTRY = "state_dict"
_EXTRA_STATE = "_extra_state"
_OPTIMIZER = {"state", "param_groups"}
_MOST_NAMED = 8


def model_in(tree: Any, is_chosen: IsChosen) -> tuple[str, dict[str, Any]]:
    """Return the path of the one model whose weights are in ``tree``, and those of them that are chosen, by name.

    Raises:
        ConfigurationError: there is none, or it is not clear which; names those that there are.

    """
    found = dict(_models(tree, ""))
    chosen = {path: kept for path, model in found.items() if (kept := _chosen(path, model, is_chosen))}
    if _FRAMEWORKS_ENTRY in chosen:
        return _FRAMEWORKS_ENTRY, chosen[_FRAMEWORKS_ENTRY]
    if len(chosen) == 1:
        return next(iter(chosen.items()))
    if chosen:
        names = ", ".join(repr(shortened(path)) for path in list(chosen)[:_MOST_NAMED])
        raise ConfigurationError(
            f"it holds the weights of {len(chosen)} models: {names}. Choose one: --keys {next(iter(chosen))!r}."
        )
    if found:
        names = ", ".join(repr(shortened(path)) for path in list(found)[:_MOST_NAMED])
        raise ConfigurationError(f"--keys chooses no weights of a model; those that are there: {names}.")
    raise ConfigurationError(
        "no entry of it looks like the weights of a model (names of tensors, and nothing else): see what there is with "
        "'safepoint show', and take what you need with --to torch or --to safetensors, and --keys."
    )


def _chosen(path: str, model: dict[str, Any], is_chosen: IsChosen) -> dict[str, Any]:
    return {name: value for name, value in model.items() if is_chosen(below(path, name))}


def _models(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what looks like the state dict of a module, by its path; an optimizer's has tensors, too, and is none."""
    if isinstance(value, dict):
        if value.keys() >= _OPTIMIZER:
            return
        if _is_model(value) or (path == _FRAMEWORKS_ENTRY and _is_named(value)):
            yield path, value
            return
    for key, entry in entries(value):
        yield from _models(entry, below(path, key))


def _is_model(value: dict[Any, Any]) -> bool:
    """Tell whether it is what ``module.state_dict()`` returns: tensors by name, some of them floating-point."""
    return _is_named(value) and all(
        isinstance(entry, Tensor) or name.endswith(_EXTRA_STATE) for name, entry in value.items()
    )


def _is_named(value: dict[Any, Any]) -> bool:
    has_weights = any(isinstance(entry, Tensor) and _is_weight(entry) for entry in value.values())
    return has_weights and all(isinstance(name, str) for name in value)


def _is_weight(tensor: Tensor) -> bool:
    return "float" in tensor.dtype or tensor.dtype.startswith("complex")
