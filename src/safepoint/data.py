"""Samplers whose order a resumed run finds again."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import DistributedSampler

from safepoint.errors import ConfigurationError
from safepoint.ranks import rank as own_rank
from safepoint.ranks import world_size


class ResumableSampler(DistributedSampler[Any]):
    """Draw the indices of ``dataset`` in an order that follows from ``seed`` and the epoch alone.

    For an ordinary ``DataLoader(dataset, sampler=ResumableSampler(dataset), ...)``, with workers or without. No random
    generator has a part in the order, so that it is the same again whatever else the program has drawn; it is the one
    of torch's ``DistributedSampler``. Each iteration is the next epoch; ``set_epoch(epoch)`` chooses another.

    Within a process group each rank draws its share; ``num_replicas`` and ``rank`` say otherwise. Where the dataset
    cannot be shared out evenly, the first samples come twice, or with ``drop_last`` the last ones not at all.

    Its state is the seed and the epoch. How far an epoch has come is known to who iterates: give the *loader* to
    ``Checkpointer(state={"loader": loader})``; in Lightning, the callback sees to it.

    Raises:
        ConfigurationError: the dataset has no length, ``seed`` is no whole number of 0 or more, or only one of
            ``num_replicas`` and ``rank`` is given, or ``rank`` is not below ``num_replicas``.

    """

    def __init__(
        self,
        dataset: Sized,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if not hasattr(dataset, "__len__"):
            raise ConfigurationError(
                f"ResumableSampler(dataset={type(dataset).__name__}): it has no length. An iterable dataset keeps its "
                "own position: use torchdata's StatefulDataLoader."
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigurationError(f"ResumableSampler(seed={seed!r}): give a whole number of 0 or more.")
        if (num_replicas is None) != (rank is None):
            raise ConfigurationError("ResumableSampler takes num_replicas= and rank= together, or neither.")
        if num_replicas is not None and rank is not None and not 0 <= rank < num_replicas:
            raise ConfigurationError(
                f"ResumableSampler(num_replicas={num_replicas}, rank={rank}): 0 <= rank < replicas."
            )
        self._chosen = None if num_replicas is None or rank is None else (num_replicas, rank)
        replicas, own = self._chosen or (world_size(), own_rank())
        super().__init__(dataset, replicas, own, shuffle, seed, drop_last)  # type: ignore[arg-type]  # any sized one

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices of the epoch; the next iteration is the next epoch."""
        self._look_around()
        drawn = super().__iter__()
        self.epoch += 1
        yield from drawn

    def __len__(self) -> int:
        """Return how many indices this rank draws in an epoch."""
        self._look_around()
        return super().__len__()

    def state_dict(self) -> dict[str, int]:
        """Return what the order of the next iteration follows from."""
        self._look_around()
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "length": len(self.dataset),  # type: ignore[arg-type]
            "replicas": self.num_replicas,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration have the order that it would have had where ``state_dict`` was called.

        Raises:
            ConfigurationError: ``state`` is no state of a ResumableSampler.

        """
        found = [state.get(name) if isinstance(state, dict) else None for name in ("seed", "epoch")]
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in found):
            raise ConfigurationError(f"{str(state)[:100]!r} is no state of a ResumableSampler.")
        self.seed, self.epoch = state["seed"], state["epoch"]

    def _look_around(self) -> None:
        """Take the group as it is now: samplers are often made before the processes have found each other."""
        self.num_replicas, self.rank = self._chosen or (world_size(), own_rank())
        length = len(self.dataset)  # type: ignore[arg-type]
        self.num_samples = length // self.num_replicas if self.drop_last else -(-length // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas
