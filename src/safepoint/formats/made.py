"""What the calls in a pickle would make, told without making them: tensors, containers, plain values.

The functions that torch rebuilds tensors with, and the classes of Python that honest checkpoints are made of, are known
by name. What is not known, or is called in another way than it ever is, comes out as an ``Object``, which names it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

from safepoint import contents
from safepoint.calls import check_place, checked_sizes
from safepoint.formats.dtypes import BITS
from safepoint.formats.inert import Array, Global, Object, Stored, attributes
from safepoint.keys import Keys, RefusedError

_SMALL_COPIES_BYTES = 64 << 10
_MOST_DIMENSIONS = 64
_LONGEST_MARK = 100
_RESULT = "what is made by "
_NUMPY = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H",
          "u1": "B", "b1": "?"}  # fmt: skip


class Calls:
    """Tells what the calls of one pickle, of ``size_bytes``, would make."""

    def __init__(self, size_bytes: int) -> None:
        self.keys = Keys(size_bytes)
        self._may_copy = 2 * size_bytes + _SMALL_COPIES_BYTES

    def called(self, function: Any, arguments: Any) -> Any:
        """Return what ``function`` would make of ``arguments``.

        Raises:
            RefusedError: a tensor reaches beyond its storage, or the same is copied over and over.

        """
        known = _KNOWN.get(function) if type(function) is Global else None
        if known is not None and type(arguments) is tuple:
            try:
                return known(self, *arguments)
            except (TypeError, ValueError, AttributeError, IndexError, KeyError, struct.error):
                pass  # it is called as it never is: told by its name alone
        return Object(named(function), arguments)

    def copy(self, size: int) -> None:
        """Count what is copied: an honest pickle has it written out once for each call."""
        self._may_copy -= size
        if self._may_copy < 0:
            raise RefusedError("the same is copied over and over")


def named(function: Any) -> str:
    """Return the name of what is called, which may itself be what something else has made."""
    if type(function) is Global:
        return str(function)
    if type(function) is not Object:
        return "a value that cannot be called"
    return function.name if function.name.startswith(_RESULT) else _RESULT + function.name


Known = Callable[..., Any]
_KNOWN: dict[str, Known] = {}


def _of(*names: str) -> Callable[[Known], Known]:
    """Return what enters a function for the ones called ``names``."""

    def enter(known: Known) -> Known:
        _KNOWN.update(dict.fromkeys(names, known))
        return known

    return enter


# Python's own.


@_of("collections.OrderedDict", "builtins.dict")
def _dictionary(calls: Calls, pairs: Any = ()) -> Any:
    calls.copy(len(pairs))
    if type(pairs) is dict:
        return pairs.copy()
    keys = [pair[0] for pair in _checked(pairs, list | tuple)]
    calls.keys.check(keys, Counter())
    return {key: pair[1] for key, pair in zip(keys, pairs, strict=True)}


@_of("collections.defaultdict")
def _default_dictionary(_: Calls, __: Any = None) -> Any:
    return {}


@_of("collections.Counter")
def _counter(calls: Calls, counts: dict[Any, Any]) -> Any:
    calls.copy(len(counts))
    return _checked(counts, dict).copy()


@_of("builtins.set")
def _set(calls: Calls, items: Any = ()) -> Any:
    calls.copy(len(_checked(items, list | tuple)))
    calls.keys.check(items, Counter())
    return set(items)


@_of("builtins.list", "builtins.tuple", "collections.deque")
def _list(calls: Calls, items: Any = (), _: Any = None) -> Any:
    calls.copy(len(_checked(items, list | tuple)))
    return list(items)


@_of("torch.Size")
def _size(_: Calls, sizes: Any = ()) -> Any:
    return _shape(sizes)


@_of("_codecs.encode")
def _encoded(calls: Calls, text: str, codec: str = "utf-8") -> Any:
    calls.copy(len(text))
    if codec not in ("latin1", "latin-1"):
        raise ValueError(codec)
    return text.encode("latin-1")


@_of("builtins.bytes", "builtins.bytearray")
def _bytes(calls: Calls, data: Any = b"", codec: str = "latin-1") -> Any:
    return _checked(data, bytes) if type(data) is bytes else _encoded(calls, _checked(data, str), codec)


@_of("builtins.complex")
def _complex(_: Calls, *parts: float) -> Any:
    return complex(*parts)


@_of("copyreg._reconstructor", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
def _reconstructed(_: Calls, kind: Global, *__: Any) -> Any:
    return Object(_checked(kind, Global))


@_of("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer")
def _array(_: Calls, *arguments: Any) -> Any:
    return Object("numpy.ndarray", arguments)


@_of(*(f"pathlib.{kind}Path" for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")))
def _path(calls: Calls, *parts: str) -> Any:
    calls.copy(sum(map(len, parts)))
    root = "/" if parts[:1] == ("/",) else ""
    return root + "/".join(parts[1:] if root else parts)


@_of("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
def _number(_: Calls, dtype: Object, data: bytes) -> Any:
    if dtype.name != "numpy.dtype":
        raise TypeError
    order = ">" if dtype.state and dtype.state[1] == ">" else "<"
    return struct.unpack(order + _NUMPY[_checked(dtype.arguments[0], str)], data)[0]


def _checked(value: Any, kind: Any) -> Any:
    """Return ``value``; a TypeError if it is none of ``kind``."""
    if not isinstance(value, kind):
        raise TypeError
    return value


# Tensors, in the order of ``torch._utils``.


def _on(stored: Stored, dtype: str, place: tuple[Any, Any, Any]) -> Array:
    """Return the tensor at ``place`` (offset, shape, strides) on a storage, which it must not reach beyond."""
    if type(stored) is not Stored:
        raise TypeError
    offset, shape, strides = place
    check_place(stored.storage.size_bytes * 8, BITS[dtype], offset, shape, strides)
    return Array(dtype, shape, contents.Part((0,) * len(shape), shape, stored.storage, offset, strides))


@_of("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
def _tensor(
    _: Calls, stored: Stored, offset: Any, shape: Any, strides: Any, __: Any = None, ___: Any = None, marks: Any = None
) -> Any:
    made = _on(stored, stored.dtype, (offset, shape, strides))
    return _marked(made, marks)


@_of("torch._utils._rebuild_tensor_v3")
def _newer_tensor(
    _: Calls, stored: Stored, offset: Any, shape: Any, strides: Any, __: Any, ___: Any, dtype: Any, marks: Any = None
) -> Any:
    return _marked(_on(stored, _dtype(dtype), (offset, shape, strides)), marks)


def _shape(shape: Any) -> tuple[int, ...]:
    """Return ``shape``; a RefusedError if it is none, or one of which nobody could count the elements."""
    if len(checked_sizes(shape)) > _MOST_DIMENSIONS:
        raise RefusedError("a shape has absurdly many dimensions")
    return checked_sizes(shape)


def _marked(made: Array, marks: Any) -> Array:
    """Return a tensor with the marks that say how its elements are to be read: as they lie there, if there are none."""
    told = [str(name)[:_LONGEST_MARK] for name in marks if type(name) is str] if type(marks) is dict else []
    if told:
        made.part, made.note = None, f"{' and '.join(told)}: not as its elements lie in the file"
    return made


def _dtype(dtype: Any) -> str:
    """Return the name of a dtype, as a KeyError if it is none that is known."""
    name = str(_checked(dtype, Global)).removeprefix("torch.")
    if name not in BITS:
        raise KeyError(name)
    return name


@_of("torch._utils._rebuild_qtensor")
def _quantised(_: Calls, stored: Stored, offset: Any, shape: Any, strides: Any, scheme: Any, __: Any, ___: Any) -> Any:
    made = _on(stored, stored.dtype, (offset, shape, strides))
    inner = {"data": Array(made.dtype, made.shape, made.part), "scheme": scheme}
    numbers = ", ".join(str(number) for number in scheme if type(number) in (int, float))
    return Array(made.dtype, made.shape, None, f"quantised ({numbers})", inner)


@_of("torch._utils._rebuild_parameter")
def _parameter(_: Calls, data: Any, __: Any, ___: Any) -> Any:
    return _checked(data, Array | Object)


@_of("torch._utils._rebuild_parameter_with_state")
def _parameter_with_state(_: Calls, data: Any, __: Any, ___: Any, ____: Any) -> Any:
    return _checked(data, Array | Object)


@_of("torch._tensor._rebuild_from_type_v2")
def _of_type(calls: Calls, function: Any, kind: Global, arguments: Any, state: Any) -> Any:
    made = calls.called(function, arguments)
    if type(made) is not Array:
        return Object(_checked(kind, Global), (made,), state)
    is_plain = _checked(kind, Global) in ("torch.Tensor", "torch.nn.parameter.Parameter")
    note = made.note or ("" if is_plain else f"a {kind}")
    return Array(made.dtype, made.shape, made.part, note, {**made.inner, **attributes(Object("", state=state))})


@_of("torch._utils._rebuild_sparse_tensor")
def _sparse(_: Calls, __: Any, parts: tuple[Any, ...]) -> Any:
    arrays = [part for part in parts if type(part) is Array]
    (shape,) = [part for part in parts if type(part) is tuple]
    indices = {f"indices.{index}": array for index, array in enumerate(arrays[:-1])}
    return Array(arrays[-1].dtype, _shape(shape), None, "sparse", {**indices, "values": arrays[-1]})


@_of("torch._utils._rebuild_meta_tensor_no_storage")
def _meta(_: Calls, dtype: Any, shape: Any, __: Any, ___: Any) -> Any:
    return Array(_dtype(dtype), _shape(shape), None, "meta: it has no data")


@_of("torch._utils._rebuild_device_tensor_from_cpu_tensor")
def _on_device(_: Calls, data: Array, dtype: Any, *__: Any) -> Any:
    name = _dtype(dtype)
    if _checked(data, Array).dtype == name:
        return data
    return Array(name, data.shape, None, f"made of one of {data.dtype}", {"data": data})


@_of("torch._utils._rebuild_wrapper_subclass")
def _wrapper(_: Calls, kind: Global, dtype: Any, shape: Any, *__: Any) -> Any:
    return Array(_dtype(dtype), _shape(shape), None, f"a {_checked(kind, Global)}, which is made of others")
