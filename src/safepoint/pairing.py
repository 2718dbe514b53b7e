"""Which tensor of one checkpoint is which of another: the one of the same path, whatever wraps or holds the model.

Pure: names and shapes. Whether the two are alike is ``difference``'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from safepoint.contents import Tensor
from safepoint.renaming import likely_prefix, renamed


class Pair(NamedTuple):
    """A tensor of the first checkpoint, and the one of the second that it is compared with."""

    a: Tensor
    b: Tensor


class Pairing(NamedTuple):
    """Who is compared with whom: ``pairs`` in the order of the first, and those that are in one of the two only.

    ``prefixes``: what the paths begin with that were taken for the same, in the first and in the second.
    """

    pairs: tuple[Pair, ...]
    removed: tuple[Tensor, ...]
    added: tuple[Tensor, ...]
    prefixes: tuple[str, str] | None


def paired(a: Sequence[Tensor], b: Sequence[Tensor]) -> Pairing:
    """Return which of the tensors ``a`` is which of ``b``.

    Paths that differ by the wrappers of ``torch.compile`` or DDP only are the same. So are those that differ by what
    they begin with, if that makes at least half of the smaller side match: where nothing matches as it is, any two
    beginnings; otherwise only where one is the other with something inserted.
    """
    first, second = _named(a), _named(b)
    prefixes = _prefixes(first, second)
    others = renamed(second, first, dict([prefixes]) if prefixes else {})
    names = {name: others.get(name, name) for name in first}
    pairs = tuple(Pair(first[name], second[other]) for name, other in names.items() if other in second)
    taken = set(names.values())
    return Pairing(
        pairs,
        tuple(first[name] for name, other in names.items() if other not in second),
        tuple(tensor for name, tensor in second.items() if name not in taken),
        prefixes,
    )


def _named(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return tensors by their paths; of several keys that read alike, as 1 and "1" do, each has its number."""
    counts: Counter[str] = Counter()
    found: dict[str, Tensor] = {}
    for tensor in tensors:
        counts[tensor.path] += 1
        number = counts[tensor.path]
        found[tensor.path if number == 1 else f"{tensor.path} ({number})"] = tensor
    return found


def _prefixes(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the beginnings, in the first and in the second, that are to be taken for the same."""
    lacking = {name: tensor for name, tensor in second.items() if name not in first}
    kinds = {_kind(tensor) for tensor in lacking.values()}
    spare = {name: tensor for name, tensor in first.items() if name not in second and _kind(tensor) in kinds}
    found = likely_prefix(_shapes(lacking), _shapes(spare))
    if found is None:
        return None
    old, new, count = found
    fits = first.keys().isdisjoint(second) or old.startswith(new) or new.startswith(old)
    return (old, new) if fits and 2 * count >= min(len(lacking), len(spare)) else None


def _kind(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return tensor.path.rpartition(".")[2], tensor.shape


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(tensor.shape) for name, tensor in tensors.items()}
