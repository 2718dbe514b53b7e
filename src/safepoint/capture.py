"""From live state to what a checkpoint holds: a small pickle, and the list of storages behind it.

Reads the state and copies nothing: the storages are still the live ones, and must be staged before training goes on.
Knows torch and pickle; knows no file and no policy.
"""

from __future__ import annotations

import io
import pickle
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from safepoint.errors import CaptureError
from safepoint.manifest import Tensor

PICKLE_PROTOCOL = 2
"""The protocol of ``torch.save``, and the one that its ``weights_only`` unpickler knows."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A state: its pickle, the live storages that it refers to by number, and the tensors found in it by path."""

    pickle: bytes
    storages: tuple[torch.UntypedStorage, ...]
    tensors: tuple[Tensor, ...]


def capture(state: object) -> Capture:
    """Return ``state`` as ``torch.save`` would store it; tensors that share a storage go on sharing it.

    Raises:
        CaptureError: something in the state cannot be pickled, or one storage is viewed as two dtypes.

    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        with warnings.catch_warnings():
            # Tensors still hand TypedStorage to every pickler, torch.save's own included.
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
            pickler.dump(state)
    except (CaptureError, MemoryError):
        raise
    except Exception as error:  # a __reduce__ or __getstate__ in the state raises what it likes
        raise CaptureError(
            f"{_culprit(state)} cannot be pickled: {error}. Take it out of the state, or give it a state_dict()."
        ) from error
    return Capture(buffer.getvalue(), tuple(pickler.storages), tuple(_described(state, pickler.keys)))


def _culprit(state: object) -> str:
    """Return the path of the innermost entry of ``state`` that cannot be pickled, or is nested too deep for it."""
    path = "the state"
    while True:
        for key, value in _entries(state):
            error = _failure(value)
            if error is not None:
                state, path = value, f"{path}[{key!r}]"
                break
        else:
            return path
        if isinstance(error, RecursionError):
            return path


def _entries(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _failure(value: object) -> Exception | None:
    try:
        _Pickler(io.BytesIO()).dump(value)
    except Exception as error:  # noqa: BLE001 - as in capture
        return error
    return None


class _Pickler(pickle.Pickler):
    """Write storages by number; the tuple that stands for one is the format of ``torch.serialization``."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=PICKLE_PROTOCOL)
        self.storages: list[torch.UntypedStorage] = []
        # A storage's Python object is one and the same for all tensors on it for as long as it is referenced.
        self.keys: dict[int, int] = {}
        self._dtypes: dict[int, torch.dtype] = {}

    def persistent_id(self, obj: object) -> tuple[str, type, str, str, int] | None:
        """Return torch's reference to a storage, or ``None`` for everything else."""
        if isinstance(obj, torch.TypedStorage):
            untyped: torch.UntypedStorage = obj.untyped()  # type: ignore[no-untyped-call]
            dtype = obj.dtype
            kind, length = _legacy_storage_type(dtype), untyped.nbytes() // dtype.itemsize
        elif isinstance(obj, torch.UntypedStorage):
            untyped, dtype = obj, torch.uint8
            kind, length = torch.UntypedStorage, obj.nbytes()
        else:
            return None
        self._check_dtype(untyped, dtype)
        key = self.keys.setdefault(id(untyped), len(self.storages))
        if key == len(self.storages):
            self.storages.append(untyped)
        return ("storage", kind, str(key), torch.serialization.location_tag(untyped), length)

    def _check_dtype(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        if storage.device.type == "meta" or not storage.data_ptr():
            return
        if self._dtypes.setdefault(storage.data_ptr(), dtype) != dtype:
            raise CaptureError(
                f"one storage is viewed both as {self._dtypes[storage.data_ptr()]} and as {dtype}, which no "
                "PyTorch checkpoint can hold: clone() one of the two tensors."
            )


def _legacy_storage_type(dtype: torch.dtype) -> type:
    """Return the class that names ``dtype`` in torch's files; newer dtypes have none, and their tensors need none."""
    name = {
        torch.float64: "DoubleStorage", torch.float32: "FloatStorage", torch.float16: "HalfStorage",
        torch.bfloat16: "BFloat16Storage", torch.int64: "LongStorage", torch.int32: "IntStorage",
        torch.int16: "ShortStorage", torch.int8: "CharStorage", torch.uint8: "ByteStorage", torch.bool: "BoolStorage",
        torch.complex64: "ComplexFloatStorage", torch.complex128: "ComplexDoubleStorage",
        torch.qint8: "QInt8Storage", torch.quint8: "QUInt8Storage", torch.qint32: "QInt32Storage",
        torch.quint4x2: "QUInt4x2Storage", torch.quint2x4: "QUInt2x4Storage",
    }.get(dtype)  # fmt: skip
    if name is None:
        raise CaptureError(f"torch has no storage class for {dtype}: convert that tensor to another dtype.")
    found: type = getattr(torch, name)
    return found


def _described(state: object, keys: Mapping[int, int]) -> Iterator[Tensor]:
    for path, tensor in _tensors(state, ()):
        if tensor.layout is not torch.strided or tensor.device.type == "meta":
            continue
        key = keys.get(id(tensor.untyped_storage()))
        if key is None:
            continue
        yield Tensor(
            path=path,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            storage=key,
            offset=int(tensor.storage_offset()),
            strides=None if tensor.is_contiguous() else tuple(tensor.stride()),
        )


def _tensors(node: object, path: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (path, tensor) for every tensor in the nested mappings, lists and tuples of ``node``."""
    if isinstance(node, torch.Tensor):
        yield ".".join(path), node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _tensors(value, (*path, str(key)))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _tensors(value, (*path, str(index)))


def rng_state() -> dict[str, Any]:
    """Return the random state of Python, NumPy (if it is loaded) and torch, as plain values and tensors."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = (name, keys.tolist(), *rest)
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what ``rng_state`` returned."""
    random.setstate(_tuples(state["python"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.set_state(tuple(state["numpy"]))


def _tuples(value: Any) -> Any:
    """Return ``value`` with lists as tuples, as ``random.setstate`` wants them."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
