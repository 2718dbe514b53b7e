"""The entries of ``state=``: what is saved of each kind of object, and how it is put back.

An object with ``state_dict()`` and ``load_state_dict()`` speaks for itself. Data loaders, random generators, tensors
and plain values get an adapter here that does. Knows torch; knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from safepoint.data import ResumableSampler
from safepoint.errors import StateMismatchError, cause, in_line, shortened
from safepoint.loaders import Position, follow
from safepoint.passing import is_stateful
from safepoint.randomness import Generator, is_generator

BEGUN = "The objects in state= may hold parts of it by now: build them anew before you use them."
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_GIVE = "give an object with state_dict() and load_state_dict(), a DataLoader, a generator, a tensor, or plain values"


class Value:
    """A plain value that cannot be changed: it is saved, and compared with when the run is resumed."""

    def __init__(self, value: object) -> None:
        self.value = value

    def state_dict(self) -> object:
        """Return it."""
        return self.value

    def load_state_dict(self, state: object) -> None:
        """Leave it as it is: nobody else would see another."""

    def changed(self, saved: object) -> str | None:
        """Say that it was another when the checkpoint was saved, if it was."""
        if not _is_plain(saved):
            return f"it is {_shown(self.value)} here, and was a {type(saved).__name__}"
        are_nan = saved != saved and self.value != self.value  # noqa: PLR0124
        if type(saved) is type(self.value) and (are_nan or saved == self.value):
            return None
        return f"it is {_shown(self.value)} here, and was {_shown(saved)}; a value is compared only, a dict is put back"


class Stateless:
    """Something that is iterated over and tells no position: nothing can be saved of it."""

    def __init__(self, target: object) -> None:
        self.inexact = (
            f"a {type(target).__name__} has no state_dict(): what it has handed out already comes again; give a "
            "DataLoader, or torchdata's StatefulDataLoader"
        )


class Tensor:
    """A tensor, put back into the same memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def state_dict(self) -> torch.Tensor:
        """Return it."""
        return self.tensor.detach()

    def load_state_dict(self, state: torch.Tensor) -> None:
        """Copy what was saved into it."""
        with torch.no_grad():
            self.tensor.copy_(state)

    def difference(self, saved: object) -> tuple[str, str, str] | None:
        """Return on which side it is what, if what was saved does not fit into it."""
        if not isinstance(saved, torch.Tensor) or saved.is_nested:
            return "", "tensor", type(saved).__name__
        here, there = (f"{each.dtype} {tuple(each.shape)}" for each in (self.tensor, saved))
        return None if here == there else ("", here, there)


def adapted(state: Mapping[str, object]) -> dict[str, object]:
    """Return the entries of ``state=`` as they are saved and restored; data loaders are followed from now on.

    Raises:
        StateMismatchError: an entry can neither be saved nor be restored.

    """
    return {name: _adapted(name, target) for name, target in state.items()}


def positions(objects: Mapping[str, object]) -> tuple[Position, ...]:
    """Return the positions of the data loaders in ``objects``."""
    return tuple(target for target in objects.values() if isinstance(target, Position))


def state_of(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is saved of ``objects``."""
    return {
        name: target.state_dict() if is_stateful(target) else target
        for name, target in objects.items()
        if not isinstance(target, Stateless)
    }


def inexact(objects: Mapping[str, object]) -> dict[str, str]:
    """Return the entries from which no run goes on exactly as it would have, each with why."""
    found = {name: getattr(target, "inexact", None) for name, target in objects.items() if _is_ours(target)}
    return {name: why for name, why in found.items() if why is not None}


def difference(target: object, saved: object) -> tuple[str, str, str] | None:
    """Return the key at which what was ``saved`` does not fit ``target``, and what it is on either side, or ``None``.

    Modules and optimizers are compared elsewhere; what is nobody's business but its own fits.
    """
    if isinstance(target, dict | list):
        kind = dict if isinstance(target, dict) else list
        return None if isinstance(saved, kind) else ("", kind.__name__, type(saved).__name__)
    if isinstance(target, Position):
        problem = target.problem(saved)
        return None if problem is None else ("", type(target.loader).__name__, problem)
    return target.difference(saved) if isinstance(target, Tensor | Generator) else None


def kind_of(target: object) -> str:
    """Return what an entry is to whoever gave it."""
    return type(target.loader if isinstance(target, Position) else target).__name__


def changed(target: object, saved: Any) -> str | None:
    """Return why the run does not go on from ``target`` exactly as it would have, ``None`` if it does."""
    if isinstance(target, Position) and target.is_going_on:
        return "an iteration of it is going on, and stays where it is: begin another after restore()"
    return target.changed(saved) if isinstance(target, Position | Value) else None


def put_back(name: str, target: Any, saved: Any, path: Path) -> None:
    """Let ``target``, the entry ``name``, become what was ``saved`` of it at ``path``.

    Raises:
        StateMismatchError: it refuses that.

    """
    if isinstance(target, dict):
        target.clear()
        target.update(saved)
        return
    if isinstance(target, list):
        target[:] = saved
        return
    try:
        target.load_state_dict(saved)
    except Exception as error:  # noqa: BLE001 - an object raises what it likes
        problem = f"{path}: state[{name!r}] refuses what was saved of it: {error}. {BEGUN}"
        raise StateMismatchError(problem) from cause(error)


def _adapted(name: str, target: Any) -> object:
    if isinstance(target, ResumableSampler):
        raise StateMismatchError(
            f"state[{name!r}] is a ResumableSampler, which cannot know how far training has come: give the DataLoader "
            "that draws from it."
        )
    if isinstance(target, dict | list):
        _check_plain(name, target)
    adapter = None if isinstance(target, type) else _adapter(target)
    if adapter is None:
        kind = f"the class {target.__name__}" if isinstance(target, type) else f"a {type(target).__name__}"
        raise StateMismatchError(f"state[{name!r}] is {kind}: {_GIVE}.")
    return adapter(target)


def _adapter(target: object) -> Callable[[Any], object] | None:
    """Return what makes of ``target`` something that speaks for itself, ``None`` if nothing does."""
    if isinstance(target, DataLoader) and not issubclass(type(target), DataLoader):
        return _itself if _speaks(target) else Stateless  # a wrapper that only says that it is one
    kinds: tuple[tuple[bool, Callable[[Any], object]], ...] = (
        (isinstance(target, DataLoader), follow),
        (is_stateful(target) or isinstance(target, dict | list), _itself),
        (isinstance(target, torch.Tensor), Tensor),
        (is_generator(target), Generator),
        (_is_plain(target), Value),
        (isinstance(target, Iterable), Stateless),
    )
    return next((make for is_one, make in kinds if is_one), None)


def _speaks(target: Any) -> bool:
    try:
        target.state_dict()
    except Exception:  # noqa: BLE001 - one without a state raises what it likes
        return False
    return callable(getattr(target, "load_state_dict", None))


def _itself(target: object) -> object:
    return target


def _check_plain(name: str, target: dict[Any, Any] | list[Any]) -> None:
    for key, value in target.items() if isinstance(target, dict) else enumerate(target):
        if (is_stateful(value) or isinstance(value, DataLoader)) and not isinstance(value, type):
            raise StateMismatchError(
                f"state[{name!r}] holds a {type(value).__name__} at {key!r}, which would be saved as an object and not "
                f"be put back: give it an entry of its own, such as state={{'{name}_{key}': ...}}."
            )


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _is_ours(target: object) -> bool:
    return isinstance(target, Position | Stateless)


def _shown(value: object) -> str:
    return in_line(shortened(repr(value)))
