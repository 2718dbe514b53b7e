"""How the tensors of two checkpoints differ: told from digests where both files have them, else by reading.

Decides; ``pairing`` says which tensor is compared with which, and ``values`` reads.
"""

from __future__ import annotations

import contextlib
import enum
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from safepoint.background import each
from safepoint.contents import Contents, Tensor
from safepoint.formats.dtypes import BITS
from safepoint.pairing import Pair, Pairing, paired

_META = "meta"
"""What the note of a tensor begins with that has no data anywhere."""


Chosen = Callable[[str], bool]
Reading = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""What shows that data is read: (what, how many bytes in all) -> a context, which is told how many further are done."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of each tensor from the first checkpoint to the second, in the order of the state.

    ``reshaped``: of another shape or dtype; ``moved``: the same elements under another path; ``uncompared``: of neither
    it can be told what its elements are. ``prefixes``: see ``pairing.Pairing``.
    """

    added: tuple[Tensor, ...]
    removed: tuple[Tensor, ...]
    moved: tuple[Pair, ...]
    reshaped: tuple[Pair, ...]
    changed: tuple[Pair, ...]
    same: tuple[Pair, ...]
    uncompared: tuple[Pair, ...]
    prefixes: tuple[str, str] | None

    def __bool__(self) -> bool:
        """Tell whether they differ, as far as can be told."""
        return any((self.added, self.removed, self.moved, self.reshaped, self.changed))


@contextlib.contextmanager
def unseen(what: str, size_bytes: int) -> Iterator[Callable[[int], object]]:  # noqa: ARG001 - others show it
    """Be the ``Reading`` that nobody sees."""
    yield lambda _: None


def everything(path: str) -> bool:  # noqa: ARG001 - others choose
    """Choose every path."""
    return True


class Verdict(enum.Enum):
    """Name what can be said of two tensors of one shape and dtype."""

    SAME = enum.auto()
    CHANGED = enum.auto()
    UNREAD = enum.auto()
    UNREADABLE = enum.auto()


def between(a: Contents, b: Contents, chosen: Chosen = everything, reading: Reading = unseen) -> Difference:
    """Return how the tensors of ``b`` differ from those of ``a``, of those that are ``chosen`` by either path.

    Elements are the same if their bytes are: NaN is itself, and 0 is not -0. What the files tell of their digests is
    believed; whether it holds is for ``safepoint verify`` to say.

    Raises:
        CheckpointError: elements have to be read, and cannot be.
        OSError: likewise.

    """
    pairing = _chosen(paired(a.tensors, b.tensors), chosen)
    reshaped = tuple(pair for pair in pairing.pairs if _kind(pair.a) != _kind(pair.b))
    alike = [pair for pair in pairing.pairs if _kind(pair.a) == _kind(pair.b)]
    verdicts = _verdicts(alike, _above(a.tensors), reading)
    moved = tuple(_moved(pairing.removed, pairing.added, reading))
    gone = {id(tensor) for pair in moved for tensor in pair}

    def which(verdict: Verdict) -> tuple[Pair, ...]:
        return tuple(pair for pair, found in zip(alike, verdicts, strict=True) if found is verdict)

    return Difference(
        added=tuple(tensor for tensor in pairing.added if id(tensor) not in gone),
        removed=tuple(tensor for tensor in pairing.removed if id(tensor) not in gone),
        moved=moved,
        reshaped=reshaped,
        changed=which(Verdict.CHANGED),
        same=which(Verdict.SAME),
        uncompared=which(Verdict.UNREADABLE),
        prefixes=pairing.prefixes,
    )


def told(pair: Pair, made_of_others: frozenset[str] = frozenset()) -> Verdict:
    """Return what the files tell of two tensors of one shape and dtype, without a look at their data.

    ``made_of_others``: the paths of tensors that are compared by the ones that they are made of.
    """
    a, b = pair
    if not a.parts or not b.parts:
        if a.parts or b.parts or a.note != b.note:
            return Verdict.CHANGED
        is_told = a.note.startswith(_META) or a.path in made_of_others
        return Verdict.SAME if is_told else Verdict.UNREADABLE
    if not a.count or a.parts == b.parts:
        return Verdict.SAME
    return Verdict.UNREAD if len(a.parts) > 1 or len(b.parts) > 1 else _told_of_storages(a, b)


def _told_of_storages(a: Tensor, b: Tensor) -> Verdict:
    left, right = a.parts[0], b.parts[0]
    one, other = left.storage, right.storage
    are_whole = _is_whole(a) and _is_whole(b)
    are_placed_alike = left.offset == right.offset and left.strides == right.strides
    if one.is_little is not other.is_little:
        return Verdict.UNREAD
    if one.digest and one.digest == other.digest and (are_whole or are_placed_alike):
        return Verdict.SAME
    if are_whole and (_contradict(one.digest, other.digest) or _contradict(one.crc, other.crc)):
        return Verdict.CHANGED
    return Verdict.UNREAD


def _contradict(a: str | int | None, b: str | int | None) -> bool:
    return a not in {"", None} and b not in {"", None} and a != b


def _is_whole(tensor: Tensor) -> bool:
    """Tell whether a tensor of one part is all of its storage, in order."""
    (part,) = tensor.parts
    bits = tensor.count * BITS.get(tensor.dtype, 0)
    return part.is_in_order and part.offset == 0 and part.storage.size_bytes * 8 == bits


def _kind(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _above(tensors: Iterable[Tensor]) -> frozenset[str]:
    """Return every path that others lie below."""
    found: set[str] = set()
    for tensor in tensors:
        path = tensor.path
        while (path := path.rpartition(".")[0]) and path not in found:
            found.add(path)
    return frozenset(found)


def _chosen(pairing: Pairing, chosen: Chosen) -> Pairing:
    return pairing._replace(
        pairs=tuple(pair for pair in pairing.pairs if chosen(pair.a.path) or chosen(pair.b.path)),
        removed=tuple(tensor for tensor in pairing.removed if chosen(tensor.path)),
        added=tuple(tensor for tensor in pairing.added if chosen(tensor.path)),
    )


def to_be_read(pairs: Iterable[Iterable[Tensor]]) -> int:
    """Return how many bytes the tensors in ``pairs`` have together."""
    return sum(tensor.count * BITS.get(tensor.dtype, 0) // 8 for pair in pairs for tensor in pair)


def _verdicts(pairs: Sequence[Pair], made_of_others: frozenset[str], reading: Reading) -> list[Verdict]:
    """Return the verdict on each pair; where the files do not tell, their data is read and compared."""
    verdicts = [told(pair, made_of_others) for pair in pairs]
    unread = [index for index, verdict in enumerate(verdicts) if verdict is Verdict.UNREAD]
    if unread:
        from safepoint.values import equal

        def is_same(index: int) -> bool:
            return equal(*pairs[index])

        with reading("comparing", to_be_read(pairs[index] for index in unread)) as advance:
            for index, same in zip(unread, each("diff", is_same, unread), strict=True):
                verdicts[index] = Verdict.SAME if same else Verdict.CHANGED
                advance(to_be_read([pairs[index]]))
    return verdicts


def _moved(removed: Sequence[Tensor], added: Sequence[Tensor], reading: Reading) -> Iterator[Pair]:
    """Yield each of ``removed`` whose very elements are in one of ``added``, with that one.

    Of several with the same elements, those with the same last name come first, and the order of the state decides; a
    single number is no proof without that name. Only what may be one of the others is read.
    """
    shared = {_kind(tensor) for tensor in removed} & {_kind(tensor) for tensor in added}
    first, second = ([t for t in side if _kind(t) in shared and t.parts] for side in (removed, added))
    digests = _digests([*first, *second], reading)
    for key in (lambda t: (_kind(t), digests[id(t)], _name(t)), lambda t: (_kind(t), digests[id(t)], "")):
        pairs = list(_matched(first, second, key))
        yield from pairs
        taken = {id(tensor) for pair in pairs for tensor in pair}
        first, second = ([t for t in side if id(t) not in taken and t.count > 1] for side in (first, second))


def _matched(first: Iterable[Tensor], second: Sequence[Tensor], key: Callable[[Tensor], Hashable]) -> Iterator[Pair]:
    """Yield each of ``first`` with the next of ``second`` that has the same key."""
    there: dict[Hashable, list[Tensor]] = defaultdict(list)
    for tensor in reversed(second):
        there[key(tensor)].append(tensor)
    for tensor in first:
        if left := there.get(key(tensor)):
            yield Pair(tensor, left.pop())


def _name(tensor: Tensor) -> str:
    return tensor.path.rpartition(".")[2]


def _digests(tensors: Sequence[Tensor], reading: Reading) -> dict[int, str]:
    """Return the digest of the elements of each, by its identity: as its file tells it, or read."""
    found = {id(tensor): _told_digest(tensor) for tensor in tensors}
    unread = [tensor for tensor in tensors if not found[id(tensor)]]
    if unread:
        from safepoint.values import digest

        with reading("looking for moved ones", to_be_read([unread])) as advance:
            for tensor, own in zip(unread, each("diff", digest, unread), strict=True):
                found[id(tensor)] = own
                advance(to_be_read([[tensor]]))
    return found


def _told_digest(tensor: Tensor) -> str:
    is_told = len(tensor.parts) == 1 and tensor.parts[0].storage.is_little and _is_whole(tensor)
    return tensor.parts[0].storage.digest if is_told else ""
