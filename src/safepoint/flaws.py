"""What speaks against going on from the state that an exception leaves: numbers that are none, half an update.

Looks at tensors and at tracebacks, and changes neither. Infinities are no flaw: masks are made of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FrameType, TracebackType

import torch

from safepoint.capture import tensors_by_path
from safepoint.errors import shortened

_PIECE = 1 << 22
_UPDATES_FIRST = "torch.optim.lbfgs"


def holding_nan(state: object) -> str:
    """Return which tensor in nested dictionaries, lists and tuples holds NaN, the first of them; "" if none does.

    Of tensors that can be neither compared nor converted nobody can tell.
    """
    for path, tensor in tensors_by_path(state):
        if _holds_nan(tensor):
            return f"{shortened(path)} holds NaN"
    return ""


def interrupted_update(error: BaseException) -> str:
    """Return which optimizer ``error``, or what it came of, has interrupted in its step; "" if none.

    Where torch's own optimizers call a closure, nothing is updated yet: what is raised in there interrupts none. Of
    L-BFGS, and of other people's optimizers, nobody can tell, and they count as interrupted.
    """
    for each in _chain(error):
        if (optimizer := _interrupted(each.__traceback__)) is not None:
            return f"{shortened(type(optimizer).__name__)} was interrupted in its step"
    return ""


def _holds_nan(tensor: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            return _any_nan(_values(tensor.detach()))
    except Exception:  # noqa: BLE001 - subclasses, strange dtypes, a device that has failed: torch raises what it likes
        return False


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers in ``tensor`` as a dense one, on the same memory."""
    if tensor.layout is torch.sparse_coo:
        return tensor._values()  # noqa: SLF001 - values() refuses indices that are there twice
    is_compressed = tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
    return tensor.values() if is_compressed or tensor.is_nested else tensor


def _any_nan(tensor: torch.Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.conj() if tensor.is_conj() else tensor)
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return False
    tensor = _in_order_of_memory(tensor)
    try:
        least, _ = torch.aminmax(tensor)  # NaN, if there is one; takes no memory
    except RuntimeError:  # not there for the smallest of dtypes
        flat = tensor.reshape(-1)
        return any(bool(flat[at : at + _PIECE].isnan().any()) for at in range(0, len(flat), _PIECE))
    return bool(least.isnan())


def _in_order_of_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view that torch need not copy to go through it: of a dense tensor the numbers as they lie."""
    for dimension, stride in enumerate(tensor.stride()):
        if not stride and tensor.size(dimension) > 1:  # the same numbers again and again
            tensor = tensor.narrow(dimension, 0, 1)
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=lambda dimension: strides[dimension], reverse=True))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error``, and all that it is made of, was raised from, or while which it was raised."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += [each.__cause__, each.__context__]
            pending += each.exceptions if isinstance(each, BaseExceptionGroup) else ()


def _interrupted(trace: TracebackType | None) -> torch.optim.Optimizer | None:
    """Return the optimizer whose step ``trace`` comes out of, if it may have begun to update.

    What only hands on to another optimizer's step, as a framework's wrapper does, is judged by that one.
    """
    frames: list[FrameType] = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    steps = [at for at, frame in enumerate(frames) if _stepping(frame) is not None]
    for at in steps:
        is_in_closure = at + 1 < len(frames) and frames[at + 1].f_code is _code_of(frames[at].f_locals.get("closure"))
        if not (_closure_comes_first(frames[at]) if is_in_closure else at < steps[-1]):
            return _stepping(frames[at])
    return None


def _stepping(frame: FrameType) -> torch.optim.Optimizer | None:
    """Return the optimizer whose ``step`` runs in ``frame``."""
    code = frame.f_code
    owner = frame.f_locals.get(code.co_varnames[0]) if code.co_name == "step" and code.co_argcount else None
    return owner if isinstance(owner, torch.optim.Optimizer) else None


def _closure_comes_first(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__"))
    return module.startswith("torch.optim.") and module != _UPDATES_FIRST


def _code_of(function: object) -> object:
    """Return the code that a call of ``function`` runs."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
