"""What a state becomes: the same pickle and the same storages as ``torch.save`` makes of it."""

from __future__ import annotations

import io
import random
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contents import content, torch_content

from safepoint.capture import capture
from safepoint.errors import CaptureError
from safepoint.manifest import Tensor
from safepoint.randomness import rng_state, set_rng_state

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    *(
        getattr(torch, name)
        for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
        if hasattr(torch, name)
    ),
]


def _bits(dtype: torch.dtype) -> torch.Tensor:
    raw = torch.arange(32, dtype=torch.uint8)
    return raw.bool() if dtype is torch.bool else raw.view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_capture_holds_every_dtype_bit_for_bit(dtype: torch.dtype) -> None:
    """A tensor of any dtype is captured as ``torch.save`` stores it."""
    state = {"tensor": _bits(dtype)}
    assert content(capture(state)) == torch_content(state)


def _shared() -> Any:
    base = torch.arange(12.0)
    return {"base": base, "view": base[3:7], "again": base, "column": base.view(3, 4)[:, 1]}


def _trained() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


STATES: dict[str, Callable[[], Any]] = {
    "model and optimizer": _trained,
    "a view alone": lambda: {"a": torch.arange(100)[10:12]},
    "transposed": lambda: torch.arange(6).view(2, 3).t(),
    "no dimension": lambda: torch.tensor(3.5),
    "empty": lambda: {"a": torch.zeros(0), "b": torch.zeros(0, 3), "c": torch.zeros(2, 0, dtype=torch.int64)},
    "nested": lambda: {"a": [torch.ones(1), (torch.zeros(2), {"b": OrderedDict(c=torch.ones(3))})], 4: {torch.float32}},
    "plain values": lambda: {"a": 1, "b": 2.5, "c": "text", "d": None, "e": True, "f": b"raw", "g": 2**100, "h": 1j},
    "nothing": dict,
}


@pytest.mark.parametrize("name", STATES)
def test_capture_is_what_torch_saves(name: str) -> None:
    """Pickle and storages are byte for byte those of ``torch.save``, so that ``torch.load`` gives the same objects."""
    state = STATES[name]()
    assert content(capture(state)) == torch_content(state)


def test_capture_shares_storages() -> None:
    """Tensors on one storage are captured as one storage, whole, however many there are and whatever they show."""
    captured = capture(_shared())
    assert content(captured)[1] == torch_content(_shared())[1]
    assert [storage.nbytes() for storage in captured.storages] == [48]
    assert {tensor.storage for tensor in captured.tensors} == {0}


def test_capture_copies_nothing() -> None:
    """The storages are the live ones: staging is what copies."""
    live = torch.arange(4)
    (storage,) = capture({"live": live}).storages
    assert storage.data_ptr() == live.data_ptr()


def test_capture_keeps_empty_storages_apart() -> None:
    """Empty tensors of different dtypes share no storage, although all have the same null address."""
    captured = capture([torch.zeros(0), torch.zeros(0, dtype=torch.int64)])
    assert [storage.nbytes() for storage in captured.storages] == [0, 0]


def test_capture_describes_tensors_by_path() -> None:
    """Each tensor found in mappings, lists and tuples has its path, dtype, shape and place; strides where needed."""
    base = torch.arange(6.0).view(2, 3)
    state = {
        "net": OrderedDict({"0.weight": base, "t": base.t()}),
        "more": [torch.tensor(1, dtype=torch.bfloat16)],
        7: (),
    }
    assert capture(state).tensors == (
        Tensor("net.0.weight", "float32", (2, 3), storage=0),
        Tensor("net.t", "float32", (3, 2), storage=0, strides=(1, 3)),
        Tensor("more.0", "bfloat16", (), storage=1),
    )


def test_capture_describes_where_a_view_lies() -> None:
    """The offset of a view is counted in elements."""
    (tensor,) = capture({"view": torch.arange(10)[4:]}).tensors
    assert tensor == Tensor("view", "int64", (6,), storage=0, offset=4)


def test_capture_describes_only_what_has_a_storage() -> None:
    """Sparse and meta tensors are saved, and are not described as tensors in the file."""
    assert capture({"sparse": torch.eye(2).to_sparse(), "meta": torch.ones(2, device="meta")}).tensors == ()


def test_capture_refuses_one_storage_as_two_dtypes() -> None:
    """A storage viewed as two dtypes cannot be told apart after loading; the message names both and says what to do."""
    floats = torch.ones(4)
    with pytest.raises(CaptureError, match=r"torch\.float32 and as torch\.int32.*clone\(\)"):
        capture({"a": floats, "b": floats.view(torch.int32)})


class _Refuses:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def _deep() -> Any:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda: None,
        threading.Lock,
        lambda: (number for number in range(3)),
        lambda: sys,
        _deep,
        lambda: _Refuses(RuntimeError("no")),
        lambda: _Refuses(ValueError("no")),
        lambda: _Refuses(KeyError("no")),
    ],
    ids=["lambda", "lock", "generator", "module", "too deep", "RuntimeError", "ValueError", "KeyError"],
)
def test_capture_refuses_what_cannot_be_pickled(make: Callable[[], Any]) -> None:
    """Whatever keeps an object from being pickled is a CaptureError that says what to do, with its cause."""
    with pytest.raises(CaptureError, match=r"cannot be pickled.*state_dict\(\)") as caught:
        capture({"model": torch.ones(1), "bad": make()})
    assert caught.value.__cause__ is not None


def _draws() -> tuple[float, float, float]:
    legacy = np.random.random()
    return random.random(), float(legacy), float(torch.rand(()))


def test_rng_state_puts_every_generator_back() -> None:
    """Python, NumPy and torch go on drawing what they would have drawn."""
    state = rng_state()
    expected = _draws()
    assert _draws() != expected
    set_rng_state(state)
    assert _draws() == expected


def test_rng_state_survives_a_checkpoint() -> None:
    """The random state is plain enough for the restricted loader, and restores what it was."""
    random.gauss(0, 1)
    file = io.BytesIO()
    torch.save(rng_state(), file)
    expected = _draws()
    set_rng_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert _draws() == expected


def test_rng_state_leaves_numpy_out_where_it_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without NumPy saves no state of it, and does not import it."""
    monkeypatch.delitem(sys.modules, "numpy")
    assert "numpy" not in rng_state()
    assert "numpy" not in sys.modules


class Unspeakable:
    """A key that has no spelling."""

    def __str__(self) -> str:
        raise AttributeError


@pytest.mark.parametrize("key", ["\ud800", 10**5000, Unspeakable()], ids=["surrogate", "long", "unspeakable"])
def test_tensor_below_a_key_without_a_spelling_is_not_listed(key: object) -> None:
    """It is in the checkpoint as ``torch.save`` would have it there, and the manifest does not name it."""
    found = capture({"a": {key: torch.ones(2)}, "b": torch.zeros(2)})
    assert [tensor.path for tensor in found.tensors] == ["b"]
    assert len(found.storages) == 2


def test_tensor_with_an_absurd_dimension_is_not_listed() -> None:
    """An empty tensor may have a dimension that no manifest can hold."""
    found = capture({"a": torch.empty(0, 2**62), "b": torch.zeros(2)})
    assert [tensor.path for tensor in found.tensors] == ["b"]
