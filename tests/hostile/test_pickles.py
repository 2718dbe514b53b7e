"""The walk through a pickle: what it refuses before torch makes anything of it, and what it must let pass."""

from __future__ import annotations

import struct
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import forge
import pytest
import torch
from forge import called, listed, mapped, named, number, shape, state, storage, tensor, text, tupled
from kinds import OBJECTS, TENSORS, made

from safepoint import loading, pickles
from safepoint.capture import capture
from safepoint.errors import CheckpointError

ABSURD = 10**13
ON = storage(0, 16)
DEEP = b")" + b"\x85" * 100_000
SHARED_KEY = b")q\0" + b"h\0h\0\x86q\0" * 60
QUANTISED = tupled(named("torch.per_tensor_affine"), number(1), number(0))
PLACE = (number(0), shape(4), shape(1), b"\x89", forge.HOOKS)
PLAIN = tupled(ON, *PLACE)
WIDE, LONG = storage(1, 2**17), storage(2, 8, "torch.LongStorage")


def quantised(scales: bytes) -> bytes:
    """Push a tensor that has a scale for each of its channels."""
    scheme = tupled(named("torch.per_channel_affine"), scales, tensor(ON, (1,), (1,)), number(0))
    on = storage(3, 64, "torch.QInt8Storage")
    return called(
        "torch._utils._rebuild_qtensor",
        on,
        number(0),
        shape(4),
        shape(1),
        scheme,
        b"\x89",
        called("collections.OrderedDict"),
    )


def on_device(data: bytes) -> bytes:
    """Push a tensor that torch copies to a device and another dtype."""
    name = "torch._utils._rebuild_device_tensor_from_cpu_tensor"
    return called(name, data, named("torch.float64"), text("cpu"), b"\x89")


def sparse(indices: bytes) -> bytes:
    """Push a sparse tensor with these indices."""
    layout = called("torch.serialization._get_layout", text("torch.sparse_coo"))
    return called("torch._utils._rebuild_sparse_tensor", layout, tupled(indices, tensor(ON, (2,), (1,)), shape(3)))


SPARSE = sparse(tensor(LONG, (1, 2), (2, 1)))

REFUSED = {
    "a bytearray of a size": called("builtins.bytearray", number(ABSURD)),
    "the same by its old name": called("__builtin__.bytearray", number(ABSURD)),
    "a tensor of a size": called("torch.Tensor", number(ABSURD)),
    "a tensor of a class and a size": called("torch.FloatTensor", number(ABSURD)),
    "a tensor on a device, of a size": called("torch.cuda.FloatTensor", number(ABSURD)),
    "a storage of a size": called("torch.storage.UntypedStorage", number(ABSURD)),
    "a new tensor of a size": named("torch.Tensor") + tupled(number(ABSURD)) + b"\x81",
    "a function inside a function": called(
        "torch._tensor._rebuild_from_type_v2", named("torch.Tensor"), named("torch.Tensor"), shape(ABSURD), b"N"
    ),
    "a tensor beyond its storage": tensor(ON, (17,), (1,)),
    "a tensor that begins beyond it": tensor(ON, (1,), (1,), 16),
    "a tensor that strides beyond it": tensor(ON, (2,), (16,)),
    "a tensor in front of it": tensor(ON, (4,), (1,), -1),
    "a tensor that strides back": tensor(ON, (4,), (-1,)),
    "a tensor without strides": tensor(ON, (4,), ()),
    "a tensor that is nearly endless": tensor(ON, (ABSURD,), (0,)),
    "a tensor of the oldest kind": called("torch._utils._rebuild_tensor", ON, *PLACE[:3]),
    "a tensor of a wider dtype": called(
        "torch._utils._rebuild_tensor_v3", ON, number(0), shape(16), shape(1), b"\x89", forge.HOOKS, named("torch.float64")
    ),
    "a tensor on a number": tensor(number(5), (4,), (1,)),
    "a tensor with hooks": tensor(ON, (4,), (1,), hooks=mapped((number(0), named("builtins.set")))),
    "a tensor with a number for hooks": tensor(ON, (4,), (1,), hooks=number(5)),
    "hooks that come later": tensor(ON, (4,), (1,), hooks=forge.HOOKS + b"q\1") + b"h\1" + text("a") + b"Ns",
    "a parameter of a number": called("torch._utils._rebuild_parameter", number(1), b"\x89", forge.HOOKS),
    "a tensor with an attribute of its class": called(
        "torch._tensor._rebuild_from_type_v2",
        named("torch._utils._rebuild_tensor_v2"), named("torch.Tensor"), PLAIN, mapped((text("_backward_hooks"), number(5))),
    ),
    "a tensor that is set again": tensor(ON, (4,), (1,)) + tupled(ON, number(0), shape(ABSURD), shape(1)) + b"b",
    "a quantised tensor beyond its data": called(
        "torch._utils._rebuild_qtensor",
        storage(0, 64, "torch.QInt8Storage"), number(0), shape(2**40), shape(0), QUANTISED, b"\x89", forge.HOOKS,
    ),
    "scales beyond their data": quantised(tensor(ON, (2**29,), (0,))),
    "scales that are lists of lists": quantised(listed(listed(number(1)))),
    "one list of scales for many": listed(*[b"K\1"] * 70_000) + b"q\1" + quantised(b"h\1") * 9,
    "a tensor copied beyond its data": on_device(tensor(ON, (2**30,), (0,))),
    "a tensor copied over and over": tensor(WIDE, (2**17,), (1,)) + b"q\1" + on_device(b"h\1") * 30,
    "a tensor of no known size that is copied": on_device(SPARSE),
    "indices beyond their data": sparse(tensor(LONG, (1, 2**36), (0, 0))),
    "the same indices over and over": tensor(LONG, (1, 2**22), (0, 0)) + b"q\1" + sparse(b"h\1") * 30,
    "a sparse tensor of numbers": called(
        "torch._utils._rebuild_sparse_tensor", called("torch.serialization._get_layout", text("torch.sparse_coo")),
        tupled(text("a"), text("b"), shape(3)),
    ),
    "a nested tensor of numbers": called("torch._utils._rebuild_nested_tensor", *[number(1)] * 4),
    "a tensor of torch's without data": called(
        "torch._utils._rebuild_wrapper_subclass", named("torch.Tensor"), named("torch.float32"), shape(4), shape(1),
        number(0), b"N", text("cpu"), b"\x89",
    ),
    "more elements than there are": tensor(storage(0, 17), (4,), (1,)),
    "fewer than none": tensor(storage(0, -1), (4,), (1,)),
    "a storage that is not there": tensor(storage(4, 4), (4,), (1,)),
    "a storage elsewhere in the file": tensor(storage("../data.pkl", 4), (4,), (1,)),
    "a storage of two kinds": listed(tensor(ON, (4,), (1,)), tensor(storage(0, 8, "torch.DoubleStorage"), (4,), (1,))),
    "a storage of no kind": tensor(storage(0, 4, "builtins.set"), (4,), (1,)),
    "a reference of one number": number(5) + b"Q",
    "a key that is deep": mapped((DEEP, b"N")),
    "a key whose parts are shared": mapped((SHARED_KEY, b"N")),
    "a deep element of a set": called("builtins.set", listed(DEEP)),
    "keys with one hash": mapped(*[(number(key * (2**61 - 1)), b"N") for key in range(2, 2000)]),
    "a set of text": called("builtins.set", text("a")),
    "a counter of a list": called("collections.Counter", listed(text("a"))),
    "a counter by an old name": called("UserDict.Counter", listed(text("a"))),
    "an ordered dictionary of a list": called("collections.OrderedDict", listed(tupled(text("a"), b"N"))),
    "another codec": called("_codecs.encode", text("a"), text("hex")),
    "one text encoded over and over": text("x" * 70_000) + b"q\0" + called("_codecs.encode", b"h\0", text("latin1")) * 9,
    "one list made a set over and over": listed(*[b"N"] * 70_000) + b"q\0" + called("builtins.set", b"h\0") * 9,
    "a dictionary that has another for items": forge.HOOKS + mapped((text("items"), named("builtins.set"))) + b"b",
    "a whole set that is given a state": called("builtins.set", listed()) + mapped((text("a"), b"N")) + b"b",
    "a constant of a list": called("torch.device", listed()),
    "a shape of text": called("torch.Size", tupled(text("a"))),
    "arguments that are a list": named("builtins.set") + listed(listed()) + b"R",
    "what was never put": b"h\x09",
    "nothing to take": b"\x87",
    "a name without an end": b"cbuiltins",
    "text that is cut off": b"X\xff\xff\xff\xff",
}  # fmt: skip


def check(pickled: bytes, *sizes: int) -> None:
    """Walk through a pickle as a load does."""
    pickles.check(pickled, sizes, loading._known())


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_walk_refuses_what_no_state_holds(value: bytes) -> None:
    """Sizes without data, places outside of storages, keys that overflow the stack, copies of copies."""
    with pytest.raises(CheckpointError, match=r"none that PyTorch writes: at byte \d+"):
        check(b"\x80\x02](" + value + b"e.", 64, 2**19, 64, 64)


@pytest.mark.parametrize("pickled", [b"", b"\x80", b"\x80\x02", b"\x80\x02]"])
def test_walk_refuses_what_ends_early(pickled: bytes) -> None:
    """A pickle without an end is refused."""
    with pytest.raises(CheckpointError, match="cut off"):
        check(pickled)


def test_walk_leaves_to_torch_what_torch_refuses() -> None:
    """An opcode or a name that the restricted unpickler does not know is its own to name."""
    check(b"\x80\x02N0.")
    check(state(called("builtins.eval", text("1"))))


HONEST: dict[str, Any] = {
    "bytes and bytearrays": [b"", b"x" * 300, b"\xff" * 5000, bytearray(), bytearray(b"\x00\xff" * 1000)] * 3,
    "one of them in many places": [b"x" * 100_000] * 50,
    "numbers": [0, -1, 255, 256, 2**31, 2**62, -(2**63), 2**200, 1.5, float("nan"), float("-inf"), 1j, True, None],
    "keys": {(layer, head, "a"): (layer,) for layer in range(100) for head in range(20)}
    | {2**61 + i: i for i in range(99)},
    "small keys": {key: key for key in range(5000)} | {key / 7: key for key in range(5000)},
    "sets": [set(), {1, "a", (2, "b")}, set(range(5000)), {(row, column) for row in range(50) for column in range(50)}],
    "an ordered dictionary with an attribute": torch.nn.Linear(2, 2).state_dict(),
    "dictionaries": [Counter("aab"), OrderedDict(a=1), OrderedDict([((1, 2), 3)]), {"": {}}],
    "torch's own": [torch.Size((2, 3)), torch.Size(()), torch.float16, torch.strided, torch.device("cuda", 1)],
    "an empty tensor far out": torch.arange(4.0)[4:].view(0, 5),
    "an expanded tensor": torch.ones(1).expand(1000, 1000, 1000),
    "long text": ["\N{SNOWMAN}" * 5000, "a" * 1025, "\ud800"],
}


@pytest.mark.parametrize("name", [*HONEST, *TENSORS])
def test_walk_lets_every_honest_state_pass(name: str) -> None:
    """Whatever ``torch.save`` writes that ``weights_only=True`` reads."""
    captured = capture({"x": HONEST[name] if name in HONEST else made(name)})
    check(captured.pickle, *(found.nbytes() for found in captured.storages))


@pytest.mark.parametrize("name", OBJECTS)
def test_walk_lets_pass_what_may_be_trusted(name: str) -> None:
    """A class that is not torch's is the user's to trust, whatever it is made of."""
    captured = capture({"x": made(name)})
    check(captured.pickle, *(found.nbytes() for found in captured.storages))


def test_walk_goes_through_a_deep_and_a_shared_structure_at_once() -> None:
    """Lists within lists are no key: there may be a million, and each is looked at once."""
    began_s = time.process_time()
    check(state(b"]" * 300_000 + b"a" * 299_999))
    check(state(listed(b"]q\0" + b"](h\0h\0eq\0" * 60)))
    assert time.process_time() - began_s < 60


def test_sparse_tensor_beyond_its_shape_is_refused(tmp_path: Path) -> None:
    """Indices are data: torch is told to look at them once they are there."""
    indices = tensor(storage(1, 2, "torch.LongStorage"), (1, 2), (2, 1))
    layout = called("torch.serialization._get_layout", text("torch.sparse_coo"))
    parts = tupled(indices, tensor(ON, (2,), (1,)), shape(3), b"\x88")
    pickled = state(called("torch._utils._rebuild_sparse_tensor", layout, parts))
    for mmap in (False, True):
        path = forge.write(tmp_path / "a.ckpt", pickled, [bytes(64), struct.pack("<2q", 0, 10**9)])
        with pytest.raises(CheckpointError, match="found index 1000000000"):
            loading.load(path, mmap=mmap)


def test_failed_load_leaves_no_tensor_behind(tmp_path: Path) -> None:
    """Torch keeps sparse tensors for a look that a failed load never comes to: they lie on a file that may change."""
    layout = called("torch.serialization._get_layout", text("torch.sparse_coo"))
    indices = tensor(storage(1, 2, "torch.LongStorage"), (1, 2), (2, 1))
    sparse = called("torch._utils._rebuild_sparse_tensor", layout, tupled(indices, tensor(ON, (2,), (1,)), shape(3)))
    path = forge.write(tmp_path / "a.ckpt", state(listed(sparse, called("builtins.eval"))), [bytes(64), bytes(16)])
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        loading.load(path, mmap=True)
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "value",
    [
        quantised(tensor(ON, (4,), (1,))),
        quantised(listed(number(1))),
        on_device(tensor(WIDE, (2**17,), (1,))),
        SPARSE * 100,
    ],
)
def test_walk_lets_sound_parts_pass(value: bytes) -> None:
    """The same calls, with parts that are no larger than their data."""
    check(b"\x80\x02](" + value + b"e.", 64, 2**19, 64, 64)
