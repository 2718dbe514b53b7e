"""Which live storages a checkpoint can be read straight into.

A storage is filled in place if the very same tensors lie on it, here and in the checkpoint, and in the same places, and
if nobody's own code looks at it before ``load_state_dict`` has replaced what it holds. All else is loaded beside the
live objects and left to ``load_state_dict``, which converts, copies or refuses. Knows torch; knows no file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from safepoint.loading import KeyOf

Path = tuple[object, ...]
_DEEPEST = 64
Place = tuple[Path, torch.dtype, torch.Size, tuple[int, ...], int]
"""Where a tensor is found in the state, and how it lies on its storage: dtype, shape, strides, offset."""


def live_storages(
    objects: Mapping[str, object], saved: Mapping[str, object], key_of: KeyOf, sizes: Sequence[int]
) -> dict[int, torch.UntypedStorage]:
    """Return the storages of ``objects`` to be filled from those of ``saved``, by the number that ``key_of`` tells.

    ``sizes`` are the sizes in bytes of the storages in the checkpoint.
    """
    here = _by_storage(_live(objects), torch.UntypedStorage.data_ptr)
    there = _by_storage(_in_entries(saved), key_of)
    off_limits = _by_storage(_looked_at(objects), torch.UntypedStorage.data_ptr).keys()
    address_of = {frozenset(places): address for address, (places, _) in here.items() if address not in off_limits}
    found: dict[int, torch.UntypedStorage] = {}
    for key, (places, _) in there.items():
        address = address_of.get(frozenset(places))
        if key is None or not address:
            continue
        tensors = here[address][1]
        storage = tensors[0].untyped_storage()
        if storage.nbytes() == sizes[key] and any(_covers(tensor) for tensor in tensors):
            found[key] = storage
    return found


def own_ways(root: torch.nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names in ``root.state_dict()`` that somebody's own code loads, or may look at.

    Such code is a ``load_state_dict`` or ``_load_from_state_dict`` of one's own, or a hook in front of either. It gets
    everything that is loaded into the modules below, may change it, and may read what is live.
    """
    if not _is_of_torch(root.load_state_dict):
        return ("",)
    found: list[str] = []
    for name, module in root.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if not prefix.startswith(tuple(found)) and (
            load_pre_hooks(module) or not _is_of_torch(module._load_from_state_dict)  # noqa: SLF001 - meant to be overridden
        ):
            found.append(prefix)
    return tuple(found)


def has_own_way(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether somebody's own code loads ``optimizer``, or may look at it meanwhile: as in ``own_ways``."""
    return bool(load_pre_hooks(optimizer)) or not _is_of_torch(optimizer.load_state_dict)


def load_pre_hooks(target: torch.nn.Module | torch.optim.Optimizer) -> Mapping[int, object]:
    """Return what ``register_load_state_dict_pre_hook`` has registered; that has no public name."""
    is_module = isinstance(target, torch.nn.Module)
    name = "_load_state_dict_pre_hooks" if is_module else "_optimizer_load_state_dict_pre_hooks"
    found: Mapping[int, object] = getattr(target, name)  # a contract test holds them to their meaning
    return found


def _is_of_torch(method: object) -> bool:
    """Tell whether torch itself defines ``method``; what its own modules override does no more than convert."""
    function = getattr(method, "__func__", None)
    return str(getattr(function, "__module__", "")).startswith(("torch.nn.", "torch.optim."))


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
    """Yield what ``load_state_dict`` copies into or replaces: a module's tensors, the state of an optimizer so far."""
    for name, target in objects.items():
        if isinstance(target, torch.nn.Module):
            yield from (((name, key), tensor) for key, tensor in _named(target))
        elif isinstance(target, torch.optim.Optimizer) and not has_own_way(target):
            yield from _tensors(target.state_dict()["state"], (name, "state"))


def _looked_at(objects: Mapping[str, object]) -> Iterator[tuple[Path, torch.Tensor]]:
    """Yield the live tensors of modules that somebody's own code may look at while it loads."""
    for name, target in objects.items():
        if isinstance(target, torch.nn.Module) and (own := own_ways(target)):
            yield from (((name, key), tensor) for key, tensor in _named(target) if key.startswith(own))


def _named(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _in_entries(saved: Mapping[str, object]) -> Iterator[tuple[Path, torch.Tensor]]:
    for name, value in saved.items():
        yield from _tensors(value, (name,))


def _tensors(root: object, path: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    """Yield the tensors in nested mappings, lists and tuples, visiting each of those once.

    What lies absurdly deep has a place that nothing else has: a path for each would take the square of their number.
    """
    pending: list[tuple[Path, object]] = [(path, root)]
    seen: set[int] = set()
    while pending:
        path, node = pending.pop()
        if isinstance(node, torch.Tensor):
            yield path, node
        elif id(node) not in seen and isinstance(node, Mapping | list | tuple):
            seen.add(id(node))
            inner = node.items() if isinstance(node, Mapping) else enumerate(node)
            deep = len(path) > _DEEPEST
            pending += [((object(),) if deep else (*path, key), value) for key, value in inner]


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether the bytes of its storage are all there is to ``tensor``."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _covers(tensor: torch.Tensor) -> bool:
    """Tell whether ``tensor`` is all that lies on its storage: no byte of it is somebody else's."""
    is_dense = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return is_dense and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
