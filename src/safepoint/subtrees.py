"""Many paths told by few: the parts of a state of which all is meant. Pure: paths are keys joined by dots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

ALL = "*"
_DEEPEST = 32


def subtrees(chosen: Sequence[str], every: Iterable[str]) -> dict[str, list[int]]:
    """Return the largest parts of the state all of whose paths, of ``every``, are ``chosen``, in their order.

    Each has the positions in ``chosen`` of the paths in it, and is called ``model.*``, by all that these begin with; a
    path that is alone in its part by its whole name.
    """
    whole, own = _counted(every), _counted(chosen)
    found: dict[str, list[int]] = {}
    for position, path in enumerate(chosen):
        counts = {above: own[above] for above in _above(path) if own[above] == whole[above]}
        most = max(counts.values(), default=1)
        part = [above for above in counts if counts[above] == most][-1] if most > 1 else path
        found.setdefault(part, []).append(position)
    return {below(part) if len(positions) > 1 else chosen[positions[0]]: positions for part, positions in found.items()}


def common_change(old: str, new: str) -> tuple[str, str]:
    """Return by what two paths differ: what is left of them without the longest end that both have."""
    ours, theirs = old.split("."), new.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return ".".join(ours), ".".join(theirs)


def below(part: str) -> str:
    """Return what all that is in a part of the state is called together."""
    return f"{part}.{ALL}" if part else ALL


def _counted(paths: Iterable[str]) -> Counter[str]:
    return Counter(above for path in paths for above in _above(path))


def _above(path: str) -> Iterator[str]:
    """Yield the parts of the state that ``path`` is in, from all of it down to itself."""
    yield ""
    end = -1
    for _ in range(_DEEPEST):
        end = path.find(".", end + 1)
        if end < 0:
            break
        yield path[:end]
    yield path
