"""From live state to what a checkpoint holds: a small pickle, and the list of storages behind it.

Reads the state and copies nothing: the storages are still the live ones, and must be staged before training goes on.
Knows torch and pickle; knows no file and no policy.
"""

from __future__ import annotations

import copyreg
import functools
import gc
import io
import pickle
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, EllipsisType, FunctionType, NoneType, NotImplementedType
from typing import Any

import torch
from torch import nn

from safepoint.errors import CaptureError
from safepoint.manifest import COUNT_LIMIT, Tensor

PICKLE_PROTOCOL = 2
"""The protocol of ``torch.save``, and the one that its ``weights_only`` unpickler knows."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A state: its pickle, the live storages that it refers to by number, and the tensors found in it by path.

    The storages are the very objects that ``Tensor.untyped_storage()`` returns. Tensors are listed where their dtype,
    shape, offset and strides tell all of their bytes: not those that are conjugated, negated, quantised, sparse, nested
    or on the meta device, nor wrappers of other tensors, nor what a manifest cannot spell: dimensions of 2**62 or more,
    and paths that are no Unicode. ``named`` are the classes and functions that the pickle names, and
    ``unsafe`` says what in it no ``weights_only=True`` loads, whatever it is told to trust.
    """

    pickle: bytes
    storages: tuple[torch.UntypedStorage, ...]
    tensors: tuple[Tensor, ...]
    named: frozenset[Any] = frozenset()
    unsafe: frozenset[str] = frozenset()


def capture(state: object) -> Capture:
    """Return ``state`` as ``torch.save`` would store it; tensors that share a storage go on sharing it.

    Raises:
        CaptureError: something in the state cannot be saved, or could not be loaded; the message says where it is.

    """
    with _collector_paused():
        try:
            pickler = _pickled(state)
        except MemoryError:
            raise
        except Exception as error:  # a __reduce__ or __getstate__ in the state raises what it likes
            raise _refusal(state, error) from error
        found = pickler.found
        pickled = pickler.buffer.getvalue()
        tensors = tuple(_described(state, found))
        return Capture(pickled, tuple(found.storages), tensors, frozenset(pickler.named), frozenset(pickler.unsafe))


@functools.lru_cache(maxsize=64)
def untrusted(named: frozenset[Any]) -> tuple[str, ...]:
    """Return those of ``named``, classes and functions, that ``weights_only=True`` does not load, by name.

    The answer is torch's own, to a file with nothing else in it; what has been allowed by ``add_safe_globals`` is.
    """
    file = io.BytesIO()
    try:
        torch.save(list(named), file)
        file.seek(0)
        return tuple(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file)))
    except Exception:  # noqa: BLE001 - to name them is a courtesy, and no reason to save nothing
        return ()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python from looking for garbage: the pickler makes many objects, and none of them is garbage yet."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pickled(value: object) -> _Pickler:
    """Return the pickler that has pickled ``value``; it keeps alive what it met, and so the identities noted."""
    pickler = _Pickler()
    with warnings.catch_warnings():
        # Tensors still hand TypedStorage to every pickler, torch.save's own included.
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        pickler.dump(value)
    return pickler


def _refusal(state: object, error: Exception) -> CaptureError:
    path, culprit = _culprit(state)
    subject = f"{path} ({type(culprit).__name__})"
    if isinstance(error, CaptureError):
        return CaptureError(f"{subject} {error}")
    return CaptureError(f"{subject} cannot be pickled: {error}. Take it out of the state, or give it a state_dict().")


def _culprit(state: object) -> tuple[str, object]:
    """Return the innermost entry of ``state`` that cannot be pickled, or is nested too deep for it, and its path."""
    path, seen = "state", {id(state)}
    while True:
        for key, value in _entries(state):
            error = None if id(value) in seen else _failure(value)
            if error is not None:
                state, path = value, f"{path}[{key!r}]"
                seen.add(id(value))
                break
        else:
            return path, state
        if isinstance(error, RecursionError):
            return path, state


def _entries(value: object) -> Iterable[tuple[object, object]]:
    """Return the entries of what is pickled as the sum of its entries."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _failure(value: object) -> Exception | None:
    try:
        _pickled(value)
    except Exception as error:  # noqa: BLE001 - as in capture
        return error
    return None


@dataclass(slots=True)
class _Reference:
    """What stands in a pickle for a storage: the tuple is the format of ``torch.serialization``."""

    fields: tuple[str, type, str, str, int]


class _Pickler(pickle.Pickler):
    """Write storages by number, and have the tensors on them noted."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        super().__init__(self.buffer, protocol=PICKLE_PROTOCOL)
        self.found = _Found()
        self.named: set[Any] = set()
        self.unsafe: set[str] = set()
        self.dispatch_table = {
            torch.Tensor: self.found.reduced,
            nn.Parameter: self.found.reduced_parameter,
            **_refused(),
            **copyreg.dispatch_table,
        }

    def persistent_id(self, obj: object) -> tuple[str, type, str, str, int] | None:
        """Return torch's reference to a storage, or ``None`` for everything else; called for every object."""
        kind = type(obj)
        if kind in _ORDINARY:
            if kind is int and not -_LARGEST_INT <= obj < _LARGEST_INT:  # type: ignore[operator]
                self.unsafe.add("an integer of more than 255 bytes")
            return None
        if isinstance(obj, _Reference):
            return obj.fields
        if kind in _CALLABLE or isinstance(obj, type):
            self.named.add(obj)
            return None
        if isinstance(obj, torch.TypedStorage):
            return self.found.reference(obj.untyped(), obj.dtype)  # type: ignore[no-untyped-call]
        if isinstance(obj, torch.UntypedStorage):
            return self.found.untyped_reference(obj)
        if kind in _CONSTANTS:
            self.unsafe.add(repr(obj))
        elif isinstance(obj, list | dict | deque) and obj and _is_filled(kind):
            self.unsafe.add(f"{kind.__module__}.{kind.__qualname__}")
        elif kind.__module__ == "numpy.dtypes":
            self.named.add(kind)  # which a file does not name: it is that of what ``numpy.dtype`` returns
        return None


def _is_filled(kind: type) -> bool:
    """Tell whether an object of ``kind`` is filled when it is loaded: the unpickler fills no containers but its own."""
    own: Any = kind
    usual = (object.__reduce__, deque.__reduce__, defaultdict.__reduce__, OrderedDict.__reduce__)
    is_usual = own.__reduce__ in usual and own.__reduce_ex__ is object.__reduce_ex__
    return is_usual and kind not in copyreg.dispatch_table


_ORDINARY = frozenset(
    {str, int, float, bool, NoneType, bytes, dict, list, tuple, OrderedDict, torch.Tensor, nn.Parameter}
)
_LARGEST_INT = 1 << (255 * 8 - 1)
_CONSTANTS = frozenset({EllipsisType, NotImplementedType})
_CALLABLE = frozenset({type, FunctionType, BuiltinFunctionType})

STORAGE_TYPES: dict[torch.dtype, type] = {
    torch.float64: torch.DoubleStorage, torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage, torch.complex64: torch.ComplexFloatStorage,
    torch.complex128: torch.ComplexDoubleStorage, torch.qint8: torch.QInt8Storage, torch.quint8: torch.QUInt8Storage,
    torch.qint32: torch.QInt32Storage, torch.quint4x2: torch.QUInt4x2Storage, torch.quint2x4: torch.QUInt2x4Storage,
}  # fmt: skip
"""The classes that name a dtype in torch's files; newer dtypes have none, and their tensors need none."""


def _reduced(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return torch's own recipe for ``tensor``: a function, and what to call it with."""
    recipe: tuple[Any, ...] = tensor.__reduce_ex__(PICKLE_PROTOCOL)  # type: ignore[no-untyped-call]
    return recipe


# How torch puts a tensor back on its storage: one way for the dtypes above, one for the newer ones.
_REBUILD = _reduced(torch.empty(0))[0]
_REBUILD_NEWER = _reduced(torch.empty(0, dtype=torch.uint16))[0]


class _Found:
    """The storages met, numbered in the order of their first appearance, and where on them which tensor lies."""

    def __init__(self) -> None:
        self.storages: list[torch.UntypedStorage] = []
        # A storage's Python object is one and the same for all tensors on it for as long as it is referenced.
        self._keys: dict[int, str] = {}
        self._dtypes: dict[int, torch.dtype] = {}
        self._places: dict[int, tuple[Any, ...]] = {}
        self._data_of: dict[int, int] = {}

    def reference(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> tuple[str, type, str, str, int]:
        """Return torch's reference to ``storage`` as one of ``dtype``."""
        kind = STORAGE_TYPES.get(dtype)
        if kind is None:
            raise CaptureError(f"is of {dtype}, which torch cannot save: convert it to another dtype.")
        return self._reference(storage, dtype, kind, storage.nbytes() // dtype.itemsize)

    def untyped_reference(self, storage: torch.UntypedStorage) -> tuple[str, type, str, str, int]:
        """Return torch's reference to ``storage`` as mere bytes."""
        return self._reference(storage, torch.uint8, torch.UntypedStorage, storage.nbytes())

    def _reference(
        self, storage: torch.UntypedStorage, dtype: torch.dtype, kind: type, length: int
    ) -> tuple[str, type, str, str, int]:
        location = torch.serialization.location_tag(storage)
        if location == "meta":
            raise CaptureError("is a storage on the meta device, which holds no data: take it out of the state.")
        pointer = storage.data_ptr()
        if pointer and (other := self._dtypes.setdefault(pointer, dtype)) != dtype:
            raise CaptureError(
                f"holds one storage both as {other} and as {dtype}, which no PyTorch checkpoint can: clone() one of "
                "the two tensors."
            )
        return ("storage", kind, self._key(storage), location, length)

    def _key(self, storage: torch.UntypedStorage) -> str:
        key = self._keys.get(id(storage))
        if key is None:
            key = self._keys[id(storage)] = str(len(self.storages))
            self.storages.append(storage)
        return key

    def reduced(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        """Return what ``tensor.__reduce_ex__`` returns, faster where it is plain, and note where the tensor lies."""
        if _is_plain(tensor):
            storage = _Reference(self.reference(tensor.untyped_storage(), tensor.dtype))
            place = int(tensor.storage_offset()), tuple(tensor.size()), tensor.stride()
            # The dictionary is torch's place for hooks, a new one for each tensor.
            recipe: tuple[Any, ...] = _REBUILD, (storage, *place, False, OrderedDict())
        else:
            recipe = _reduced(tensor)
            if recipe[0] not in {_REBUILD, _REBUILD_NEWER}:
                return recipe
            place = recipe[1][1:4]
        self._note(tensor, *place)
        return recipe

    def reduced_parameter(self, parameter: nn.Parameter) -> tuple[Any, ...]:
        """Return what ``parameter.__reduce_ex__`` returns, and note which tensor is its data."""
        recipe = _reduced(parameter)
        self._data_of[id(parameter)] = id(recipe[1][0])
        return recipe

    def _note(self, tensor: torch.Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        storage = tensor.untyped_storage()
        contiguous = tensor.is_contiguous()
        length = tensor.numel()
        if length and not contiguous:
            length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if length and (offset + length) * tensor.itemsize > storage.nbytes():
            raise CaptureError(
                f"reaches beyond its storage, which has been resized to {storage.nbytes()} bytes: it could not be "
                "loaded. Save it while its data is there, as sharded parameters are while they are gathered."
            )
        if not (tensor.is_conj() or tensor.is_neg()) and max((*shape, *strides), default=0) < COUNT_LIMIT:
            key = int(self._key(storage))
            self._places[id(tensor)] = (_name(tensor.dtype), shape, key, offset, None if contiguous else strides)

    def place(self, tensor: torch.Tensor) -> tuple[Any, ...] | None:
        """Return dtype, shape, storage, offset and strides of a tensor that they describe wholly."""
        return self._places.get(self._data_of.get(id(tensor), id(tensor)))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether ``tensor`` is nothing but a place on a storage, of a dtype that names the storage's class."""
    return (
        (tensor.is_cpu or tensor.is_cuda)
        and tensor.layout is torch.strided
        and tensor.dtype in STORAGE_TYPES
        and not tensor.is_quantized
        and not tensor.is_nested
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.requires_grad  # it may have hooks, which torch warns of
        and not tensor.__dict__
        and not (_has_names is not None and _has_names(tensor))
    )


# Where dimensions can have names (later releases of torch have dropped them), torch refuses to save such tensors.
_has_names: Callable[[torch.Tensor], bool] | None = getattr(torch.Tensor, "has_names", None)


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refused() -> dict[type, Callable[[Any], Any]]:
    """Return the types that torch pickles, but not so that a checkpoint would be whole."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return {distributed.DTensor: _refuse_shard} if distributed is not None else {}


def _refuse_shard(_: object) -> Any:
    raise CaptureError(
        "is distributed over several processes, and this one holds only its shard: put full_tensor() into the state, "
        "or a state dict made with full_state_dict=True."
    )


def _described(state: object, found: _Found) -> Iterator[Tensor]:
    for path, tensor in tensors_by_path(state):
        place = found.place(tensor)
        if place is not None:
            yield Tensor(path, *place)


def tensors_by_path(state: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (path, tensor) for every tensor in nested dictionaries, lists and tuples, visiting each of those once."""
    pending: list[tuple[str, object]] = [("", state)]
    seen = set()
    while pending:
        path, node = pending.pop()
        if isinstance(node, torch.Tensor):
            yield path, node
        elif id(node) not in seen:
            seen.add(id(node))
            prefix = f"{path}." if path else ""
            inner = [(_spelled(key), value) for key, value in _entries(node) if isinstance(value, _NODES)]
            pending += [(f"{prefix}{name}", value) for name, value in reversed(inner) if name is not None]


def _spelled(key: object) -> str | None:
    """Return ``key`` as a part of a path, ``None`` if it has no spelling, or none that JSON can hold."""
    try:
        spelled = f"{key}"
        spelled.encode()
    except Exception:  # noqa: BLE001 - a __str__ raises what it likes
        return None
    return spelled


_NODES = (torch.Tensor, dict, list, tuple)
