"""Which key of a checkpoint is which live one where their names differ: wrappers, and prefixes that were changed.

Pure: names, and shapes as text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import islice

_WRAPPERS = ("_orig_mod", "module")
"""What ``torch.compile``, and ``DistributedDataParallel`` and ``DataParallel``, put into the names of parameters."""
_LONGEST = 10_000
"""What is longer is no module's name: it is not taken apart."""
_TRIED = 20
_COUNTED = 1000


def core(key: str) -> str:
    """Return ``key`` without the names of wrappers, wherever in it they are."""
    if len(key) > _LONGEST:
        return key
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def replaced(key: str, prefixes: Mapping[str, str]) -> str:
    """Return ``key`` with the longest of ``prefixes`` that it begins with replaced."""
    for old in sorted(prefixes, key=len, reverse=True):
        if key.startswith(old):
            return prefixes[old] + key[len(old) :]
    return key


def renamed(
    here: Collection[str], there: Collection[str], prefixes: Mapping[str, str], own: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the keys of the checkpoint, ``there``, that are called otherwise in the model, ``here``, with those names.

    A key that is in the model stays as it is. Another gets the first of ``prefixes`` (old to new, the longest first)
    that it begins with replaced, and is taken for the one key of the model that is the same but for wrappers. Where
    that leaves two for one, both stay as they are. What lies below the prefixes ``own`` of the model needs no
    counterpart.
    """
    live, saved = set(here), set(there)
    by_core: dict[str, list[str]] = defaultdict(list)
    for key in live:
        by_core[core(key)].append(key)
    found: dict[str, list[str]] = defaultdict(list)
    for key in saved - live:
        for name in dict.fromkeys((replaced(key, prefixes), replaced(core(key), prefixes))):
            same = [name] if name in live else by_core.get(core(name), []) or _below(own, name)
            if len(same) == 1 and same[0] not in saved:
                found[same[0]].append(key)
                break
    return {keys[0]: name for name, keys in found.items() if len(keys) == 1}


def likely_prefix(missing: Mapping[str, str], unexpected: Mapping[str, str]) -> tuple[str, str, int] | None:
    """Return the prefixes (old, new) that make the most keys of the checkpoint match, and how many, or ``None``.

    ``missing`` are the keys of the model, ``unexpected`` those of the checkpoint, each with its shape.
    """
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, shape in missing.items():
        alike[key.rpartition(".")[2], shape].append(key)
    pairs = {
        _without_common_tail(there, here): None
        for there, shape in islice(unexpected.items(), _TRIED)
        if len(there) <= _LONGEST
        for here in alike[there.rpartition(".")[2], shape][:_TRIED]
    }
    counted = dict(islice(unexpected.items(), _COUNTED))
    counts = {pair: _count(pair, missing, counted) for pair in pairs}
    best = max(counts, key=lambda pair: counts[pair], default=None)
    return None if best is None else (*best, counts[best])


def _below(own: tuple[str, ...], name: str) -> list[str]:
    """Return ``name`` as it is called below the first of the prefixes ``own`` that it lies below but for wrappers."""
    plain = core(name)
    for prefix in own:
        start = core(prefix)
        if plain.startswith(start):
            return [prefix + plain[len(start) :]]
    return []


def _without_common_tail(there: str, here: str) -> tuple[str, str]:
    theirs, ours = there.split("."), here.split(".")
    while theirs and ours and theirs[-1] == ours[-1]:
        theirs.pop()
        ours.pop()
    old, new = (".".join([*parts, ""]) for parts in (theirs, ours))
    return old, new


def _count(pair: tuple[str, str], missing: Mapping[str, str], unexpected: Mapping[str, str]) -> int:
    old, new = pair
    return sum(key.startswith(old) and missing.get(new + key[len(old) :]) == shape for key, shape in unexpected.items())
