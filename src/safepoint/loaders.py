"""The position of a ``DataLoader``: how far training has come in it, and going on from there.

An epoch's order follows from the random generators, and the sampler's own state, at the moment when its iteration
begins. Both are noted then, and what is handed out is counted. To go on, the iteration is begun again behind what was
trained on (``passing``), and the generators get back what they had. So the order is the same with any sampler that
draws from generators or has a ``state_dict()``, workers or none.

A loader tells nobody how many batches it has handed out, so that one that is followed gets a class of its own, below
the one that it had, which counts. Knows torch's loaders; knows no file.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from safepoint.passing import (
    Begin,
    are_generator_states,
    beginning,
    begun_again,
    do_generators_take,
    generator_states,
    generators_kept,
    is_beginning,
    is_stateful,
    keeps_workers,
    kinds_of_samplers,
    put_back,
    sampler_state,
)
from safepoint.workers import begun

_MOST = 1 << 48
_KEYS = frozenset(
    (
        "batches",
        "began",
        "is_marked",
        "is_over",
        "has_workers",
        "generators",
        "sampler",
        "kinds",
        "length",
        "batch_size",
        "own",
    )
)
_POSITION = "_safepoint_position"


class Position:
    """Follow ``loader``, whose iterations are counted from now on; its state is how far training has come in it.

    ``mark()`` says that what has been handed out so far is trained on: what is handed out later is not, and comes again
    after a restore. Where nothing is ever marked, all counts that has been handed out. Of several iterations the
    newest counts that is not over.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self._iterations: list[weakref.ref[_Iteration]] = []
        self._trained: _Tally | None = None
        self._is_marked = False
        self._has_workers = False
        self._resume: dict[str, Any] | None = None
        self._resumed: _Tally | None = None
        if not hasattr(type(loader), _POSITION):
            kind: Any = type(loader)
            loader.__class__ = _followed(kind)
        # Weak, so that workers that persist end with the loader, and not at a collection later.
        vars(loader)[_POSITION] = weakref.ref(self)

    def release(self) -> None:
        """Give the loader back the class that it had, if this is what follows it."""
        found = vars(self.loader).get(_POSITION)
        if found is not None and found() is self:
            del vars(self.loader)[_POSITION]
            self.loader.__class__ = type(self.loader).__base__

    def mark(self) -> None:
        """Take note that everything handed out so far has been trained on.

        Where the loader has just come to its end, a step may still be made of what it has handed out last.
        """
        self._is_marked = True
        if (tally := self._open()) is not None:
            self._trained, self._resume = tally, None
        if self._trained is not None:
            self._trained.marked = self._trained.count

    def end_epoch(self) -> None:
        """Take note that the epoch is over: the next iteration begins anew, unless one is still going on."""
        if self._open() is not None:
            return
        self._trained = None
        if self._resume is not None and self._resumed is None:  # not gone on with yet
            self._resume = {**self._resume, "began": None, "batches": 0, "is_over": False}
        else:
            self._resume = None

    @property
    def inexact(self) -> str | None:
        """What cannot be put back exactly, whatever is done; ``None`` if all can."""
        loader, again = self.loader, "what was trained on is read again and passed over, which is exact only if"
        if is_stateful(loader):
            return None
        if isinstance(loader.dataset, IterableDataset):
            return (
                f"its {type(loader.dataset).__name__} is iterable and tells no position: {again} it comes in the same "
                "order; torchdata's StatefulDataLoader goes on where a dataset with a state_dict() was"
            )
        if loader.num_workers and not getattr(loader, "in_order", True):
            return "with in_order=False, nobody can tell which of its batches have been trained on"
        if not _iterates_as_torch(loader):
            return f"{type(loader).__name__} has an __iter__ of its own: {again} that begins anew each time"
        _, problem = sampler_state(loader)
        return None if problem is None else f"its sampler's state cannot be saved, and its order may change: {problem}"

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain values and tensors."""
        if self._resume is not None:  # restored, and not trained on with yet
            return self._resume
        tally = self._trained if self._is_marked else self._open()
        batches = 0 if tally is None else tally.marked if self._is_marked else tally.count
        return {
            "batches": batches,
            "began": tally.began if tally is not None and batches else None,
            "is_marked": self._is_marked,
            "is_over": bool(batches) and tally is not None and tally.is_over,
            "has_workers": self._has_workers,
            "generators": generator_states(self.loader),
            "sampler": sampler_state(self.loader)[0],
            "kinds": kinds_of_samplers(self.loader),
            "length": _length(self.loader),
            "batch_size": self.loader.batch_size,
            "own": self.loader.state_dict() if is_stateful(self.loader) else None,  # type: ignore[attr-defined]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state`` with the next iteration. One that is going on stays where it is.

        Raises:
            ValueError: ``state`` is not what ``state_dict`` returns.

        """
        if (problem := self.problem(state)) is not None:
            raise ValueError(problem)
        put_back(self.loader, state)
        if is_stateful(self.loader) and state["own"] is not None:
            self.loader.load_state_dict(state["own"])  # type: ignore[attr-defined]
        self._iterations, self._trained, self._resumed, self._resume = [], None, None, state
        self._is_marked = state["is_marked"]

    def problem(self, state: Any) -> str | None:
        """Return why ``state`` is not the position of such a loader, ``None`` if it is."""
        found = problem_of(state)
        if found is not None:
            return found
        states = [state["generators"], *([state["began"]["generators"]] if state["began"] is not None else [])]
        takes = all(do_generators_take(self.loader, each) for each in states)
        return None if takes else "the states of its generators are none"

    def changed(self, state: dict[str, Any]) -> str | None:
        """Return why the next iteration will not go on exactly from ``state``; ``None`` if it will."""
        told = []
        if (here := _length(self.loader)) != (saved := state["length"]):
            told.append(f"its dataset has {here} samples here, and had {saved}")
        if (here := self.loader.batch_size) != (saved := state["batch_size"]):
            told.append(f"its batches are of {here} here, and were of {saved}")
        if (kinds := kinds_of_samplers(self.loader)) != state["kinds"]:
            told.append(f"its samples are ordered by {_listed(kinds)} here, and were by {_listed(state['kinds'])}")
        sampler, before = sampler_state(self.loader)[0], state["sampler"]
        shares = [each.get("replicas") for each in (sampler, before) if isinstance(each, dict)]
        if len(set(shares)) > 1:
            told.append(f"{shares[0]} processes share its samples here, and {shares[1]} did")
        if len(generator_states(self.loader)) != len(state["generators"]):
            told.append("it has another number of random generators than it had")
        if is_stateful(self.loader) is (state["own"] is None):
            told.append(f"a {type(self.loader).__name__} keeps its position in another way than what was saved")
        return "; ".join(told) or None

    @property
    def is_going_on(self) -> bool:
        """Whether an iteration is going on, which no ``load_state_dict`` moves."""
        return self._open() is not None

    def iterate(self, begin: Begin) -> Iterator[Any]:
        """Return the next iteration, which ``begin`` begins."""
        self._iterations = [each for each in self._iterations if each() is not None]
        if self._resumed is not None and (self._resumed.is_exhausted or not self._is_marked):
            self._resume = None  # else nothing has been trained on since: somebody has only looked at a batch
        state = self._resume
        begins_late = False
        if state is not None and state["own"] is not None and is_stateful(self.loader):
            inner, tally = self._own_way_on(begin, state)
        elif state is not None and state["began"] is not None:
            tally = _Tally(state["began"], state["batches"])
            with generators_kept(self.loader):
                inner = begun_again(self.loader, begin, state["began"], self._batches_before(state))
        else:
            has_workers = bool(self._has_workers or (state or {}).get("has_workers"))
            tally = _Tally(beginning(self.loader, has_workers=has_workers))
            begins_late = not self.loader.num_workers and not isinstance(self.loader.dataset, IterableDataset)
            if has_workers and not self._has_workers:
                with generators_kept(self.loader):
                    begin()
            inner = begin()
        self._has_workers = keeps_workers(self.loader)
        iteration = _Iteration(inner, tally, self.loader if begins_late else None)
        self._iterations.append(weakref.ref(iteration))
        self._begin(tally, is_resumed=state is not None)
        return iteration

    def _begin(self, tally: _Tally, *, is_resumed: bool) -> None:
        if self._trained is not None and not self._is_going_on(self._trained):
            self._trained = None  # the epoch before is over, whether somebody has said so or not
        if is_resumed:
            self._resumed = tally
            self._resume = self._resume if self._is_marked else None

    def _own_way_on(self, begin: Begin, state: dict[str, Any]) -> tuple[Iterator[Any], _Tally]:
        """Go on with a loader that keeps its position itself, and draws nothing for that."""
        with generators_kept(self.loader):
            self.loader.state_dict()  # type: ignore[attr-defined]  # makes its iterator, which draws
        began = state["began"] or beginning(self.loader, has_workers=bool(state["has_workers"]))
        tally = _Tally(began, state["batches"])
        return iter(()) if state["is_over"] else begin(), tally  # over, it would begin the next epoch

    def _batches_before(self, state: Mapping[str, Any]) -> int:
        """Return how many batches of this loader's size hold what was trained on."""
        count: int = state["batches"]
        return count * (state["batch_size"] or 1) // (self.loader.batch_size or 1)

    def _open(self) -> _Tally | None:
        """Return the newest iteration that is not over: neither at its end, nor given up by who had begun it."""
        alive = (each() for each in reversed(self._iterations))
        return next((each.tally for each in alive if each is not None and not each.tally.is_exhausted), None)

    def _is_going_on(self, tally: _Tally) -> bool:
        alive = [each() for each in self._iterations]
        return any(each is not None and each.tally is tally for each in alive) and not tally.is_exhausted


def follow(loader: DataLoader[Any]) -> Position:
    """Return what follows ``loader``: the same for all who ask, as long as one of them is there."""
    found = vars(loader).get(_POSITION)
    position: Position | None = None if found is None else found()
    return position if position is not None and position.loader is loader else Position(loader)


class _Tally:
    """What an iteration ``began`` with, how many batches it has handed out, and how many of them are trained on."""

    def __init__(self, began: dict[str, Any], count: int = 0) -> None:
        self.began = began
        self.count = self.marked = count
        self.is_exhausted = False

    @property
    def is_over(self) -> bool:
        """Whether all that it hands out is trained on."""
        return self.is_exhausted and self.marked == self.count


class _Iteration:
    """Count what ``inner`` hands out; of a ``loader`` whose order is drawn late, note what it is drawn from, then."""

    def __init__(self, inner: Iterator[Any], tally: _Tally, loader: DataLoader[Any] | None) -> None:
        self._inner = inner
        self._loader = loader
        self.tally = tally

    def __iter__(self) -> _Iteration:
        return self

    def __next__(self) -> Any:
        if self._loader is not None:  # others may have drawn since the iteration was asked for
            began = self.tally.began
            began |= {**beginning(self._loader, has_workers=began["has_workers"]), "is_late": True}
            self._loader = None
        try:
            found = next(self._inner)
        except StopIteration:
            self.tally.is_exhausted = True
            raise
        self.tally.count += 1
        return found

    def __len__(self) -> int:
        return len(self._inner)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def problem_of(state: Any) -> str | None:
    """Return why ``state`` is not the position of a loader, ``None`` if it is."""
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        return "it holds no position of a DataLoader"
    sizes = (state["batches"], *(state[key] for key in ("length", "batch_size") if state[key] is not None))
    if not all(type(size) is int and 0 <= size < _MOST for size in sizes):
        return "its counts are none"
    if not are_generator_states(state["generators"]):
        return "the states of its generators are none"
    if not isinstance(state["kinds"], list) or not all(isinstance(kind, str) for kind in state["kinds"]):
        return "its samplers are none"
    if state["began"] is not None and not is_beginning(state["began"]):
        return "the random state of its beginning is none"
    return None


@functools.cache
def _followed(base: type[Any]) -> type[Any]:
    """Return a class below ``base`` whose iterations a ``Position`` counts."""

    class Followed(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            found = vars(self).get(_POSITION)
            position: Position | None = None if found is None else found()
            begin: Begin = functools.partial(begun, self, super().__iter__)
            followed = position is not None and position.loader is self  # and not a copy of it
            return position.iterate(begin) if position is not None and followed else begin()

        def __reduce_ex__(self, _: Any) -> Any:
            return _unfollowed, (base, {name: value for name, value in vars(self).items() if name != _POSITION})

    setattr(Followed, _POSITION, None)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Followed, name, getattr(base, name))
    return Followed


def _unfollowed(kind: Any, attributes: dict[str, Any]) -> Any:
    """Return a loader as it was before it was followed: what a copy of one is."""
    loader = object.__new__(kind)
    vars(loader).update(attributes)
    return loader


def _iterates_as_torch(loader: DataLoader[Any]) -> bool:
    """Tell whether ``loader`` begins its iterations by code of torch's, or of torchdata's."""
    below = next(kind for kind in type(loader).__mro__ if not hasattr(kind, _POSITION))
    return str(getattr(below.__iter__, "__module__", "")).startswith(("torch.", "torchdata."))  # type: ignore[attr-defined]


def _listed(names: list[str]) -> str:
    return ", ".join(name.rpartition(".")[2] for name in names) or "nothing"


def _length(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
