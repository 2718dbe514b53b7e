"""What the tensors of a flat file are called: their paths, without what all of them begin with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from safepoint.errors import ConfigurationError, shortened
from safepoint.export.choice import told_of


def prefix_of(strip: str, paths: Iterable[str]) -> str:
    """Return ``strip`` as what names begin with, its last dot included; "" for none.

    Raises:
        ConfigurationError: none of ``paths`` begins with it.

    """
    if not strip:
        return ""
    prefix, there = f"{strip.removesuffix('.')}.", list(paths)
    if not any(path.startswith(prefix) for path in there):
        raise ConfigurationError(f"--strip {strip!r}: no name that is chosen begins with it. {told_of(there, strip)}")
    return prefix


def named(values: Iterable[tuple[str, Any]], prefix: str) -> dict[str, Any]:
    """Return ``values``, by path, under their names without ``prefix``.

    Raises:
        ConfigurationError: two of them would have one name.

    """
    found: dict[str, Any] = {}
    paths: dict[str, str] = {}
    for path, value in values:
        name = path.removeprefix(prefix)
        if name in paths:
            raise ConfigurationError(
                f"{shortened(paths[name])!r} and {shortened(path)!r} would both be called {shortened(name)!r}: choose "
                "one of them with --keys or --except."
            )
        found[name], paths[name] = value, path
    return found
