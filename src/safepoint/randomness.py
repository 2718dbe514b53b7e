"""The random generators of Python, NumPy and torch: their state, and putting it back.

Knows the generators; knows no file.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from types import NoneType
from typing import Any

import torch

_MT19937_NUMBERS = 624
_MOST_BYTES = 1 << 16


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
        if not _is_plain(state):
            return False
        random.Random().setstate(_tuples(state["python"]))  # noqa: S311 - only tried out
        torch.Generator().set_state(state["torch"])
        if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
            _, _, position, *_ = state["numpy"]
            numpy.random.RandomState().set_state(tuple(state["numpy"]))
            return bool(0 <= position <= _MT19937_NUMBERS)  # which NumPy takes for granted
    except Exception:  # noqa: BLE001 - the generators raise what they like
        return False
    return True


def _is_plain(state: Any) -> bool:
    """Tell whether ``state`` is of the kinds and sizes that it must be: the generators would convert others first."""
    version, numbers, gauss = state["python"]
    _, keys, *rest = state.get("numpy", ("", []))
    return (
        type(state) is dict
        and type(version) is int
        and type(gauss) in (float, NoneType)
        and all(_are_numbers(found) for found in (numbers, keys))
        and all(type(number) in (int, float) for number in rest)
        and type(state.get("cuda", [])) in (list, tuple)
        and all(_is_of_bytes(found) for found in (state["torch"], *state.get("cuda", ())))
    )


def _are_numbers(found: Any) -> bool:
    is_short = type(found) in (list, tuple) and len(found) <= _MT19937_NUMBERS + 1
    return is_short and all(type(number) is int for number in found)


def _is_of_bytes(found: Any) -> bool:
    is_tensor = type(found) is torch.Tensor and found.layout is torch.strided and not found.is_nested
    return is_tensor and found.dtype is torch.uint8 and found.dim() == 1 and found.numel() <= _MOST_BYTES


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


class Generator:
    """A random generator of the program's own: torch's, NumPy's or Python's."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def state_dict(self) -> Any:
        """Return its state, as plain values and tensors."""
        generator = self._generator
        if isinstance(generator, torch.Generator):
            return generator.get_state()
        if isinstance(generator, random.Random):
            return generator.getstate()
        return _listed(_numpy_state(generator))

    def load_state_dict(self, state: Any) -> None:
        """Let it draw what it would have drawn."""
        generator = self._generator
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, random.Random):
            version, numbers, gauss = state
            generator.setstate((version, tuple(numbers), gauss))
        else:
            _set_numpy_state(generator, _like(_numpy_state(generator), state))

    def difference(self, saved: object) -> tuple[str, str, str] | None:
        """Return on which side it is what, if what was saved is no state of such a generator; tried out on another."""
        live = self._generator
        try:
            if isinstance(live, torch.Generator):
                Generator(torch.Generator(live.device)).load_state_dict(saved)
            elif isinstance(live, random.Random):
                Generator(random.Random()).load_state_dict(saved)  # noqa: S311 - only tried out
            elif _is_of_numpy(live, "Generator"):
                Generator(type(live)(type(live.bit_generator)())).load_state_dict(saved)
            else:
                Generator(type(live)()).load_state_dict(saved)
        except Exception:  # noqa: BLE001 - the generators raise what they like
            return "", f"a {type(live).__name__}", "no state of one"
        return None


def is_generator(target: object) -> bool:
    """Tell whether ``target`` is a random generator that ``Generator`` takes."""
    return isinstance(target, torch.Generator | random.Random) or _is_of_numpy(target, "Generator", "RandomState")


def _is_of_numpy(target: object, *names: str) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(target, tuple(getattr(numpy.random, name) for name in names))


def _numpy_state(generator: Any) -> Any:
    return generator.bit_generator.state if _is_of_numpy(generator, "Generator") else generator.get_state(legacy=False)


def _set_numpy_state(generator: Any, state: Any) -> None:
    if _is_of_numpy(generator, "Generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _listed(state: Any) -> Any:
    """Return ``state`` with NumPy's arrays and numbers as lists and numbers."""
    if isinstance(state, dict):
        return {key: _listed(value) for key, value in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state


def _like(live: Any, state: Any) -> Any:
    """Return ``state`` with arrays where ``live`` has them."""
    if isinstance(live, dict):
        return {key: _like(value, state[key]) for key, value in live.items()}
    if not hasattr(live, "tolist"):
        return state
    made = live.copy()
    made[...] = state
    return made
