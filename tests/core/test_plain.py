"""What a message may show: text from files, without what a terminal would obey, and of a bounded length."""

from __future__ import annotations

import pytest

from safepoint.errors import SafepointError, cause, in_line, plain, shortened, warn


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 日本 ok", "größe 日本 ok"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eesrever", "\\u202eesrever"),
        ("\udcff.ckpt", "\\udcff.ckpt"),
    ],
)
def test_plain_escapes_what_a_terminal_obeys_and_nothing_else(text: str, shown: str) -> None:
    """Letters of every language and lines stay; codes, marks of direction and broken bytes are written out."""
    assert plain(text) == shown


def test_absurd_length_is_cut() -> None:
    """A message is for people, and so is a name."""
    assert len(plain("x" * 10**7)) < 10**6
    assert len(shortened("x" * 10**6)) < 10**4
    assert shortened("model.0.weight") == "model.0.weight"


def test_line_that_must_stay_one_does() -> None:
    """A name with a line break in it makes no second line."""
    assert in_line("a\nb\x07") == "a\\nb\\x07"


def test_errors_their_notes_and_causes_are_plain() -> None:
    """However they come about; what caused an error stays what it is, if it is harmless."""
    error = SafepointError("\x1b]0;title\x07")
    error.add_note("\x1b[2J")
    assert str(error) == "\\x1b]0;title\\x07"
    assert error.__notes__ == ["\\x1b[2J"]
    assert str(cause(ValueError("\x1b[2J"))) == "ValueError: \\x1b[2J"
    harmless = ValueError("a word")
    assert cause(harmless) is harmless


def test_warning_is_plain_and_points_to_the_caller() -> None:
    """As ``warnings.warn`` does, counted from who calls."""
    with pytest.warns(RuntimeWarning, match=r"\\x1b\[2J") as caught:
        warn("\x1b[2J", stacklevel=1)
    assert caught[0].filename == __file__
