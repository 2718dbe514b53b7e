"""The state as a tree: what lies in it under which path, and the same tree with a part of it.

A path is the keys joined by dots, as everywhere. A tree is one of ``contents``, which is neither absurdly deep nor
absurdly large. Knows dictionaries, lists and tuples; knows no tensor and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from safepoint.contents import Opaque
from safepoint.errors import ConfigurationError

IsChosen = Callable[[str], bool]
_NOTHING = object()


def entries(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return what ``value`` is made of, with its keys or numbers: nothing, if it is no dictionary, list or tuple."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def below(path: str, key: Any) -> str:
    """Return the path of the entry ``key`` of what lies under ``path``."""
    spelled = key.name if isinstance(key, Opaque) else f"{key}"
    return f"{path}.{spelled}" if path else spelled


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that is in ``tree`` and not made of entries, in order, with its path; what is empty is, too."""
    if not tree or not (inner := entries(tree)):
        yield path, tree
        return
    for key, entry in inner:
        yield from leaves(entry, below(path, key))


def pruned(tree: Any, is_chosen: IsChosen) -> Any:
    """Return ``tree`` with those leaves alone that are chosen by their path, and what they lie in.

    Lists and tuples keep what is chosen of them in its order.
    """
    kept = _pruned(tree, is_chosen, "")
    return {} if kept is _NOTHING else kept


def _pruned(value: Any, is_chosen: IsChosen, path: str) -> Any:
    if not value or not entries(value):
        return value if is_chosen(path) else _NOTHING
    kept = [
        (key, found) for key, entry in entries(value) if (found := _of(entry, is_chosen, path, key)) is not _NOTHING
    ]
    if not kept:
        return _NOTHING
    if isinstance(value, dict):
        return dict(kept)
    return type(value)(found for _, found in kept)


def _of(entry: Any, is_chosen: IsChosen, path: str, key: Any) -> Any:
    return _pruned(entry, is_chosen, below(path, key))


def stripped(tree: Any, prefix: str) -> Any:
    """Return ``tree`` with ``prefix`` taken from the paths that begin with it: what lies there moves up.

    Raises:
        ConfigurationError: two entries would have one name.

    """
    if not prefix or not isinstance(tree, dict):
        return tree
    moved: dict[Any, Any] = {}
    for key, value in _moved(tree, prefix):
        if key in moved:
            raise ConfigurationError(f"without {prefix!r}, two entries of the state are called {below('', key)!r}.")
        moved[key] = value
    return moved


def _moved(tree: dict[Any, Any], prefix: str) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items():
        name = below("", key)
        rest = prefix.removeprefix(f"{name}.")
        if isinstance(key, str) and name.startswith(prefix) and name != prefix:
            yield name.removeprefix(prefix), value
        elif rest != prefix and isinstance(value, dict):
            yield from _moved(value, rest) if rest else value.items()
        else:
            yield key, value
