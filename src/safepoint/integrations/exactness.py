"""What a resumed run needs to be the run that was interrupted, and Lightning does not keep: saved, and put back.

That is the state of the random generators, the position in the training data, gradients that wait for further batches,
and what was measured so far. It is in a trainer's checkpoint under a key of its own, which the framework passes over.
``loops`` knows at which moment of the trainer's loops a checkpoint is made, and how they go on from there; ``tally``
what was measured; ``safepoint.loaders`` the position in a loader.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from safepoint.errors import CheckpointError, in_line
from safepoint.integrations import loops, tally
from safepoint.integrations.loops import Moment
from safepoint.integrations.vanguard import vanguard
from safepoint.loaders import Position, problem_of
from safepoint.passing import is_stateful
from safepoint.randomness import has_rng_state, rng_state, set_rng_state

KEY = "safepoint_resume"
"""Where it is in a trainer's checkpoint."""


class Exactness:
    """Keep, for all callbacks of one trainer, what makes a resumed run exact; any of them may call a hook, and all may.

    ``callback`` is the root of the framework's callbacks; ``warn`` tells, once, what cannot be put back exactly.
    """

    def __init__(self, callback: type[Any], warn: Callable[[str], None]) -> None:
        self._callback = callback
        self._warn = warn
        self._told: set[str] = set()
        self._positions: dict[int, Position] = {}
        self._saved: dict[str, Any] | None = None
        self._loops: dict[str, Any] = {}
        self._has_begun = False
        self._has_data = False
        self._fetcher: Any = None
        self._unfollow: Callable[[], None] = _nothing
        self._vanguard: Any = None

    @classmethod
    def of(cls, trainer: Any, callback: type[Any], warn: Callable[[str], None]) -> Exactness | None:
        """Return one for ``trainer``, ``None`` if its loops are not those that are known here, with a warning."""
        if missing := loops.missing(trainer):
            warn(
                f"This version of the framework has no {missing[0]}: to resume exactly, a later Safepoint is needed. "
                "Checkpoints are saved and resumed as the framework does it."
            )
            return None
        return cls(callback, warn)

    # Which loaders there are.

    def follow(self, trainer: Any) -> None:
        """Follow the training loaders from before their first iteration on: the trainer shows them to its strategy."""
        strategy = trainer.strategy
        if "process_dataloader" in vars(strategy):
            return
        process = strategy.process_dataloader

        def noting(loader: Any) -> Any:
            found = process(loader)
            self._has_data = True
            if trainer.training and trainer.state.fn == "fit" and isinstance(found, DataLoader):
                self._positions[id(found)] = Position(found)
            return found

        def unfollow() -> None:
            del strategy.process_dataloader
            self._end_resuming(trainer)

        strategy.process_dataloader, self._unfollow = noting, unfollow

    def leave(self) -> None:
        """Let go of the trainer and of its loaders."""
        self._unfollow()
        self._unfollow = _nothing
        for position in self._positions.values():
            position.release()
        self._positions.clear()

    # Saving.

    def add_to(self, checkpoint: dict[str, Any], trainer: Any) -> None:
        """Put it into the trainer's ``checkpoint``, unless it is there; to be called on all ranks alike."""
        if KEY in checkpoint or trainer.state.fn != "fit":
            return
        own = None
        try:
            now = loops.moment(trainer)
            gradients = _gradients(trainer) if loops.accumulates(trainer, now) else {}
            own = {
                "random": rng_state(),
                "positions": self._places(trainer, checkpoint, now),
                "tally": {} if now.begins_epoch else tally.tally(trainer),
            }
        except (AttributeError, KeyError, TypeError) as error:  # of loops that are not quite those known here
            self._tell(f"This checkpoint, and others like it, cannot be resumed from exactly: {error!r}.")
        ranks = _of_all_ranks(own, trainer)
        if None in ranks.values():
            return
        checkpoint[KEY] = {
            "moment": str(now),
            "ranks": ranks,
            "world_size": trainer.world_size,
            "metrics": {name: value for name, value in trainer.callback_metrics.items() if isinstance(value, Tensor)},
            "gradients": gradients,
        }
        self._tell_of_callbacks(trainer, now)

    def _tell_of_callbacks(self, trainer: Any, then: Moment) -> None:
        """Say which of the framework's callbacks does at an epoch's start what a resume within an epoch is without."""
        names = {kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__}
        if not then.begins_epoch and "StochasticWeightAveraging" in names:
            self._tell(
                "StochasticWeightAveraging sets its schedule and its averages at an epoch's start: a run that is "
                "resumed from a checkpoint within an epoch does not go on exactly. Save at the ends of epochs."
            )

    def _places(self, trainer: Any, checkpoint: Mapping[str, Any], now: Moment) -> list[dict[str, Any] | None]:
        """Return the position in each training loader, ``None`` for one that is no DataLoader."""
        stateful = iter(loops.states_of_loaders(checkpoint["loops"]["fit_loop"]))
        ahead = loops.handed_out(trainer) - loops.trained_on(trainer, now)
        every, ends = loops.loaders(trainer), loops.ends(trainer, now)
        self._positions = {id(loader): self._positions[id(loader)] for loader in every if id(loader) in self._positions}
        found: list[dict[str, Any] | None] = []
        for loader in every:
            own = next(stateful, None) if is_stateful(loader) else None
            position = self._positions.get(id(loader))
            state = None if position is None else position.state_dict()
            if state is not None:  # the loader's own state is in the checkpoint already
                state |= {"own": own, "batches": max(state["batches"] - ahead, 0)}
                state |= {"batches": 0, "began": None, "is_over": False, "own": None} if ends else {}
            found.append(state)
            if not ends and (problem := _inexact(loader, position, ahead)) is not None:
                self._tell(f"The position in the training data cannot be saved exactly within an epoch: {problem}.")
        return found

    # Going on.

    def take(self, checkpoint: Mapping[str, Any], trainer: Any) -> None:
        """Take what ``checkpoint`` holds, to put it back when training starts.

        Raises:
            CheckpointError: that is not what ``add_to`` has put there.

        """
        if not checkpoint.keys() >= {KEY, "loops"} or trainer.state.fn != "fit" or self._has_data:
            return  # without its loops the framework begins anew; what its tuner loads amid a fit is no resume
        saved = checkpoint[KEY]
        problem = _problem_of(saved) or _problem_of_gradients(saved["gradients"], trainer.lightning_module)
        if problem is not None:
            raise CheckpointError(f"the checkpoint's {KEY!r} entry is not what was saved there: {problem}.")
        self._saved, self._loops, self._has_begun = saved, checkpoint["loops"]["fit_loop"], False
        if self._vanguard is None:
            self._vanguard = vanguard(self._callback, lambda: self._at_epoch_start(trainer), ["on_train_epoch_start"])
            # A new list, as the old one is just being gone through.
            trainer.callbacks = [self._vanguard, *trainer.callbacks]

    def at_train_start(self, trainer: Any) -> None:
        """Let the loops go on where the checkpoint was made."""
        if self._saved is None or self._has_begun:
            return
        self._has_begun, self._fetcher = True, loops.fetcher(trainer)
        then = Moment(self._saved["moment"])
        trainer.callback_metrics.update(self._saved["metrics"])
        if then.begins_epoch:
            self._seek(trainer)
            self._put_back_random_state(trainer)  # a loader may be made anew before the epoch starts
            loops.begin_epoch(trainer, self._loops, then)
        else:
            loops.go_on(trainer, self._loops, then, lambda: self._seek(trainer), lambda: self._put_back(trainer))

    def _at_epoch_start(self, trainer: Any) -> None:
        """Put the random state back before anything in the epoch draws from it; what drew before drew for nothing."""
        if self._saved is not None:
            if loops.fetcher(trainer) is self._fetcher:
                self._put_back_random_state(trainer)
            self._end_resuming(trainer)

    def at_fit_end(self, trainer: Any) -> None:
        """Do what was left to do where there was nothing left to train."""
        if self._saved is not None and not self._has_begun:
            then = Moment(self._saved["moment"])
            self._put_back_random_state(trainer)
            if then is Moment.EPOCH:
                trainer.callback_metrics.update(self._saved["metrics"])
                loops.end_epoch(trainer, self._loops, then)
            elif then is not Moment.BETWEEN:
                self._tell(
                    "There was nothing left to train. What was left of the epoch when the checkpoint was saved, such "
                    "as its validation, is not made up."
                )
            self._end_resuming(trainer)

    def _end_resuming(self, trainer: Any) -> None:
        self._saved, self._loops, self._fetcher = None, {}, None
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self._vanguard]
        self._vanguard = None

    def _own(self, trainer: Any) -> Mapping[str, Any] | None:
        """Return what was saved of this rank, ``None`` if nobody can tell which it was."""
        if self._saved is None:
            return None
        size = self._saved["world_size"]
        if size != trainer.world_size:
            self._tell(
                f"The checkpoint was saved by {size} processes, and {trainer.world_size} go on: random states and the "
                "position in the training data cannot be put back, and the run is not the one that was interrupted."
            )
            return None
        own: Mapping[str, Any] | None = self._saved["ranks"].get(trainer.global_rank)
        if own is None:
            self._tell(
                "The checkpoint was saved after an exception, by one process: random states and the position in the "
                "training data are put back there alone."
            )
        return own

    def _seek(self, trainer: Any) -> Collection[int]:
        """Let the next iteration of each training loader go on where the checkpoint was made; return which do."""
        own, every = self._own(trainer), loops.loaders(trainer)
        if own is None or len(own["positions"]) != len(every):
            return {id(loader) for loader in every}
        for loader, state in zip(every, own["positions"], strict=True):
            if state is not None and (position := self._positions.get(id(loader))) is not None:
                is_left_out = is_stateful(loader) and not state["batches"]  # its own state, at an epoch's end
                if (changed := position.changed(state | {"own": {}} if is_left_out else state)) is not None:
                    self._tell(f"The training data is not what it was when the checkpoint was saved: {changed}.")
                position.load_state_dict(state)
        return {id(loader) for loader in every if id(loader) in self._positions or is_stateful(loader)}

    def _put_back(self, trainer: Any) -> None:
        """Put back what training within an epoch goes on from."""
        saved, own = self._saved, self._own(trainer)
        if saved is None:
            return
        self._put_back_random_state(trainer)
        if own is not None:
            tally.put_back(trainer, own["tally"])
        for name, parameter in trainer.lightning_module.named_parameters():
            if name in saved["gradients"]:
                parameter.grad = saved["gradients"][name].to(parameter.device, parameter.dtype, copy=True)
        self._end_resuming(trainer)

    def _put_back_random_state(self, trainer: Any) -> None:
        own = self._own(trainer)
        if own is not None:
            set_rng_state(own["random"])

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._warn(message)


def _inexact(loader: Any, position: Position | None, ahead: int) -> str | None:
    """Return what cannot be put back of a loader that has handed out so many batches too many, ``None`` if all can."""
    kind = type(loader).__name__
    if is_stateful(loader):
        return f"{kind} has handed out a batch that was not trained on, and will not do so again" if ahead else None
    if position is None:
        return f"{kind} is no DataLoader and has no state; what was trained on is read again and passed over"
    return position.inexact


def _gradients(trainer: Any) -> dict[str, Tensor]:
    module = trainer.lightning_module
    return {name: found.grad for name, found in module.named_parameters() if found.grad is not None}


def _of_all_ranks(own: dict[str, Any] | None, trainer: Any) -> dict[int, dict[str, Any] | None]:
    """Return ``own`` of every rank; after an exception, of this one alone: the others may never come here."""
    group = torch.distributed
    if trainer.world_size == 1 or trainer.interrupted or not (group.is_available() and group.is_initialized()):
        return {trainer.global_rank: own}
    gathered: list[Any] = [None] * trainer.world_size
    group.all_gather_object(gathered, own)
    return dict(enumerate(gathered))


def _problem_of(saved: Any) -> str | None:
    """Return why ``saved`` is not what ``Exactness.add_to`` has made, ``None`` if it is."""
    if not isinstance(saved, dict) or not saved.keys() >= {"moment", "ranks", "world_size", "metrics", "gradients"}:
        return "it lacks what belongs there"
    if saved["moment"] not in list(Moment):
        return "it knows no such moment"
    ranks = saved["ranks"]
    if not isinstance(ranks, dict) or not all(type(number) is int for number in (saved["world_size"], *ranks)):
        return "its ranks are none"
    for name in ("metrics", "gradients"):
        if not _are_named_tensors(saved[name]):
            return f"its {name} are none"
    if any(value.numel() != 1 for value in saved["metrics"].values()):
        return "its metrics are no numbers"
    return next(filter(None, (_problem_of_rank(own, Moment(saved["moment"])) for own in ranks.values())), None)


def _are_named_tensors(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and not (value.is_nested or value.is_meta)
        for name, value in found.items()
    )


def _problem_of_gradients(gradients: Mapping[str, Tensor], module: torch.nn.Module) -> str | None:
    for name, parameter in module.named_parameters():
        if name in gradients and not _can_be_gradient(gradients[name], parameter):
            return f"the gradient of {in_line(name)} is of another shape or dtype"
    return None


def _can_be_gradient(found: Tensor, parameter: Tensor) -> bool:
    """Tell whether ``parameter`` can have that gradient: its precision may still be set, and its layout need not be."""
    return (
        found.shape == parameter.shape
        and found.is_floating_point() == parameter.is_floating_point()
        and found.layout in (parameter.layout, torch.sparse_coo)
    )


def _problem_of_rank(own: Any, then: Moment) -> str | None:
    if not isinstance(own, dict) or not isinstance(own.get("positions"), list):
        return "it has no positions"
    if not has_rng_state(own.get("random")):
        return "its random state is none"
    problems = [problem_of(state) for state in own["positions"] if state is not None]
    problems.append(None if then.begins_epoch else tally.problem_of(own.get("tally")))
    return next(filter(None, problems), None)


def _nothing() -> None:
    pass
