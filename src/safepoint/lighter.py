"""A state made lighter, for a save that has little time: parts of it are taken out, and it is said which.

``grace`` decides which. A frozen parameter is left out as by ``exclude_frozen``; an averaged copy of the model as a
whole; of an optimizer what it has gathered, while its groups, and in them the learning rate, stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from safepoint import grace
from safepoint.errors import plain
from safepoint.excluded import Excluder
from safepoint.grace import Kind, Part
from safepoint.records import SaveStats
from safepoint.signals import Came
from safepoint.transfer import tensors_in

logger = logging.getLogger("safepoint")


@dataclass(slots=True)
class Lightened:
    """What was taken out: ``excluded`` and ``inexact`` as in ``Manifest``."""

    excluded: dict[str, str] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)


def lighten(
    state: MutableMapping[str, Any],
    objects: Mapping[str, Any],
    came: Came,
    stats: Sequence[SaveStats],
    pending_bytes: int,
    excluder: Excluder,
) -> Lightened:
    """Take out of ``state``, that of ``objects``, what will not be durable in the time that the signal ``came`` leaves.

    ``stats`` are those of the saves so far, oldest first; ``pending_bytes`` are still to be written. What is taken out
    is logged: a warning may be an error, and this is the last save.
    """
    left_s = grace.seconds_left(came.at_s, came.grace_s or 0.0, time.monotonic())
    byte_s, total_bytes = grace.seconds_per_byte(stats), _size_of(state) + pending_bytes
    going = grace.left_out(_parts_of(state, objects), total_bytes, left_s, byte_s)
    why = f"all of it would take {total_bytes * (byte_s or 0.0):.1f} s, and {came.name} has left {max(left_s, 0):.1f} s"
    if going:
        parts = ", ".join(f"{part.kind.name.lower()} {part.entry}" for part in going)
        logger.warning("%s", plain(f"the last checkpoint is saved without {parts}: {why}."))
    return _taken_out(state, objects, going, excluder, why)


def _taken_out(
    state: MutableMapping[str, Any], objects: Mapping[str, Any], parts: Sequence[Part], excluder: Excluder, why: str
) -> Lightened:
    told = Lightened()
    for part in parts:
        entry = part.entry
        if part.kind is Kind.FROZEN:
            taken = excluder.take_out(state[entry], objects[entry])
            told.excluded |= {f"{entry}.{name}": digest for name, digest in taken.items()}
        elif part.kind is Kind.AVERAGED:
            del state[entry]
            told.inexact[entry] = f"left out: {why}"
        else:
            state[entry] = {**state[entry], "state": {}}
            told.inexact[entry] = f"what it had gathered is left out, and begins anew: {why}"
    return told


def _parts_of(state: Mapping[str, Any], objects: Mapping[str, object]) -> Iterator[Part]:
    """Yield what can be left out of ``state``, which is that of the live ``objects``."""
    models = [entry for entry, target in objects.items() if _is_model(target)]
    for entry, target in objects.items():
        if isinstance(target, AveragedModel):
            if models:
                yield Part(Kind.AVERAGED, entry, _size_of(state[entry]))
        elif isinstance(target, torch.nn.Module):
            frozen = [p for name, p in target.named_parameters() if not p.requires_grad and name in state[entry]]
            if frozen:
                yield Part(Kind.FROZEN, entry, _size_of(frozen))
        elif isinstance(target, torch.optim.Optimizer) and _gathered(state[entry]):
            yield Part(Kind.OPTIMIZER, entry, _size_of(state[entry]["state"]))


def _size_of(state: object) -> int:
    """Return how many bytes the tensors in ``state`` hold, each storage counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(state))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _is_model(target: object) -> bool:
    return isinstance(target, torch.nn.Module) and not isinstance(target, AveragedModel)


def _gathered(saved: Any) -> bool:
    """Tell whether an optimizer's state is of the usual kind, and holds something."""
    return isinstance(saved, dict) and isinstance(saved.get("state"), dict) and bool(saved["state"])
