"""Load a checkpoint safely, and put its state back into live objects.

The file is verified before it is loaded, and loaded with PyTorch's restricted unpickler unless the caller says
otherwise. Whether the state fits the live objects is found out before the first of them is changed.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from safepoint import reader
from safepoint.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError, StateMismatchError

MapLocation = str | torch.device | dict[str, str] | Callable[[Any, str], Any] | None


def load(
    path: str | os.PathLike[str],
    *,
    map_location: MapLocation = None,
    mmap: bool = False,
    weights_only: bool = True,
    trust: Iterable[Callable[..., Any]] = (),
) -> Any:
    """Return what ``torch.load`` returns for ``path``, after verifying every byte of it.

    ``map_location``, ``mmap`` and ``weights_only`` mean what they mean there; ``trust`` lists the classes and functions
    that may be loaded besides PyTorch's own safe ones.

    Raises:
        NotACheckpointError: Safepoint did not write the file.
        DamagedCheckpointError: the file does not match its digests; the message names the tensors.
        CheckpointError: the state needs a class that is neither safe nor in ``trust``.
        OSError: the file cannot be read.

    """
    check_sound(Path(path))
    try:
        with torch.serialization.safe_globals(list(trust)):
            return torch.load(path, map_location=map_location, mmap=mmap, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be loaded safely: {_first_line(error)} If you know where the file comes from, "
            "pass trust=[the classes that it names], or weights_only=False to let it run any code."
        ) from error


def check_sound(path: Path) -> None:
    """Raise what ``load`` raises for a file that does not verify."""
    problems = reader.verify(path)
    if not problems:
        return
    try:
        reader.read_manifest(path)
    except NotACheckpointError as error:
        raise NotACheckpointError(f"{path}: {error}.") from None
    raise DamagedCheckpointError(f"{path} is damaged: {'; '.join(problems)}. Load another checkpoint of the run.")


def check_restorable(objects: Mapping[str, object]) -> None:
    """Raise a StateMismatchError if an entry of ``state=`` can neither be saved nor be restored."""
    for name, target in objects.items():
        stateful = callable(getattr(target, "state_dict", None)) and callable(getattr(target, "load_state_dict", None))
        if not stateful and not isinstance(target, dict):
            raise StateMismatchError(
                f"state[{name!r}] is a {type(target).__name__}: give an object with state_dict() and "
                "load_state_dict(), or a dict, which is restored in place."
            )


def state_of(target: object) -> object:
    """Return what is saved of an entry of ``state=``."""
    return target if isinstance(target, dict) else target.state_dict()  # type: ignore[attr-defined]


def put_back(objects: Mapping[str, object], saved: Mapping[str, Any], path: Path) -> None:
    """Restore every entry of ``objects`` from ``saved``, in place.

    Raises:
        StateMismatchError: an entry is missing in the checkpoint, or is of another model or optimizer; says which keys
            differ. Nothing is changed then.

    """
    differences = list(_differences(objects, saved))
    if differences:
        listing = "\n".join(f"  {difference}" for difference in differences)
        raise StateMismatchError(
            f"{path} does not fit the objects in state=; nothing was restored:\n{listing}\n"
            "Build the model and the optimizer as they were when it was saved, or give another directory."
        )
    if unused := sorted(saved.keys() - objects.keys()):
        warnings.warn(f"{path} also holds {', '.join(unused)}, which state= does not name: not restored", stacklevel=3)
    for name, target in objects.items():
        _load_into(name, target, saved[name], path)


def _load_into(name: str, target: Any, saved: Any, path: Path) -> None:
    if isinstance(target, dict):
        target.clear()
        target.update(saved)
        return
    try:
        target.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError) as error:
        raise StateMismatchError(f"{path}: state[{name!r}] refuses what was saved of it: {error}") from error


def _differences(objects: Mapping[str, object], saved: Mapping[str, Any]) -> Iterator[str]:
    for name, target in objects.items():
        if name not in saved:
            yield f"{name}: not in the checkpoint, which holds {', '.join(sorted(saved)) or 'nothing'}"
        elif isinstance(target, torch.nn.Module):
            yield from _module_differences(name, target.state_dict(), saved[name])
        elif isinstance(target, torch.optim.Optimizer):
            yield from _optimizer_differences(name, target, saved[name])


def _module_differences(name: str, live: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(live.keys() - saved.keys()):
        yield f"{name}.{key}: not in the checkpoint"
    for key in sorted(saved.keys() - live.keys()):
        yield f"{name}.{key}: in the checkpoint, but not in the model"
    for key in sorted(live.keys() & saved.keys()):
        here, there = getattr(live[key], "shape", None), getattr(saved[key], "shape", None)
        if here != there:
            yield f"{name}.{key}: shape {_shape(there)} in the checkpoint, {_shape(here)} in the model"


def _optimizer_differences(name: str, live: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Iterator[str]:
    here = [len(group["params"]) for group in live.param_groups]
    there = [len(group["params"]) for group in saved["param_groups"]]
    if here != there:
        yield f"{name}: parameter groups of {there} parameters in the checkpoint, of {here} in the optimizer"


def _shape(shape: Iterable[int] | None) -> str:
    return "none" if shape is None else str(tuple(shape))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), str(error))
