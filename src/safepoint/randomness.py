"""The random generators of Python, NumPy and torch: their state, and putting it back.

Knows the generators; knows no file.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

_MT19937_NUMBERS = 624


def rng_state() -> dict[str, Any]:
    """Return the random state of Python, NumPy (if it is loaded) and torch, as plain values and tensors."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = (name, keys.tolist(), *rest)
    return state


def has_rng_state(state: Any) -> bool:
    """Tell whether ``state`` is what ``rng_state`` returned, here or where there were other devices and libraries.

    It is tried out on other generators, so that nothing has been changed if it is not.
    """
    try:
        random.Random().setstate(_tuples(state["python"]))  # noqa: S311 - only tried out
        torch.Generator().set_state(state["torch"])
        is_sound = all(found.dtype is torch.uint8 and found.dim() == 1 for found in state.get("cuda", ()))
        if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
            _, _, position, *_ = state["numpy"]
            numpy.random.RandomState().set_state(tuple(state["numpy"]))
            is_sound = is_sound and 0 <= position <= _MT19937_NUMBERS  # which NumPy takes for granted
    except Exception:  # noqa: BLE001 - the generators raise what they like
        return False
    return is_sound


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what ``rng_state`` returned."""
    random.setstate(_tuples(state["python"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.set_state(tuple(state["numpy"]))


def _tuples(value: Any) -> Any:
    """Return ``value`` with its list of numbers as a tuple, as ``random.setstate`` wants it."""
    version, numbers, *rest = value
    return (version, tuple(numbers), *rest)
