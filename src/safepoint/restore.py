"""Put a checkpoint back into live objects: the newest that is sound, and only what fits.

Whether the state fits is found out before the first live byte is changed. Then the file is read once, straight into the
live tensors where they are as they were saved, and ``load_state_dict`` does the rest.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safepoint import loading, reader
from safepoint.catalog import Catalog
from safepoint.errors import (
    CheckpointError,
    NotACheckpointError,
    RestoreError,
    RunAliveError,
    StateMismatchError,
    cause,
    in_line,
    plain,
    shortened,
    warn,
)
from safepoint.excluded import below, compare, put_in
from safepoint.in_place import has_own_way, live_storages, own_ways
from safepoint.loading import KeyOf, Trust
from safepoint.randomness import has_rng_state
from safepoint.reader import Opened
from safepoint.records import Progress, Record
from safepoint.transfer import tensors_in

logger = logging.getLogger("safepoint")

Claim = Callable[[Record], object]
"""Makes sure that the run of a checkpoint is nobody else's; raises a RunAliveError if it is."""

_TORN = (
    "Tensors of the objects in state= may hold parts of a damaged checkpoint by now: build these objects anew before "
    "you use them."
)
_SMALL_BYTES = 64 << 20
_BEGUN = "The objects in state= may hold parts of it by now: build them anew before you use them."


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored: from which checkpoint, where to go on, and what Safepoint itself had put into it.

    ``skipped`` are the newer ones that did not verify, with what is wrong with them.
    """

    record: Record
    progress: Progress
    own: Mapping[str, Any]
    skipped: Mapping[Path, str]


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


def restore_newest(
    objects: Mapping[str, object], directory: Path, catalog: Catalog, own: str, claim: Claim, trust: Trust = ()
) -> Restored | None:
    """Restore ``objects`` from the newest checkpoint of ``catalog`` that verifies; ``None`` if there is none at all.

    The entry ``own`` of the state is handed back instead. ``claim`` is asked before another run's checkpoint than the
    newest one's is read. ``trust`` is that of ``loading.load``.

    Raises:
        RunAliveError: ``claim`` has raised it.
        ConfigurationError: ``trust`` is no list of classes and functions.
        RestoreError: there are checkpoints, and none verifies that has no flaw; says what was tried.
        StateMismatchError: the newest sound one is of another model or optimizer; says which keys differ.
        CheckpointError: it holds what cannot be loaded safely.

    """
    skipped: dict[Path, str] = {}
    flawed: dict[Path, str] = {}
    is_torn = False
    trusted = loading.checked_trust(trust)
    for record in reversed(catalog.records):
        if record.flaw:
            flawed[record.path] = told_of_flaw(record)
            continue
        try:
            if record.run != catalog.records[-1].run:
                claim(record)
            with torch.serialization.safe_globals(trusted):
                progress, state = _read(objects, record.path, own)
        except _UnsoundError as error:
            skipped[record.path] = str(error)
            is_torn = is_torn or error.is_torn
            continue
        except (StateMismatchError, CheckpointError, RunAliveError) as error:
            _warn_of(skipped, flawed, catalog)
            if is_torn:
                raise type(error)(f"{error} {_TORN}") from error
            raise
        _warn_of(skipped, flawed, catalog)
        restored = Restored(record, progress, state.pop(own), skipped)
        _put_back(objects, state, record.path)
        return restored
    skipped |= catalog.unreadable
    if skipped or flawed:
        raise RestoreError(f"{told_of_none(directory, skipped, flawed)}{f' {_TORN}' if is_torn else ''}")
    return None


def told_of_flaw(record: Record) -> str:
    """Say why the sound checkpoint of ``record`` is not gone on from."""
    return f"it was saved at an exception ({record.emergency}), and {record.flaw}"


def told_of_none(
    directory: Path, skipped: Mapping[Path, str], flawed: Mapping[Path, str], *, another: str = "directory"
) -> str:
    """Say that no checkpoint in ``directory`` can be gone on from: those ``skipped`` as damaged, and the ``flawed``."""
    tried = "\n".join(f"  {path}: {problem}" for path, problem in {**skipped, **flawed}.items())
    none = "can be gone on from" if flawed else "verifies"
    anyway = " safepoint.load() reads those that were saved at an exception." if flawed else ""
    remedy = f"Give another {another}, or move these files away to start afresh."
    return f"no checkpoint in {directory} {none}; tried:\n{tried}\n{remedy}{anyway}"


class _UnsoundError(Exception):
    """Say why a checkpoint is skipped, and whether live tensors may hold parts of it by now."""

    def __init__(self, problem: str, *, is_torn: bool = False) -> None:
        super().__init__(problem)
        self.is_torn = is_torn


def _read(objects: Mapping[str, object], path: Path, own: str) -> tuple[Progress, dict[str, Any]]:
    """Return the state at ``path``, on the storages of ``objects`` as far as they are as they were saved."""
    try:
        with reader.opened(path) as checkpoint:
            saved, key_of = _structure(checkpoint, path)
            left_out = checkpoint.manifest.excluded
            _put_live_in(objects, saved, left_out)
            progress = _fitting(checkpoint, objects, saved, own, path)
            saved.pop(own)
            sizes = [blob.size_bytes for blob in checkpoint.manifest.storages]
            live = live_storages(objects, saved, key_of, sizes)
            loading.check_room(sum(size for key, size in enumerate(sizes) if key not in live), path)
            storages = [live[key] if key in live else loading.fresh(size) for key, size in enumerate(sizes)]
            _fill(checkpoint, storages, may_tear=bool(live))
            state = _built(checkpoint, storages, path)
            _put_live_in(objects, state, left_out)
            _tell_of_left_out(objects, left_out, path)
            return progress, state
    except (NotACheckpointError, OSError) as error:
        raise _UnsoundError(str(error)) from error


def _put_live_in(objects: Mapping[str, object], saved: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
    """Put the live tensors of modules into ``saved`` where it was saved without them."""
    for name, target in objects.items():
        own = below(name, left_out)
        if own and isinstance(target, torch.nn.Module) and isinstance(saved.get(name), dict):
            put_in(saved[name], target.state_dict(), own)


def _tell_of_left_out(objects: Mapping[str, object], left_out: Mapping[str, str], path: Path) -> None:
    for name, target in objects.items():
        own = below(name, left_out)
        if own and isinstance(target, torch.nn.Module):
            told = compare(target.state_dict(), own)
            if told.is_whole:
                logger.info("%s", plain(f"{path}: of state[{name!r}], {told}"))
            else:
                warn(f"{path}: of state[{name!r}], {told}.", stacklevel=5)


def _fill(checkpoint: Opened, storages: Sequence[torch.UntypedStorage], *, may_tear: bool) -> None:
    try:
        problems = loading.fill(checkpoint, storages)
    except OSError as error:
        problems = [str(error)]
    if problems:
        raise _UnsoundError("; ".join(problems), is_torn=may_tear)


def _structure(checkpoint: Opened, path: Path) -> tuple[dict[str, Any], KeyOf]:
    """Return the state without its data, built from a pickle that has been verified."""
    pickled = checkpoint.sound_pickle()
    if pickled is None or not checkpoint.has_sound_index():
        _check(checkpoint)
    try:
        loading.check_pickle(checkpoint, pickled)
        state, key_of = loading.structure(checkpoint)
    except Exception as error:  # noqa: BLE001 - torch raises what it likes, here and below
        _check(checkpoint)  # what is damaged is skipped, whatever it holds
        if isinstance(error, pickle.UnpicklingError):
            raise loading.refusal(path, error) from cause(error)
        raise CheckpointError(f"{path} is sound, and its state cannot be built: {error}.") from cause(error)
    if not isinstance(state, dict):
        _check(checkpoint)
        raise StateMismatchError(f"{path} holds no entries, but a {type(state).__name__}: safepoint.load() reads it.")
    return state, key_of


def _built(checkpoint: Opened, storages: Sequence[torch.UntypedStorage], path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = loading.build(checkpoint, storages, "cpu")
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(f"{path} is sound, and its state cannot be built: {error}. {_BEGUN}") from cause(error)
    return state


def _fitting(
    checkpoint: Opened, objects: Mapping[str, object], saved: Mapping[str, Any], own: str, path: Path
) -> Progress:
    """Return where to go on, if the checkpoint fits ``objects``.

    Raises:
        StateMismatchError: an entry is missing in it, or is of another model or optimizer, or a framework saved it.

    """
    progress = checkpoint.manifest.progress(path)
    differences = [] if progress is None else list(_differences(objects, saved, own))
    if progress is not None and not differences:
        return progress
    _check(checkpoint)  # as in _structure
    if progress is None:
        raise StateMismatchError(
            f"{path} was saved by the Lightning drop-in: resume it with trainer.fit(ckpt_path=...), "
            "or read it with safepoint.load()."
        )
    listing = "\n".join(f"  {difference}" for difference in differences)
    raise StateMismatchError(
        f"{path} does not fit the objects in state=; nothing was restored:\n{listing}\n"
        "Build the model and the optimizer as they were when it was saved, or give another directory."
    )


def _check(checkpoint: Opened) -> None:
    """Raise an _UnsoundError if the checkpoint does not verify."""
    if problems := list(reader.problems(checkpoint)):
        raise _UnsoundError("; ".join(problems))


def _warn_of(skipped: Mapping[Path, str], flawed: Mapping[Path, str], catalog: Catalog) -> None:
    """Warn of what may be newer than what is restored: did not verify, has a flaw, or does not even tell its age."""
    for path, problem in flawed.items():
        warn(f"{path} is not gone on from: {problem}. safepoint.load() reads it.", stacklevel=4)
    ageless = {path: problem for path, problem in catalog.unreadable.items() if path not in catalog.foreign}
    for path, problem in {**skipped, **ageless}.items():
        warn(f"{path} was skipped and left alone: {problem}", stacklevel=4)


def _put_back(objects: Mapping[str, object], saved: Mapping[str, Any], path: Path) -> None:
    if unused := _listed(saved.keys() - objects.keys()):
        warn(f"{path} also holds {unused}, which state= does not name: not restored", stacklevel=4)
    for name, target in objects.items():
        _load_into(name, target, saved[name], path)


def _load_into(name: str, target: Any, saved: Any, path: Path) -> None:
    if isinstance(target, dict):
        target.clear()
        target.update(saved)
        return
    try:
        target.load_state_dict(saved)
    except Exception as error:  # noqa: BLE001 - and so does an object
        problem = f"{path}: state[{name!r}] refuses what was saved of it: {error}. {_BEGUN}"
        raise StateMismatchError(problem) from cause(error)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(in_line(shortened(str(name))) for name in names))


def _differences(objects: Mapping[str, object], saved: Mapping[str, Any], own: str) -> Iterator[str]:
    if not isinstance(saved.get(own), dict) or not has_rng_state(saved[own].get("rng")):
        yield f"{own}: the checkpoint holds no random state that can be put back"
    for name, target in objects.items():
        if name not in saved:
            yield f"{name}: not in the checkpoint, which holds {_listed(saved.keys() - {own}) or 'nothing'}"
        elif isinstance(target, torch.nn.Module):
            yield from _module_differences(name, target, saved[name])
        elif isinstance(target, torch.optim.Optimizer):
            yield from _optimizer_differences(name, target, saved[name])
        elif isinstance(target, dict) and not isinstance(saved[name], dict):
            yield _other_kind(name, "a dict", saved[name])


def _other_kind(name: str, here: str, saved: object) -> str:
    return f"{name}: {here} here, and something else in the checkpoint ({type(saved).__name__})"


def _module_differences(name: str, module: torch.nn.Module, saved: Any) -> Iterator[str]:
    own = own_ways(module)
    if own == ("",):
        return
    if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
        yield _other_kind(name, "a module", saved)
        return
    yield from _state_differences(name, _without(own, module.state_dict()), _without(own, saved))


def _state_differences(name: str, live: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(live.keys() - saved.keys()):
        yield f"{name}.{key}: not in the checkpoint"
    for key in sorted(saved.keys() - live.keys()):
        yield f"{name}.{in_line(shortened(key))}: in the checkpoint, but not in the model"
    for key in sorted(live.keys() & saved.keys()):
        if key.rpartition(".")[2] == "_extra_state":
            continue  # may be anything
        here, there = _shape_of(live[key]), _shape_of(saved[key])
        if here != there:
            yield f"{name}.{key}: shape {_shape(there)} in the checkpoint, {_shape(here)} in the model"


def _shape_of(value: Any) -> tuple[int, ...] | None:
    """Return the shape of ``value``, if it has one: a nested tensor has none."""
    return getattr(value, "shape", None) if not getattr(value, "is_nested", False) else None


def _without(prefixes: tuple[str, ...], state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def _optimizer_differences(name: str, live: torch.optim.Optimizer, saved: Any) -> Iterator[str]:
    if has_own_way(live):
        return
    here, there = [len(group["params"]) for group in live.param_groups], _group_lengths(saved)
    if there is None:
        yield _other_kind(name, "an optimizer", saved)
    elif here != there:
        yield f"{name}: parameter groups of {there} parameters in the checkpoint, of {here} in the optimizer"
    elif any(_is_inflated(tensor) for tensor in tensors_in(saved["state"])):
        yield f"{name}: a tensor in the checkpoint has many more elements than data, which no optimizer's has"


def _is_inflated(tensor: torch.Tensor) -> bool:
    """Tell whether a copy of ``tensor``, as an optimizer makes one to convert it, would take much that no file had."""
    return tensor.nbytes > max(_SMALL_BYTES, tensor.untyped_storage().nbytes())


def _group_lengths(saved: Any) -> list[int] | None:
    """Return how many parameters each group in the state of an optimizer has, ``None`` if it is no such state."""
    try:
        return [len(group["params"]) for group in saved["param_groups"]] if isinstance(saved["state"], dict) else None
    except (TypeError, LookupError):
        return None


def _shape(shape: Iterable[int] | None) -> str:
    return "none" if shape is None else str(tuple(shape))
