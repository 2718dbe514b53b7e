"""A state as a tree: what it counts, what it folds, and that no state makes it hang."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from safepoint import anatomy
from safepoint.anatomy import Node
from safepoint.contents import Opaque, Part, Storage, Tensor

_OFFSETS = iter(range(0, 1 << 40, 1 << 20))


def tensor(*shape: int, path: str = "x", dtype: str = "float32", storage: Storage | None = None) -> Tensor:
    """Return a tensor on ``storage``, or on one of its own."""
    size_bytes = math.prod(shape) * anatomy.item_bytes(dtype)
    there = storage or Storage(Path("x.ckpt"), next(_OFFSETS), size_bytes)
    return Tensor(path, dtype, shape, (Part((0,) * len(shape), shape, there, 0, (1,) * len(shape)),))


def names(node: Node) -> list[str]:
    """Return the paths of all that is below a node."""
    return [
        f"{child.name}{rest}" for child in node.children.values() for rest in ("", *(f".{n}" for n in names(child)))
    ]


def test_tree_parts_dotted_names() -> None:
    """Names of tensors that share their beginnings lie in one container."""
    root = anatomy.grown({"layers.0.weight": tensor(2), "layers.0.bias": tensor(3), "layers.1.weight": tensor(2)})
    assert names(root) == ["layers", "layers.0", "layers.0.weight", "layers.0.bias", "layers.1", "layers.1.weight"]
    assert root.children["layers"].tensors == 3


def test_tree_leaves_names_whole_that_cannot_be_parted() -> None:
    """A name that goes on where a tensor is, has an empty part, or is no tensor's, stays as it is."""
    root = anatomy.grown({"a": tensor(1), "a.b": tensor(1), ".c": tensor(1), "lr.max": 0.1})
    assert list(root.children) == ["a", "a.b", ".c", "lr.max"]


def test_tree_keeps_keys_apart_that_print_alike() -> None:
    """A number and the text of it are two keys."""
    assert list(anatomy.grown({1: "number", "1": "text"}).children) == ["1", "1'"]


def test_tree_counts_elements_bytes_and_parameters() -> None:
    """Parameters are the elements of floating-point tensors; bytes are as wide as the dtype."""
    root = anatomy.grown({"a": tensor(2, 3), "b": tensor(5, dtype="int64"), "c": tensor(4, dtype="bfloat16")})
    assert (root.tensors, root.elements, root.parameters, root.size_bytes) == (3, 15, 10, 24 + 40 + 8)


def test_tree_counts_once_what_two_names_have() -> None:
    """A tied tensor names the first, and adds nothing; another part of a storage adds what it has, and says where."""
    storage = Storage(Path("x"), 0, 400)
    tied, part = (tensor(10, path=path, storage=storage) for path in ("first", "second"))
    root = anatomy.grown({"first": tied, "second": part, "third": tensor(4, path="third", storage=storage)})
    assert [child.note for child in root.children.values()] == ["", "the same as first", "on the storage of first"]
    assert root.size_bytes == 40 + 16


def test_tree_counts_no_more_than_is_stored() -> None:
    """An expanded tensor has more elements than its storage."""
    expanded = tensor(1000, 1000, storage=Storage(Path("x"), 0, 4))
    assert anatomy.grown({"a": expanded}).size_bytes == 4


def test_fold_makes_one_of_layers_that_are_the_same() -> None:
    """Siblings that differ in a number and their elements become one, which counts them all."""
    state = {f"layers.{index}.{name}": tensor(2, 3) for index in range(12) for name in ("q", "k")}
    (layers,) = anatomy.folded(anatomy.grown(state)).children.values()
    (one,) = layers.children.values()
    assert (one.name, one.copies, one.is_same, one.tensors, one.size_bytes) == ("0-11", 12, True, 24, 24 * 24)
    assert [(child.name, child.tensors, child.shape) for child in one.children.values()] == [
        ("q", 12, (2, 3)),
        ("k", 12, (2, 3)),
    ]


def test_fold_leaves_apart_what_differs() -> None:
    """The odd one out is shown as it is, and those on both sides of it are folded."""
    state = {f"{index}.weight": tensor(3 if index == 5 else 2) for index in range(10)}
    assert list(anatomy.folded(anatomy.grown(state)).children) == ["0-4", "5", "6-9"]


def test_fold_leaves_two_of_a_kind_alone() -> None:
    """Two that are the same stay two: nothing is gained, and their digests would go."""
    state = {"0": tensor(2), "2": tensor(2), "5": tensor(3)}
    assert list(anatomy.folded(anatomy.grown(state)).children) == ["0", "2", "5"]


def test_fold_names_numbers_that_leave_gaps() -> None:
    """Layers with others between them that have no tensors are no range."""
    state = {f"{index}.weight": tensor(2) for index in (0, 2, 4)}
    assert list(anatomy.folded(anatomy.grown(state)).children) == ["0...4"]


def test_fold_makes_one_of_many_that_differ_in_shape_alone() -> None:
    """What an optimizer has gathered of each parameter is one, if there is much of it."""
    state = {"state": {index: {"step": tensor(), "exp_avg": tensor(index + 1)} for index in range(20)}}
    (one,) = anatomy.folded(anatomy.grown(state)).children["state"].children.values()
    assert (one.name, one.copies, one.is_same) == ("0-19", 20, False)
    assert [(child.name, child.shape) for child in one.children.values()] == [("step", ()), ("exp_avg", None)]


def test_fold_leaves_values_apart_that_differ() -> None:
    """Parameter groups of other learning rates than each other are shown one by one."""
    groups = [{"lr": rate} for rate in (0.1, 0.1, 0.1, 0.2)]
    assert list(anatomy.folded(anatomy.grown({"groups": groups})).children["groups"].children) == ["0-2", "3"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (0.001, "0.001"),
        ("adam", "'adam'"),
        ((0.9, 0.999), "(0.9, 0.999)"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, ... 100 of them]"),
        ({3}, "{3}"),
        ({}, "{}"),
        ([], "[]"),
        (b"abc", "3 bytes"),
        (Opaque("torch.optim.Adam"), "<torch.optim.Adam>"),
        (10**5000, "an integer of 16610 bits"),
        ("x" * 1000, f"'{'x' * 80}'... (1000 characters)"),
        (float("nan"), "nan"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_values_are_told_in_a_few_words(value: Any, words: str) -> None:
    """Whatever is in a state has a short line."""
    assert anatomy.grown({"it": value}).children["it"].value == words


def test_tree_ends_where_a_state_does_not() -> None:
    """A state that contains itself, is absurdly deep, or holds the same over and over, is shown all the same."""
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    doubled: Any = [1, [2]]
    for _ in range(5000):
        deep, doubled = [deep, {}], [doubled, doubled]
    root = anatomy.folded(anatomy.grown({"endless": endless, "deep": deep, "doubled": doubled}))
    assert root.children["endless"].children["0"].value == "the same as endless"
    assert len(names(root)) < 2000


def test_numbers_of_absurd_length_are_names() -> None:
    """A name of five thousand digits is no number that anybody could count with."""
    state = {f"w{'1' * 5000}{index}": tensor(2) for index in range(3)}
    assert len(anatomy.folded(anatomy.grown(state)).children) == 1
