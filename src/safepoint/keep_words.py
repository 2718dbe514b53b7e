"""A preservation policy in words, as a command line takes it: ``best:val_loss:3,latest:2``.

What any of the words keeps, stays, as with ``|``. Pure: what is said, and nothing of what there is.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import cast

from safepoint import keep
from safepoint.errors import ConfigurationError, nearest
from safepoint.keep import Mode, PreservationPolicy

FORMS = (
    "best:METRIC",
    "best:METRIC:N",
    "best:METRIC:N:max",
    "latest:N",
    "every:epochs:N",
    "every:steps:N",
    "within:days:D (or hours, minutes, seconds, gigabytes)",
    "pinned",
    "all",
)
_MODES = ("min", "max")


def parsed(text: str) -> PreservationPolicy:
    """Return the policy that ``text`` says: words joined by commas, each with what belongs to it behind colons.

    Raises:
        ConfigurationError: it says none; names the word that is wrong, and the forms there are.

    """
    policies = [_policy(word.strip()) for word in text.split(",")]
    return functools.reduce(operator.or_, policies)


def _policy(word: str) -> PreservationPolicy:
    head, *rest = word.split(":")
    if head not in _WORDS:
        near = "".join(f" Did you mean {name!r}?" for name in nearest(head, _WORDS))
        raise _wrong(word, f"{head!r} is none of these.{near}" if head else "a word is missing.")
    try:
        return _WORDS[head](rest)
    except ConfigurationError as error:
        raise _wrong(word, str(error)) from None


def _best(rest: list[str]) -> PreservationPolicy:
    """Return the policy for METRIC, METRIC:N, METRIC:MODE or METRIC:N:MODE; a metric may have colons in its name."""
    mode = cast("Mode", rest.pop()) if rest[1:] and rest[-1] in _MODES else "min"
    n = _number(rest.pop()) if rest[1:] and rest[-1].isdecimal() else 1
    return keep.best(":".join(rest), n, mode)


def _latest(rest: list[str]) -> PreservationPolicy:
    (n,) = _all_of(rest or ["1"], "N")
    return keep.latest(_number(n))


def _every(rest: list[str]) -> PreservationPolicy:
    unit, n = _all_of(rest, "UNIT", "N")
    return keep.every(**{_known(unit, ("epochs", "steps")): _number(n)})


def _within(rest: list[str]) -> PreservationPolicy:
    unit, length = _all_of(rest, "UNIT", "NUMBER")
    unit = _known(unit, ("days", "hours", "minutes", "seconds", "gigabytes"))
    try:
        return keep.within(**{unit: float(length)})
    except ValueError:
        raise ConfigurationError(f"{length!r} is no positive number.") from None


def _pinned(rest: list[str]) -> PreservationPolicy:
    _all_of(rest)
    return keep.pinned()


def _all(rest: list[str]) -> PreservationPolicy:
    _all_of(rest)
    return keep.all()


_WORDS: Mapping[str, Callable[[list[str]], PreservationPolicy]] = {
    "best": _best,
    "latest": _latest,
    "every": _every,
    "within": _within,
    "pinned": _pinned,
    "all": _all,
}


def _all_of(rest: list[str], *wanted: str) -> list[str]:
    if len(rest) != len(wanted):
        raise ConfigurationError(f"{':'.join(wanted) or 'nothing'} belongs behind it.")
    return rest


def _known(unit: str, units: tuple[str, ...]) -> str:
    if unit not in units:
        raise ConfigurationError(f"{unit!r} is none of {', '.join(units)}.")
    return unit


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no whole number.") from None


def _wrong(word: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"--keep: {word!r}: {why} Give one of {'; '.join(FORMS)}; or several, joined by commas.")
