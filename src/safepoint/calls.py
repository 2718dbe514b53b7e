"""The calls that PyTorch's restricted unpickler makes by itself, each held to what ``torch.save`` writes.

``pickles`` walks over the opcodes; here is what it keeps of a value, and the list of functions with the checks of their
arguments: what they would allocate, where on which storage a tensor would lie, what would be copied over and over.
What is not on the list is the user's own (``trust=``), or refused by the unpickler. Knows names and numbers, no torch.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from safepoint.keys import Keys, RefusedError

_SMALL_COPIES_BYTES = 64 << 10
_LARGE_BITS = 1 << 26
_LARGE_INDEX_BITS = 1 << 29
_QUICKLY_LOOKED_AT = 100_000_000
_LOOKS_PER_BYTE = 20
_ABSURD_BITS = 1 << 43
_SCALE_BITS = 64
_MOST_DIMENSIONS = 64
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Known:
    """What the walk has to know of torch.

    ``bits``: how wide an element is, by the name of a storage's class or of a dtype; ``is_reserved`` tells of a name
    whether every tensor has such an attribute.
    """

    bits: Mapping[str, int]
    is_reserved: Callable[[str], bool]


Check = Callable[..., Any]


class Global(str):
    """The full name of a class, function or constant."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Long:
    """A string that is too long to be a name."""

    size: int
    digest: int

    def __len__(self) -> int:
        return self.size


class Encoded(Long):
    """Bytes that have been made of a string."""

    __slots__ = ()


class Dict:
    """A dictionary of some kind: its keys."""

    __slots__ = ("frozen", "hashes", "keys", "kind")

    def __init__(self, kind: type = dict) -> None:
        self.kind = kind
        self.keys: list[Any] = []
        self.hashes: Counter[int] | None = None
        self.frozen = False


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A reference to a storage of the file."""

    size_bytes: int
    bits: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor, whatever kind: how many elements it has, and how large the storage is that they lie on, if on one."""

    count: int | None = None
    bits: int = 0
    storage_bits: int = 0

    def is_within(self, bits: int, spare_bits: int = 0) -> bool:
        """Tell whether a copy of it, with elements of ``bits``, would take no more than its storage does."""
        return self.count is not None and self.count * bits <= max(self.storage_bits, spare_bits)


@dataclass(frozen=True, slots=True)
class Constant:
    """What is the same whenever it is made of the same."""

    arguments: tuple[Any, ...]


class Other:
    """A value that nothing depends on, of a class that the unpickler knows."""

    __slots__ = ()


class Trusted:
    """What a class or function of the user's has made: it may be a dictionary."""

    __slots__ = ("hashes",)

    def __init__(self) -> None:
        self.hashes: Counter[int] | None = None


class Calls:
    """Checks the calls of one pickle, which is of ``size_bytes``, on storages of ``data_bytes``."""

    def __init__(self, size_bytes: int, data_bytes: int, known: Known) -> None:
        self.known = known
        self.keys = Keys(size_bytes)
        self._may_copy = 2 * size_bytes + _SMALL_COPIES_BYTES  # a bytearray is made of bytes that are made of text
        self._may_convert_bits = 16 * data_bytes + _LARGE_BITS
        self._may_look_at = _LOOKS_PER_BYTE * data_bytes + _QUICKLY_LOOKED_AT

    def called(self, function: Any, arguments: Any) -> Any:
        """Return what ``function`` makes of ``arguments``, checked if it is one that the unpickler knows."""
        if type(arguments) is not tuple:
            raise RefusedError("a call has no arguments")
        if type(function) is not Global:
            return made_by(function)
        check = _CHECKS.get(function)
        if check is not None:
            return check(self, *arguments)
        if is_of_torch(function):
            raise RefusedError(f"{function} is called, which it never is")
        return Trusted()

    def copy(self, size: int) -> None:
        """Count what a call copies: an honest pickle has it written out once for each call."""
        self._may_copy -= size
        if self._may_copy < 0:
            raise RefusedError("the same is copied over and over")

    def convert(self, tensor: Tensor, bits: int) -> None:
        """Count a copy of ``tensor`` that a call makes, with elements of ``bits``: of data that is in the file."""
        if not tensor.is_within(tensor.bits):
            raise RefusedError("a tensor is larger than its storage, and copied")
        self._may_convert_bits -= (tensor.count or 0) * bits
        if self._may_convert_bits < 0:
            raise RefusedError("the same is copied over and over")

    def look_at(self, tensor: Tensor) -> None:
        """Count the elements that torch looks at one by one, to see whether they are sound."""
        if not tensor.is_within(tensor.bits, _LARGE_INDEX_BITS):
            raise RefusedError("indices are larger than their storage")
        self._may_look_at -= tensor.count or 0
        if self._may_look_at < 0:
            raise RefusedError("the same indices are used over and over")


def made_by(kind: Any) -> Trusted:
    """Return what a class or function of the user's makes, which may itself be what another has made.

    Of anything else, the unpickler would write out all that is in it to say that it cannot be called.
    """
    if type(kind) not in (Global, Trusted) or is_of_torch(kind):
        raise RefusedError(f"{kind if type(kind) is Global else 'a value'} is made or called in a way that it never is")
    return Trusted()


def is_of_torch(kind: Any) -> bool:
    """Tell whether the unpickler knows the name by itself, and can make or call what it stands for."""
    if type(kind) is not Global:
        return False
    module, _, name = kind.rpartition(".")
    return (
        kind in _CHECKS
        or kind in _TENSOR_TYPES
        or (
            module in {"torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse", "torch.storage"}
            and name.endswith(("Tensor", "Storage"))
        )
    )


_TENSOR_TYPES = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter"})
_CHECKS: dict[str, Callable[..., Any]] = {}
"""What the unpickler may call by itself, and the check of its arguments, which returns what is made."""


def _of(*names: str) -> Callable[[Check], Check]:
    """Return what enters a check for the functions called ``names``."""

    def enter(check: Check) -> Check:
        _CHECKS.update(dict.fromkeys(names, check))
        return check

    return enter


@_of("_codecs.encode")
def _encode(calls: Calls, text: Any, codec: Any) -> Any:
    if type(text) not in (str, Long) or codec not in ("latin1", "latin-1"):
        raise RefusedError("bytes are encoded in a way that they never are")
    calls.copy(len(text))
    return Encoded(len(text), hash(text))


@_of("builtins.bytearray")
def _bytearray(calls: Calls, *arguments: Any) -> Any:
    if len(arguments) == 1 and type(arguments[0]) is Encoded:
        calls.copy(len(arguments[0]))
    elif arguments:
        _encode(calls, *arguments)
    return Other()


@_of("builtins.set")
def _set(calls: Calls, items: Any) -> Any:
    if type(items) is not list:
        raise RefusedError("a set is made of something else than a list")
    calls.copy(len(items))
    calls.keys.check(items, Counter())
    return Other()


@_of("collections.OrderedDict")
def _ordered(_: Calls, *arguments: Any) -> Any:
    if arguments:
        raise RefusedError("an ordered dictionary is made in a way that it never is")
    return Dict(OrderedDict)


@_of("collections.Counter")
def _counter(calls: Calls, counts: Any) -> Any:
    if type(counts) is not Dict:
        raise RefusedError("a counter is made of something else than a dictionary")
    calls.copy(len(counts.keys))
    return Dict(Counter)


@_of("torch.Size")
def _size(calls: Calls, sizes: Any) -> Any:
    calls.copy(len(checked_sizes(sizes)))
    return sizes


@_of("builtins.complex")
def _complex(_: Calls, *parts: Any) -> Any:
    if any(type(part) not in (int, float) for part in parts):
        raise RefusedError("a complex number is made of something else than numbers")
    return complex(*parts)


@_of("torch.device", "torch.serialization._get_layout")
def _constant(_: Calls, *arguments: Any) -> Any:
    if any(type(argument) not in (str, int, float, bytes) for argument in arguments):
        raise RefusedError("a constant is made of something else than text and numbers")
    return Constant(arguments)


@_of("torch._utils._rebuild_tensor")
def _old_tensor(_: Calls, *__: Any) -> Any:
    raise RefusedError("a tensor is made as no PyTorch does any more")


@_of("torch._utils._rebuild_tensor_v2")
def _tensor(
    _: Calls, storage: Any, offset: Any, size: Any, stride: Any, __: Any, hooks: Any, metadata: Any = None
) -> Any:
    if type(storage) is not Storage:
        raise RefusedError("a tensor lies on no storage")
    if metadata is not None and type(metadata) is not Dict:
        raise RefusedError("a tensor has marks of an unknown kind")
    check_place(storage.size_bytes * 8, storage.bits, offset, size, stride)
    _check_hooks(hooks)
    return Tensor(_count(size), storage.bits, storage.size_bytes * 8)


@_of("torch._utils._rebuild_tensor_v3")
def _newer_tensor(
    calls: Calls, storage: Any, offset: Any, size: Any, stride: Any, _: Any, hooks: Any, dtype: Any, *metadata: Any
) -> Any:
    if type(storage) is not Storage or type(dtype) is not Global:
        raise RefusedError("a tensor lies on no storage")
    bits = calls.known.bits.get(dtype, 0)
    if not bits:
        raise RefusedError("a tensor is of no dtype")
    return _tensor(calls, Storage(storage.size_bytes, bits), offset, size, stride, _, hooks, *metadata)


@_of("torch._utils._rebuild_qtensor")
def _quantised_tensor(
    calls: Calls, storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, _: Any, hooks: Any
) -> Any:
    made = _tensor(calls, storage, offset, size, stride, _, hooks)
    if type(scheme) is not tuple:
        raise RefusedError("a quantised tensor has no scheme")
    for part in scheme:
        if type(part) is Tensor:
            calls.convert(part, _SCALE_BITS)
        elif type(part) is list and all(type(number) in (int, float) for number in part):
            calls.copy(len(part))
        elif type(part) not in (int, float, Global):
            raise RefusedError("a quantised tensor has an unknown scheme")
    # It is made at full size first, also where it takes less, as an expanded one does.
    if _count(size) * storage.bits > max(storage.size_bytes * 8, _LARGE_BITS):
        raise RefusedError("a quantised tensor is larger than its storage")
    return made


@_of("torch._utils._rebuild_parameter")
def _parameter(_: Calls, data: Any, __: Any, hooks: Any) -> Any:
    if type(data) not in (Tensor, Trusted):
        raise RefusedError("a parameter is made of something else than a tensor")
    _check_hooks(hooks)
    return data if type(data) is Tensor else Tensor()


@_of("torch._utils._rebuild_parameter_with_state")
def _parameter_with_state(calls: Calls, data: Any, needs_gradient: Any, hooks: Any, state: Any) -> Any:
    _check_attributes(calls, state)
    return _parameter(calls, data, needs_gradient, hooks)


@_of("torch._tensor._rebuild_from_type_v2")
def _of_type(calls: Calls, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    if type(function) is not Global or type(kind) is not Global:
        raise RefusedError("a tensor is made by something else than a function")
    made = calls.called(function, arguments)
    if type(made) not in (Tensor, Trusted):
        raise RefusedError("a tensor is made of something else")
    if kind not in _TENSOR_TYPES:
        return made_by(kind)
    _check_attributes(calls, state)
    return made if type(made) is Tensor else Tensor()


@_of("torch._utils._rebuild_sparse_tensor")
def _sparse_tensor(calls: Calls, layout: Any, parts: Any) -> Any:
    if type(layout) is not Constant or type(parts) is not tuple:
        raise RefusedError("a sparse tensor is not made of its parts")
    for part in parts:
        if type(part) is tuple:
            checked_sizes(part)
        elif type(part) is not Tensor and type(part) is not int:
            raise RefusedError("a sparse tensor is not made of its parts")
    for indices in [part for part in parts if type(part) is Tensor][:-1]:  # the last are the values
        calls.look_at(indices)
    return Tensor()


@_of("torch._utils._rebuild_nested_tensor")
def _nested_tensor(_: Calls, *parts: Any) -> Any:
    if any(type(part) is not Tensor for part in parts):
        raise RefusedError("a nested tensor is not made of tensors")
    return Tensor()


@_of("torch._utils._rebuild_meta_tensor_no_storage")
def _meta_tensor(_: Calls, dtype: Any, size: Any, stride: Any, __: Any) -> Any:
    if type(dtype) is not Global or len(checked_sizes(size)) != len(checked_sizes(stride)):
        raise RefusedError("a meta tensor has no shape")
    return Tensor(0)  # none that anybody could look at


@_of(
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_device_tensor_from_numpy",
)
def _tensor_on_device(calls: Calls, data: Any, dtype: Any, *_: Any) -> Any:
    if type(data) not in (Tensor, Trusted) or type(dtype) is not Global:
        raise RefusedError("a tensor is made of something else")
    if type(data) is Tensor:
        calls.convert(data, calls.known.bits.get(dtype, _SCALE_BITS))
    return Tensor()


@_of("torch._utils._rebuild_wrapper_subclass")
def _wrapper(_: Calls, kind: Any, *__: Any) -> Any:
    if type(kind) is not Global or is_of_torch(kind):
        raise RefusedError("a tensor of torch's own is made without data")
    return Trusted()


def check_place(storage_bits: int, bits: int, offset: Any, size: Any, stride: Any) -> None:
    """Refuse a tensor that reaches beyond its storage, or that nobody could make a copy of."""
    sizes, strides = checked_sizes(size), checked_sizes(stride)
    if len(sizes) != len(strides) or type(offset) is not int or not 0 <= offset <= _INT64_MAX:
        raise RefusedError("a tensor has no place on its storage")
    count = _count(sizes)
    last = offset + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
    if count and (last + 1) * bits > storage_bits:
        raise RefusedError("a tensor reaches beyond its storage")
    if count * bits > max(storage_bits, _ABSURD_BITS):
        raise RefusedError("a tensor is absurdly large")


def _check_hooks(hooks: Any) -> None:
    if type(hooks) is not Dict or hooks.keys:
        raise RefusedError("a tensor has hooks, which are never saved")
    hooks.frozen = True


def _check_attributes(calls: Calls, state: Any) -> None:
    for part in state if type(state) is tuple else (state,):
        if part is None:
            continue
        if type(part) is not Dict or any(type(name) is not str or calls.known.is_reserved(name) for name in part.keys):
            raise RefusedError("a tensor is given attributes of its class")
        part.frozen = True


def checked_sizes(sizes: Any) -> tuple[int, ...]:
    """Return ``sizes``, refused if they are no tuple of counts."""
    if type(sizes) is not tuple or any(type(size) is not int or not 0 <= size <= _INT64_MAX for size in sizes):
        raise RefusedError("a shape is none")
    return sizes


def _count(sizes: tuple[int, ...]) -> int:
    return math.prod(sizes) if len(sizes) <= _MOST_DIMENSIONS else 1 << _MOST_DIMENSIONS


CALLED = frozenset(_CHECKS)
"""The names of what the unpickler calls by itself."""
