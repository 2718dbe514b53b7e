"""Keys of dictionaries and sets: none that somebody has forged to take long, all that an honest state may hold."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest
import torch
from forge import HOOKS, called, listed, mapped, named, number, state, text, tupled
from test_pickles import check

from safepoint.capture import capture
from safepoint.errors import CheckpointError

MODULUS = 2**61 - 1
MANY = 1500
DEVICE = called("torch.device", text("cpu"))
DATED = named("datetime.date") + tupled(text("x")) + b"R"

HONEST: dict[str, dict[Any, Any]] = {
    "complex numbers": {(complex(key, 1),): key for key in range(MANY)} | {complex(key): key for key in range(MANY)},
    "a long tuple": {tuple(range(MANY)): 1},
    "one tuple in many keys": {((tuple(range(MANY))), key): 1 for key in range(MANY)},
    "dates": {(date.fromordinal(700_000 + key),): key for key in range(MANY)},
    "dates and text": {("a", date.fromordinal(700_000 + key)): key for key in range(MANY)},
    "frozen sets": {(frozenset([key]),): key for key in range(MANY)},
    "numbers of NumPy": {(np.int64(key), np.int64(key // 3)): key for key in range(MANY)},
    "devices": {(torch.device("cuda", key % 100), key): key for key in range(MANY)},
    "long text": {("x" * 2000 + str(key),): key for key in range(MANY)},
    "bytes": {(b"%d" % key,): key for key in range(MANY)},
    "not numbers": {float("nan"): key for key in range(MANY)},
    "dtypes": {(torch.float32, key): key for key in range(MANY)},
    "numbers with nearly one hash": {(sign, key): key for key in range(2000) for sign in (-1, -2)},
    "a deep tuple": {eval("(" * 100 + ")" * 50 + ",)" * 50): 1},
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_keys_pass(name: str) -> None:
    """Objects that are not known are told apart as what they are: objects."""
    captured = capture({"x": HONEST[name]})
    check(captured.pickle)


def _same(parts: bytes, count: int = MANY) -> bytes:
    """Return a dictionary with keys of one hash, each a pair of what ``parts`` pushes and another number."""
    return mapped(*[(tupled(parts, number(key * MODULUS)), b"N") for key in range(2, count)])


FORGED = {
    "complex numbers with one hash": mapped(
        *[(called("builtins.complex", number(-1_000_003 * key), number(key)), b"N") for key in range(MANY)]
    ),
    "a set of them": called(
        "builtins.set",
        listed(*[called("builtins.complex", number(-1_000_003 * key), number(key)) for key in range(MANY)]),
    ),
    "one key that is set over and over": mapped(*[(number(7), b"N")] * MANY),
    "one object beside numbers with one hash": DATED + b"q\1" + _same(b"h\1"),
    "many devices that are the same": _same(DEVICE),
    "keys of what a trusted function has made": DATED + _same(text("a"))[1:],
    "a deep key of what is made like a tensor": called(
        "torch._tensor._rebuild_from_type_v2",
        named("collections.OrderedDict"), named("collections.OrderedDict"), b")", b"N",
    ) + b")" + b"\x85" * 100_000 + b"Ns",
    "a deep key of what is made by a trusted function": DATED + b")" + b"\x85" * 100_000 + b"Ns",
    "keys that are heavy together": b")q\0" + b"h\0h\0\x86q\0" * 20
    + mapped(*[(tupled(b"h\0", number(key)), b"N") for key in range(100)]),
    "a complex number that is none": called("builtins.complex", text("1")),
    "a number that is no floating-point one": called("builtins.complex", number(2**1999)),
}  # fmt: skip


@pytest.mark.parametrize("value", FORGED.values(), ids=FORGED)
def test_forged_keys_are_refused(value: bytes) -> None:
    """Where many have one hash, where one is set over and over, and where one overflows the stack."""
    with pytest.raises(CheckpointError, match="none that PyTorch writes"):
        check(b"\x80\x02](" + value + b"e.")


NESTED = b"](NNe" + b"q\1](" + b"h\1" * 10 + b"e"

UNCALLABLE = {
    "a list is called": NESTED + b")R",
    "a new list": NESTED + b")\x81",
    "a dictionary is called": HOOKS + b")R",
    "text makes something new": text("a") + b")\x81",
    "a tensor is made of a container": called(
        "torch._tensor._rebuild_from_type_v2", named("a.function"), named("builtins.set"), b")", b"N"
    ),
}


@pytest.mark.parametrize("value", UNCALLABLE.values(), ids=UNCALLABLE)
def test_nothing_but_a_class_or_a_function_is_called(value: bytes) -> None:
    """Torch would write out the whole of it in its error: lists of lists of lists take all memory."""
    with pytest.raises(CheckpointError, match=r"never is|something else"):
        check(state(value))


def test_what_a_trusted_function_returns_may_be_called() -> None:
    """As classes within classes are found: ``getattr`` is trusted."""
    inner = called("builtins.getattr", named("a.Outer"), text("Inner"))
    check(state(inner + b")R"))
    check(state(inner + b")\x81"))
