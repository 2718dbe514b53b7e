"""The position of a ``DataLoader``: how far training has come in it, and going on from there.

An epoch's order follows from the random generators, and the sampler's own state, at the moment when its iteration
begins. Both are noted then. To go on, they are put back as they were, the iteration is begun anew, as many batches as
were trained on are passed over (their indices only: no data is loaded), and the generators get back what they had. So
the order is the same with any sampler that draws from the generators or has a ``state_dict()``, workers or none.

A loader tells nobody how many batches it has handed out, so that one that is followed gets a class of its own, below
the one that it had, which counts. Knows torch's loaders; knows no file.
"""

from __future__ import annotations

import functools
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from safepoint.randomness import has_rng_state, rng_state, set_rng_state
from safepoint.workers import begun

_MOST = 1 << 48
_MOST_GENERATORS = 4
_KEYS = frozenset(
    ("batches", "began", "is_marked", "is_over", "has_workers", "generators", "sampler", "length", "batch_size", "own")
)

Begin = Callable[[], Iterator[Any]]
"""Begins an iteration of a loader, as ``iter(loader)`` does."""


class Position:
    """Follow ``loader``, whose iterations are counted from now on; its state is how far training has come in it.

    ``mark()`` says that what has been handed out so far is trained on: what is handed out later is not, and comes again
    after a restore. Where nothing is ever marked, all counts that has been handed out.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self._iteration: Callable[[], _Iteration | None] = _nothing
        self._began: dict[str, Any] | None = None
        self._marked: int | None = None
        self._has_workers = False
        self._resume: dict[str, Any] | None = None
        if not hasattr(type(loader), _POSITION):
            kind: Any = type(loader)
            loader.__class__ = _followed(kind)
        vars(loader)[_POSITION] = weakref.ref(
            self
        )  # workers that persist end with the loader, and not a collection later

    def release(self) -> None:
        """Give the loader back the class that it had, if this is what follows it."""
        found = vars(self.loader).get(_POSITION)
        if found is not None and found() is self:
            del vars(self.loader)[_POSITION]
            self.loader.__class__ = type(self.loader).__base__

    def mark(self) -> None:
        """Take note that everything handed out so far has been trained on."""
        iteration = self._open()
        self._marked = 0 if iteration is None else iteration.count
        if iteration is None and self._resume is None:
            self._began = None

    def end_epoch(self) -> None:
        """Take note that the epoch is over: the next iteration begins anew, unless one is still going on."""
        if self._open() is None:
            self.mark()
            if self._resume is not None:  # restored at the end of an epoch that was not said to be over
                self._resume = {**self._resume, "began": None, "batches": 0, "is_over": False}

    @property
    def inexact(self) -> str | None:
        """What cannot be put back exactly, whatever is done; ``None`` if all can."""
        if is_stateful(self.loader):
            return None
        if isinstance(self.loader.dataset, IterableDataset):
            return (
                f"its {type(self.loader.dataset).__name__} is iterable and tells no position: what was trained on is "
                "read again and passed over, which is exact only if it comes in the same order; torchdata's "
                "StatefulDataLoader goes on where a dataset with a state_dict() was"
            )
        _, problem = sampler_state(self.loader)
        return None if problem is None else f"its sampler's state cannot be saved, and its order may change: {problem}"

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain values and tensors."""
        if self._resume is not None:  # restored, and not gone on with yet
            return self._resume
        iteration = self._iteration()
        if self._marked is not None:
            batches = self._marked
        else:
            batches = iteration.count if iteration is not None and iteration.is_open else 0
        return {
            "batches": batches,
            "began": self._began if batches else None,
            "is_marked": self._marked is not None,
            "is_over": bool(batches) and self._open() is None,
            "has_workers": self._has_workers,
            "generators": _states_of_generators(self.loader),
            "sampler": sampler_state(self.loader)[0],
            "length": _length(self.loader),
            "batch_size": self.loader.batch_size,
            "own": self.loader.state_dict() if is_stateful(self.loader) else None,  # type: ignore[attr-defined]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state`` with the next iteration.

        Raises:
            ValueError: ``state`` is not what ``state_dict`` returns.

        """
        if (problem := problem_of(state)) is not None:
            raise ValueError(problem)
        _put_back(self.loader, state)
        if is_stateful(self.loader) and state["own"] is not None:
            self.loader.load_state_dict(state["own"])  # type: ignore[attr-defined]
        self._iteration, self._began, self._resume = _nothing, None, state
        self._marked = 0 if state["is_marked"] else None

    def changed(self, state: dict[str, Any]) -> str | None:
        """Return in which way the loader is another than the one whose ``state`` was saved; ``None`` if it is not."""
        told = []
        if (here := _length(self.loader)) != (saved := state["length"]):
            told.append(f"its dataset has {here} samples here, and had {saved}")
        if (here := self.loader.batch_size) != (saved := state["batch_size"]):
            told.append(f"its batches are of {here} here, and were of {saved}")
        sampler, before = sampler_state(self.loader)[0], state["sampler"]
        if isinstance(sampler, dict) and isinstance(before, dict):
            if (here := sampler.get("replicas")) != (saved := before.get("replicas")):
                told.append(f"{here} processes share its samples here, and {saved} did")
        elif (sampler is None) is not (before is None):
            told.append("its sampler has a state in one of the two places only")
        if is_stateful(self.loader) is (state["own"] is None):
            told.append(f"a {type(self.loader).__name__} keeps its position in another way than what was saved")
        return "; ".join(told) or None

    def iterate(self, begin: Begin) -> _Iteration:
        """Return the next iteration, which ``begin`` begins."""
        state, self._resume = self._resume, None
        begins = _nothing
        if state is not None and state["own"] is not None and is_stateful(self.loader):
            inner, count = self._own_way_on(begin, state)
        elif state is not None and state["began"] is not None:
            self._began, count = state["began"], state["batches"]
            with generators_kept(self.loader):
                inner = begun_again(self.loader, begin, state["began"], self._batches_before(state))
        else:
            began = self._began = beginning(
                self.loader, has_workers=bool(self._has_workers or (state or {}).get("has_workers"))
            )
            if not self.loader.num_workers and not isinstance(self.loader.dataset, IterableDataset):
                begins = functools.partial(self._note_late, began)  # nothing asks for indices before
            if self._began["has_workers"] and not self._has_workers:
                with generators_kept(self.loader):
                    begin()
            inner, count = begin(), 0
        self._has_workers = keeps_workers(self.loader)
        iteration = _Iteration(inner, count, begins)
        self._marked = None if self._marked is None else count
        self._iteration = weakref.ref(iteration)
        return iteration

    def _note_late(self, began: dict[str, Any]) -> None:
        """Note that an iteration begins to draw indices now: others may have drawn since it was asked for."""
        began |= {**beginning(self.loader, has_workers=began["has_workers"]), "is_late": True}

    def _own_way_on(self, begin: Begin, state: dict[str, Any]) -> tuple[Iterator[Any], int]:
        """Go on with a loader that keeps its position itself, and draws nothing for that."""
        with generators_kept(self.loader):
            self.loader.state_dict()  # type: ignore[attr-defined]  # makes its iterator, which draws
        if state["is_over"]:  # it would begin the next epoch
            self._resume = {**state, "began": None, "batches": 0, "is_over": False}
            return iter(()), state["batches"]
        self._began = state["began"] or beginning(self.loader, has_workers=bool(state["has_workers"]))
        return begin(), state["batches"]

    def _batches_before(self, state: Mapping[str, Any]) -> int:
        """Return how many batches of this loader's size hold what was trained on."""
        count: int = state["batches"]
        before, here = state["batch_size"], self.loader.batch_size
        return count * before // here if before and here else count

    def _open(self) -> _Iteration | None:
        iteration = self._iteration()
        return iteration if iteration is not None and iteration.is_open else None


class _Iteration:
    """Count what ``inner`` hands out, from ``count`` on; ``begins`` is called before the first."""

    def __init__(self, inner: Iterator[Any], count: int, begins: Callable[[], None]) -> None:
        self._inner = inner
        self._begins: Callable[[], None] | None = begins
        self.count = count
        self.is_open = True

    def __iter__(self) -> _Iteration:
        return self

    def __next__(self) -> Any:
        if self._begins is not None:
            self._begins()
            self._begins = None
        try:
            found = next(self._inner)
        except StopIteration:
            self.is_open = False
            raise
        self.count += 1
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
    if not _are_generators(state["generators"]):
        return "the states of its generators are none"
    began = state["began"]
    if began is not None and not (
        isinstance(began, dict)
        and began.keys() >= {"rng", "generators", "sampler", "has_workers"}
        and has_rng_state(began["rng"])
        and _are_generators(began["generators"])
    ):
        return "the random state of its beginning is none"
    return None


def beginning(loader: DataLoader[Any], *, has_workers: bool) -> dict[str, Any]:
    """Return what the order of an iteration follows from that begins now: ``began``.

    ``has_workers``: it is not the first of a loader with persistent workers, which are drawn for at the first.
    """
    return {
        "rng": rng_state(),
        "generators": _states_of_generators(loader),
        "sampler": sampler_state(loader)[0],
        "has_workers": has_workers,
    }


def begun_again(loader: DataLoader[Any], begin: Begin, began: Mapping[str, Any], batches: int) -> Iterator[Any]:
    """Return the iteration that ``began``, without its first ``batches``; all generators are left as it leaves them."""
    with passing_over(loader) as passing:
        if began["has_workers"] and keeps_workers(loader):
            begin()  # makes the workers, once
        set_rng_state(began["rng"])
        _put_back(loader, began)
        passing.batches = batches
        inner = begin()
        if began.get("is_late"):
            set_rng_state(began["rng"])
            _put_back(loader, began)
    for _ in range(batches if isinstance(loader.dataset, IterableDataset) else 0):
        next(inner, None)
    return inner


@contextmanager
def generators_kept(loader: DataLoader[Any]) -> Iterator[None]:
    """Give all generators, those of ``loader`` too, back what they have now."""
    now, own = rng_state(), _states_of_generators(loader)
    try:
        yield
    finally:
        set_rng_state(now)
        for generator, state in zip(_generators(loader), own, strict=True):
            generator.set_state(state)


class Passing:
    """How many ``batches`` an iteration that begins now passes over."""

    def __init__(self) -> None:
        self.batches = 0
        self.last: _Drawing | None = None

    def before(self, sampler: Any) -> _Passed:
        """Return ``sampler`` as one that passes over so many batches whenever it begins."""
        return _Passed(sampler, self)


@contextmanager
def passing_over(loader: DataLoader[Any]) -> Iterator[Passing]:
    """Let an iteration that begins within pass over as many batches as are set by then.

    Their indices are drawn, and no data is loaded; of an iterable dataset, nothing is passed over.
    """
    passing = Passing()
    before: Any = type(loader)
    loader.__class__ = _passing(before)
    vars(loader)[_PASSING] = passing
    try:
        yield passing
        if passing.last is not None:
            passing.last.pass_over()  # with the generators as they are now: no worker has asked for an index yet
    finally:
        passing.batches = 0  # workers that persist ask the same sampler again
        loader.__class__ = before
        del vars(loader)[_PASSING]


class _Passed:
    """Be ``sampler``, which passes over its first batches."""

    def __init__(self, sampler: Any, passing: Passing) -> None:
        self._sampler = sampler
        self._passing = passing

    def __iter__(self) -> Iterator[Any]:
        self._passing.last = _Drawing(iter(self._sampler), self._passing.batches)
        return self._passing.last

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


class _Drawing:
    """Draw from ``indices``, the first ``batches`` for nothing."""

    def __init__(self, indices: Iterator[Any], batches: int) -> None:
        self._indices = indices
        self._batches = batches

    def __iter__(self) -> _Drawing:
        return self

    def __next__(self) -> Any:
        self.pass_over()
        return next(self._indices)

    def pass_over(self) -> None:
        """Draw what is passed over, now."""
        while self._batches:
            self._batches -= 1
            next(self._indices, None)


_POSITION = "_safepoint_position"
_PASSING = "_safepoint_passing"


@functools.cache
def _followed(base: type[Any]) -> type[Any]:
    """Return a class below ``base`` whose iterations a ``Position`` counts."""

    class Followed(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            reference = vars(self).get(_POSITION)  # one that was made from another has none
            position: Position | None = None if reference is None else reference()
            begin: Begin = functools.partial(begun, self, super().__iter__)
            return begin() if position is None else position.iterate(begin)

    setattr(Followed, _POSITION, None)
    return _named_like(base, Followed)


@functools.cache
def _passing(base: type[Any]) -> type[Any]:
    """Return a class below ``base`` whose samplers stand behind a ``Passing``."""

    class Passed(base):  # type: ignore[misc]
        @property
        def batch_sampler(self) -> Any:
            found = vars(self)["batch_sampler"]
            return None if found is None else vars(self)[_PASSING].before(found)

        @property
        def sampler(self) -> Any:
            found = vars(self)["sampler"]
            return found if vars(self)["batch_sampler"] is not None else vars(self)[_PASSING].before(found)

    return _named_like(base, Passed)


def _named_like(base: type[Any], made: type[Any]) -> type[Any]:
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(made, name, getattr(base, name))
    return made


def keeps_workers(loader: DataLoader[Any]) -> bool:
    """Tell whether the workers of ``loader`` outlive an iteration."""
    return bool(loader.persistent_workers and loader.num_workers)


def sampler_state(loader: DataLoader[Any]) -> tuple[Any, str | None]:
    """Return the state of the sampler, ``None`` if it has none, and why it cannot be saved, if so."""
    for sampler in _stateful_samplers(loader):
        try:
            state = sampler.state_dict()
            pickle.dumps(state)
        except Exception as error:  # noqa: BLE001 - whatever somebody's own sampler raises
            return None, f"{type(sampler).__name__}: {error}"
        return state, None
    return None, None


def _nothing() -> None:
    return None


def _put_back(loader: DataLoader[Any], state: Mapping[str, Any]) -> None:
    """Put the loader's own generators and its sampler back to ``state``."""
    for generator, saved in zip(_generators(loader), state["generators"], strict=False):
        generator.set_state(saved)
    for sampler in _stateful_samplers(loader):
        if state["sampler"] is not None:
            sampler.load_state_dict(state["sampler"])


def is_stateful(target: Any) -> bool:
    """Tell whether ``target`` keeps a state itself."""
    return callable(getattr(target, "state_dict", None)) and callable(getattr(target, "load_state_dict", None))


def _samplers(loader: DataLoader[Any]) -> tuple[Any, ...]:
    own = vars(loader)  # and not what stands before them
    found = (own.get("batch_sampler"), getattr(own.get("batch_sampler"), "sampler", None), own.get("sampler"))
    return tuple({id(each): each for each in found if each is not None}.values())


def _stateful_samplers(loader: DataLoader[Any]) -> tuple[Any, ...]:
    """Return the sampler of ``loader`` that has a state of its own, if one has; a stateful loader sees to it itself."""
    if is_stateful(loader):
        return ()
    return tuple(sampler for sampler in _samplers(loader) if is_stateful(sampler))[:1]


def _generators(loader: DataLoader[Any]) -> tuple[torch.Generator, ...]:
    """Return the generators that ``loader`` and its samplers draw from, besides the global ones."""
    found = (getattr(each, "generator", None) for each in (loader, *_samplers(loader)))
    return tuple({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _states_of_generators(loader: DataLoader[Any]) -> list[torch.Tensor]:
    return [generator.get_state() for generator in _generators(loader)]


def _are_generators(states: Any) -> bool:
    if not isinstance(states, list) or len(states) > _MOST_GENERATORS:
        return False
    try:
        for state in states:
            torch.Generator().set_state(state)
    except Exception:  # noqa: BLE001 - torch raises what it likes
        return False
    return True


def _length(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
