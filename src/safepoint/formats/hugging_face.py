"""Directories of Hugging Face's: what its ``Trainer`` saves as ``checkpoint-N``, and what ``save_pretrained`` does.

The path of a tensor begins with what it is of: ``model.``, ``adapter.``, ``optimizer.``, ``scheduler.``, ``scaler.``,
``rng_state.``. ``trainer_state.json`` tells step, epoch and metrics; it is written last, so that a ``checkpoint-N``
without it is half-written. Knows names of files and keys of JSON.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safepoint.contents import Contents, Format, Opaque, Outline, Tensor
from safepoint.errors import NotACheckpointError, shortened
from safepoint.formats import safetensors, torch_file
from safepoint.formats.files import is_file_name, named, read_whole, size_bytes
from safepoint.formats.inert import Object, attributes
from safepoint.formats.scalars import number
from safepoint.records import Metrics

_STATE = "trainer_state.json"
_CONFIG = "config.json"
_ARGUMENTS = "training_args.bin"
_INDEX = ".index.json"
_OF_TRAINER = re.compile(r"checkpoint-\d+")
_MODEL, _ADAPTER = "model", "adapter"
_WEIGHTS = {
    "model.safetensors": _MODEL, "pytorch_model.bin": _MODEL,
    "adapter_model.safetensors": _ADAPTER, "adapter_model.bin": _ADAPTER,
}  # fmt: skip
"""Files of weights, those that are loaded first in front, and what is in them."""
_WEIGHTS_AND_INDEXES = frozenset(_WEIGHTS) | {f"{file}{_INDEX}" for file in _WEIGHTS}
_BESIDE = frozenset({_CONFIG, "adapter_config.json", _ARGUMENTS})
_MORE = re.compile(r"(optimizer|scheduler|scaler|rng_state(?:_\d+)?)\.(?:pt|pth|bin)")
_OTHER_WEIGHTS = re.compile(r"(?:pytorch_|tf_|flax_|adapter_)?model.*\.(?:bin|safetensors|h5|msgpack|pt)")
_JSON_LIMIT_BYTES = 256 << 20
_NO_METRICS = re.compile(r"epoch|step|.*_(?:runtime|per_second|flos)")


def is_one(path: Path, names: set[str]) -> bool:
    """Tell whether the directory at ``path``, with ``names`` in it, is one of Hugging Face's, whole or not."""
    if _STATE in names or not _WEIGHTS_AND_INDEXES.isdisjoint(names):
        return True
    return bool(_OF_TRAINER.fullmatch(path.name)) and (not names or not _BESIDE.isdisjoint(names))


def outline(path: Path) -> Outline:
    """Return what a list shows of the checkpoint at ``path``.

    Raises:
        NotACheckpointError: it is half-written; says what is missing.
        OSError: it cannot be read.

    """
    state = _state(path)
    _weights(path)
    return _outline(path, state)


def contents(path: Path) -> Contents:
    """Return all that the checkpoint at ``path`` tells.

    Raises:
        NotACheckpointError: as ``outline`` does.
        CheckpointError: a file in it is damaged.
        OSError: it cannot be read.

    """
    state = _state(path)
    told: dict[str, Any] = {}
    tensors: list[Tensor] = []
    for file, (name, wanted) in {**_weights(path), **_more(path)}.items():
        with named(file):
            found = _read(path / file, name)
            _check_has(wanted, found.tree)
        told[name] = {**told[name], **found.tree} if wanted and name in told else found.tree
        tensors += found.tensors
    arguments = _arguments(path)
    told |= {"training_args": Opaque(arguments.name)} if arguments.name else {}
    told |= {"trainer_state": state} if state else {}
    return Contents(_outline(path, state), tuple(tensors), told, _plain(arguments), _producer(path))


def _state(path: Path) -> Mapping[str, Any]:
    """Return what the trainer says; nothing where ``save_pretrained`` has written the directory."""
    if not os.path.lexists(path / _STATE) and not _OF_TRAINER.fullmatch(path.name):
        return {}
    if not os.path.lexists(path / _STATE):
        raise NotACheckpointError(
            f"half-written: {_STATE}, which is written last, is not there, and transformers would not resume from it. "
            "Take another checkpoint"
        )
    state = _json(path, _STATE)
    with named(_STATE):
        checked: Mapping[str, Any] = torch_file.tree_of(state).tree
        return checked


def _json(path: Path, name: str) -> Mapping[str, Any]:
    """Return what a file of JSON says, NaN included, which Hugging Face writes."""
    with named(name):
        try:
            found = json.loads(read_whole(path / name, _JSON_LIMIT_BYTES))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise NotACheckpointError("cut off, or damaged: it is no JSON. Take another checkpoint")
        return found


def _weights(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the files of weights, what each is of, and the names that must be in it, as far as they are told."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for file, name in _WEIGHTS.items():
        if name in {told for told, _ in found.values()}:
            continue
        if os.path.lexists(path / file):
            found[file] = name, ()
        elif os.path.lexists(path / (file + _INDEX)):
            found |= {shard: (name, wanted) for shard, wanted in _shards(path, file + _INDEX).items()}
    if not found and not _may_be_elsewhere(path):
        raise NotACheckpointError(
            "half-written, or its weights were taken away: there is no file of them, such as model.safetensors. "
            "Take another checkpoint"
        )
    return found


def _may_be_elsewhere(path: Path) -> bool:
    """Tell whether weights may be in what is not read here: directories of FSDP or DeepSpeed, other files."""
    with os.scandir(path) as entries:
        return any(entry.is_dir() or _OTHER_WEIGHTS.match(entry.name) for entry in entries)


def _shards(path: Path, index: str) -> dict[str, tuple[str, ...]]:
    """Return the files that an index names, and which tensors it says are in each; one that is missing is an error."""
    weights = _json(path, index).get("weight_map")
    if not isinstance(weights, dict) or not all(map(is_file_name, weights.values())):
        raise NotACheckpointError(f"{index}: damaged, or forged: it names no files")
    shards: dict[str, list[str]] = {}
    for name, file in weights.items():
        shards.setdefault(file, []).append(name)
    missing = [file for file in sorted(shards) if not os.path.exists(path / file)]
    if missing:
        raise NotACheckpointError(
            f"half-written: {index} names {len(shards)} files, and {len(missing)} of them, such as "
            f"{shortened(missing[0])!r}, are not there. Take another checkpoint"
        )
    return {file: tuple(shards[file]) for file in sorted(shards)}


def _check_has(wanted: tuple[str, ...], found: Any) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise NotACheckpointError(
            f"not the file that the index speaks of: {shortened(missing[0])!r} is not in it. Take another checkpoint"
        )


def _more(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the files of all else that is resumed from, and what each is of."""
    matches = [match for name in sorted(os.listdir(path)) if (match := _MORE.fullmatch(name))]
    return {match.group(): (match.group(1), ()) for match in matches}


def _read(path: Path, name: str) -> torch_file.State:
    if path.suffix != ".safetensors":
        return torch_file.state_of(path, name)
    tensors = safetensors.read(path, f"{name}.").tensors
    return torch_file.State(tensors, tuple(tensors.values()))


def _arguments(path: Path) -> Object:
    """Return the trainer's arguments, inert; an object without a name if there are none."""
    if not os.path.lexists(path / _ARGUMENTS):
        return Object("")
    with named(_ARGUMENTS):
        made = torch_file.made_of(path / _ARGUMENTS)
        return made if type(made) is Object else Object("")


def _plain(arguments: Object) -> Mapping[str, Any]:
    own = {name: value for name, value in attributes(arguments).items() if not name.startswith("_")}
    with named(_ARGUMENTS):
        found: Mapping[str, Any] = torch_file.tree_of(own).tree
        return found


def _producer(path: Path) -> Mapping[str, str]:
    if not os.path.lexists(path / _CONFIG):
        return {}
    version = _json(path, _CONFIG).get("transformers_version")
    return {"transformers": version} if isinstance(version, str) else {}


def _outline(path: Path, state: Mapping[str, Any]) -> Outline:
    told = _STATE if state else next(iter(_weights(path)), "")
    return Outline(
        path,
        Format.HUGGING_FACE,
        size_bytes(path),
        os.stat(path / told).st_mtime,
        _count(state.get("global_step")),
        _count(state.get("epoch")),
        _metrics(state),
    )


def _metrics(state: Mapping[str, Any]) -> Metrics:
    """Return what was logged at the very step of the checkpoint; not what that took."""
    history = state.get("log_history")
    found: dict[str, float] = {}
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict) and entry.get("step") == state.get("global_step"):
            measured = {name: number(value) for name, value in entry.items() if not _NO_METRICS.fullmatch(name)}
            found |= {name: value for name, value in measured.items() if value is not None}
    return found


def _count(value: object) -> int | None:
    """Return a count; of an epoch's fraction, the epochs that are done."""
    counted = number(value)
    return int(counted) if counted is not None and 0 <= counted < math.inf else None
