"""Conditions on checkpoints, as a person writes them: ``val_loss<0.3``, ``size>1GB``, ``age<2d``, ``name=epoch=1*``.

Pure: what is known of a checkpoint is handed in. Knows no file, no clock and no command.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from safepoint.errors import ConfigurationError

Known = Mapping[str, float | tuple[str, ...]]
"""What is known of a checkpoint, by what it is called in a condition: a number, or a text in all its spellings."""

TEXTS = ("name", "format")
NUMBERS = ("step", "epoch", "size", "age")
"""What a condition is about, besides metrics, which these names hide."""

_OPERATOR = r"\s*(?P<operator><=|>=|!=|<|>|==?)\s*"
_TEXT = re.compile(rf"\s*(?P<name>{'|'.join(TEXTS)}){_OPERATOR}(?P<value>.*?)\s*", re.DOTALL)
_NUMBER = re.compile(rf"\s*(?P<name>.*[^<>=!\s]){_OPERATOR}(?P<value>.*?)\s*", re.DOTALL)
"""The name of a metric may hold an operator: the last one is the condition's."""
_QUANTITY = re.compile(r"(?P<number>[^a-z\s]+)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_BYTES |= {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES |= {f"{prefix}b": size_bytes for prefix, size_bytes in _BYTES.items() if prefix not in {"", "b"}}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_UNITS: Mapping[str, Mapping[str, int]] = {"size": _BYTES, "age": _SECONDS}
_EXAMPLES = {"size": "size>1GB (or B, kB, MB, TB, KiB, MiB, GiB)", "age": "age<2d (or s, min, h, w)"}


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _unequal(one: float, other: float) -> bool:
    return not _equal(one, other)


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": _equal,
    "!=": _unequal,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition: ``name`` is a metric, or one of ``TEXTS`` and ``NUMBERS``; ``text`` is it as it was written."""

    name: str
    operator: str
    value: float | str
    text: str

    @property
    def metric(self) -> str | None:
        """The metric that it is about, ``None`` if it is about something else."""
        return None if self.name in (*TEXTS, *NUMBERS) else self.name

    def holds(self, known: Known) -> bool:
        """Tell whether it is true; of what is not known it never is. No number is less or more than NaN."""
        found = known.get(self.name)
        if found is None:
            return False
        if isinstance(found, tuple):
            return any(fnmatchcase(spelling, str(self.value)) for spelling in found) == (self.operator == "=")
        return _COMPARE[self.operator](found, self.value)


def parsed(text: str) -> Filter:
    """Return the condition that ``text`` is.

    Raises:
        ConfigurationError: it is none; says what one looks like.

    """
    found = _TEXT.fullmatch(text) or _NUMBER.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"{text!r} is no filter: write a name, one of < <= > >= = !=, and a value, as in 'val_loss<0.3'."
        )
    name, value = found["name"], found["value"]
    compared = "=" if found["operator"] == "==" else found["operator"]
    if name not in TEXTS:
        return Filter(name, compared, _number(name, value, text), text)
    if compared not in {"=", "!="}:
        raise ConfigurationError(f"{text!r} is no filter: compare {name} by = or !=, as in '{name}=*best*'.")
    return Filter(name, compared, value, text)


def _number(name: str, value: str, text: str) -> float:
    """Return ``value`` as a number, in bytes or in seconds where it has a unit."""
    units = _UNITS.get(name, {"": 1})
    found = _QUANTITY.fullmatch(value) if name in _UNITS else None
    number, unit = (value, "") if found is None else (found["number"], found["unit"].lower())
    try:
        return float(number) * units[unit]
    except (ValueError, KeyError):
        example = _EXAMPLES.get(name, f"{name}<0.3")
        raise ConfigurationError(f"{text!r} is no filter: {value!r} is no number; write it as in {example}.") from None
