"""Tables as text: aligned, folded to the width there is, with nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safepoint.cli.columns import Column, cells, lines

COLUMNS = (Column("name", folds=True), Column("step", right=True), Column("why", folds=True))
words = st.text(st.characters(categories=["L", "N", "P"]) | st.just(" "), max_size=60)


def test_lines_align_what_is_under_a_heading() -> None:
    """Text to the left, numbers to the right, two spaces between, none at the end of a line."""
    assert list(lines(COLUMNS, [("a.ckpt", "7", "the latest"), ("long.ckpt", "12000", "")], 80)) == [
        "name        step  why",
        "a.ckpt         7  the latest",
        "long.ckpt  12000",
    ]


def test_lines_fold_the_widest_column_at_spaces() -> None:
    """Where the width does not do, the widest column goes on below, parted at a space."""
    assert list(lines(COLUMNS, [("a.ckpt", "7", "best by val_loss and the latest")], 32)) == [
        "name    step  why",
        "a.ckpt     7  best by val_loss",
        "              and the latest",
    ]


def test_lines_fold_a_name_when_the_rest_is_narrow() -> None:
    """What folds last stays in one piece until the other columns have twelve cells."""
    columns = (Column("name", folds=True, folds_last=True), Column("why", folds=True))
    rows = [("epoch=1-step=2.ckpt", "best by val_loss and the latest")]
    assert list(lines(columns, rows, 36))[1:] == [
        "epoch=1-step=2.ckpt  best by",
        "                     val_loss and",
        "                     the latest",
    ]
    assert list(lines(columns, rows, 30))[1:] == [
        "epoch=1-step=2.c  best by",
        "kpt               val_loss and",
        "                  the latest",
    ]


def test_lines_chop_a_word_that_is_too_long() -> None:
    """A name without a space is parted anywhere."""
    rows = [("x" * 20, "7", "kept")]
    assert list(lines(COLUMNS, rows, 22)) == [
        "name        step  why",
        "xxxxxxxxxx     7  kept",
        "xxxxxxxxxx",
    ]


def test_lines_leave_room_for_something_to_read() -> None:
    """A column is never folded to less than eight cells: a terminal that is narrower wraps the lines itself."""
    assert list(lines(COLUMNS, [("x" * 9, "7", "y" * 9)], 1))[1:] == ["xxxxxxxx     7  yyyyyyyy", "x               y"]


def test_lines_count_cells_and_not_characters() -> None:
    """A wide character takes two cells, a combining one none."""
    assert [cells(text) for text in ("abc", "模型", "e\u0301")] == [3, 4, 1]
    assert list(lines(COLUMNS, [("模型", "1", "a"), ("abcd", "2", "b")], 80))[1:] == ["模型     1  a", "abcd     2  b"]


@given(rows=st.lists(st.tuples(words, st.integers(0, 10**6).map(str), words), max_size=5), width=st.integers(1, 120))
def test_lines_lose_nothing(rows: list[tuple[str, str, str]], width: int) -> None:
    """All that is not a space is there in any width, and no line is wider than asked for, or than the narrowest."""
    found = list(lines(COLUMNS, rows, width))
    expected = "".join(column.heading for column in COLUMNS) + "".join("".join(row) for row in rows)
    assert sorted("".join(found).replace(" ", "")) == sorted(expected.replace(" ", ""))
    assert max(map(cells, found)) <= max(width, 8 + 2 + 7 + 2 + 8)
