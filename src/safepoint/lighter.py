"""A state made lighter, for a save that has little time: parts of it are taken out, and it is said which.

``grace`` decides which. A frozen parameter is left out as by ``exclude_frozen``; an averaged copy of the model as a
whole; of an optimizer what it has gathered, while its groups, and in them the learning rate, stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from safepoint.excluded import Excluder
from safepoint.grace import Kind, Part
from safepoint.transfer import tensors_in


@dataclass(slots=True)
class Lightened:
    """What was taken out: ``excluded`` and ``inexact`` as in ``Manifest``."""

    excluded: dict[str, str] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)


def size_of(state: object) -> int:
    """Return how many bytes the tensors in ``state`` hold, each storage counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(state))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def parts_of(state: Mapping[str, Any], objects: Mapping[str, object]) -> Iterator[Part]:
    """Yield what can be left out of ``state``, which is that of the live ``objects``."""
    models = [entry for entry, target in objects.items() if _is_model(target)]
    for entry, target in objects.items():
        if isinstance(target, AveragedModel):
            if models:
                yield Part(Kind.AVERAGED, entry, size_of(state[entry]))
        elif isinstance(target, torch.nn.Module):
            frozen = [p for name, p in target.named_parameters() if not p.requires_grad and name in state[entry]]
            if frozen:
                yield Part(Kind.FROZEN, entry, size_of(frozen))
        elif isinstance(target, torch.optim.Optimizer) and _gathered(state[entry]):
            yield Part(Kind.OPTIMIZER, entry, size_of(state[entry]["state"]))


def lighten(
    state: MutableMapping[str, Any], objects: Mapping[str, Any], parts: tuple[Part, ...], excluder: Excluder, why: str
) -> Lightened:
    """Take ``parts`` out of ``state``; ``why`` is said of each that a run does not go on exactly without."""
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


def _is_model(target: object) -> bool:
    return isinstance(target, torch.nn.Module) and not isinstance(target, AveragedModel)


def _gathered(saved: Any) -> bool:
    """Tell whether an optimizer's state is of the usual kind, and holds something."""
    return isinstance(saved, dict) and isinstance(saved.get("state"), dict) and bool(saved["state"])
