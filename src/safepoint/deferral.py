"""Deferred staging: what only an optimizer's step changes is copied while the next forward and backward run.

The barrier is PyTorch's own hook that runs before any optimizer's step (``register_optimizer_step_pre_hook``): it waits
for the copies on the host, and lets the device's stream wait for those on a device. Loading a state dict into one of
the modules waits, too. Whatever else changes a tensor in place is seen by its version counter: then the checkpoint is
given up with an error, because it would hold the weights of two moments. ``tensor.data`` and ``tensor.numpy()`` hide
changes from the counter; who writes through them between a save and the next step stages by copy.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from safepoint import memory
from safepoint.background import Background, interpreter_is_ending
from safepoint.errors import CaptureError
from safepoint.frozen import Sighting
from safepoint.transfer import DeviceTransfer, HostBuffer, Owned, Piece, split, tensors_in, version

_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Live:
    """The objects behind a state: ``optimizers`` own their parameters and state, which change only in their steps."""

    modules: tuple[torch.nn.Module, ...] = ()
    optimizers: tuple[torch.optim.Optimizer, ...] = ()

    def owned(self) -> Owned:
        """Return the tensors that the optimizers own."""
        values = (value for optimizer in self.optimizers for value in (optimizer.param_groups, optimizer.state))
        return _by_address(tensors_in(*values))

    def frozen(self, owned: Owned) -> Owned:
        """Return the parameters on the host that need no gradient, but for those that are ``owned``."""
        parameters = tensors_in([parameter for module in self.modules for parameter in module.parameters()])
        resting = (p for p in parameters if not p.requires_grad and p.device.type == "cpu")
        return {address: found for address, found in _by_address(resting).items() if address not in owned}


class Deferral:
    """The copies of one save that are still to be made, and the proof that nothing has changed meanwhile.

    ``kept`` is not copied, because the image holds it already: whether that is so is found out beside the copies.

    An operation in place raises a tensor's version when it has ended, and so does not show while it runs. The verdict
    is therefore the training thread's, which is in the middle of no operation then: at the barrier, or whenever it
    comes by after the copies have ended. Until then the checkpoint is written, but gets no name.
    """

    def __init__(
        self, target: HostBuffer, pieces: Sequence[Piece], tensors: Iterable[torch.Tensor], kept: Sequence[Sighting]
    ) -> None:
        self.stalled_s = self.copied_at_s = 0.0
        self._target, self._kept = target, kept
        host, devices = split(pieces)
        self._host = [(piece, piece.storage.data_ptr(), piece.storage.nbytes()) for piece in host]
        self._transfers = [DeviceTransfer(device, found) for device, found in devices.items()]
        self._before = [(tensor, version(tensor)) for tensor in tensors]
        self._copied = threading.Event()  # on the host; on devices, the copies are queued
        self._verdict = threading.Event()
        self._trains = threading.get_ident()
        self._torn: list[str] = []
        self._done: Future[None] = Future()

    def begin(self, thread: Background) -> None:
        """Have the copies made in ``thread``."""
        self._done = thread.submit(self._copy)

    @property
    def done(self) -> bool:
        """Whether everything has been copied."""
        return self._done.done()

    def hold_back(self) -> None:
        """Return when the tensors may be changed: on the host once they are copied; devices wait for themselves."""
        began = time.perf_counter()
        self._copied.wait()
        self.settle()
        for transfer in self._transfers:
            transfer.hold_back()
        self.stalled_s += time.perf_counter() - began

    def settle(self) -> None:
        """Give the verdict, in the training thread; the copies on the host must have been made."""
        if not self._verdict.is_set():
            changed = (tensor for tensor, before in self._before if version(tensor) != before)
            self._torn += [f"one of shape {tuple(tensor.shape)}" for tensor in changed]
            self._verdict.set()

    def wait(self) -> None:
        """Return when everything is in the image."""
        self._done.result()

    def confirm(self) -> None:
        """Wait for the verdict.

        Raises:
            CaptureError: a tensor was changed by something that the barrier does not see.

        """
        if threading.get_ident() == self._trains:  # no thread could be started: what is to be waited for is here
            self.hold_back()
            self.settle()
        while not self._verdict.wait(_LOOK_S):
            if interpreter_is_ending():  # without close(): nobody changes anything any more
                self.settle()
        if self._torn:
            raise CaptureError(
                f"{len(self._torn)} tensors ({self._torn[0]}, for example) were changed between the save and the next "
                "optimizer step, by something other than a step: this checkpoint would mix two moments and was given "
                'up. Use staging="copy", or change the weights before the save.'
            )

    def _copy(self) -> None:
        try:
            for transfer in self._transfers:
                transfer.start(self._target)
            for piece, address, size_bytes in self._host:
                if _lies_at(piece.storage, address, size_bytes):
                    memory.copy(self._target.memory.address + piece.offset, address, size_bytes)
                if not _lies_at(piece.storage, address, size_bytes):
                    self._torn.append(f"one of {size_bytes} bytes, whose memory was moved or freed")
            moved = (sighting.storage.nbytes() for sighting in self._kept if not sighting.is_live())
            self._torn += [f"a frozen one of {size_bytes} bytes" for size_bytes in moved]
        finally:
            self._copied.set()
        for transfer in self._transfers:
            transfer.finish()
        self.copied_at_s = time.perf_counter()


def _lies_at(storage: torch.UntypedStorage, address: int, size_bytes: int) -> bool:
    return storage.data_ptr() == address and storage.nbytes() == size_bytes


class Barrier:
    """What stands between deferred copies and whatever is about to change what they copy. For the training thread."""

    def __init__(self) -> None:
        self._under_way: list[Deferral] = []
        self._thread = Background("staging")
        self._on_step: RemovableHandle | None = None
        self._on_load: list[RemovableHandle] = []
        self._process = os.getpid()

    def defer(
        self, target: HostBuffer, pieces: Sequence[Piece], live: Live, owned: Owned, kept: Sequence[Sighting]
    ) -> Deferral:
        """Begin to copy ``pieces``, whose tensors are in ``owned``, and hold back what would change them."""
        tensors = (tensor for piece in pieces for tensor in owned[piece.storage.data_ptr()])
        deferral = Deferral(target, pieces, tensors, kept)
        if self._on_step is None:
            self._on_step = register_optimizer_step_pre_hook(self._before_step)
        self._on_load += [
            module.register_load_state_dict_pre_hook(_LoadHook(self))  # type: ignore[no-untyped-call]
            for module in live.modules
        ]
        self._under_way.append(deferral)
        deferral.begin(self._thread)
        return deferral

    def look(self) -> None:
        """Give the verdict on what has been copied by now; cheap where nothing is under way."""
        if self._under_way:
            for deferral in [deferral for deferral in self._under_way if deferral.done]:
                deferral.hold_back()
                self._under_way.remove(deferral)

    def hold_back(self) -> None:
        """Return when everything that was deferred may be changed."""
        if os.getpid() != self._process:
            return  # a child has neither the threads nor the checkpoint
        while self._under_way:
            self._under_way[0].hold_back()
            del self._under_way[0]  # not before: an interrupted wait leaves the barrier where it is

    def release(self) -> None:
        """Do as ``hold_back`` does, and take the hooks off the modules."""
        self.hold_back()
        handles, self._on_load = self._on_load, []
        for handle in handles:
            handle.remove()

    def close(self) -> None:
        """Release everything, end the thread and take the hook off the optimizers."""
        self.release()
        self._thread.close()
        if self._on_step is not None:
            self._on_step.remove()
            self._on_step = None

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Wait, or have the closure wait where the optimizer calls it before it changes anything."""
        if not self._under_way:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None or not type(optimizer).step.__module__.startswith("torch.optim."):
            self.release()
            return None
        after = self._after(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": after}
        return (args[0], after, *args[2:]), kwargs

    def _after(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return ``closure`` with the barrier behind it: forward and backward run in it, the copies beside them."""

        def closure_and_barrier() -> Any:
            loss = closure()
            self.release()
            return loss

        return closure_and_barrier


def _by_address(tensors: Iterable[torch.Tensor]) -> Owned:
    found: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        if not tensor.is_inference():
            found.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    found.pop(0, None)
    return found


class _LoadHook:
    """Wait before a state dict is loaded; a copy of the module, and what is pickled of it, has nothing to wait for."""

    def __init__(self, barrier: Barrier) -> None:
        self._barrier = barrier

    def __call__(self, *_: object) -> None:
        self._barrier.hold_back()

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _nothing_to_wait_for, ()


def _nothing_to_wait_for() -> Callable[..., None]:
    return _pass


def _pass(*_: object) -> None:
    return
