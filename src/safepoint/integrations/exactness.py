"""What a resumed run needs to be the run that was interrupted, and Lightning does not keep: saved, and put back.

That is the state of the random generators, the position in the training data, gradients that wait for further batches,
and the metrics so far. It is in a trainer's checkpoint under a key of its own, which the framework passes over.
``loops`` knows at which moment of the trainer's loops a checkpoint is made, and how they go on from there;
``safepoint.loaders`` knows the position in a loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from safepoint.errors import CheckpointError
from safepoint.integrations import loops, tally
from safepoint.integrations.loops import Moment
from safepoint.loaders import Position, problem_of
from safepoint.randomness import has_rng_state, rng_state, set_rng_state

KEY = "safepoint"
"""Where it is in a trainer's checkpoint."""

Warn = Callable[[str], None]


class Exactness:
    """Keep, for all callbacks of one trainer, what makes a resumed run exact; one of them may call each hook, or all.

    ``warn``: tells, once, what cannot be put back exactly.
    """

    def __init__(self, warn: Warn) -> None:
        self._warn = warn
        self._told: set[str] = set()
        self._positions: dict[int, Position] = {}
        self._saved: dict[str, Any] | None = None
        self._loops: dict[str, Any] = {}
        self._unintercept: Callable[[], None] = _nothing
        self._fetcher: Any = None

    # Which loaders there are.

    def follow(self, trainer: Any) -> None:
        """Follow the training loaders from before their first iteration on: the trainer shows them to its strategy."""
        strategy = trainer.strategy
        if "process_dataloader" in vars(strategy):
            return
        process = strategy.process_dataloader

        def noting(loader: Any) -> Any:
            found = process(loader)
            if trainer.training and trainer.state.fn == "fit" and isinstance(found, DataLoader):
                self._positions[id(found)] = Position(found)
            return found

        strategy.process_dataloader = noting
        self._unintercept = lambda: vars(strategy).pop("process_dataloader", None)

    def leave(self) -> None:
        """Let go of the trainer."""
        self._unintercept()
        self._unintercept = _nothing
        self._positions.clear()
        self._saved = None

    # Saving.

    def add_to(self, checkpoint: dict[str, Any], trainer: Any) -> None:
        """Put it into the trainer's ``checkpoint``, unless it is there; to be called on all ranks alike."""
        if KEY in checkpoint or trainer.state.fn != "fit":
            return
        now = loops.moment(trainer)
        own = self._of_this_rank(trainer, checkpoint, now)
        checkpoint[KEY] = {
            "moment": str(now),
            "ranks": _of_all_ranks(own, trainer),
            "world_size": trainer.world_size,
            "metrics": {name: value for name, value in trainer.callback_metrics.items() if isinstance(value, Tensor)},
            "gradients": _gradients(trainer) if not now.begins_epoch and loops.accumulates(trainer) else {},
        }

    def _of_this_rank(self, trainer: Any, checkpoint: dict[str, Any], now: Moment) -> dict[str, Any]:
        stateful = iter(checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", ()))
        not_trained_on = loops.handed_out(trainer) - loops.trained_on(trainer, now)
        positions = []
        for loader in loops.loaders(trainer):
            own = next(stateful, None) if _is_stateful(loader) else None
            position = self._positions.get(id(loader))
            if position is None:
                positions.append(None)
                continue
            state = position.state_dict()
            state = {**state, "own": own, "batches": max(state["batches"] - not_trained_on, 0)}
            if now.begins_epoch:
                state |= {"batches": 0, "began": None, "is_over": False, "own": None}
            elif (problem := position.inexact) is not None:
                self._tell(f"A checkpoint within an epoch cannot hold the position in the training data exactly: {problem}.")
            positions.append(state)
        measured = None if now.begins_epoch else tally.tally(trainer)
        return {"random": rng_state(), "positions": positions, "tally": measured}

    # Going on.

    def take(self, checkpoint: Mapping[str, Any], trainer: Any) -> None:
        """Take what ``checkpoint`` holds, to put it back when training starts.

        Raises:
            CheckpointError: that is not what ``add_to`` has put there.

        """
        self._saved = None
        if KEY not in checkpoint or trainer.state.fn != "fit":
            return
        saved = checkpoint[KEY]
        if (problem := _problem_of(saved)) is not None:
            raise CheckpointError(f"the checkpoint's {KEY!r} entry is not Safepoint's: {problem}.")
        self._saved, self._loops = dict(saved), checkpoint["loops"]["fit_loop"]

    def at_train_start(self, trainer: Any) -> None:
        """Let the loops go on where the checkpoint was made."""
        if self._saved is None or self._fetcher is not None:
            return
        self._fetcher = trainer.fit_loop._data_fetcher
        then = Moment(self._saved["moment"])
        trainer.callback_metrics.update(self._saved["metrics"])
        if then.begins_epoch:
            self._seek(trainer)
            self._put_back(trainer)
            loops.begin_epoch(trainer, self._loops, then)
        else:
            loops.go_on(trainer, self._loops, then, lambda: self._seek(trainer), lambda: self._finish(trainer))

    def at_epoch_start(self, trainer: Any) -> None:
        """Put the random state back before anything in the epoch draws from it; what drew before drew for nothing."""
        if self._saved is not None:
            if self._fetcher is trainer.fit_loop._data_fetcher:
                self._put_back(trainer)
            self._saved = None

    def at_fit_end(self, trainer: Any) -> None:
        """Put the random state back where there was nothing left to train."""
        if self._saved is not None:
            self._put_back(trainer)
            self._saved = None

    def _finish(self, trainer: Any) -> None:
        saved = self._saved
        if saved is None:
            return
        self._put_back(trainer)
        own = self._own(trainer)
        if own is not None:
            tally.put_back(trainer, own["tally"])
        for name, parameter in trainer.lightning_module.named_parameters():
            if name in saved["gradients"]:
                parameter.grad = saved["gradients"][name].to(parameter.device)
        self._saved = None

    def _own(self, trainer: Any) -> Mapping[str, Any] | None:
        """Return what was saved of this rank, ``None`` if nobody can tell which it was."""
        if self._saved is None:
            return None
        if self._saved["world_size"] != trainer.world_size:
            self._tell(
                f"The checkpoint is of {self._saved['world_size']} processes, and there are {trainer.world_size} here: "
                "random states and positions in the training data are left as they are, and the run is another than "
                "the one that would have gone on."
            )
            return None
        return self._saved["ranks"].get(trainer.global_rank)

    def _put_back(self, trainer: Any) -> None:
        own = self._own(trainer)
        if own is None:
            return
        set_rng_state(own["random"])

    def _seek(self, trainer: Any) -> None:
        """Let the next iteration of each training loader go on where the checkpoint was made."""
        own = self._own(trainer)
        if own is None:
            return
        for loader, state in zip(loops.loaders(trainer), own["positions"], strict=False):
            position = self._positions.get(id(loader))
            if position is None or state is None:
                continue
            if (changed := position.changed(state)) is not None:
                self._tell(f"The training data is not what the checkpoint knew: {changed}.")
            position.load_state_dict(state)

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._warn(message)


def _gradients(trainer: Any) -> dict[str, Tensor]:
    module = trainer.lightning_module
    return {name: found.grad for name, found in module.named_parameters() if found.grad is not None}


def _of_all_ranks(own: dict[str, Any], trainer: Any) -> dict[int, dict[str, Any]]:
    """Return ``own`` of every rank; after an exception, of this one alone: the others may never come here."""
    if trainer.world_size == 1 or trainer.interrupted or not torch.distributed.is_initialized():
        return {trainer.global_rank: own}
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, own)
    return dict(enumerate(gathered))


def _problem_of(saved: Any) -> str | None:
    if not isinstance(saved, dict) or not saved.keys() >= {"moment", "ranks", "world_size", "metrics", "gradients"}:
        return "it lacks what belongs there"
    if saved["moment"] not in set(Moment):
        return "it knows no such moment"
    if not isinstance(saved["ranks"], dict):
        return "its ranks are none"
    for own in saved["ranks"].values():
        if not isinstance(own, dict) or not has_rng_state(own.get("random")) or not isinstance(own.get("positions"), list):
            return "its random state is none"
        told = own.get("tally")
        for problem in (
            *(problem_of(state) for state in own["positions"] if state is not None),
            None if told is None and Moment(saved["moment"]).begins_epoch else tally.problem_of(told),
        ):
            if problem is not None:
                return problem
    for name in ("metrics", "gradients"):
        if not isinstance(saved[name], dict) or not all(isinstance(value, Tensor) for value in saved[name].values()):
            return f"its {name} are none"
    return None


def _is_stateful(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def _nothing() -> None:
    pass
