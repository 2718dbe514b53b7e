"""A training to save: a residual network under AdamW whose state has the size asked for, and which really trains.

Layers are of 16 MiB, so that glibc serves gradients from memory that it has used: saves are measured, not page faults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

_STATES_PER_PARAMETER = 3  # the parameter and AdamW's two moments


class Network(nn.Module):
    """``layers`` square layers, each added to what passes through."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``hidden``, transformed."""
        for layer in self.layers:
            hidden = hidden + 0.1 * torch.tanh(layer(hidden))
        return hidden


class Training:
    """A model, its optimizer and one batch, warmed up by three steps.

    ``size_bytes`` is the size of the state to be saved, as near as whole layers come to what was asked for.
    """

    def __init__(self, size_bytes: int, *, width: int = 2048, batch: int = 64, device: str = "cpu") -> None:
        torch.manual_seed(0)
        layer_bytes = _STATES_PER_PARAMETER * 4 * (width * width + width)
        self.model = Network(width, max(1, round(size_bytes / layer_bytes))).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self._batch = torch.randn(batch, width, device=device)
        for _ in range(3):
            self.step()
        self.size_bytes = sum(tensor.nbytes for tensor in self.tensors())

    def step(self, guard: Callable[[], AbstractContextManager[object]] = nullcontext) -> float:
        """Do one step; return the seconds that the optimizer waited before it began.

        ``guard`` is what a peer wants around the optimizer's step; hooks that saves put on the optimizer count.
        """
        self.model(self._batch).square().mean().backward()
        began = time.perf_counter()
        ready = began

        def note(*_: object) -> None:
            nonlocal ready
            ready = time.perf_counter()

        with guard():
            last = self.optimizer.register_step_pre_hook(note)  # hooks run in the order of their registration
            self.optimizer.step()
            last.remove()
        self.optimizer.zero_grad(set_to_none=False)
        return ready - began

    def settle(self) -> None:
        """Return when the device has done what it was given."""
        if self._batch.is_cuda:
            torch.cuda.synchronize()

    def state(self) -> dict[str, Any]:
        """Return the state as plain loops save it."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def flat(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, for formats that hold nothing else."""
        return flat(self.state())

    def tensors(self) -> Iterator[torch.Tensor]:
        """Return every tensor of the state."""
        yield from self.flat().values()


def flat(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of what ``Training.state`` returns, by name."""
    named = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    for index, slot in state["optimizer"]["state"].items():
        named |= {f"optimizer.{index}.{name}": tensor for name, tensor in slot.items()}
    return named
