"""Modules whose tensors lie on their storages in many ways, and checkpoints of them, sound and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safepoint import Checkpointer, image, keep, reader, when


def make(directory: Path, state: dict[str, Any], **options: Any) -> Checkpointer:
    """Return a checkpointer that saves every step and keeps all."""
    return Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.all(), **options)


def save(directory: Path, state: dict[str, Any]) -> Path:
    """Save ``state`` and return the path."""
    with make(directory, state) as checkpointer:
        return checkpointer.save()


def add(directory: Path, state: dict[str, Any]) -> Path:
    """Save ``state`` as another run would, and return its path among the checkpoints of ``directory``."""
    return save(directory / "elsewhere", state).rename(directory / "newer.ckpt")


def flip(path: Path, record: str, at: float = 0.5) -> None:
    """Flip one bit of ``path``, in the data of ``record`` (``"pickle"`` or a tensor's path)."""
    manifest = reader.read_manifest(path)
    layout = image.lay_out(manifest.pickle.size_bytes, [blob.size_bytes for blob in manifest.storages])
    keys = {tensor.path: tensor.storage for tensor in manifest.tensors}
    entry = layout.pickle if record == "pickle" else layout.storages[keys[record]]
    with path.open("r+b") as file:
        offset = entry.data_offset + int(at * entry.size_bytes)
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


class Net(torch.nn.Module):
    """A module of the given tensors: parameters, and buffers where they are not floating-point."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.nn.Parameter) or tensor.is_floating_point():
                known = isinstance(tensor, torch.nn.Parameter)
                self.register_parameter(name, tensor if known else torch.nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)


def tied(**more: torch.Tensor) -> Net:
    """Return a module in which ``a`` and ``b`` are one parameter."""
    one = torch.nn.Parameter(torch.randn(3, 4))
    return Net(a=one, b=one, **more)


def untied() -> Net:
    """Return a module in which ``a`` and ``b`` are two."""
    return Net(a=torch.randn(3, 4), b=torch.randn(3, 4))


def flat() -> Net:
    """Return a module whose parameters are views of one buffer, of which a part belongs to nobody."""
    one = torch.randn(40)
    return Net(a=one[:12].view(3, 4), b=one[12:24].view(3, 4))


def whole_and_part() -> Net:
    """Return a module in which ``b`` is a part of ``a``."""
    one = torch.randn(6, 4)
    return Net(a=one, b=one[1:4])


def part_first() -> Net:
    """Return the same with the part first."""
    one = torch.randn(6, 4)
    return Net(b=one[1:4], a=one)


def whole_and_other_part() -> Net:
    """Return a module in which ``b`` is another part of ``a``."""
    one = torch.randn(6, 4)
    return Net(a=one, b=one[2:5])


def head() -> Net:
    """Return a module whose parameter is the beginning of a longer storage."""
    return Net(a=torch.randn(40)[:12].view(3, 4))


def alone() -> Net:
    """Return a module with one parameter of the same shape."""
    return Net(a=torch.randn(3, 4))


def turned() -> Net:
    """Return the same, stored by columns."""
    return Net(a=torch.randn(4, 3).t())


def whole_numbers() -> Net:
    """Return the same, in whole numbers of the same width."""
    return Net(a=torch.randint(9, (3, 4), dtype=torch.int32))


def two() -> Net:
    """Return a module in which ``b`` has the shape of a part of ``a``, and a storage of its own."""
    return Net(a=torch.randn(6, 4), b=torch.randn(3, 4))


def with_cache() -> Net:
    """Return a module with a buffer that is not saved and lies on a parameter's storage."""
    net = untied()
    net.register_buffer("cache", net.a.detach()[:2], persistent=False)
    return net


def mixed() -> Net:
    """Return a module of many kinds: transposed, channels last, empty, scalar, whole numbers, narrow, complex."""
    return Net(
        transposed=torch.randn(4, 3).t(),
        last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        empty=torch.zeros(0, 3),
        scalar=torch.randn(()),
        count=torch.randint(9, (5,)),
        flags=torch.rand(3) > 0.5,
        narrow=torch.randn(3).bfloat16(),
        complex=torch.nn.Parameter(torch.randn(3, dtype=torch.complex64)),
    )


def let_torch_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``torch.load`` hand clones of its storages to a callable."""
    load = torch.load

    def cloning(path: Any, map_location: Any = None, **options: Any) -> Any:
        handed = (lambda storage, tag: map_location(storage.clone(), tag)) if callable(map_location) else map_location
        return load(path, handed, **options)

    monkeypatch.setattr(torch, "load", cloning)
