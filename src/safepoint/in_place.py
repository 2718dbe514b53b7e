"""Which live storages a checkpoint can be read straight into.

A storage is filled in place if the very same tensors lie on it, here and in the checkpoint, and in the same places. All
else is loaded beside the live objects and left to ``load_state_dict``, which converts, copies or refuses. Knows torch;
knows no file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from safepoint.loading import KeyOf

Path = tuple[object, ...]
Place = tuple[Path, torch.dtype, torch.Size, tuple[int, ...], int]
"""Where a tensor is found in the state, and how it lies on its storage: dtype, shape, strides, offset."""


def live_storages(
    objects: Mapping[str, object], saved: Mapping[str, object], key_of: KeyOf, sizes: Sequence[int]
) -> dict[int, torch.UntypedStorage]:
    """Return the storages of ``objects`` to be filled from those of ``saved``, by the number that ``key_of`` tells.

    ``sizes`` are the sizes in bytes of the storages in the checkpoint.
    """
    here = _by_storage(_live(objects), torch.UntypedStorage.data_ptr)
    there = _by_storage(_tensors(saved, ()), key_of)
    address_of = {frozenset(places): address for address, (places, _) in here.items() if address}
    found: dict[int, torch.UntypedStorage] = {}
    for key, (places, _) in there.items():
        address = address_of.get(frozenset(places))
        if key is None or address is None:
            continue
        tensors = here[address][1]
        storage = tensors[0].untyped_storage()
        if storage.nbytes() == sizes[key] and any(_covers(tensor) for tensor in tensors):
            found[key] = storage
    return found


def _by_storage(
    tensors: Iterator[tuple[Path, torch.Tensor]], name: Callable[[torch.UntypedStorage], int | None]
) -> dict[int | None, tuple[set[Place], list[torch.Tensor]]]:
    found: dict[int | None, tuple[set[Place], list[torch.Tensor]]] = defaultdict(lambda: (set(), []))
    for path, tensor in tensors:
        if _is_plain(tensor):
            places, on_it = found[name(tensor.untyped_storage())]
            places.add((path, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())))
            on_it.append(tensor)
    return found


def _live(objects: Mapping[str, object]) -> Iterator[tuple[Path, torch.Tensor]]:
    """Yield what ``load_state_dict`` copies into or replaces: a module's tensors, the state of an optimizer so far.

    Where somebody's own ``load_state_dict`` reads what it is given, and when, is not known: such objects are left out.
    """
    for name, target in objects.items():
        own = getattr(getattr(target, "load_state_dict", None), "__func__", None)
        if isinstance(target, torch.nn.Module) and own is torch.nn.Module.load_state_dict:
            for named in (target.named_parameters, target.named_buffers):
                yield from (((name, key), tensor) for key, tensor in named(remove_duplicate=False))
        elif isinstance(target, torch.optim.Optimizer) and own is torch.optim.Optimizer.load_state_dict:
            yield from _tensors(target.state_dict()["state"], (name, "state"))


def _tensors(node: object, path: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _tensors(value, (*path, key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _tensors(value, (*path, index))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether the bytes of its storage are all there is to ``tensor``."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _covers(tensor: torch.Tensor) -> bool:
    """Tell whether ``tensor`` is all that lies on its storage: no byte of it is somebody else's."""
    is_dense = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return is_dense and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
