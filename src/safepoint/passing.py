"""An iteration over a ``DataLoader`` begun again: in the order that it had, after the batches that were trained on.

What the order follows from is put back as it was when the iteration began: the global generators, those that the
loader, its samplers and its dataset have, and a sampler's own state. Then the samplers draw the indices of the first
batches for nothing. No data is loaded for these, unless nobody but the loader itself knows where it is.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from safepoint.randomness import Generator, has_rng_state, is_generator, rng_state, set_rng_state

_MOST_GENERATORS = 64
_PASSING = "_safepoint_passing"

Begin = Callable[[], Iterator[Any]]
"""Begins an iteration of a loader, as ``iter(loader)`` does."""


def beginning(loader: DataLoader[Any], *, has_workers: bool) -> dict[str, Any]:
    """Return what the order of an iteration follows from that begins now: ``began``.

    ``has_workers``: it is not the first of a loader with persistent workers, which are drawn for at the first.
    """
    return {
        "rng": rng_state(),
        "generators": generator_states(loader),
        "sampler": sampler_state(loader)[0],
        "has_workers": has_workers,
    }


def is_beginning(began: object) -> bool:
    """Tell whether ``began`` is what ``beginning`` returns."""
    return (
        isinstance(began, dict)
        and began.keys() >= {"rng", "generators", "sampler", "has_workers"}
        and has_rng_state(began["rng"])
        and are_generator_states(began["generators"])
    )


def begun_again(loader: DataLoader[Any], begin: Begin, began: Mapping[str, Any], batches: int) -> Iterator[Any]:
    """Return the iteration that ``began``, without its first ``batches``; all generators are left as it leaves them."""
    with _passing_over(loader) as passing:
        if began["has_workers"] and keeps_workers(loader):
            begin()  # makes the workers, once
            passing.last = None
        set_rng_state(began["rng"])
        put_back(loader, began)
        passing.batches = batches
        inner = begin()
        if began.get("is_late"):
            set_rng_state(began["rng"])
            put_back(loader, began)
        fetches = isinstance(loader.dataset, IterableDataset) or passing.last is None  # no sampler was asked yet
    if fetches:
        _drop(inner, batches)
    return inner


@contextmanager
def generators_kept(loader: DataLoader[Any]) -> Iterator[None]:
    """Give all generators, those of ``loader`` too, back what they have now."""
    now, own = rng_state(), generator_states(loader)
    try:
        yield
    finally:
        set_rng_state(now)
        for generator, state in zip(_generators(loader), own, strict=True):
            generator.load_state_dict(state)


def put_back(loader: DataLoader[Any], state: Mapping[str, Any]) -> None:
    """Put the generators that belong to ``loader``, and its sampler, back to ``state``."""
    for generator, saved in zip(_generators(loader), state["generators"], strict=False):
        generator.load_state_dict(saved)
    for sampler in _stateful_samplers(loader):
        if state["sampler"] is not None:
            sampler.load_state_dict(state["sampler"])


def generator_states(loader: DataLoader[Any]) -> list[Any]:
    """Return the states of the generators that belong to ``loader``, besides the global ones."""
    return [generator.state_dict() for generator in _generators(loader)]


def are_generator_states(states: object) -> bool:
    """Tell whether ``states`` may be what ``generator_states`` returns."""
    return isinstance(states, list) and len(states) <= _MOST_GENERATORS


def do_generators_take(loader: DataLoader[Any], states: Iterable[Any]) -> bool:
    """Tell whether the generators that belong to ``loader`` can be put back to ``states``."""
    pairs = zip(_generators(loader), states, strict=False)
    return all(generator.difference(state) is None for generator, state in pairs)


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


def kinds_of_samplers(loader: DataLoader[Any]) -> list[str]:
    """Return by which classes, and how, ``loader`` orders its samples."""
    names = [f"{type(sampler).__module__}.{type(sampler).__qualname__}" for sampler in _samplers(loader)]
    return [*names, *(["drop_last"] if loader.drop_last else [])]


def is_stateful(target: Any) -> bool:
    """Tell whether ``target`` keeps a state itself."""
    return callable(getattr(target, "state_dict", None)) and callable(getattr(target, "load_state_dict", None))


def keeps_workers(loader: DataLoader[Any]) -> bool:
    """Tell whether the workers of ``loader`` outlive an iteration."""
    return bool(loader.persistent_workers and loader.num_workers)


class _Passing:
    """How many ``batches`` an iteration that begins now passes over, and what ``last`` was asked for indices."""

    def __init__(self) -> None:
        self.batches = 0
        self.last: _Drawing | None = None


@contextmanager
def _passing_over(loader: DataLoader[Any]) -> Iterator[_Passing]:
    """Let an iteration that begins within pass over as many batches as are set by then."""
    passing = _Passing()
    before: Any = type(loader)
    loader.__class__ = _passed(before)
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

    def __init__(self, sampler: Any, passing: _Passing) -> None:
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
        _drop(self._indices, self._batches)
        self._batches = 0


def _drop(iterator: Iterator[Any], count: int) -> None:
    """Take ``count`` from ``iterator``, or all that it has: a file may name any number."""
    for _ in itertools.islice(iterator, count):
        pass


@functools.cache
def _passed(base: type[Any]) -> type[Any]:
    """Return a class below ``base`` whose samplers stand behind a ``_Passing``."""

    class Passed(base):  # type: ignore[misc]
        @property
        def batch_sampler(self) -> Any:
            found = vars(self)["batch_sampler"]
            return None if found is None else _Passed(found, vars(self)[_PASSING])

        @property
        def sampler(self) -> Any:
            found = vars(self)["sampler"]
            return found if vars(self)["batch_sampler"] is not None else _Passed(found, vars(self)[_PASSING])

    return Passed


def _samplers(loader: DataLoader[Any]) -> tuple[Any, ...]:
    """Return the samplers that ``loader`` draws from, each before those that it draws from itself."""
    own = vars(loader)  # and not what stands before them
    return _with_inner((own.get("batch_sampler"), own.get("sampler")), Sampler)


def _with_inner(roots: Iterable[Any], kind: type[Any]) -> tuple[Any, ...]:
    """Return ``roots``, and what of ``kind`` is in their attributes, and in those of these."""
    found: dict[int, Any] = {}
    pending = [root for root in roots if root is not None][::-1]
    while pending:
        each = pending.pop()
        if id(each) not in found:
            found[id(each)] = each
            held_by = getattr(each, "__dict__", {}).values()
            pending += [value for held in held_by for value in _flat(held) if isinstance(value, kind)][::-1]
    return tuple(found.values())


def _flat(held: Any) -> Iterable[Any]:
    return held if isinstance(held, list | tuple) and len(held) <= _MOST_GENERATORS else (held,)


def _stateful_samplers(loader: DataLoader[Any]) -> tuple[Any, ...]:
    """Return the sampler of ``loader`` that has a state of its own, if one has; a stateful loader sees to it itself."""
    if is_stateful(loader):
        return ()
    return tuple(sampler for sampler in _samplers(loader) if is_stateful(sampler))[:1]


def _generators(loader: DataLoader[Any]) -> tuple[Generator, ...]:
    """Return the generators that ``loader``, its samplers and its dataset have."""
    holders = (loader, *_samplers(loader), *_with_inner((loader.dataset,), Dataset))
    held = (value for each in holders if hasattr(each, "__dict__") for value in vars(each).values())
    found = {id(each): each for each in held if is_generator(each)}
    return tuple(map(Generator, found.values()))[:_MOST_GENERATORS]
