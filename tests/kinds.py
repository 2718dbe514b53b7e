"""Tensors and objects of every kind that ``torch.save`` can store."""

from __future__ import annotations

import copyreg
import enum
import tempfile
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

Pair = namedtuple("Pair", "first second")  # noqa: PYI024 - an old-fashioned one is among what people save


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1


@dataclass
class Settings:
    """A dataclass that holds a tensor."""

    scale: torch.Tensor


class Registered:
    """Pickled as ``copyreg`` was told."""


copyreg.pickle(Registered, lambda _: (Registered, ()))


class Subclass(torch.Tensor):
    """A tensor of another name."""


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, around another one."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:  # noqa: ANN001 - nothing to annotate
        """Take shape and dtype from the inner tensor."""
        made: Self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute with the inner tensors."""
        return func(*(arg.inner if isinstance(arg, Wrapper) else arg for arg in args), **(kwargs or {}))


def _attributed(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = "from layer 3"  # type: ignore[attr-defined]
    return tensor


def _mapped() -> torch.Tensor:
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(range(64)))
        file.flush()
        return torch.from_file(file.name, shared=True, size=16)


def _raw(name: str) -> torch.Tensor:
    return torch.arange(32, dtype=torch.uint8).view(getattr(torch, name))


def _inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def _cyclic(container: Any) -> Any:
    container["self"] = container
    return container


def _cyclic_list() -> Any:
    items: list[Any] = [torch.ones(1)]
    items += [items, (items,)]
    return items


def _one_list_twice() -> Any:
    items = [torch.ones(1)]
    return {"a": items, "b": items}


def _many_shared() -> Any:
    tensors = [torch.full((2,), float(i)) for i in range(12)]
    return {"one": tensors, "other": [tensor.view(2, 1) for tensor in tensors], "same": tensors[11]}


def _special_floats() -> torch.Tensor:
    return torch.tensor([0x7FC00001, -0x3FFFFF, -(1 << 31), 0x7F800000, 1], dtype=torch.int32).view(torch.float32)


def _complex() -> torch.Tensor:
    return torch.tensor([1 + 2j, 3 - 4j, -0.0j])


TENSORS: dict[str, Callable[[], Any]] = {
    "NaN payloads and minus zero": _special_floats,
    "not contiguous": lambda: torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)[1:, :, ::2],
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.ones(2, 1).expand(2, 5),
    "overlapping": lambda: torch.arange(6.0).as_strided((3, 3), (1, 1), 1),
    "a view of a large storage": lambda: torch.arange(1000)[500:502],
    "zero size, with an offset": lambda: torch.arange(4.0)[4:],
    "conjugated": lambda: _complex().conj(),
    "negated": lambda: _complex().conj().imag,
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "frozen parameter": lambda: nn.Parameter(torch.ones(3), requires_grad=False),
    "parameter with attributes": lambda: _attributed(nn.Parameter(torch.ones(3))),
    "parameter of float8": lambda: nn.Parameter(torch.ones(3).to(torch.float8_e5m2), requires_grad=False),
    "buffer": lambda: nn.Buffer(torch.ones(3)),
    "with attributes": lambda: _attributed(torch.ones(3)),
    "requires a gradient": lambda: torch.ones(3, requires_grad=True),
    "not a leaf": lambda: torch.ones(3, requires_grad=True) * 2,
    "of inference mode": _inference,
    "in shared memory": lambda: torch.ones(3).share_memory_(),
    "mapped from a file": _mapped,
    "from NumPy": lambda: torch.from_numpy(np.arange(3)),
    "sparse COO": lambda: torch.eye(3).to_sparse(),
    "sparse COO, not coalesced": lambda: torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)),
    "sparse CSR": lambda: torch.eye(3).to_sparse_csr(),
    "sparse CSC": lambda: torch.eye(3).to_sparse_csc(),
    "sparse BSR": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "sparse BSC": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "quantised per tensor": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),
    "quantised per channel": lambda: torch.quantize_per_channel(
        torch.ones(2, 3), torch.ones(2), torch.zeros(2, dtype=torch.long), 0, torch.quint8
    ),
    "quantised to four bits": lambda: torch.quantize_per_channel(
        torch.ones(2, 4), torch.ones(2), torch.zeros(2), 0, torch.quint4x2
    ),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "nested, jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "meta": lambda: torch.ones(3, device="meta"),
    "meta parameter": lambda: nn.Parameter(torch.ones(3, device="meta")),
    **{
        name: (lambda name=name: _raw(name))
        for name in ("complex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2", "float4_e2m1fn_x2")
        if hasattr(torch, name)
    },
    "untyped storage": lambda: torch.arange(4.0).untyped_storage(),
    "typed storage": lambda: torch.arange(4.0).storage(),
    "empty storage": lambda: torch.UntypedStorage(0),
    "twelve storages, each shared": _many_shared,
    "a list in itself": _cyclic_list,
    "a dictionary in itself": lambda: _cyclic({"a": torch.ones(1)}),
    "one list in two places": _one_list_twice,
    "counter": lambda: Counter("aab"),
    "set": lambda: {1, "a"},
    "sizes and dtypes": lambda: [torch.Size([1, 2]), torch.float32, torch.device("cpu"), torch.strided, None],
}
"""What ``torch.load`` reads back with ``weights_only=True``."""

OBJECTS: dict[str, Callable[[], Any]] = {
    "subclass": lambda: torch.ones(3).as_subclass(Subclass),
    "wrapper": lambda: Wrapper(torch.ones(3)),
    "masked": lambda: torch.masked.masked_tensor(torch.ones(3), torch.tensor([True, False, True])),
    "uninitialised parameter": lambda: nn.UninitializedParameter(),
    "uninitialised buffer": lambda: nn.UninitializedBuffer(),
    "lazy module's state": lambda: nn.LazyLinear(3).state_dict(),
    "module": lambda: nn.Linear(2, 3),
    "packed sequence": lambda: nn.utils.rnn.pack_sequence([torch.ones(2, 1)]),
    "generator": lambda: torch.Generator(),
    "NumPy": lambda: {"array": np.arange(3), "scalar": np.float64(1), "dtype": np.dtype("f4"), "text": np.str_("x")},
    "enumeration": lambda: Colour.RED,
    "dataclass": lambda: Settings(torch.ones(1)),
    "registered with copyreg": Registered,
    "default dictionary": lambda: defaultdict(list, a=[torch.ones(1)]),
    "ordered dictionary with attributes": lambda: _attributed(OrderedDict(a=torch.ones(1))),  # type: ignore[arg-type]
    "named tuple": lambda: Pair(torch.ones(1), 2),
    "frozen set": lambda: frozenset([1]),
    "deque": lambda: deque([torch.ones(1)]),
    "slice and range": lambda: [slice(1, 2), range(3), ...],
    "bound method": lambda: Settings(torch.ones(1)).__eq__,
}
"""What needs classes beyond those that ``weights_only=True`` allows."""


def made(name: str) -> Any:
    """Return the state of that name, without torch's remarks on what is experimental or deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {**TENSORS, **OBJECTS}[name]()
