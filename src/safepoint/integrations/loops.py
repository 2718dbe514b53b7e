"""The trainer's loops: at which moment a checkpoint was made, and how training goes on from that very moment.

Lightning guesses from its counters where a run was interrupted, and skips what is left of a batch or an epoch there: a
validation that was due, the end of the epoch, a step of a scheduler. Here the moment is known, so that nothing is
guessed: the loops start as in a run that nobody interrupted, and at the first fetch of a batch the interrupted
iteration is finished by the framework's own code. All private names of the loops are here, with contract tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from operator import attrgetter
from typing import Any

_FIRST = "_safepoint_first"


_NEEDED = (
    "strategy.process_dataloader",
    "_logger_connector._first_loop_iter",
    "fit_loop.epoch_progress.current.processed",
    "fit_loop.epoch_progress.total.reset_on_restart",
    "fit_loop._combined_loader",
    "fit_loop._data_fetcher",
    "fit_loop._restart_stage",
    "fit_loop._restarting",
    "fit_loop._resuming_from_checkpoint",
    "fit_loop.epoch_loop.batch_progress.current.reset_on_restart",
    "fit_loop.epoch_loop.batch_progress.is_last_batch",
    "fit_loop.epoch_loop.val_loop.batch_progress.is_last_batch",
    "fit_loop.epoch_loop.val_loop._results",
    "fit_loop.epoch_loop._results",
    "fit_loop.epoch_loop._skip_next_val",
    "fit_loop.epoch_loop._num_ready_batches_reached",
    "fit_loop.epoch_loop.update_lr_schedulers",
    "fit_loop.epoch_loop.on_advance_end",
    "fit_loop.epoch_loop.load_state_dict",
)


def missing(trainer: Any) -> list[str]:
    """Return what a resume needs of the framework and this version does not have."""

    def is_there(name: str) -> bool:
        try:
            attrgetter(name)(trainer)
        except AttributeError:
            return False
        return True

    return [name for name in _NEEDED if not is_there(name)]


class Moment(StrEnum):
    """Where in an epoch a checkpoint is made, as far as it matters for what comes next.

    ``BATCH``: at the end of a training batch. ``VALIDATING``: in a validation, which runs again. ``VALIDATION``: at its
    end. ``EPOCH``: at the end of a training epoch. ``BETWEEN``: between two epochs. ``WITHIN``: anywhere else, as after
    an exception: a batch that was begun is trained on again.
    """

    BATCH = "batch"
    VALIDATING = "validating"
    VALIDATION = "validation"
    EPOCH = "epoch"
    BETWEEN = "between"
    WITHIN = "within"

    @property
    def begins_epoch(self) -> bool:
        """Whether the next thing to do is a new epoch."""
        return self in (Moment.EPOCH, Moment.BETWEEN)


def moment(trainer: Any) -> Moment:
    """Return the moment that it is now in ``trainer.fit``."""
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    validation = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    if epochs.processed == epochs.started:
        return Moment.EPOCH if epochs.completed < epochs.processed else Moment.BETWEEN
    if trainer.validating:
        is_over = validation.is_last_batch and validation.current.completed == validation.current.ready
        return Moment.VALIDATION if is_over else Moment.VALIDATING
    if batches.completed < batches.processed == batches.started == batches.ready:
        return Moment.BATCH
    return Moment.WITHIN


def trained_on(trainer: Any, now: Moment) -> int:
    """Return how many batches of this epoch count as trained on ``now``."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(batches.ready if now is Moment.BATCH else batches.completed)


def handed_out(trainer: Any) -> int:
    """Return how many batches the trainer has taken in this epoch, with those that it holds in advance."""
    in_advance = getattr(trainer.fit_loop._data_fetcher, "batches", ())  # noqa: SLF001
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready) + len(in_advance)


def ends(trainer: Any, now: Moment) -> bool:
    """Tell whether no further batch of this epoch is trained on."""
    if now is Moment.WITHIN:
        return False
    return now.begins_epoch or bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())  # noqa: SLF001


def accumulates(trainer: Any, now: Moment) -> bool:
    """Tell whether gradients wait for further batches before the next step of the optimizer."""
    waits = trained_on(trainer, now) % trainer.accumulate_grad_batches > 0 and not ends(trainer, now)
    return waits and bool(trainer.lightning_module.automatic_optimization)


def loaders(trainer: Any) -> list[Any]:
    """Return the training loaders, as the trainer iterates over them."""
    combined = trainer.fit_loop._combined_loader  # noqa: SLF001
    return [] if combined is None else list(combined.flattened)


def fetcher(trainer: Any) -> Any:
    """Return what fetches the training batches: another one where the loaders were made anew."""
    return trainer.fit_loop._data_fetcher  # noqa: SLF001


def states_of_loaders(saved: Mapping[str, Any]) -> list[Any]:
    """Return the states of those loaders that have one, from the fit loop's state."""
    found: list[Any] = saved["state_dict"].get("combined_loader", [])
    return found


def begin_epoch(trainer: Any, saved: Mapping[str, Any], then: Moment) -> None:
    """Let the loops begin a new epoch after the one that ``saved``, the fit loop's state, was in at ``then``.

    To be called at ``on_train_start``.
    """
    fit = trainer.fit_loop
    end_epoch(trainer, saved, then)
    for part in (fit.epoch_progress.total, fit.epoch_progress.current):
        part.reset_on_restart()
    fit._restart_stage = "none"  # noqa: SLF001
    fit._restarting = False  # noqa: SLF001
    fit._resuming_from_checkpoint = False  # noqa: SLF001  # the epoch's iterator is made when it begins


def end_epoch(trainer: Any, saved: Mapping[str, Any], then: Moment) -> None:
    """Do what is left of the epoch that ``saved``, the fit loop's state, was in at ``then``, if that was its end."""
    loop, progress = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress
    progress.load_state_dict(saved["epoch_progress"])
    _load(loop, saved)
    if then is Moment.EPOCH:
        if loop._num_ready_batches_reached():  # noqa: SLF001
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        progress.increment_completed()


def go_on(
    trainer: Any,
    saved: Mapping[str, Any],
    then: Moment,
    seek: Callable[[], Collection[int]],
    put_back: Callable[[], None],
) -> None:
    """Let the loops go on within the epoch that ``saved``, the fit loop's state, was in at ``then``.

    To be called at ``on_train_start``. When the first batch is asked for, the iteration over the loaders is begun anew,
    with a call of ``seek`` before, which returns the ids of those loaders that find their position, and of ``put_back``
    after it; then the rest of the interrupted batch is done.
    """
    fit = trainer.fit_loop
    fit.epoch_progress.load_state_dict(saved["epoch_progress"])
    fit._restart_stage = "restarted_mid_epoch"  # noqa: SLF001  # the epoch has begun: no hooks say so again
    fit._restarting = False  # noqa: SLF001
    fit.epoch_loop.restarting = False

    def first(waiting: Any) -> None:
        loop, progress = fit.epoch_loop, fit.epoch_loop.batch_progress
        _load(loop, saved)
        if then is Moment.BATCH:
            progress.increment_completed()
        if progress.current.completed < progress.current.ready:
            progress.is_last_batch = False  # if it was the last, it is still to come
        for part in (progress.total, progress.current):
            part.reset_on_restart()
        if progress.is_last_batch:
            seek()  # for the next epoch
        else:
            _iterate(fit, waiting, saved, seek)
        put_back()
        if then is not Moment.WITHIN:
            loop._skip_next_val = then is Moment.VALIDATION  # noqa: SLF001
            loop.on_advance_end(waiting)
        if loop.done:
            raise StopIteration

    waiting = fetcher(trainer)
    kind: Any = type(waiting)
    vars(waiting)[_FIRST] = first
    waiting.__class__ = _resuming(kind)


def _load(loop: Any, saved: Mapping[str, Any]) -> None:
    """Set the counters below the loop over batches to what ``saved`` says; as those of a run that goes on."""
    loop.load_state_dict(dict(saved), "epoch_loop.")
    loop.restarting = False


def _iterate(fit: Any, waiting: Any, saved: Mapping[str, Any], seek: Callable[[], Collection[int]]) -> None:
    """Begin the iteration over the loaders anew, after the batches that were trained on."""
    combined, count = fit._combined_loader, fit.epoch_loop.batch_progress.current.ready  # noqa: SLF001
    combined.reset()
    combined._load_state_dicts(states_of_loaders(saved))  # noqa: SLF001
    for sampler in (found for loader in combined.flattened for found in _samplers(loader)):
        if callable(set_epoch := getattr(sampler, "set_epoch", None)):
            set_epoch(fit.epoch_progress.current.processed)
    found = seek()
    iter(waiting)
    held = getattr(waiting, "batches", [])
    pairs = zip(combined.flattened, combined._iterator.iterators, strict=True)  # noqa: SLF001
    passed = [iterator for loader, iterator in pairs if id(loader) not in found]
    for iterator in passed:
        for _ in range(count - len(held)):
            next(iterator, None)
    if passed:
        held[:] = [next(waiting.iterator) for _ in held]
    waiting.fetched += count


def _samplers(loader: Any) -> tuple[Any, ...]:
    return getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)


@functools.cache
def _resuming(base: type[Any]) -> type[Any]:
    """Return a class below the fetcher's ``base`` that does something before its first batch, and is ``base`` then."""

    class Resuming(base):  # type: ignore[misc]
        def __next__(self) -> Any:
            self.__class__ = base
            self.__dict__.pop(_FIRST)(self)
            return next(self)

    return Resuming
