"""Keys that are called otherwise in the checkpoint: wrappers, and changed prefixes."""

from __future__ import annotations

import pytest

from safepoint.renaming import core, likely_prefix, renamed, replaced


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("0.weight", "_orig_mod.0.weight"),
        ("0.weight", "module.0.weight"),
        ("0.weight", "module._orig_mod.0.weight"),
        ("_orig_mod.module.0.weight", "module._orig_mod.0.weight"),
        ("net._orig_mod.0.weight", "net.0.weight"),
        ("module.net.0.weight", "net.module.0.weight"),
    ],
)
def test_wrappers_are_taken_for_what_they_are(here: str, there: str) -> None:
    """On either side, anywhere in the key."""
    assert core(here) == core(there)
    assert renamed([here], [there], {}) == {there: here}
    assert renamed([there], [here], {}) == {here: there}


def test_key_that_is_in_the_model_stays() -> None:
    """A submodule may really be called ``module``."""
    assert renamed(["module.a", "a"], ["module.a", "a"], {"a": "b"}) == {}
    assert renamed(["module.a", "b"], ["module.a", "a"], {}) == {}


def test_names_that_could_be_two_stay() -> None:
    """Where two of the one are one of the other, nobody can tell."""
    assert renamed(["module.a", "_orig_mod.a"], ["a"], {}) == {}
    assert renamed(["a"], ["module.a", "_orig_mod.a"], {}) == {}


def test_prefixes_are_replaced() -> None:
    """The longest that fits, below wrappers too, and not for keys that the model has."""
    assert replaced("back.bone.w", {"back.": "x.", "back.bone.": "y."}) == "y.w"
    assert replaced("w", {"back.": "x."}) == "w"
    assert renamed(["enc.w"], ["back.w"], {"back.": "enc."}) == {"back.w": "enc.w"}
    assert renamed(["module.enc.w"], ["back.w"], {"back.": "enc."}) == {"back.w": "module.enc.w"}
    assert renamed(["enc.w"], ["module.back.w"], {"back.": "enc."}) == {"module.back.w": "enc.w"}
    assert renamed(["w"], ["model.w"], {"model.": ""}) == {"model.w": "w"}
    assert renamed(["model.w"], ["w"], {"": "model."}) == {"w": "model.w"}
    assert renamed(["enc.w", "back.w"], ["back.w"], {"back.": "enc."}) == {}
    assert renamed(["enc.w"], ["back.w", "enc.w"], {"back.": "enc."}) == {}


def test_what_somebodys_own_code_loads_keeps_its_names() -> None:
    """Below it, only the way there is renamed."""
    assert renamed(["_orig_mod.own.w"], ["own.old"], {}, ("_orig_mod.own.",)) == {"own.old": "_orig_mod.own.old"}
    assert renamed(["own.w"], ["own.old"], {}, ("own.",)) == {}
    assert renamed(["own.w"], ["other.old"], {}, ("own.",)) == {}


def test_absurdly_long_keys_are_not_taken_apart() -> None:
    """A file may bring a key of dots: its parts would take many times the memory."""
    key = f"module.{'.' * 10_000}w"
    assert core(key) == key
    assert renamed(["w"], [key], {}) == {}
    assert likely_prefix({"a.w": "(2,)"}, {key: "(2,)"}) is None


def test_likely_prefix_makes_the_most_match() -> None:
    """What looks renamed is found by the names' ends and the shapes."""
    shapes = {"0.w": "(2, 2)", "0.b": "(2,)", "1.w": "(2, 2)"}
    here = {f"encoder.{key}": shape for key, shape in shapes.items()}
    there = {f"backbone.{key}": shape for key, shape in shapes.items()} | {"head.w": "(2, 2)"}
    assert likely_prefix(here, there) == ("backbone.", "encoder.", 3)
    assert likely_prefix({"w": "(2,)"}, {"model.w": "(2,)"}) == ("model.", "", 1)
    assert likely_prefix({"a.w": "(2,)"}, {"b.w": "(3,)"}) is None
    assert likely_prefix({}, {}) is None
