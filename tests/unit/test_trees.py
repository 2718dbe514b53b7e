"""The tree of a state as text: aligned, within the width there is, with nothing lost that has room."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from safepoint import anatomy
from safepoint.cli import trees
from safepoint.cli.columns import cells
from safepoint.contents import Part, Storage, Tensor


def tensor(*shape: int, at: int = 0, digest: str = "0123456789abcdef" * 2, path: str = "x") -> Tensor:
    """Return a tensor of float32 on a storage of its own, of which the file tells a digest."""
    storage = Storage(Path("x"), at, math.prod(shape) * 4, digest)
    return Tensor(path, "float32", shape, (Part((0,) * len(shape), shape, storage, 0, (1,) * len(shape)),))


STATE = {
    "model": {"encoder.weight": tensor(1000, 1000), "encoder.bias": tensor(1000, at=1 << 30)},
    "optimizer": {"param_groups": [{"lr": 0.001, "betas": (0.9, 0.999)}]},
}


def text(state: Any, width: int, **options: Any) -> list[str]:
    """Return the lines of a state."""
    return [line for line, _ in trees.lines(trees.rows(anatomy.grown(state), **options), width)]


def test_tree_is_aligned_with_headings() -> None:
    """Containers say how much is in them; tensors have dtype, shape, elements, size and the digest's beginning."""
    assert text(STATE, 100) == [
        "            dtype    shape         elements    size  digest",
        "model       float32  2 tensors        1.0 M  4.0 MB",
        "└ encoder   float32  2 tensors        1.0 M  4.0 MB",
        "  ├ weight  float32  [1000, 1000]     1.0 M  4.0 MB  01234567",
        "  └ bias    float32  [1000]           1.0 k  4.0 kB  01234567",
        "optimizer",
        "└ param_groups",
        "  └ 0",
        "    ├ lr: 0.001",
        "    └ betas: (0.9, 0.999)",
    ]


def test_tree_leaves_out_columns_before_it_folds() -> None:
    """Where there is no room for all, the digest goes first, then the number of elements, then the dtype."""
    assert text(STATE, 56)[3] == "  ├ weight  float32  [1000, 1000]     1.0 M  4.0 MB"
    assert text(STATE, 46)[3] == "  ├ weight  float32  [1000, 1000]  4.0 MB"
    assert text(STATE, 34)[3] == "  ├ weight  [1000, 1000]  4.0 MB"


def test_tree_tells_below_the_name_what_has_no_room_beside_it() -> None:
    """On a very narrow terminal each tensor takes two lines or more."""
    assert text(STATE, 30)[6:9] == ["  ├ weight", "  │   float32, [1000, 1000],", "  │   1.0 M, 4.0 MB, 01234567"]


@pytest.mark.parametrize("width", [20, 30, 40, 56, 80, 200])
def test_tree_fits_into_the_width(width: int) -> None:
    """No line is longer than the terminal, however deep, long or wide what it tells is."""
    deep: Any = tensor(3)
    for index in range(60):
        deep = {f"level{index}": deep}
    state = {"x" * 300: tensor(1 << 20, 1 << 20), "深い" * 20: deep, "value": "y" * 300, **STATE}
    assert max(map(cells, text(state, width))) <= width


def test_tree_of_short_names_is_led_to_them() -> None:
    """Names that are shorter than what leads to them leave that alone."""
    assert [line[:8] for line in text({"a": {"b": {"c": tensor(3)}}}, 100)[1:]] == ["a      f", "└ b    f", "  └ c  f"]


def test_tree_goes_as_deep_as_asked_for() -> None:
    """What is below is counted and not shown."""
    assert len(text(STATE, 100, depth=1)) == 3


def test_tree_says_how_much_it_leaves_out() -> None:
    """A container with more in it than is to be shown says how much more there is."""
    state = {"many": {f"{chr(97 + index)}": tensor(index + 1) for index in range(20)}}
    assert text(state, 100, most=5)[-1] == "└ ... and 15 more: --full shows them"


def test_tree_says_of_tensors_what_they_share() -> None:
    """A tied tensor names the first of its kind."""
    one, other = tensor(3, path="embed"), tensor(3, path="head")
    assert text({"embed": one, "head": other}, 100)[2].startswith("head (the same as embed)  float32  [3]")


def test_tree_writes_out_what_a_terminal_would_obey() -> None:
    """Names, dtypes and values come from a file, which anybody may have made."""
    state = {"\x1b[31mred": tensor(1), "value": "\x1b]0;title\x07", "lines\nof": "x"}
    assert "".join(text(state, 100)).isprintable()


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0"), (999, "999"), (1000, "1.0 k"), (124_439_808, "124.4 M"), (7 * 10**9, "7.0 G")]
)
def test_quantities_are_short(count: int, words: str) -> None:
    """Large numbers have a digit behind the point, and a letter."""
    assert trees.quantity(count) == words
