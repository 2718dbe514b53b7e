"""Which tensors are compared, what their files tell of them, and how many are told by few: without data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from safepoint.contents import Contents, Format, Opaque, Outline, Part, Storage, Tensor
from safepoint.difference import Verdict, between, told
from safepoint.leaves import MISSING, Leaves, plain_paths
from safepoint.pairing import Pair, paired
from safepoint.subtrees import common_change, subtrees

STORAGE = Storage(Path("a"), 0, 24, "d1", 1)


def tensor(path: str, *shape: int, storage: Storage = STORAGE, offset: int = 0, strides: Any = None) -> Tensor:
    """Return a float32 tensor on ``storage``."""
    own = strides or tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
    return Tensor(path, "float32", shape, (Part((0,) * len(shape), shape, storage, offset, own),))


def named(*paths: str) -> list[Tensor]:
    """Return tensors of one shape."""
    return [tensor(path, 2, 3) for path in paths]


def pairs(a: list[Tensor], b: list[Tensor]) -> list[tuple[str, str]]:
    """Return who is compared with whom, by path."""
    return [(one.path, other.path) for one, other in paired(a, b).pairs]


def test_tensors_of_one_path_are_compared() -> None:
    """In the order of the first; what is in one only is told."""
    found = paired(named("a", "b", "c"), named("c", "d", "a"))
    assert [(one.path, other.path) for one, other in found.pairs] == [("a", "a"), ("c", "c")]
    assert [one.path for one in found.removed] == ["b"]
    assert [one.path for one in found.added] == ["d"]
    assert found.prefixes is None


@pytest.mark.parametrize(
    ("a", "b", "prefixes"),
    [
        (("state_dict.model.0.weight", "state_dict.model.0.bias"), ("0.weight", "0.bias"), ("state_dict.model.", "")),
        (("0.weight", "0.bias"), ("state_dict.model.0.weight", "state_dict.model.0.bias"), ("", "state_dict.model.")),
        (("model.0.weight", "model.0.bias"), ("net.0.weight", "net.0.bias"), ("model.", "net.")),
        (("x.0.weight", "x.0.bias", "same.w"), ("x.y.0.weight", "x.y.0.bias", "same.w"), ("x.", "x.y.")),
    ],
)
def test_beginnings_of_paths_are_found(a: tuple[str, ...], b: tuple[str, ...], prefixes: tuple[str, str]) -> None:
    """Where nothing matches any two beginnings may be the same; where something does, one with something inserted."""
    found = paired(named(*a), named(*b))
    assert [(one.path, other.path) for one, other in found.pairs] == list(zip(a, b, strict=True))
    assert found.prefixes == prefixes


def test_optimizers_state_hides_no_beginning() -> None:
    """A file of weights alone is found again in a whole checkpoint, whatever lies ahead of the model."""
    moments = [f"optimizer.state.{number}.exp_avg" for number in range(50)]
    weights = [f"{number}.weight" for number in range(50)]
    found = paired(named(*moments, *(f"model.{name}" for name in weights)), named(*weights))
    assert len(found.pairs) == 50
    assert [one.path for one in found.removed] == moments


def test_another_module_is_not_taken_for_a_beginning() -> None:
    """Where the rest matches, a removed and an added module stay what they are."""
    assert pairs(named("a.w", "encoder.w"), named("a.w", "decoder.w")) == [("a.w", "a.w")]
    assert pairs(named("a.w", "b.w", "c.w"), named("x.y", "x.z", "x.w")) == []


def test_wrappers_are_seen_through() -> None:
    """The names that ``torch.compile`` and DDP put in say nothing."""
    assert pairs(named("model.0.w", "model.1.w"), named("model._orig_mod.0.w", "model.1.w")) == [
        ("model.0.w", "model._orig_mod.0.w"),
        ("model.1.w", "model.1.w"),
    ]


def test_keys_that_read_alike_are_not_lost() -> None:
    """Two tensors may have one path, as of the keys 1 and "1"."""
    assert pairs(named("s.1", "s.1"), named("s.1", "s.1", "s.1")) == [("s.1", "s.1")] * 2


def on(storage: Storage, **places: Any) -> Tensor:
    """Return a tensor of 2 x 3 on ``storage``."""
    return tensor("w", 2, 3, storage=storage, **places)


def other(**changes: Any) -> Storage:
    """Return a storage of another file, with ``changes``."""
    return dataclasses.replace(STORAGE, path=Path("b"), **changes)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (on(STORAGE), on(other()), Verdict.SAME),
        (on(STORAGE), on(other(digest="d2")), Verdict.CHANGED),
        (on(STORAGE), on(other(digest="", crc=1)), Verdict.UNREAD),
        (on(STORAGE), on(other(digest="", crc=2)), Verdict.CHANGED),
        (on(STORAGE), on(other(digest="", crc=None)), Verdict.UNREAD),
        (on(STORAGE), on(other(is_little=False)), Verdict.UNREAD),
        (on(STORAGE), on(other(is_little=False, digest="d2")), Verdict.UNREAD),
        (on(STORAGE), on(other(), strides=(1, 2)), Verdict.UNREAD),
        (on(STORAGE, strides=(1, 2)), on(other(), strides=(1, 2)), Verdict.SAME),
        (on(STORAGE, strides=(1, 2)), on(other(digest="d2"), strides=(1, 2)), Verdict.UNREAD),
        (on(other(size_bytes=48)), on(other(size_bytes=48, digest="d2")), Verdict.UNREAD),
        (on(other(size_bytes=48), offset=6), on(other(size_bytes=48, offset=64), offset=6), Verdict.SAME),
        (on(other(size_bytes=48), offset=6), on(other(size_bytes=48, offset=64)), Verdict.UNREAD),
        (on(STORAGE), on(STORAGE), Verdict.SAME),
        (on(other(digest="", crc=None)), on(other(digest="", crc=None)), Verdict.SAME),
        (on(STORAGE, offset=6), on(other(digest="d2")), Verdict.UNREAD),
        (tensor("w", 0, 3), tensor("w", 0, 3, storage=other(digest="d2")), Verdict.SAME),
    ],
)
def test_files_tell_what_is_certain_only(a: Tensor, b: Tensor, verdict: Verdict) -> None:
    """Equal digests of the same place, other digests or CRC-32 of whole storages; all else has to be read."""
    assert told(Pair(a, b)) is verdict
    assert told(Pair(b, a)) is verdict


def test_parts_have_to_be_read() -> None:
    """Of sharded tensors, no digest speaks."""
    halves = tuple(Part((at, 0), (1, 3), STORAGE, 3 * at, (3, 1)) for at in range(2))
    assert told(Pair(Tensor("w", "float32", (2, 3), halves), on(other()))) is Verdict.UNREAD


def test_tensors_without_data_are_what_their_notes_say() -> None:
    """Meta tensors are the same; what is made of others is compared by them; of the rest, nothing can be told."""

    def bare(note: str) -> Tensor:
        return Tensor("w", "float32", (2, 3), (), note)

    assert told(Pair(bare("meta: no data"), bare("meta: no data"))) is Verdict.SAME
    assert told(Pair(bare("sparse"), bare("sparse")), frozenset({"w"})) is Verdict.SAME
    assert told(Pair(bare("sparse"), bare("sparse"))) is Verdict.UNREADABLE
    assert told(Pair(bare("sparse"), bare("quantised"))) is Verdict.CHANGED
    assert told(Pair(bare("meta: no data"), on(STORAGE))) is Verdict.CHANGED


def holding(*tensors: Tensor) -> Contents:
    """Return a checkpoint of nothing but tensors, and of one that is in all."""
    return Contents(Outline(Path("a"), Format.SAFEPOINT, 0, 0.0), (tensor("same", 2, 3), *tensors), {})


def moves(a: Contents, b: Contents) -> list[tuple[str, str]]:
    """Return what has moved from where to where."""
    return [(one.path, other.path) for one, other in between(a, b).moved]


def sized(path: str, count: int, digest: str) -> Tensor:
    """Return a tensor of so many elements, whose digest is told."""
    return tensor(path, count, storage=Storage(Path("a"), 0, 4 * count, digest))


def test_moved_tensors_are_found_by_their_digests() -> None:
    """Those of one last name first, several of the same in the order of the state; others by their elements."""
    a = holding(sized("x.bias", 3, "zeros"), sized("y.bias", 3, "zeros"), sized("x.weight", 9, "w"))
    b = holding(sized("u.kernel", 9, "w"), sized("u.bias", 3, "zeros"), sized("v.bias", 3, "zeros"))
    assert moves(a, b) == [("x.bias", "u.bias"), ("y.bias", "v.bias"), ("x.weight", "u.kernel")]
    a, b = holding(sized("x.bias", 3, "zeros")), holding(sized("u.gain", 3, "zeros"), sized("v.bias", 3, "zeros"))
    assert moves(a, b) == [("x.bias", "v.bias")]
    assert moves(holding(sized("x.a", 3, "one")), holding(sized("y.b", 3, "two"))) == []


def test_single_numbers_move_under_their_name_only() -> None:
    """Any two counters may be the same number."""
    a = holding(sized("x.steps", 1, "1"))
    assert moves(a, holding(sized("y.scale", 1, "1"))) == []
    assert moves(a, holding(sized("y.steps", 1, "1"))) == [("x.steps", "y.steps")]


def test_difference_counts_what_is_chosen_only() -> None:
    """By the path of either side."""
    a, b = holding(sized("m.x", 3, "1"), sized("m.y", 3, "2")), holding(sized("x", 3, "1"), sized("y", 3, "3"))
    for chosen in ({"m.x"}, {"x"}):
        found = between(a, b, chosen.__contains__)
        assert [pair.a.path for pair in found.same] == ["m.x"]
        assert (found.added, found.removed, found.changed) == ((), (), ())
    assert between(a, b, {"y"}.__contains__)
    assert not between(a, a)


def test_many_paths_are_told_by_the_parts_that_they_are_all_of() -> None:
    """The largest parts, called by all that their paths begin with; one alone by its name."""
    every = ["model.a.w", "model.a.b", "model.c.w", "model.c.b", "opt.s.0.x", "opt.s.1.x", "lone"]
    assert subtrees(every[:4], every) == {"model.*": [0, 1, 2, 3]}
    assert subtrees(every[:2], every) == {"model.a.*": [0, 1]}
    assert subtrees(every[:3], every) == {"model.a.*": [0, 1], "model.c.w": [2]}
    assert subtrees(every[4:], every) == {"opt.s.*": [0, 1], "lone": [2]}
    assert subtrees(every, every) == {"*": list(range(7))}
    assert subtrees([], every) == {}
    deep = [".".join("x" * 5000), ".".join("x" * 5000) + "y"]
    assert list(subtrees(deep, deep)) == [".".join("x" * 32) + ".*"]


def test_moves_are_told_by_what_differs() -> None:
    """The end that both paths have says nothing."""
    assert common_change("model.layers.0.w", "model.blocks.0.w") == ("model.layers", "model.blocks")
    assert common_change("model.w", "w") == ("model", "")


def differing(a: object, b: object) -> list[tuple[str, object, object]]:
    """Return the leaves that differ."""
    return [tuple(leaf) for leaf in Leaves().between(a, b)]  # type: ignore[misc]


def test_values_that_differ_are_told_with_their_paths() -> None:
    """In the order of the state; NaN is itself, 1 is no 1.0 and no True, and tensors are not looked at."""
    a = {"lr": 0.1, "n": math.nan, "t": tensor("t", 2), "groups": [{"lr": 1, "params": [0, 1]}], "kind": Opaque("x")}
    b = {
        "lr": 0.01,
        "n": math.nan,
        "t": tensor("u", 3),
        "groups": ({"lr": 1.0, "params": [0, 2]},),
        "kind": Opaque("y"),
    }
    assert differing(a, b) == [
        ("lr", 0.1, 0.01),
        ("groups.0.lr", 1, 1.0),
        ("groups.0.params", [0, 1], [0, 2]),
        ("kind", Opaque("x"), Opaque("y")),
    ]
    assert differing(a, a) == []
    assert differing([1, 2], (1, 2)) == []
    assert differing({"x": 1}, {"x": True}) == [("x", 1, True)]
    assert differing({"x": {1, 2}}, {"x": {2, 1}}) == []


def test_values_on_one_side_only_are_told_once() -> None:
    """As a whole; containers without a plain value in them, and tensors, are none."""
    inner = {"y": [1, {"z": 2}]}
    assert differing({"x": inner}, {}) == [("x", inner, MISSING)]
    assert differing({}, {"x": inner}) == [("x", MISSING, inner)]
    assert differing({"x": {"t": tensor("t", 2)}, "e": [], "s": tensor("t", 2)}, {}) == []
    assert differing({"x": 1}, {"x": tensor("t", 2)}) == [("x", 1, tensor("t", 2))]
    assert differing({"x": [1, {"z": 2}, 3]}, {"x": [1, {"z": 2}]}) == [("x.2", 3, MISSING)]


def test_trees_without_end_are_walked_once() -> None:
    """A container that holds itself, one of the same over and over, and one that is very deep."""
    circle: dict[str, object] = {"lr": 1}
    circle["self"] = circle
    copy: dict[str, object] = {"lr": 2}
    copy["self"] = copy
    assert differing(circle, copy) == [("lr", 1, 2)]
    bare: list[object] = []
    bare.append(bare)
    assert differing({"x": bare}, {}) == []
    laughs: list[object] = [{"x": 1}]
    more: list[object] = [{"x": 2}]
    for _ in range(64):
        laughs, more = [laughs, laughs], [more, more]
    assert len(differing(laughs, more)) == 1
    assert len(list(plain_paths(laughs))) == 1
    deep: object = 1
    for _ in range(5000):
        deep = {"x": deep}
    assert not list(Leaves().between(deep, deep))
    assert differing({"a": deep}, {}) == [("a", deep, MISSING)]
