"""What a restore is to take from a checkpoint, and how well that must fit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safepoint.errors import ConfigurationError, nearest


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to take from a checkpoint, and how well it must fit.

    ``entries`` are those of ``state=`` that are wanted; ``whole``: the random state and the position, too. ``own`` is
    the name of the entry that Safepoint itself has put into the state; ``directory`` is where the run saves.
    ``strict``: ``None``, the state must fit; ``True``, and go on exactly; ``False``, what fits is taken. ``rename`` are
    prefixes of the keys of modules, old to new.
    """

    entries: tuple[str, ...]
    own: str
    directory: Path
    whole: bool = True
    strict: bool | None = None
    rename: Mapping[str, str] = field(default_factory=dict)


def entries_wanted(names: Iterable[str], only: Iterable[str] | None, except_: Iterable[str] | None) -> tuple[str, ...]:
    """Return those of ``names`` that ``only`` names, or that ``except_`` does not name, in their order.

    Raises:
        ConfigurationError: both are given, one of them is no list of these names, or ``only`` is empty.

    """
    known = tuple(names)
    if only is not None and except_ is not None:
        raise ConfigurationError("restore(only=..., except_=...): give one of the two.")
    if only is not None:
        chosen = _checked("only", only, known)
        if not chosen:
            raise ConfigurationError("restore(only=[]) would restore nothing: name an entry of state=.")
        return tuple(name for name in known if name in chosen)
    left = _checked("except_", () if except_ is None else except_, known)
    return tuple(name for name in known if name not in left)


def checked_strict(strict: object) -> bool | None:
    """Return ``strict`` if it is True, False or None."""
    if strict is None or isinstance(strict, bool):
        return strict
    raise ConfigurationError(f"restore(strict={strict!r}): give True, False, or None for the default.")


def checked_rename(rename: object) -> dict[str, str]:
    """Return the prefixes of ``rename``, old to new, if it is a mapping of texts; ``None`` is none."""
    if rename is None:
        return {}
    if isinstance(rename, Mapping) and all(isinstance(part, str) for pair in rename.items() for part in pair):
        return dict(rename)
    raise ConfigurationError(f"restore(rename={rename!r}): give old and new prefixes of keys: {{'old.': 'new.'}}.")


def _checked(owner: str, given: object, known: tuple[str, ...]) -> frozenset[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"restore({owner}={given!r}): give a list of names of entries of state=.")
    chosen = list(given)
    for name in chosen:
        if name not in known:
            near = "".join(f" Did you mean {found!r}?" for found in nearest(str(name), known))
            raise ConfigurationError(
                f"restore({owner}=...) names {name!r}, and state= has: {', '.join(map(repr, known))}.{near}"
            )
    return frozenset(chosen)
