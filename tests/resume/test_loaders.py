"""A loader's position: whatever the sampler and the workers, the batches go on as if nothing had happened."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from safepoint import entries
from safepoint.data import ResumableSampler
from safepoint.errors import ConfigurationError
from safepoint.loaders import Position, follow, problem_of
from safepoint.randomness import rng_state, set_rng_state

SAMPLES = 23
EPOCHS = 3
BATCH = 4


class Numbers(Dataset[torch.Tensor]):
    """The numbers up to ``SAMPLES``."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index])


class Noisy(Numbers):
    """Numbers, each with one drawn at random from the generator of the process that loads it."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, int(torch.randint(0, 1000, (1,)))])


class Stream(IterableDataset[torch.Tensor]):
    """The numbers in an order that is drawn when the iteration begins."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.randperm(SAMPLES).unsqueeze(1))


class Turning(Sampler[int]):
    """A user's own sampler: it begins one further on in each epoch, and says so in its state."""

    def __init__(self) -> None:
        self.turn = 0

    def __iter__(self) -> Iterator[int]:
        first, self.turn = self.turn, self.turn + 1
        yield from ((first + index) % SAMPLES for index in range(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES

    def state_dict(self) -> dict[str, int]:
        """Return how far the next epoch is turned."""
        return {"turn": self.turn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Turn as in ``state``."""
        self.turn = state["turn"]


def seeded(seed: int) -> torch.Generator:
    """Return a generator of one's own."""
    return torch.Generator().manual_seed(seed)


def drawn_twice() -> Sampler[int]:
    """Return a sampler that draws with replacement, bit by bit."""
    return RandomSampler(Numbers(), replacement=True, num_samples=SAMPLES, generator=seeded(5))


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(Numbers(), BATCH),
    "shuffled": lambda: DataLoader(Numbers(), BATCH, shuffle=True),
    "drop_last": lambda: DataLoader(Numbers(), BATCH, shuffle=True, drop_last=True),
    "random data": lambda: DataLoader(Noisy(), BATCH, shuffle=True),
    "a generator": lambda: DataLoader(Numbers(), BATCH, shuffle=True, generator=seeded(3)),
    "a sampler's generator": lambda: DataLoader(Numbers(), BATCH, sampler=drawn_twice()),
    "weights": lambda: DataLoader(Numbers(), BATCH, sampler=WeightedRandomSampler([1.0] * SAMPLES, SAMPLES)),
    "ResumableSampler": lambda: DataLoader(Numbers(), BATCH, sampler=ResumableSampler(Numbers())),
    "a sampler with a state": lambda: DataLoader(Numbers(), BATCH, sampler=Turning()),
    "a batch sampler": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(Numbers()), BATCH, drop_last=False)
    ),
    "no batches": lambda: DataLoader(Numbers(), batch_size=None, shuffle=True),
    "a stream": lambda: DataLoader(Stream(), BATCH),
    "StatefulDataLoader": lambda: StatefulDataLoader(Numbers(), BATCH, shuffle=True),
}
WITH_WORKERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffled": lambda: DataLoader(Numbers(), BATCH, shuffle=True, num_workers=2),
    "a generator": lambda: DataLoader(Numbers(), BATCH, shuffle=True, num_workers=2, generator=seeded(3)),
    "persistent": lambda: DataLoader(Numbers(), BATCH, shuffle=True, num_workers=2, persistent_workers=True),
    "ResumableSampler": lambda: DataLoader(Numbers(), BATCH, sampler=ResumableSampler(Numbers()), num_workers=2),
    "StatefulDataLoader": lambda: StatefulDataLoader(Numbers(), BATCH, shuffle=True, num_workers=2),
    "persistent StatefulDataLoader": lambda: StatefulDataLoader(
        Numbers(), BATCH, shuffle=True, num_workers=2, persistent_workers=True
    ),
}
Stop = tuple[str, int]
Seen = list[tuple[int, list[int], float]]


def trained(make: Callable[[], DataLoader[Any]], stop: Stop | None = None, resumed: bytes = b"") -> Any:
    """Go through all epochs and return what was seen; or stop, and return what a checkpoint would hold."""
    torch.manual_seed(1)
    loader = make()
    position = Position(loader)
    torch.rand(3)
    seen: Seen = []
    first = 0
    if resumed:
        state, random, first, seen = pickle.loads(resumed)
        torch.manual_seed(999)
        position.load_state_dict(state)
        set_rng_state(random)
    for epoch in range(first, EPOCHS):
        for batch in loader:
            seen.append((epoch, batch.flatten().tolist(), float(torch.rand(1))))
            position.mark()
            if stop == ("step", len(seen)):
                return pickle.dumps((position.state_dict(), rng_state(), epoch, seen))
        if stop == ("all batches", epoch):
            return pickle.dumps((position.state_dict(), rng_state(), epoch, seen))
        position.end_epoch()
        if stop == ("epoch end", epoch):
            return pickle.dumps((position.state_dict(), rng_state(), epoch + 1, seen))
    return seen


def stops(whole: Seen, every: int) -> list[Stop]:
    """Return where to stop."""
    ends = [(kind, epoch) for kind in ("all batches", "epoch end") for epoch in range(EPOCHS)]
    return [("step", step) for step in range(1, len(whole) + 1, every)] + ends


@pytest.mark.parametrize("kind", LOADERS)
def test_every_stop(kind: str) -> None:
    """After a stop at any step or epoch's end, the same batches come, and the generators draw the same."""
    whole = trained(LOADERS[kind])
    assert len(whole) >= EPOCHS * (SAMPLES // BATCH)
    for stop in stops(whole, every=1 if len(whole) < SAMPLES else 5):
        assert trained(LOADERS[kind], resumed=trained(LOADERS[kind], stop)) == whole, stop


@pytest.mark.parametrize("kind", WITH_WORKERS)
def test_stops_with_workers(kind: str) -> None:
    """The same with two workers, which have fetched further batches by then."""
    whole = trained(WITH_WORKERS[kind])
    for stop in [("step", 2), ("step", 6), ("step", 9), ("all batches", 1), ("epoch end", 0), ("epoch end", 1)]:
        assert trained(WITH_WORKERS[kind], resumed=trained(WITH_WORKERS[kind], stop)) == whole, stop


def test_twice() -> None:
    """A run that has been resumed can be stopped and resumed again, before and after its next batch."""
    make = LOADERS["shuffled"]
    whole = trained(make)
    once = trained(make, ("step", 2))
    state, *rest = pickle.loads(once)
    again = Position(make())
    again.load_state_dict(state)
    assert trained(make, resumed=pickle.dumps((again.state_dict(), *rest))) == whole
    assert trained(make, resumed=trained(make, ("step", 3), resumed=once)) == whole
    assert trained(make, resumed=trained(make, ("epoch end", 0), resumed=once)) == whole


def test_what_is_not_marked_comes_again() -> None:
    """A batch that was handed out after the last mark was not trained on."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    batches = iter(loader)
    next(batches)
    position.mark()
    second = next(batches)
    saved = position.state_dict()
    other = DataLoader(Numbers(), BATCH)
    Position(other).load_state_dict(saved)  # nobody follows it any more: a plain loader
    assert len(list(other)) == len(other)
    position = Position(other)
    position.load_state_dict(saved)
    assert next(iter(other)).tolist() == second.tolist()


def test_without_marks_all_counts_that_was_handed_out() -> None:
    """A loop that never says how far it has trained goes on behind what it was given; after its end, anew."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    batches = iter(loader)
    next(batches)
    assert position.state_dict()["batches"] == 1
    list(batches)
    assert position.state_dict()["batches"] == 0


def test_a_loop_that_is_left_early() -> None:
    """An epoch that ends before its loader does is over: the next begins anew."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    for _ in loader:
        position.mark()
        break
    position.end_epoch()
    assert position.state_dict()["batches"] == 0


def test_an_iteration_that_goes_on_over_epochs() -> None:
    """One iterator that a loop takes its epochs from keeps its position over their ends."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    batches = iter(loader)
    next(batches)
    position.mark()
    position.end_epoch()
    assert position.state_dict()["batches"] == 1


def test_a_validation_loader_begins_anew() -> None:
    """A loader that is gone through between two steps has no position to go on from."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    list(loader)
    position.mark()
    assert position.state_dict()["batches"] == 0


def test_the_loader_stays_what_it_is() -> None:
    """A loader that is followed, by one after another, is one of its class, with its length and its samplers."""
    loader = DataLoader(Numbers(), BATCH, shuffle=True)
    for _ in range(2):
        Position(loader)
    position = Position(loader)
    assert type(loader).__name__ == "DataLoader"
    assert isinstance(loader, DataLoader)
    assert type(loader).__mro__[2] is not DataLoader, "followed once only"
    assert isinstance(loader.batch_sampler, BatchSampler)
    assert isinstance(loader.sampler, RandomSampler)
    assert (len(loader), len(iter(loader))) == (6, 6)
    assert position.inexact is None


def test_another_batch_size() -> None:
    """With batches of another size, it goes on at the first batch that holds anything new, and says so."""
    loader = DataLoader(Numbers(), 4)
    position = Position(loader)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
        position.mark()
    other = DataLoader(Numbers(), 5)
    follower = Position(other)
    assert "batches are of 5 here, and were of 4" in str(follower.changed(position.state_dict()))
    follower.load_state_dict(position.state_dict())
    assert next(iter(other)).flatten().tolist() == [10, 11, 12, 13, 14]


def test_changes_are_named() -> None:
    """Another length, another kind of sampler, another number of processes."""
    saved = Position(DataLoader(Numbers(), BATCH, sampler=ResumableSampler(Numbers()))).state_dict()
    shorter = torch.utils.data.Subset(Numbers(), range(10))
    told = str(Position(DataLoader(shorter, BATCH)).changed(saved))
    assert "10 samples here, and had 23" in told
    assert "ordered by BatchSampler, SequentialSampler here, and were by BatchSampler, ResumableSampler" in told
    shared = ResumableSampler(Numbers(), num_replicas=2, rank=1)
    assert "2 processes share its samples here, and 1 did" in str(
        Position(DataLoader(Numbers(), BATCH, sampler=shared)).changed(saved)
    )
    assert "another way" in str(Position(StatefulDataLoader(Numbers(), BATCH)).changed(saved))
    assert Position(DataLoader(Numbers(), BATCH, sampler=ResumableSampler(Numbers()))).changed(saved) is None


def test_what_is_not_exact() -> None:
    """A stream has no position; a sampler whose state cannot be saved is named, and no save fails for it."""

    class Unpicklable(Turning):
        def state_dict(self) -> dict[str, Any]:
            return {"turn": lambda: 1}

    assert "is iterable and tells no position" in str(Position(DataLoader(Stream(), BATCH)).inexact)
    position = Position(DataLoader(Numbers(), BATCH, sampler=Unpicklable()))
    assert "Unpicklable" in str(position.inexact)
    assert position.state_dict()["sampler"] is None


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("batches", -1, "counts"),
        ("batches", True, "counts"),
        ("batch_size", 1 << 60, "counts"),
        ("length", 1.5, "counts"),
        ("generators", [torch.zeros(3)], "generators"),
        ("generators", None, "generators"),
        ("began", {"rng": 1}, "beginning"),
        ("began", 7, "beginning"),
        ("kinds", [1], "samplers"),
    ],
)
def test_foreign_states_are_refused(key: str, value: Any, problem: str) -> None:
    """What is no position is refused before anything is put back."""
    position = Position(DataLoader(Numbers(), BATCH, generator=seeded(1)))
    state = position.state_dict()
    assert position.problem(state) is None
    assert problem in str(position.problem({**state, key: value}))
    with pytest.raises(ValueError, match=problem):
        position.load_state_dict({**state, key: value})
    assert "no position" in str(problem_of({}))
    assert "no position" in str(problem_of(None))


def after(position: Position, loader: DataLoader[Any], make: Callable[[], DataLoader[Any]]) -> list[int]:
    """Return what comes first in another loader that goes on from ``position``."""
    other = make()
    follower = Position(other)
    follower.load_state_dict(pickle.loads(pickle.dumps(position.state_dict())))
    return [int(number) for batch in other for number in batch.flatten()]


def test_a_step_behind_the_last_batch() -> None:
    """What was accumulated last is stepped with when the loader has come to its end: nothing of the epoch is left."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    for index, _ in enumerate(loader):
        if index % 4 == 3:
            position.mark()
    assert position.state_dict()["batches"] == 4
    position.mark()
    assert after(position, loader, LOADERS["in order"]) == []
    position.end_epoch()
    assert after(position, loader, LOADERS["in order"]) == list(range(SAMPLES))


class Generating(DataLoader[Any]):
    """A loader whose own ``__iter__`` begins when its first batch is asked for."""

    def __iter__(self) -> Any:
        """Yield what torch's would."""
        yield from super().__iter__()


def test_a_loader_that_begins_late() -> None:
    """What a loader does in an ``__iter__`` of its own is nobody's to know: it reads again, and that is named."""
    loader = Generating(Numbers(), BATCH, shuffle=True)
    torch.manual_seed(3)
    position = Position(loader)
    batches = [batch.flatten().tolist() for batch in loader]
    torch.manual_seed(3)
    for index, _ in enumerate(loader):
        position.mark()
        if index == 2:
            break
    assert after(position, loader, lambda: Generating(Numbers(), BATCH, shuffle=True)) == [
        number for batch in batches[3:] for number in batch
    ]
    assert "Generating has an __iter__ of its own" in str(position.inexact)


def test_workers_that_are_not_in_order() -> None:
    """Where batches come in whatever order, nobody can tell what was trained on."""
    loader: DataLoader[Any] = DataLoader(Numbers(), BATCH, num_workers=1, in_order=False)
    assert "in_order=False" in str(Position(loader).inexact)


def test_an_iteration_from_before_the_restore() -> None:
    """It stays where it is, and that is named; the next goes on."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    batches = iter(loader)
    next(batches)
    position.mark()
    saved = position.state_dict()
    assert "begin another after restore()" in str(entries.changed(position, saved))
    position.load_state_dict(saved)
    assert entries.changed(position, saved) is None
    assert next(iter(loader)).flatten().tolist() == [4, 5, 6, 7]


def test_a_look_at_a_batch() -> None:
    """To look at the first batch after a restore trains on nothing: it comes again."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    batches = iter(loader)
    next(batches)
    position.mark()
    other = DataLoader(Numbers(), BATCH)
    follower = Position(other)
    follower.load_state_dict(position.state_dict())
    for _ in range(2):
        assert next(iter(other)).flatten().tolist() == [4, 5, 6, 7]
    assert follower.state_dict() == position.state_dict()
    for _ in other:
        follower.mark()
    assert len(list(other)) == 6


def test_a_validation_amid_training() -> None:
    """An iteration within another one: the outer one goes on to count."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    for index, _ in enumerate(loader):
        position.mark()
        if index == 1:
            within = iter(loader)
            assert len(list(within)) == 6  # and it is kept
        if index == 2:
            break
    assert position.state_dict()["batches"] == 3


class Hidden(Sampler[int]):
    """A sampler with a generator of its own, which draws from another that has one."""

    def __init__(self) -> None:
        self.inner = RandomSampler(Numbers(), generator=seeded(5))
        self.own = random.Random(3)
        self.numpy = np.random.default_rng(4)

    def __iter__(self) -> Iterator[int]:
        shift = self.own.randrange(SAMPLES) + int(self.numpy.integers(SAMPLES))
        return iter([(index + shift) % SAMPLES for index in self.inner])

    def __len__(self) -> int:
        return SAMPLES


def test_hidden_generators() -> None:
    """The generators of samplers, of those within, and of the dataset are found and put back."""

    def make() -> DataLoader[Any]:
        dataset = Numbers()
        dataset.generator = seeded(9)  # type: ignore[attr-defined]
        return DataLoader(dataset, BATCH, sampler=Hidden())

    whole = trained(make)
    for stop in stops(whole, every=4):
        assert trained(make, resumed=trained(make, stop)) == whole, stop


def test_two_who_follow_one_loader() -> None:
    """They follow it together."""
    loader = DataLoader(Numbers(), BATCH)
    first, second = follow(loader), follow(loader)
    next(iter(loader))
    assert first is second
    del first, second
    assert isinstance(follow(loader), Position)


def test_a_loader_that_is_followed_can_be_sent_elsewhere() -> None:
    """A pickle or a copy of it is a loader like any other."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    for other in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader), copy.copy(loader)):
        assert len(list(other)) == 6
        assert other.batch_size == BATCH
    shared = copy.copy(loader)
    vars(shared)["_safepoint_position"], shared.__class__ = vars(loader)["_safepoint_position"], type(loader)
    batches = iter(shared)
    next(batches)
    assert position.state_dict()["batches"] == 0, "an iteration of another loader counts for none"


def test_a_loop_that_never_ends_its_epochs() -> None:
    """Resumed behind the last batch of an epoch, one iteration has nothing left, and the next is a whole epoch."""
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    for _ in loader:
        position.mark()
    other = DataLoader(Numbers(), BATCH)
    follower = Position(other)
    follower.load_state_dict(position.state_dict())
    assert [len(list(other)) for _ in range(3)] == [0, 6, 6]


def test_other_arguments_are_named() -> None:
    """Shuffled or not, with the last batch or without it; with no batches, each sample is one."""
    saved = Position(DataLoader(Numbers(), BATCH, shuffle=True)).state_dict()
    assert "SequentialSampler here" in str(Position(DataLoader(Numbers(), BATCH)).changed(saved))
    dropping = DataLoader(Numbers(), BATCH, shuffle=True, drop_last=True)
    assert "drop_last here" in str(Position(dropping).changed(saved))
    loader = DataLoader(Numbers(), BATCH)
    position = Position(loader)
    batches = iter(loader)
    next(batches)
    position.mark()
    assert after(position, loader, lambda: DataLoader(Numbers(), batch_size=None))[0] == BATCH


def test_sampler_orders() -> None:
    """Every epoch has an order of its own, the same for the same seed; the shares of the ranks make up the whole."""
    sampler = ResumableSampler(Numbers(), seed=1)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(SAMPLES))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(ResumableSampler(Numbers(), seed=1)) == first
    assert list(ResumableSampler(Numbers(), shuffle=False)) == list(range(SAMPLES))
    shares = [list(ResumableSampler(Numbers(), seed=1, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [index for pair in zip(*shares, strict=True) for index in pair][:SAMPLES] == first
    shorter = ResumableSampler(Numbers(), num_replicas=2, rank=0, drop_last=True)
    assert len(shorter) == len(list(shorter)) == SAMPLES // 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"dataset": Stream()}, "no length"),
        ({"dataset": Numbers(), "seed": -1}, "seed"),
        ({"dataset": Numbers(), "seed": True}, "seed"),
        ({"dataset": Numbers(), "rank": 1}, "together"),
        ({"dataset": Numbers(), "rank": 2, "num_replicas": 2}, "rank=2"),
    ],
)
def test_sampler_arguments(arguments: dict[str, Any], told: str) -> None:
    """Wrong arguments are named."""
    with pytest.raises(ConfigurationError, match=told):
        ResumableSampler(**arguments)
    with pytest.raises(ConfigurationError, match="no state"):
        ResumableSampler(Numbers()).load_state_dict({"seed": "1", "epoch": 0})


def test_without_the_position_it_shows() -> None:
    """What these tests compare is not the same by itself."""
    make = LOADERS["shuffled"]
    state, *rest = pickle.loads(trained(make, ("step", 2)))
    assert trained(make, resumed=pickle.dumps(({**state, "began": None}, *rest))) != trained(make)


def test_randomness_of_workers() -> None:
    """What workers draw is the same again from the next epoch on; in the epoch that is gone on with, only the order is.

    A worker has generators of its own, seeded when an epoch begins, and they end with it.
    """

    def make() -> DataLoader[Any]:
        return DataLoader(Noisy(), BATCH, shuffle=True, num_workers=2)

    def order(seen: Seen) -> list[tuple[int, list[int]]]:
        return [(epoch, batch[::2]) for epoch, batch, _ in seen]

    whole = trained(make)
    assert trained(make, resumed=trained(make, ("epoch end", 0))) == whole
    resumed = trained(make, resumed=trained(make, ("step", 2)))
    assert order(resumed) == order(whole)
    epoch = len(make())
    assert all(here != there for here, there in zip(resumed[2:epoch], whole[2:epoch], strict=True))
    assert resumed[epoch:] == whole[epoch:]
