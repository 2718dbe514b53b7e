"""The pickles of an export: what torch's restricted unpickler takes, and what it makes of them."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safepoint.contents import Opaque, Tensor
from safepoint.export.pickled import TYPED, UNTYPED, Place, pickled, refused
from safepoint.loading import _known
from safepoint.pickles import check

KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    KEYS | st.complex_numbers(allow_nan=False) | st.sets(st.integers() | st.text()),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
)
DTYPES = sorted({*TYPED, *UNTYPED})


def no_tensor(_: Tensor) -> Place:
    """Say that none is expected."""
    raise AssertionError


def same(one: Any, other: Any) -> bool:
    """Tell whether two plain values are the same, with their types, and zeros with their signs."""
    if type(one) is not type(other) or not isinstance(one, dict | list | tuple):
        return type(one) is type(other) and repr(one) == repr(other) if not isinstance(one, set) else one == other
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return len(one) == len(other) and all(map(same, one, other))


def archived(data: bytes, *storages: bytes) -> io.BytesIO:
    """Return a file as of ``torch.save``'s with ``data`` as its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, storage in enumerate(storages):
            archive.writestr(f"archive/data/{key}", storage)
        archive.writestr("archive/version", "3\n")
    file.seek(0)
    return file


@given(VALUES)
def test_pickle_is_the_value_to_every_unpickler(value: Any) -> None:
    """Plain values come back as they were, from Python's unpickler and from torch's restricted one."""
    assert list(refused(value)) == []
    data = pickled(value, no_tensor)
    assert same(pickle.loads(data), value)
    assert same(torch.load(archived(data), weights_only=True), value)


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_pickle_of_many_entries_is_cut_into_batches(count: int) -> None:
    """Long lists and dictionaries are filled in parts, as Python's pickler does, and lose nothing at the seams."""
    value = [list(range(count)), {f"key {n}": -n for n in range(count)}]
    assert torch.load(archived(pickled(value, no_tensor)), weights_only=True) == value


@pytest.mark.parametrize("text", ["", "\udc80", "a\nb", "\0", "€" * 300])
def test_pickle_of_any_text(text: str) -> None:
    """Half characters, as of file names that are no Unicode, and control codes are text, too."""
    assert torch.load(archived(pickled([text, {text: text}], no_tensor)), weights_only=True) == [text, {text: text}]


def test_pickle_writes_a_string_once() -> None:
    """What is called the same a thousand times is written once, more than 255 strings included."""
    value = [{f"key {n}": "the same long value" for n in range(300)}] * 2
    data = pickled(value, no_tensor)
    assert data.count(b"the same long value") == data.count(b"key 299") == 1
    assert pickle.loads(data) == value


@pytest.mark.parametrize("number", [-(2**2039), 2**2039 - 1, 2**31, -(2**31) - 1, 65535, 65536, 255, 256, -1])
def test_pickle_of_a_number_at_a_limit(number: int) -> None:
    """Numbers are written in the shortest way, up to 255 bytes."""
    assert torch.load(archived(pickled(number, no_tensor)), weights_only=True) == number


@pytest.mark.parametrize("number", [2**2039, -(2**2039) - 1])
def test_pickle_refuses_a_number_that_torch_does_not_load(number: int) -> None:
    """Torch's restricted unpickler knows no longer ones."""
    assert list(refused({"a": [1, number]})) == ["a.1"]


def test_pickle_refuses_objects_wherever_they_are() -> None:
    """What is not plain is told by its path: as an entry, in a set or a tuple, and as a key."""
    opaque = Opaque("some.Class")
    value = {"plain": 1, "entry": opaque, "list": [0, opaque], "set": {opaque}, opaque: 1, (1, opaque): 2}
    assert list(refused(value)) == ["entry", "list.1", "set", "some.Class", f"(1, {opaque})"]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES)
def test_pickle_of_a_tensor_is_one_that_torch_writes(dtype: str) -> None:
    """Of each dtype a tensor is rebuilt where it lies, by the calls that ``torch.save`` writes, opcode by opcode."""
    kind = getattr(torch, dtype)
    storage = torch.arange(48, dtype=torch.uint8).view(torch.uint8)
    tensor = torch.empty(0, dtype=kind).set_(storage.untyped_storage(), 1, (2, 1), (1, 2))
    length = 48 if dtype in UNTYPED else 48 // kind.itemsize
    data = pickled({"a": Tensor("a", dtype, (2, 1), ())}, lambda _: Place(0, length, dtype, 1, (2, 1), (1, 2)))
    loaded = torch.load(archived(data, bytes(storage)), weights_only=True)["a"]
    assert (loaded.dtype, loaded.shape, loaded.stride(), loaded.storage_offset()) == (kind, (2, 1), (1, 2), 1)
    assert bytes(loaded.untyped_storage()) == bytes(storage)
    file = io.BytesIO()
    torch.save({"a": tensor}, file)
    with zipfile.ZipFile(file) as archive:
        assert meant(data) == meant(archive.read("archive/data.pkl"))


def meant(data: bytes) -> list[tuple[str, Any]]:
    """Return the opcodes of a pickle without those that only remember, and tuples of any length as one."""
    short = {"TUPLE1": "TUPLE", "TUPLE2": "TUPLE", "TUPLE3": "TUPLE"}
    dull = {"BINPUT", "LONG_BINPUT", "MARK", "PROTO"}
    memo: dict[int, Any] = {}
    last: Any = None
    found = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "BINPUT":
            memo[argument] = last
        if opcode.name not in dull:
            last = (short.get(opcode.name, opcode.name), argument)
            found.append(memo[argument] if opcode.name == "BINGET" else last)
    return [("SETITEM", None) if name == "SETITEMS" else (name, argument) for name, argument in found]


def test_pickle_passes_the_guard_of_our_own_loader() -> None:
    """Safepoint's own check of pickles, which refuses what no ``torch.save`` writes, has nothing against it."""
    place = Place(0, 4, "float32", 0, (2, 2), (2, 1))
    value = {"a": Tensor("a", "float32", (2, 2), ()), "b": [1.5, None, math.inf, {1, 2}, b"\xff", ("x",)]}
    check(pickled(value, lambda _: place), [16], _known())
