"""Every kind of tensor and object is captured as ``torch.save`` stores it, or refused by its path."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contents import content, torch_content
from kinds import OBJECTS, TENSORS, made
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from safepoint.capture import capture
from safepoint.errors import CaptureError


@pytest.mark.parametrize("name", [*TENSORS, *OBJECTS])
def test_capture_of_any_kind_is_what_torch_saves(name: str) -> None:
    """Pickle and storages are those of ``torch.save``, byte for byte."""
    state = {"before": torch.zeros(2), "it": made(name), "after": torch.zeros(3)}
    assert content(capture(state)) == torch_content(state)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", TENSORS)
def test_capture_lists_only_what_the_list_tells_wholly(name: str) -> None:
    """A listed tensor, put together from what is listed and its storage's bytes, is the tensor of the state."""
    tensor = made(name)
    captured = capture([tensor])
    for listed in captured.tensors:
        if listed.path != "0":
            continue
        dtype = getattr(torch, listed.dtype)
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, listed.shape)
        again = torch.empty(0, dtype=dtype).set_(captured.storages[listed.storage], listed.offset, listed.shape)
        again = again.as_strided(listed.shape, listed.strides) if listed.strides is not None else again
        assert (again.data_ptr(), again.stride()) == (tensor.data_ptr(), tensor.stride())
        assert not any((tensor.is_conj(), tensor.is_neg(), tensor.is_quantized, tensor.is_sparse))


@pytest.mark.parametrize(
    "name",
    ["parameter", "parameter with attributes", "parameter of float8", "expanded", "requires a gradient", "bits8"],
)
def test_capture_lists_what_has_a_place(name: str) -> None:
    """Parameters, views and tensors of newer dtypes are listed."""
    assert [listed.path for listed in capture([made(name)]).tensors] == ["0"]


@pytest.mark.parametrize("name", ["conjugated", "negated", "quantised per tensor", "nested", "meta", "sparse CSR"])
def test_capture_does_not_list_what_a_place_does_not_tell(name: str) -> None:
    """What needs more than dtype, shape, offset and strides to be understood is saved, and not listed."""
    assert capture([made(name)]).tensors == ()


def test_capture_lists_the_tensors_of_a_shared_list_once() -> None:
    """A list that is met again, inside itself or elsewhere, is not walked again."""
    paths = [listed.path for listed in capture([made("a list in itself"), made("one list in two places")]).tensors]
    assert paths == ["0.0", "1.a.0"]


def test_capture_warns_of_hooks_as_torch_does() -> None:
    """A hook is not saved; torch's own warning of that is passed on."""
    tensor = torch.ones(3, requires_grad=True)
    tensor.register_hook(print)
    with pytest.warns(UserWarning, match="will not be serialized"):
        capture([tensor])


def _resized(size_bytes: int, step: int = 1) -> torch.Tensor:
    tensor = torch.ones(4)[1::step]
    tensor.untyped_storage().resize_(size_bytes)
    return tensor


def _fake() -> torch.Tensor:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        return torch.ones(3)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "resized to nothing": (lambda: _resized(0), r"\(Tensor\) reaches beyond its storage.*resized to 0 bytes"),
    "resized by one element": (lambda: _resized(12), "reaches beyond its storage.*resized to 12 bytes"),
    "resized under a column": (lambda: _resized(12, step=2), "reaches beyond its storage"),
    "resized under a parameter": (lambda: torch.nn.Parameter(_resized(0)), r"\(Parameter\) reaches beyond its storage"),
    "meta storage": (lambda: torch.ones(3, device="meta").untyped_storage(), "meta device.*take it out"),
    "fake": (_fake, r"\(FakeTensor\) cannot be pickled"),
    "MKL-DNN": (lambda: torch.ones(3).to_mkldnn(), "cannot be pickled"),
    "zero tensor": (lambda: torch._efficientzerotensor(3), "cannot be pickled"),
    "less than a byte": (lambda: torch.empty(4, dtype=torch.uint4), r"torch\.uint4.*another dtype"),
    "lambda": (lambda: lambda: None, r"\(function\) cannot be pickled.*state_dict\(\)"),
    "bound method of a lock": (lambda: threading.Lock().acquire, "cannot be pickled"),
    "open file": (lambda: sys.__stderr__, r"\(TextIOWrapper\) cannot be pickled"),
    "generator": (lambda: (number for number in range(3)), r"\(generator\) cannot be pickled"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_capture_refuses_by_path(name: str) -> None:
    """What cannot be saved, or could not be loaded, is named by its path as one would write it in Python."""
    make, message = REFUSED[name]
    with pytest.raises(CaptureError, match=r"^state\['hparams'\]\[1\]\['fn'\] .*" + message):
        capture({"model": torch.ones(1), "hparams": [0, {"lr": 0.1, "fn": make()}]})


def test_capture_names_what_holds_one_storage_as_two_dtypes() -> None:
    """The path leads to the innermost part of the state that has both."""
    floats = torch.ones(4)
    with pytest.raises(CaptureError, match=r"^state\['b'\] \(list\) holds one storage both as torch\.float32 and as"):
        capture({"a": torch.ones(1), "b": [floats, floats.view(torch.int32)]})


def test_capture_finds_a_culprit_in_a_cycle() -> None:
    """A list that holds itself does not lead the search astray."""
    items: list[Any] = []
    items += [items, threading.Lock()]
    with pytest.raises(CaptureError, match=r"^state\[1\] \(lock\)"):
        capture(items)


def test_capture_names_what_is_nested_too_deep() -> None:
    """Nesting beyond what pickle can follow is refused at the entry that begins it."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CaptureError, match=r"^state\['deep'\] \(list\) cannot be pickled: maximum recursion depth"):
        capture({"fine": [], "deep": deep})


@pytest.fixture
def _process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("wrap", [lambda tensor: tensor, torch.nn.Parameter], ids=["tensor", "parameter"])
def test_capture_refuses_shards(wrap: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A distributed tensor, of which a process holds a part only, is refused before the rest can be lost."""
    shard = wrap(distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,))))
    with pytest.raises(CaptureError, match=r"^state\['w'\] .*holds only its shard: put full_tensor\(\)"):
        capture({"w": shard})


@pytest.mark.parametrize("enabled", [True, False])
def test_capture_leaves_the_collector_as_it_was(enabled: bool) -> None:  # noqa: FBT001
    """Python's garbage collector is on afterwards if it was on before, also after a refusal."""
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(CaptureError):
            capture(threading.Lock())
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_capture_lets_go_of_the_state() -> None:
    """Nothing of a capture lives on in a cycle: what the state frees is free at once, without the collector."""
    tensor, parameter = torch.ones(1), torch.nn.Parameter(torch.ones(1))
    references = [weakref.ref(tensor), weakref.ref(parameter)]
    gc.disable()
    try:
        capture([tensor, parameter])
        del tensor, parameter
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
