"""The layout of a safetensors file: a header of JSON, and the elements of each tensor behind it.

The library of that name writes from memory alone. As its writer does, wider elements come first, so that each tensor
lies at a multiple of its elements' size. A file may hold no bytes twice: of tensors that are the same view of the same
storage, the first has a place, and the header names the others, as ``safetensors.torch.save_model`` does and
``load_model`` expects. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from safepoint.contents import Tensor
from safepoint.errors import ConfigurationError, shortened
from safepoint.export.elements import Buffer, Elements, Item, item
from safepoint.formats.safetensors import DTYPES, HEADER_LIMIT_BYTES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PACKED = "float4_e2m1fn_x2"
_METADATA = "__metadata__"
_MARK = {"format": "pt"}
_ALIGNMENT_BYTES = 8


class Safetensors:
    """A safetensors file of ``tensors``, by name. ``tied``: the names that have no place, and those that have theirs.

    Raises:
        ConfigurationError: the format has no place for a name or a dtype, or for so many tensors.
        CheckpointError: elements cannot be read, or not be converted.

    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: str | None) -> None:
        _check_names(tensors)
        self.tied = _tied(tensors)
        items = {name: item(tensor, dtype) for name, tensor in tensors.items() if name not in self.tied}
        _check_dtypes(items)
        self.items = dict(sorted(items.items(), key=lambda named: -named[1].item_bytes))
        self._header = _header(self.items, self.tied)
        self.size_bytes = len(self._header) + sum(found.size_bytes for found in self.items.values())

    def pieces(self, elements: Elements) -> Iterator[Buffer]:
        """See ``elements.Plan``."""
        yield self._header
        for found in self.items.values():
            yield from elements.pieces(found)


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    firsts: dict[tuple[Any, ...], str] = {}
    views = {name: (tensor.dtype, tensor.shape, tensor.parts) for name, tensor in tensors.items() if tensor.count}
    firsts_of = {name: firsts.setdefault(view, name) for name, view in views.items() if name not in _MARK}
    return {name: first for name, first in firsts_of.items() if first != name}


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name in {"", _METADATA} or not _is_unicode(name):
            raise ConfigurationError(
                f"no tensor in a safetensors file can be called {shortened(name)!r}: leave it out with --except, or "
                "use --to torch."
            )


def _check_dtypes(items: Mapping[str, Item]) -> None:
    for name, found in items.items():
        if found.dtype not in _NAMES:
            raise ConfigurationError(
                f"tensor {shortened(name)!r} is of {found.dtype}, which safetensors files do not hold: leave it out "
                "with --except, or use --to torch."
            )
        if found.dtype == _PACKED and not found.tensor.shape:
            raise ConfigurationError(
                f"tensor {shortened(name)!r} holds two numbers and has no dimension, which safetensors files cannot "
                "tell: leave it out with --except, or use --to torch."
            )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(items: Mapping[str, Item], tied: Mapping[str, str]) -> bytes:
    """Return the header with its size in front, padded so that the elements begin at a multiple of 8 bytes."""
    told: dict[str, Any] = {_METADATA: {**tied, **_MARK}}
    end = 0
    for name, found in items.items():
        start, end = end, end + found.size_bytes
        told[name] = {"dtype": _NAMES[found.dtype], "shape": _shape(found), "data_offsets": [start, end]}
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    if len(text) > HEADER_LIMIT_BYTES:
        raise ConfigurationError(
            f"the names and shapes of {len(items)} tensors take more than the {HEADER_LIMIT_BYTES} bytes that a "
            "safetensors file has for them: choose fewer with --keys."
        )
    return len(text).to_bytes(8, "little") + text


def _shape(found: Item) -> tuple[int, ...]:
    """Return the shape as the format counts: two numbers in a byte are two."""
    shape = found.tensor.shape
    return (*shape[:-1], 2 * shape[-1]) if found.dtype == _PACKED else shape
