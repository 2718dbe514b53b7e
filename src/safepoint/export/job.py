"""From a checkpoint to a file of another kind: all that can be checked is, before anything is written.

Knows the order of what is done; the layouts are ``safetensors``'s and ``archive``'s, and the disk is ``writing``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safepoint import formats
from safepoint.contents import Tensor
from safepoint.errors import ConfigurationError, shortened
from safepoint.export import Dtype, Kind, tree, writing
from safepoint.export.archive import Archive
from safepoint.export.choice import Choice, beginnings
from safepoint.export.elements import Elements, Plan, item
from safepoint.export.modules import model_in
from safepoint.export.naming import named, prefix_of
from safepoint.export.pickled import refused
from safepoint.export.safetensors import Safetensors
from safepoint.export.writing import Origins

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: of which checkpoint what, under which names, as which kind, and where.

    ``keys`` and ``except_`` are patterns as of ``choice.Choice``; ``strip`` is what names begin with and shall not in
    the file; ``dtype`` is what floating-point tensors are converted to; ``replace``: whatever is called ``out``.
    """

    source: Path
    out: Path
    kind: Kind
    keys: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()
    strip: str = ""
    dtype: Dtype | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A file that can be written. ``tensors`` are those in it, by name.

    ``left_out``: under which paths there is what it has no place for. ``tied``: names under which it holds nothing,
    each with the one under which their tensor is in it.
    """

    order: Order
    origins: Origins
    plan: Plan
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)

    def dtype_of(self, tensor: Tensor) -> str:
        """Return the dtype that ``tensor`` has in the file."""
        return item(tensor, self.order.dtype).dtype

    def run(self, advance: Callable[[int], object] = lambda _: None) -> tuple[str, ...]:
        """Write the file; return the paths of tensors some of whose elements are out of the range of their new dtype.

        ``advance`` is told how many further bytes were made.

        Raises:
            DamagedCheckpointError: a tensor does not match its digest.
            CheckpointError: the checkpoint cannot be read to its end, or was replaced meanwhile.
            OSError: it cannot be read, or the file not be written. Whatever is raised: nothing has been left behind.

        """
        elements = Elements()
        pieces, size_bytes = self.plan.pieces(elements), self.plan.size_bytes
        writing.write(self.order.out, pieces, size_bytes, self.origins, replace=self.order.replace, advance=advance)
        return tuple(elements.overflowed)


def prepared(order: Order) -> Job:
    """Return the job that does what ``order`` asks for; nothing on disk is touched before it is run.

    Raises:
        NotACheckpointError: as ``formats.contents`` does.
        ConfigurationError: something is asked for that cannot be done.
        CheckpointError: a tensor that is asked for cannot be read, or not be converted.
        OSError: the checkpoint cannot be read.

    """
    origins = Origins(order.source)
    contents = formats.contents(order.source)
    for path in {part.storage.path for tensor in contents.tensors for part in tensor.parts}:
        origins.add(path)
    writing.check_place(order.out, origins, replace=order.replace)
    job = _planned(order, origins, contents.tree)
    writing.check_room(order.out, job.plan.size_bytes)
    return job


def _planned(order: Order, origins: Origins, state: Any) -> Job:
    choice = Choice(order.keys, order.except_)
    found = list(tree.leaves(state))
    choice.check([path for path, _ in found])
    if order.kind is Kind.SAFETENSORS:
        return _as_safetensors(order, origins, found, choice)
    if order.kind is Kind.WEIGHTS:
        path, weights = model_in(state, choice)
        taken: Any = named(weights.items(), prefix_of(order.strip.removeprefix(f"{path}."), weights))
    else:
        chosen = tree.pruned(state, choice)
        taken = tree.stripped(chosen, prefix_of(order.strip, [path for path, _ in tree.leaves(chosen)]))
    _check_plain(taken)
    tensors = {path: value for path, value in tree.leaves(taken) if isinstance(value, Tensor)}
    return Job(order, origins, Archive(taken, order.dtype), tensors)


def _as_safetensors(order: Order, origins: Origins, found: list[tuple[str, Any]], choice: Choice) -> Job:
    tensors = [(path, value) for path, value in found if isinstance(value, Tensor)]
    chosen = [(path, value) for path, value in tensors if choice(path)]
    if not chosen:
        raise ConfigurationError(f"what is chosen of {order.source} holds no tensor: choose more with --keys.")
    by_name = named(chosen, prefix_of(order.strip, [path for path, _ in chosen]))
    plan = Safetensors(by_name, order.dtype)
    others = [path for path, value in found if not isinstance(value, Tensor) and choice(path)]
    return Job(order, origins, plan, by_name, _summed_up(others, [path for path, _ in tensors]), plan.tied)


def _summed_up(others: list[str], tensors: list[str]) -> tuple[str, ...]:
    """Return where ``others`` lie: the shortest paths below which there is none of ``tensors``."""
    above = {part for path in tensors for part in beginnings(path)}
    tops = ([part for part in beginnings(path) if part not in above] for path in others)
    return tuple(dict.fromkeys(parts[-1] for parts in tops if parts))


def _check_plain(state: Any) -> None:
    """Refuse values of classes that only their own code could make again."""
    others = list(refused(state))
    if others:
        raise ConfigurationError(
            f"only the code that made it could write this again: {_listed(others)}. Leave it out with --except "
            f"{others[0]!r}, or choose the rest with --keys."
        )


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(repr(shortened(path)) for path in paths[:_MOST_NAMED]) + more
