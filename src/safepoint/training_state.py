"""All that a loop's checkpoints hold: the entries of ``state=``, and the random state. What is left out, and flawed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from safepoint import entries, flaws
from safepoint.deferral import Live
from safepoint.errors import ConfigurationError, warn
from safepoint.excluded import Excluder
from safepoint.lighter import Lightened, lighten
from safepoint.randomness import rng_state
from safepoint.ranks import world_size
from safepoint.records import SaveStats
from safepoint.report import told_of_inexact
from safepoint.signals import Came

logger = logging.getLogger("safepoint")

OWN_ENTRY = "safepoint"
"""The entry of the saved state that holds what Safepoint itself restores: the random generators."""


class TrainingState:
    """The live objects of ``state=``, and what is saved of them. ``excludes_frozen`` as in ``Checkpointer``.

    Data loaders are followed from now on: see ``loaders.Position``.

    Raises:
        ConfigurationError: ``state`` is no mapping, is empty, or has an entry of Safepoint's own name.
        StateMismatchError: an entry can neither be saved nor be restored.

    """

    def __init__(self, state: Mapping[str, object], *, excludes_frozen: bool) -> None:
        if not isinstance(state, Mapping) or not state:
            raise ConfigurationError("state= must map names to live objects: state={'model': model}.")
        if OWN_ENTRY in state:
            raise ConfigurationError(f"state= has an entry {OWN_ENTRY!r}, a name that is Safepoint's own: rename it.")
        self.objects = entries.adapted(state)
        self._positions = entries.positions(self.objects)
        self._excluder = Excluder() if excludes_frozen else None
        self._is_told_of_inexact = False
        self.live = Live(
            modules=tuple(target for target in state.values() if isinstance(target, torch.nn.Module)),
            optimizers=tuple(target for target in state.values() if isinstance(target, torch.optim.Optimizer)),
        )

    def mark(self) -> None:
        """Take note that a step is done: what loaders have handed out so far has been trained on."""
        for position in self._positions:
            position.mark()

    def end_epoch(self) -> None:
        """Take note that an epoch is over."""
        for position in self._positions:
            position.end_epoch()

    def captured(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what is to be saved, and what is left out of it: see ``Manifest.excluded``."""
        state = entries.state_of(self.objects)
        excluded: dict[str, str] = {}
        for entry, target in self.objects.items():
            if self._excluder is not None and isinstance(target, torch.nn.Module):
                left_out = self._excluder.take_out(state[entry], target)
                excluded |= {f"{entry}.{name}": found for name, found in left_out.items()}
        state[OWN_ENTRY] = {"rng": rng_state()}
        if world_size() > 1:
            state[OWN_ENTRY]["world_size"] = world_size()
        return state, excluded

    def inexact(self) -> dict[str, str]:
        """Return what cannot be put back exactly, and warn of it once, hours before it is needed."""
        found = entries.inexact(self.objects)
        if found and not self._is_told_of_inexact:
            self._is_told_of_inexact = True
            lines = "\n".join(told_of_inexact(found))
            warn(
                f"a run that is resumed will not go on exactly where it was, because of what state= holds:\n{lines}", 6
            )
        return found

    def holding_nan(self, state: Mapping[str, Any]) -> str:
        """Say where ``state``, which was captured here, holds a number that is none; "" if it holds none."""
        kinds = (torch.nn.Module, torch.optim.Optimizer)
        return flaws.holding_nan({name: state[name] for name, of in self.objects.items() if isinstance(of, kinds)})

    def lightened(self, state: dict[str, Any], came: Came, stats: Sequence[SaveStats], pending_bytes: int) -> Lightened:
        """Take out of ``state`` what will not be durable in time: see ``lighter.lighten``."""
        return lighten(state, self.objects, came, stats, pending_bytes, self._excluder or Excluder())
