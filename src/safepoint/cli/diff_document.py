"""What ``diff --json`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from safepoint.cli.documents import Diff, DiffDrift, DiffLayer, DiffPair, DiffSide, DiffTensor, DiffValue
from safepoint.comparison import Comparison
from safepoint.contents import Outline, Tensor
from safepoint.leaves import MISSING, Leaf
from safepoint.pairing import Pair
from safepoint.records import Number, encoded_metrics

if TYPE_CHECKING:
    from safepoint.drift import Drift


def of(found: Comparison) -> Diff:
    """Return the document that tells a comparison."""
    tensors = found.tensors
    drifts = dict(zip(map(id, found.apart), found.drifts or (), strict=False))
    values = None if found.values is None else tuple(map(_value, found.values))
    return Diff(
        a=_side(found.a.outline),
        b=_side(found.b.outline),
        differs=bool(found),
        prefixes=tensors.prefixes,
        added=tuple(map(_tensor, tensors.added)),
        removed=tuple(map(_tensor, tensors.removed)),
        moved=_pairs(tensors.moved, drifts),
        reshaped=_pairs(tensors.reshaped, drifts),
        changed=_pairs(tensors.changed, drifts),
        uncompared=_pairs(tensors.uncompared, drifts),
        same=len(tensors.same),
        values=values,
        hyperparameters=tuple(map(_value, found.hyperparameters)),
        layers=_layers(found),
    )


def _side(outline: Outline) -> DiffSide:
    return DiffSide(
        str(outline.path),
        outline.format.value,
        outline.size_bytes,
        outline.time,
        outline.step,
        outline.epoch,
        encoded_metrics(outline.metrics),
    )


def _tensor(tensor: Tensor) -> DiffTensor:
    return DiffTensor(tensor.path, tensor.dtype, tensor.shape)


def _pairs(pairs: Iterable[Pair], drifts: Mapping[int, Drift]) -> tuple[DiffPair, ...]:
    return tuple(
        DiffPair(_tensor(pair.a), _tensor(pair.b), _drift(drifts[id(pair)]) if id(pair) in drifts else None)
        for pair in pairs
    )


def _drift(drift: Drift) -> DiffDrift:
    return DiffDrift(
        drift.elements,
        drift.changed,
        _number(drift.norm),
        _number(drift.base_norm),
        _number(drift.relative),
        _number(drift.most if drift.measured else None),
        drift.not_finite,
    )


def _number(value: float | None) -> Number | None:
    return None if value is None else encoded_metrics({"": value})[""]


def _layers(found: Comparison) -> tuple[DiffLayer, ...] | None:
    if found.drifts is None:
        return None
    from safepoint.drift import by_layer, joined

    layers = by_layer([pair.a.path for pair in found.apart], found.drifts)
    return tuple(DiffLayer(name, len(those), _drift(joined(those))) for name, those in layers.items())


def _value(leaf: Leaf) -> DiffValue:
    return DiffValue(leaf.path, _there(leaf), _plain(leaf.a), _plain(leaf.b))


def _there(leaf: Leaf) -> Literal["both", "a", "b"]:
    if leaf.a is MISSING:
        return "b"
    return "a" if leaf.b is MISSING else "both"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, or in words."""
    from safepoint.anatomy import told

    if value is MISSING:
        return None
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, bool | str) or _is_short(value) else told(value)


def _is_short(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63
