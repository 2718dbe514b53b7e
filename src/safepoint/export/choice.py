"""Which paths of a state are meant: patterns of what is taken, and of what is not. Knows names alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from safepoint.errors import ConfigurationError, nearest, shortened

_MOST_COMPARED = 2000
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A pattern as it was given, by which option, and what it means."""

    option: str
    text: str
    expression: re.Pattern[str]

    def matches(self, path: str) -> bool:
        """Tell whether it means ``path``, or something that this lies in."""
        return any(self.expression.match(part) for part in beginnings(path))


class Choice:
    """What is chosen by patterns as of a shell, each of which means all that lies below what it matches, too.

    Chosen is what one of ``keys`` means, or all if there are none, but for what one of ``except_`` means.
    """

    def __init__(self, keys: Sequence[str] = (), except_: Sequence[str] = ()) -> None:
        self._keys = _patterns("--keys", keys)
        self._except = _patterns("--except", except_)

    def __call__(self, path: str) -> bool:
        """Tell whether ``path`` is chosen."""
        wanted = not self._keys or any(pattern.matches(path) for pattern in self._keys)
        return wanted and not any(pattern.matches(path) for pattern in self._except)

    def check(self, paths: Sequence[str]) -> None:
        """Raise a ConfigurationError for a pattern that means none of ``paths``, and if nothing is left of them."""
        for pattern in (*self._keys, *self._except):
            if not any(pattern.matches(path) for path in paths):
                raise ConfigurationError(
                    f"{pattern.option} {pattern.text!r} matches nothing in it. {told_of(paths, pattern.text)}"
                )
        if not any(self(path) for path in paths):
            raise ConfigurationError("nothing is left of it: --except takes out all that --keys takes.")


def _patterns(option: str, texts: Iterable[str]) -> tuple[_Pattern, ...]:
    return tuple(_Pattern(option, text, re.compile(fnmatch.translate(text))) for text in texts)


def beginnings(path: str) -> Iterator[str]:
    """Yield ``path``, and what of it stands in front of each of its dots, the longest first."""
    end = len(path)
    while end > 0:
        yield path[:end]
        end = path.rfind(".", 0, end)


def told_of(paths: Sequence[str], text: str) -> str:
    """Return which names there are: one that ``text`` may be a slip of, or the first parts of all."""
    literal = re.sub(r"[*?\[\]]+", "", text).strip(".")
    there = dict.fromkeys(part for path in paths[:_MOST_COMPARED] for part in beginnings(path))
    if near := nearest(literal, there):
        return f"Did you mean {shortened(near[0])!r}?"
    firsts = list(dict.fromkeys(path.partition(".")[0] for path in paths))
    more = f" and {len(firsts) - _MOST_NAMED} more" if len(firsts) > _MOST_NAMED else ""
    return f"There are: {', '.join(repr(shortened(name)) for name in firsts[:_MOST_NAMED])}{more}."
