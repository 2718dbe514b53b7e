"""Copy storages into host memory, from whatever device they are on. Knows torch and addresses; knows no file.

On the host, they are copied by address, in runs that whoever of several threads is free takes next: torch's own copy
gives every thread its share beforehand, and then waits for one that other work keeps from running. From a device,
copies run on a stream of their own beside the computation (CUDA C++ Programming Guide, "Asynchronous Concurrent
Execution"): into page-locked memory at the full speed of the bus.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safepoint import memory
from safepoint.background import Background
from safepoint.memory import HostMemory

SMALL_BYTES = 64 << 10
_RUN_BYTES = 8 << 20
_MOST_THREADS = 8
Owned = Mapping[int, Sequence[torch.Tensor]]
"""Tensors by the address of their storage."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One storage, and at which offset of the host memory its bytes go."""

    storage: torch.UntypedStorage
    offset: int


class HostBuffer:
    """Host memory that tensors can be copied to."""

    def __init__(self, size_bytes: int) -> None:
        self.memory = HostMemory(size_bytes)
        self._bytes = torch.frombuffer(self.memory.view(0, self.memory.size_bytes), dtype=torch.uint8)

    def part(self, offset: int, size_bytes: int) -> torch.Tensor:
        """Return the bytes from ``offset`` on as a tensor on the same memory."""
        return self._bytes[offset : offset + size_bytes]

    def copy_range(self, piece: Piece, first: int, last: int, offset: int) -> None:
        """Copy the bytes from ``first`` to ``last`` of a piece's storage to ``offset``."""
        self.part(offset, last - first).copy_(as_bytes(piece.storage)[first:last])


class Copier:
    """Copies whole states, with as many threads as there are processors for, up to eight."""

    def __init__(self) -> None:
        self._helpers = min(len(os.sched_getaffinity(0)), _MOST_THREADS) - 1
        self._threads = Background("copy", max(1, self._helpers))

    def copy_in(self, target: HostBuffer, pieces: Sequence[Piece]) -> None:
        """Copy every piece to its place in ``target``; return when all are there."""
        host, devices = split(pieces)
        transfers = [DeviceTransfer(device, found) for device, found in devices.items()]
        for transfer in transfers:
            transfer.start(target)
        self._copy_from_host(target.memory.address, host)
        for transfer in transfers:
            transfer.finish()

    def close(self) -> None:
        """End the threads; the next copy starts others."""
        self._threads.close()

    def _copy_from_host(self, address: int, pieces: Sequence[Piece]) -> None:
        runs = deque(_runs(address, pieces))
        is_worth_it = sum(size_bytes for _, _, size_bytes in runs) > _RUN_BYTES
        helping = [self._threads.submit(_copy_runs, runs) for _ in range(self._helpers if is_worth_it else 0)]
        _copy_runs(runs)
        for future in helping:
            future.result()


def _runs(address: int, pieces: Sequence[Piece]) -> Iterator[tuple[int, int, int]]:
    """Yield (target, source, size in bytes) of what is to be copied at a time."""
    for piece in pieces:
        target, source, size_bytes = address + piece.offset, piece.storage.data_ptr(), piece.storage.nbytes()
        for done in range(0, size_bytes, _RUN_BYTES):
            yield target + done, source + done, min(_RUN_BYTES, size_bytes - done)


def _copy_runs(runs: deque[tuple[int, int, int]]) -> None:
    """Copy what is left of ``runs``, while others do the same."""
    while True:
        try:
            run = runs.popleft()
        except IndexError:
            return
        memory.copy(*run)


class DeviceTransfer:
    """Copies from one device, on a stream of their own, which begin when what was computed so far is there.

    Made by the thread that computes; ``start`` and ``finish`` may be called by another one. The storages are held until
    the transfer is let go, so that the device's allocator cannot hand their memory out meanwhile.
    """

    def __init__(self, device: torch.device, pieces: Sequence[Piece]) -> None:
        self._device, self._pieces = device, pieces
        self._torch: Any = torch.get_device_module(device)
        self._stream = self._torch.Stream(device)
        self._stream.wait_stream(self._torch.current_stream(device))
        self._done = self._torch.Event()

    def start(self, target: HostBuffer) -> None:
        """Queue the copies."""
        with torch.no_grad(), self._torch.stream(self._stream):
            for piece in self._pieces:
                target.part(piece.offset, piece.storage.nbytes()).copy_(as_bytes(piece.storage), non_blocking=True)
            self._done.record(self._stream)

    def hold_back(self) -> None:
        """Let nothing that is computed from now on begin before the copies are done; the calling thread goes on."""
        self._torch.current_stream(self._device).wait_event(self._done)

    def finish(self) -> None:
        """Wait until the copies are done."""
        self._done.synchronize()


def split(pieces: Sequence[Piece]) -> tuple[list[Piece], dict[torch.device, list[Piece]]]:
    """Return the pieces that are on the host, and the others by the device that they are on."""
    host: list[Piece] = []
    devices: dict[torch.device, list[Piece]] = {}
    for piece in pieces:
        (host if piece.storage.device.type == "cpu" else devices.setdefault(piece.storage.device, [])).append(piece)
    return host, devices


def tensors_in(*values: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested mappings, lists and tuples that are nothing but a place on a storage with data."""
    pending, seen = list(values), set()
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            if type(value) in _PLAIN and value.layout is torch.strided and not value.is_meta and not value.is_nested:
                yield value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pending += value.values() if isinstance(value, Mapping) else value


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was changed in place, but for changes through ``.data`` and by fused kernels.

    The counter that autograd checks saved tensors by (PyTorch notes, "Autograd mechanics"); it has no public name.
    """
    return tensor._version  # noqa: SLF001 - see above; a contract test holds it to its meaning


def as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    """Return the storage as a tensor of bytes, without a copy."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
