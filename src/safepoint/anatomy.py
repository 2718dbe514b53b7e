"""A state as a tree to look at: containers with totals, tensors, and plain values in a few words.

Dotted names of tensors are parted (``model.layers.0.weight`` lies below ``model``, ``layers`` and ``0``), siblings that
are alike can be folded into one, and what lies on another tensor's storage says so and counts once. Knows no disk, no
width of a line. A state can be hostile: deep, without end, or the same object over and over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any

from safepoint.contents import Opaque, Part, Storage, Tensor
from safepoint.errors import shortened

_DEEPEST = 100
_MOST_PARTS = 32
_LONGEST_VALUE = 80
_MOST_VALUES = 8
_MOST_BITS = 256
_SAME_FROM = 3
"""How many siblings that are the same are folded into one."""
_ALIKE_FROM = 8
"""How many siblings of other shapes than each other are too many to be told one by one."""
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})", re.DOTALL)
_BITS = re.compile(r"(?:b?float|complex|q?u?int|bits)(\d+)")
_BYTES = {"bool": 1, "float4_e2m1fn_x2": 1, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1, "quint4x2": 1, "quint2x4": 1}
_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")")}
_INSIDE = "..."
_SCALARS = (type(None), bool, int, float, complex, str, bytes, Opaque)


@dataclass(slots=True)
class Node:
    """A container, a tensor, or a plain value: ``plain`` is that value, or tells why it is not gone into.

    ``value`` is the same in a few words.

    ``dtype`` and ``shape`` are those of every tensor in it, "" and ``None`` where they differ. ``tensors``,
    ``elements`` and ``size_bytes`` count what is in it; of elements that a tensor before has, too, only the tensor.
    ``parameters``: the elements of floating-point tensors among them. ``copies``: how many siblings it stands for,
    ``is_same``: which differ in nothing but their elements.
    """

    name: str
    children: dict[str, Node] = field(default_factory=dict)
    tensor: Tensor | None = None
    value: str = ""
    plain: Any = None
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    note: str = ""
    tensors: int = 0
    elements: int = 0
    parameters: int = 0
    size_bytes: int = 0
    copies: int = 1
    is_same: bool = True

    @property
    def is_container(self) -> bool:
        """Whether there is something in it, and it is no tensor."""
        return bool(self.children)


def grown(tree: Any) -> Node:
    """Return the tree of a state; its own name is ""."""
    root = _Growth().node("", tree, "", 0)
    _Count().take_in(root)
    return root


def folded(root: Node) -> Node:
    """Return the tree with siblings that are alike folded into one: those whose names differ by a number at the end.

    Several that are the same but for their elements become one; so do many that are the same but for their shapes.
    """
    return _Folding().folded(root)


def size_of(tensor: Tensor) -> int:
    """Return how many bytes the elements of ``tensor`` take where they lie, 0 if nobody can tell."""
    stored = sum(part.storage.size_bytes for part in tensor.parts)
    return min(tensor.count * item_bytes(tensor.dtype), stored)


def item_bytes(dtype: str) -> int:
    """Return the size of an element of ``dtype``, 0 for one that is unknown."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    found = _BITS.match(dtype)
    return max(int(found[1][:4]) // 8, 1) if found else 0


class _Growth:
    """Makes nodes of a state; a container that was met before is not gone into again."""

    def __init__(self) -> None:
        self._met: dict[int, str] = {}

    def node(self, name: str, value: Any, path: str, depth: int) -> Node:
        if isinstance(value, Tensor):
            return Node(name, tensor=value)
        entries = _entries(value)
        if entries is None:
            return Node(name, value=told(value), plain=value)
        if (before := self._met.setdefault(id(value), path)) is not path:
            return _note(name, f"the same as {before or 'what it is in'}")
        if depth >= _DEEPEST:
            return _note(name, "nested too deep to be shown")
        found = Node(name)
        for key, inner in entries:
            self._put(found, key, inner, path, depth)
        return found

    def _put(self, parent: Node, key: Any, value: Any, path: str, depth: int) -> None:
        name = key if isinstance(key, str) else told(key)
        names = name.split(".", _MOST_PARTS) if isinstance(value, Tensor) else [name]
        *above, last = names if all(names) else [name]
        place = parent
        for part in above:
            place = place.children.setdefault(part, Node(part))
            if place.tensor is not None or place.value:  # a tensor of that name is there: it cannot be parted
                place, last = parent, name
                break
        while last in place.children:
            last += "'"
        place.children[last] = self.node(last, value, f"{path}.{name}" if path else name, depth + 1)


def _note(name: str, text: str) -> Node:
    return Node(name, value=text, plain=text)


def _entries(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return what is in a container, ``None`` if it can be told in a few words."""
    if isinstance(value, Mapping):
        return value.items() or None
    if isinstance(value, list | tuple | AbstractSet) and not all(isinstance(inner, _SCALARS) for inner in value):
        return enumerate(value)
    return None


def told(value: Any) -> str:
    """Return a plain value, or a container, in a few words: of containers in it, only that there are some."""
    if isinstance(value, Opaque):
        return f"<{shortened(value.name)}>"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str) and len(value) > _LONGEST_VALUE:
        return f"{value[:_LONGEST_VALUE]!r}... ({len(value)} characters)"
    if isinstance(value, _SCALARS):
        return repr(value)
    opening, closing = _BRACKETS.get(type(value), ("{", "}"))
    inner = [told(each) if isinstance(each, _SCALARS) else _INSIDE for each in islice(value, _MOST_VALUES)]
    more = f", ... {len(value)} of them" if len(value) > _MOST_VALUES else ""
    return f"{opening}{', '.join(inner)}{more}{closing}"


class _Count:
    """Counts what is in each node, in the order of the state: what lies where something before lies counts once."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, tuple[Part, ...]], Tensor] = {}
        self._owners: dict[Storage, Tensor] = {}

    def take_in(self, node: Node) -> None:
        if node.tensor is not None:
            self._take_in_tensor(node, node.tensor)
        for child in node.children.values():
            self.take_in(child)
        if node.children:
            _sum_up(node, node.children.values())

    def _take_in_tensor(self, node: Node, tensor: Tensor) -> None:
        node.dtype, node.shape, node.tensors = tensor.dtype, tensor.shape, 1
        size_bytes = size_of(tensor)
        same = self._first(self._places, (tensor.dtype, tensor.parts), tensor) if size_bytes else ""
        node.note = tensor.note or (f"the same as {shortened(same)}" if same else self._shares(tensor, size_bytes))
        if not same:
            node.elements, node.size_bytes = tensor.count, size_bytes
            node.parameters = tensor.count if "float" in tensor.dtype or "complex" in tensor.dtype else 0

    def _shares(self, tensor: Tensor, size_bytes: int) -> str:
        storages = {part.storage for part in tensor.parts} if size_bytes else set()
        other = next(filter(None, [self._first(self._owners, storage, tensor) for storage in storages]), "")
        return f"on the storage of {shortened(other)}" if other else ""

    def _first(self, known: dict[Any, Tensor], key: Any, tensor: Tensor) -> str:
        """Return the path of the tensor that was the first to have ``key``, "" if it is this one."""
        first = known.setdefault(key, tensor)
        return "" if first is tensor else first.path


def _sum_up(node: Node, parts: Iterable[Node]) -> None:
    """Let ``node`` count what ``parts`` count."""
    parts = [part for part in parts if part.tensors]
    node.tensors = sum(part.tensors for part in parts)
    node.elements = sum(part.elements for part in parts)
    node.parameters = sum(part.parameters for part in parts)
    node.size_bytes = sum(part.size_bytes for part in parts)
    node.dtype = _one_of({part.dtype for part in parts}) or ""
    node.shape = _one_of({part.shape for part in parts})


def _one_of(found: set[Any]) -> Any:
    return found.pop() if len(found) == 1 else None


class _Folding:
    """Folds siblings. Each node gets two numbers: equal ones are the same, or the same but for their shapes."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def folded(self, node: Node) -> Node:
        return self._folded(node)[0]

    def _folded(self, node: Node) -> tuple[Node, int, int]:
        """Return the node with what is in it folded, and its two numbers."""
        if not node.children:
            kind = (node.tensor is not None, node.dtype, node.note, node.value)
            return node, self._number((*kind, node.shape)), self._number(kind)
        children = [self._folded(child) for child in node.children.values()]
        same = self._number(("same", *((child.name, same) for child, same, _ in children)))
        alike = self._number(("alike", *((child.name, alike) for child, _, alike in children)))
        runs = list(_runs(children))
        return replace(node, children={child.name: child for child in runs}), same, alike

    def _number(self, kind: Any) -> int:
        return self._known.setdefault(kind, len(self._known))


Numbered = tuple[Node, int, int]


def _runs(children: Sequence[Numbered]) -> Iterator[Node]:
    """Yield ``children``, those one behind the other that are alike as one."""
    for (prefix, _), run in groupby(children, key=_family):
        same = [[node for node, *_ in nodes] for _, nodes in groupby(run, key=lambda child: child[1])]
        if prefix is None:
            yield from (node for nodes in same for node in nodes)
        elif len(same) > _ALIKE_FROM:
            yield _merged_siblings([node for nodes in same for node in nodes], is_same=False)
        else:
            for nodes in same:
                yield from [_merged_siblings(nodes, is_same=True)] if len(nodes) >= _SAME_FROM else nodes


def _family(child: Numbered) -> tuple[str | None, int]:
    """Return the part of the name before the number, ``None`` if there is no number, and what is alike."""
    node, _, alike = child
    found = _NUMBERED.fullmatch(node.name)
    return (found[1] if found else None), alike


def _merged_siblings(nodes: Sequence[Node], *, is_same: bool) -> Node:
    merged = _merged(nodes)
    numbers = [found[2] for node in nodes if (found := _NUMBERED.fullmatch(node.name))]
    prefix = nodes[0].name.removesuffix(numbers[0])
    follows = int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1
    merged.name = f"{prefix}{numbers[0]}{'-' if follows else '...'}{numbers[-1]}"
    merged.copies, merged.is_same = len(nodes), is_same
    return merged


def _merged(nodes: Sequence[Node]) -> Node:
    """Return one node for several that are alike: it counts what they count, and has no elements of its own to show."""
    first = nodes[0]
    inner = zip(*(node.children.values() for node in nodes), strict=True)
    merged = replace(first, children={name: _merged(parts) for name, parts in zip(first.children, inner, strict=True)})
    _sum_up(merged, nodes)
    return merged
