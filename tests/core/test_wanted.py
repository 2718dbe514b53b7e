"""What ``restore()`` is asked to take."""

from __future__ import annotations

from typing import Any

import pytest

from safepoint.errors import ConfigurationError
from safepoint.wanted import checked_rename, checked_strict, entries_wanted

NAMES = ("model", "optimizer", "scheduler")


@pytest.mark.parametrize(
    ("only", "except_", "entries"),
    [
        (None, None, NAMES),
        (["scheduler", "model"], None, ("model", "scheduler")),
        (None, ("model",), ("optimizer", "scheduler")),
        (None, [], NAMES),
    ],
)
def test_entries_are_chosen(only: Any, except_: Any, entries: tuple[str, ...]) -> None:
    """All of them, some of them, or all but some, in their own order."""
    assert entries_wanted(NAMES, only, except_) == entries


@pytest.mark.parametrize(
    ("only", "except_", "message"),
    [
        (["model"], ["optimizer"], "give one of the two"),
        ([], None, "would restore nothing"),
        ("model", None, r"only='model'\): give a list"),
        (None, 3, r"except_=3\): give a list"),
        (["modell"], None, r"'modell', and state= has: 'model', 'optimizer', 'scheduler'\. Did you mean 'model'"),
        (None, [3], "except_=.*names 3"),
    ],
)
def test_wrong_choices_are_refused(only: Any, except_: Any, message: str) -> None:
    """Each says what is wrong and what there is."""
    with pytest.raises(ConfigurationError, match=message):
        entries_wanted(NAMES, only, except_)


def test_strict_is_one_of_three() -> None:
    """Nothing that is merely true."""
    assert [checked_strict(value) for value in (None, True, False)] == [None, True, False]
    with pytest.raises(ConfigurationError, match="strict=1"):
        checked_strict(1)


def test_rename_maps_texts() -> None:
    """Prefixes to prefixes."""
    assert checked_rename(None) == {}
    assert checked_rename({"a.": "b."}) == {"a.": "b."}
    for wrong in (["a."], {"a.": 1}, {1: "a."}):
        with pytest.raises(ConfigurationError, match="rename="):
            checked_rename(wrong)
