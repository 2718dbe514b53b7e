"""File names from templates, safely.

A template is Python's own format language over named values: ``"{epoch}-{val_loss:.2f}"``. By default each value
carries its name (``epoch=3-val_loss=0.98``), as in Lightning, whose rules these are. Pure: this file touches no disk;
whether a name is taken is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import Formatter

from safepoint.errors import ConfigurationError, MissingMetricError

EXTENSION = ".ckpt"
TEMPORARY_PREFIX = ".safepoint-"
"""What the name of every temporary file begins with; no checkpoint may be called so."""
PIN_SUFFIX = ".pin"
"""What the name of every pin ends with: see ``pins``."""


def render(
    template: str, values: Mapping[str, float], *, auto_insert: bool = True, equals: str = "=", owner: str = "filename"
) -> str:
    """Return the name that ``template`` gives with ``values``, without an extension.

    Raises:
        MissingMetricError: the template names a value that is not there.
        ConfigurationError: the template or a format in it is malformed, or the name would leave its directory.

    """
    pieces: list[str] = []
    for literal, key, spec in _fields(template, owner):
        pieces.append(literal)
        if key is None:
            continue
        if key not in values:
            remedy = f"Log it before the save, or take {{{key}}} out of {owner}={template!r}."
            raise MissingMetricError(key, f"{owner}={template!r}", values, remedy)
        value = _formatted(values[key], spec, template, owner)
        pieces.append(f"{key}{equals}{value}" if auto_insert else value)
    name = "".join(pieces)
    check_contained(name, owner=owner)
    return name


def check_template(template: str, *, owner: str = "filename") -> None:
    """Raise a ConfigurationError if ``template`` is malformed or would leave its directory whatever the values."""
    if not isinstance(template, str) or not template:
        raise ConfigurationError(f"{owner}={template!r}: give a template such as '{{epoch}}-{{step}}'.")
    fields = _fields(template, owner)
    check_contained("".join(literal if key is None else f"{literal}value" for literal, key, _ in fields), owner=owner)


def check_contained(name: str, *, owner: str = "filename") -> None:
    """Raise a ConfigurationError if a file called ``name`` would not lie inside its directory under that very name."""
    parts = name.split("/")  # a path object takes ten times as long, and a history has many names
    own = parts[-1]
    if name.startswith("/") or ".." in parts:
        raise ConfigurationError(f"{owner}={name!r} would leave the directory: take out '..' and the leading '/'.")
    if own in {"", "."} or "\0" in name:
        raise ConfigurationError(f"{owner}={name!r} is not the name of a file: let it end in a name.")
    if own.startswith(TEMPORARY_PREFIX):
        raise ConfigurationError(f"{owner}={name!r}: {TEMPORARY_PREFIX!r} begins temporary files; rename it.")


def first_free(stem: str, taken: Callable[[str], bool], *, extension: str = EXTENSION, start: int = 1) -> str:
    """Return the first of ``stem``, ``stem-v1``, ``stem-v2``, ... (from ``start``) that is not taken."""
    name = f"{stem}{extension}"
    version = start
    while taken(name):
        name = f"{stem}-v{version}{extension}"
        version += 1
    return name


def _fields(template: str, owner: str) -> list[tuple[str, str | None, str]]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(f"{owner}={template!r} is malformed ({error}): write '{{name:.2f}}'.") from None
    for _, key, spec, conversion in parsed:
        if key == "" or conversion or "{" in (spec or ""):
            raise ConfigurationError(f"{owner}={template!r}: a field needs a plain name, as in '{{val_loss:.2f}}'.")
    return [(literal, key, spec or "") for literal, key, spec, _ in parsed]


def _formatted(value: float, spec: str, template: str, owner: str) -> str:
    try:
        return format(value, spec)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"{owner}={template!r}: {value!r} cannot be written as {spec!r} ({error}).") from None
