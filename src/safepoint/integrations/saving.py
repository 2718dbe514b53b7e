"""How the drop-in saves: what is kept, under which names, and how the public attributes follow.

The part of the shared body that hands a checkpoint to the run's pipeline; ``model_checkpoint`` has the hooks,
``deciding`` decides when. Rank 0 decides, with its metrics and its view of the disk, and all ranks follow.
``_last_global_step_saved`` and ``_last_checkpoint_saved`` are the framework's own private names, kept up for the
loggers that read them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, tensor

from safepoint import flaws
from safepoint.errors import ConfigurationError, MissingMetricError
from safepoint.integrations.exchange import Exchange, Request
from safepoint.integrations.framework import Framework
from safepoint.integrations.resume import local_path
from safepoint.integrations.top_k import TopK
from safepoint.keep import All, Latest, PreservationPolicy
from safepoint.naming import first_free, render
from safepoint.pipeline import Options, Proposed, Snapshot
from safepoint.records import Record
from safepoint.run import Run, Settled
from safepoint.writer import Names

_SHOWN = (
    "_last_checkpoint_saved",
    "_last_global_step_saved",
    "best_k_models",
    "best_model_path",
    "best_model_score",
    "current_score",
    "kth_best_model_path",
    "kth_value",
    "last_model_path",
)
_COSTS = (
    "size_bytes",
    "written_bytes",
    "waited_s",
    "stalled_s",
    "staged_s",
    "written_s",
    "committed_s",
    "megabytes_per_s",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """What one hook sees: the metrics as this rank logged them and as rank 0's numbers, and why a save is due.

    ``emergency`` and ``flaw`` as in ``Record``.
    """

    step: int
    epoch: int
    tensors: Mapping[str, Any]
    metrics: Mapping[str, float]
    reason: str
    emergency: str = ""
    flaw: str = ""

    @property
    def values(self) -> dict[str, float]:
        """What a template can name: the metrics, the epoch and the step, which are whole numbers even if logged."""
        own = {"epoch": self.epoch, "step": self.step}
        return {**self.metrics, **{name: int(self.metrics.get(name, count)) for name, count in own.items()}}

    def score(self, metric: str) -> Tensor:
        """Return rank 0's value of ``metric`` as the kind of tensor that was logged here."""
        here = self.tensors.get(metric)
        kind = {} if here is None else {"dtype": here.dtype, "device": here.device}
        return tensor(self.metrics[metric], **kind)


class Saving:
    """Save for a ``ModelCheckpoint``: the attributes below are the framework's, or set by the other half."""

    framework: ClassVar[Framework]
    CHECKPOINT_JOIN_CHAR: str
    CHECKPOINT_EQUALS_CHAR: str
    CHECKPOINT_NAME_LAST: str
    FILE_EXTENSION: str
    STARTING_VERSION: int

    filename: str | None
    monitor: str | None
    verbose: bool
    save_last: bool | Literal["link"] | None
    save_on_exception: bool
    save_top_k: int
    save_weights_only: bool
    mode: str
    dirpath: Any
    auto_insert_metric_name: bool
    best_k_models: dict[str, Tensor]
    best_model_path: str
    best_model_score: Tensor | None
    current_score: Tensor | None
    kth_best_model_path: str
    kth_value: Tensor
    last_model_path: str
    _enable_version_counter: bool
    _save_on_train_epoch_end: bool | None
    _train_time_interval: timedelta | None
    _last_checkpoint_saved: str
    _last_global_step_saved: int

    _run: Run | None
    _options: Options
    _exchange: Exchange
    _resumed_from: Path | None
    _scores: dict[Path, Tensor]
    _durable_last: str
    _lasts: dict[str, str]
    _secured: tuple[int, str]
    _failed_step: int
    _untold: int
    _log_stats: bool
    _plugin_named: bool
    _validated_at: int
    _validation_metrics: frozenset[str]
    _told: set[str]

    def _save(self, trainer: Any, reason: str, *, last: bool, top_k: bool = True) -> None:
        """Save if the checkpoint holds a place among the top k; refresh ``last`` then, or with ``last`` in any case."""
        share = trainer.strategy.broadcast
        moment = self._moment(trainer, reason)
        moment = replace(moment, metrics=share(moment.metrics))
        proposed = self._proposed(trainer, moment) if top_k and self.save_top_k != 0 else None
        name = self._runs.name_of(proposed[1].record) if proposed else None
        wants_last = bool(self.save_last) and (last or proposed is not None)
        if name is None and self.save_last == "link" and self.save_top_k != 0 and self._has_saved(trainer):
            wants_last = False  # it points to the last one saved already
        if name is not None or wants_last:
            last_name = share(self._last_name(moment, name)) if wants_last else None
            self._request(trainer, moment, proposed, name, last_name)

    def _save_emergency(self, trainer: Any, exception: BaseException) -> None:
        """Save what an exception has left; as ``last``, too, if one can go on from it."""
        kind = type(exception).__name__
        flaw = flaws.interrupted_update(exception) or flaws.holding_nan(self._numbers(trainer))
        self._save_aside(trainer, f"exception: {kind}", kind or "an exception", trainer.strategy.broadcast(flaw))

    def _save_aside(self, trainer: Any, reason: str, emergency: str = "", flaw: str = "") -> None:
        """Save outside of the top k, in nobody's place; as ``last``, too, unless there is a ``flaw``."""
        share = trainer.strategy.broadcast
        moment = self._moment(trainer, reason)
        moment = replace(moment, metrics=share(moment.metrics), emergency=emergency, flaw=flaw)
        stem = self._stem_of_what_is_known(moment)
        name = share(first_free(stem, self._is_there, extension=self.FILE_EXTENSION, start=self.STARTING_VERSION))
        last = share(self._last_name(moment, name)) if self.save_last and not flaw else None
        self._request(trainer, moment, None, name, last)

    def _numbers(self, trainer: Any) -> dict[str, Any]:
        """Return the state of the modules and the optimizers that a checkpoint will hold, as it will hold it."""
        optimizers = () if self.save_weights_only else trainer.optimizers
        return {
            "state_dict": trainer.lightning_module.state_dict(),
            "optimizer_states": [optimizer.state_dict() for optimizer in optimizers],
        }

    def _stem_of_what_is_known(self, moment: Moment) -> str:
        """Return the usual name, or the default one if that names a metric which was not measured yet."""
        try:
            return self._stem(moment.values, self.filename)
        except ConfigurationError:
            return self._stem(moment.values, None)

    def _proposed(self, trainer: Any, moment: Moment) -> Proposed | None:
        """Return the ledger with this checkpoint in it and what goes for it, or ``None`` if it holds no place."""
        if self.monitor is not None and self.monitor not in moment.values:
            remedy = f"Call self.log({self.monitor!r}, value) in the LightningModule, or give monitor= one of these."
            owner = f"ModelCheckpoint(monitor={self.monitor!r})"
            error = MissingMetricError(self.monitor, owner, moment.values, remedy)
            raise self.framework.misconfiguration(str(error)) from error
        self._runs.take(trainer.strategy.broadcast(self._runs.changes()))
        snapshot, policy, protected = self._snapshot(moment), self._policy, self._protected()
        provisional = self._runs.candidate(snapshot, f"{self._stem(moment.values, self.filename)}/candidate")
        _, proposal = self._runs.ledger.propose(provisional, policy, protected=protected)
        candidate: Record | None = None
        if provisional.path in policy.select((*self._runs.ledger.records, provisional)):
            replaceable = {record.path for record in proposal.released}
            if self.monitor is None and self.best_model_path:
                replaceable.add(Path(self.best_model_path))
            replaceable -= {record.path for record in self._runs.ledger.records if record.pinned}
            candidate = self._runs.candidate(snapshot, self._name(moment, replaceable))
        candidate = trainer.strategy.broadcast(candidate)
        if candidate is None:
            self._say(moment, f"not saved: {policy.why_not(provisional)}")
            return None
        return self._runs.ledger.propose(candidate, policy, protected=protected)

    def _request(
        self, trainer: Any, moment: Moment, proposed: Proposed | None, name: str | None, last: str | None
    ) -> None:
        """Ask for a checkpoint as ``name`` and ``last``; the callback's own state in it is to name itself already."""
        before = {attribute: getattr(self, attribute) for attribute in _SHOWN}
        names = self._names(name, last)
        if proposed is not None:
            self._show(proposed[0].records, moment)
        if last is not None:
            self.last_model_path = self._lasts[names.name] = str(self._runs.directory / last)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = str(self._runs.directory / names.name)
        self._exchange.requests.append(
            Request(
                run=self._runs,
                snapshot=self._snapshot(moment),
                names=names,
                proposed=proposed,
                weights_only=self.save_weights_only,
                undo=lambda: self.__dict__.update(before),
                settle=lambda: self._settle(trainer),
                finish=lambda unwritten: self._finish_their_write(trainer, unwritten, names, proposed),
            )
        )
        self._tell(moment, names, proposed)
        if self._options.blocking:
            self._exchange.write(trainer, self.framework)

    def _finish_their_write(
        self, trainer: Any, unwritten: tuple[str, ...], names: Names, proposed: Proposed | None
    ) -> None:
        """Do the rest where a plugin or a sharded strategy writes in its own way, at once and without a manifest."""
        directory = self._runs.directory
        if not self._plugin_named:
            self._plugin_named = True
            writer = type(trainer.strategy.checkpoint_io.configured).__name__
            self.framework.warn(
                f"{type(trainer.strategy).__name__} with {writer} writes checkpoints itself: they are written as it "
                "does that, while training waits, and safepoint cannot verify them."
            )
        for other in unwritten:
            trainer.save_checkpoint(str(directory / other), self.save_weights_only)
        released = () if proposed is None else proposed[1].released
        for old in (*(record.path for record in released), *(directory / name for name in names.obsolete)):
            trainer.strategy.remove_checkpoint(str(old))
        self._secured = self._last_global_step_saved, self._last_checkpoint_saved
        self._untold += 1
        self._notify(trainer)

    def _names(self, name: str | None, last: str | None) -> Names:
        """Return all names of the checkpoint, and the name of the ``last`` that it makes obsolete."""
        directory = self._runs.directory
        main = name or last or ""
        second = (last,) if last not in (None, main) else ()
        mine = {record.path for record in self._runs.ledger.records}
        mine |= {Path(path) for path in (self.last_model_path, self.best_model_path) if path}
        return Names(
            main,
            replace=directory / main in mine,
            overwrite=not self._enable_version_counter,
            links=() if self.save_last == "link" else second,
            symlinks=second if self.save_last == "link" else (),
            obsolete=() if last is None else self._obsolete_last({directory / main, directory / last}),
        )

    def _obsolete_last(self, names: Collection[Path]) -> tuple[str, ...]:
        """Return the name of the ``last`` before this one, unless it is among ``names`` or not this run's to remove."""
        directory, old = self._runs.directory, Path(self.last_model_path)
        if not self.last_model_path or old in names or old in self._protected() or not old.is_relative_to(directory):
            return ()
        return (old.relative_to(directory).as_posix(),)

    def _last_name(self, moment: Moment, name: str | None) -> str:
        """Return the name of the ``last`` checkpoint; the one before it may be replaced."""
        directory = self._runs.directory
        return first_free(
            self._stem(moment.values, self.CHECKPOINT_NAME_LAST),
            lambda n: n == name or (str(directory / n) != self.last_model_path and self._taken(n)),
            extension=self.FILE_EXTENSION,
            start=self.STARTING_VERSION,
        )

    def _name(self, moment: Moment, replaceable: Collection[Path]) -> str:
        """Return the first free name from the template; those in ``replaceable`` count as free."""
        directory = self._runs.directory
        return first_free(
            self._stem(moment.values, self.filename),
            lambda n: directory / n not in replaceable and self._taken(n),
            extension=self.FILE_EXTENSION,
            start=self.STARTING_VERSION,
        )

    def _taken(self, name: str) -> bool:
        return bool(self._enable_version_counter) and self._is_there(name)

    def _is_there(self, name: str) -> bool:
        return self._exchange.taken(self._runs.directory / name)

    def _stem(self, values: Mapping[str, float], template: str | None) -> str:
        join = self.CHECKPOINT_JOIN_CHAR
        with self._in_the_frameworks_words():
            return render(
                template or f"{{epoch}}{join}{{step}}",
                values,
                auto_insert=self.auto_insert_metric_name,
                equals=self.CHECKPOINT_EQUALS_CHAR,
            )

    # What is kept, and how it shows.

    @property
    def _policy(self) -> PreservationPolicy:
        if self.save_top_k == -1:
            return All()
        return Latest(1) if self.monitor is None else self._ranking

    @property
    def _ranking(self) -> TopK:
        return TopK(str(self.monitor), max(self.save_top_k, 1), "min" if self.mode == "min" else "max")

    @property
    def _infinitely_bad(self) -> Tensor:
        return tensor(math.inf if self.mode == "min" else -math.inf)

    @property
    def _runs(self) -> Run:
        if self._run is None:
            raise ConfigurationError(
                "ModelCheckpoint saves within trainer.fit() only: its setup() has not been called."
            )
        return self._run

    def _protected(self) -> dict[Path, str]:
        """Return what this run must not remove, whatever its policy: what it came from, and what lies elsewhere."""
        paths = {record.path for record in self._runs.ledger.records}
        paths |= {Path(path) for path in (self.last_model_path, self.best_model_path) if path}
        outside = {path for path in paths if not path.is_relative_to(self._runs.directory)}
        origin = {path for path in paths if self._resumed_from == local_path(path)}
        return {
            **dict.fromkeys(outside, "lies outside of dirpath"),
            **dict.fromkeys(origin, "the run was resumed from it"),
        }

    def _show(self, records: Sequence[Record], moment: Moment | None = None) -> None:
        """Set the public attributes to what ``records`` say; of the newest, the score as it was logged."""
        selected = self._policy.select(records)
        records = [record for record in records if record.path in selected]
        if self.monitor is None or not records:
            self.best_model_path = str(records[-1].path) if records else ""
            self.best_model_score, self.best_k_models, self.kth_best_model_path = None, {}, ""
            self.kth_value = self._infinitely_bad
            return
        ranking = self._ranking
        if moment is not None:
            self._scores[records[-1].path] = self.current_score = ranking.shown(moment.score(self.monitor))
        self.best_k_models = {str(record.path): self._scores[record.path] for record in records}
        best = ranking.best(records)
        self.best_model_path, self.best_model_score = str(best.path), self._scores[best.path]
        if self.save_top_k in (-1, len(records)):
            worst = ranking.worst(records)
            self.kth_best_model_path, self.kth_value = str(worst.path), self._scores[worst.path]
        else:
            self.kth_best_model_path, self.kth_value = "", self._infinitely_bad

    def _snapshot(self, moment: Moment) -> Snapshot:
        late = {name: self._validated_at for name in self._validation_metrics if name in moment.metrics}
        late = {} if self._validated_at == moment.step else late
        return Snapshot(
            moment.step,
            moment.epoch,
            None,
            moment.metrics,
            (moment.reason,),
            measured_at=late,
            emergency=moment.emergency,
            flaw=moment.flaw,
        )

    def _moment(self, trainer: Any, reason: str) -> Moment:
        tensors = {name: _copied(value) for name, value in trainer.callback_metrics.items()}
        metrics = {name: number(value) for name, value in tensors.items()}
        counts = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        metrics |= {name: count for name, count in counts.items() if name == self.monitor and name not in metrics}
        return Moment(trainer.global_step, trainer.current_epoch, tensors, metrics, reason)

    def _tell(self, moment: Moment, names: Names, proposed: Proposed | None) -> None:
        """Say what is saved, why, and what goes for it."""
        others = ", ".join((*names.links, *names.symlinks))
        also = f" and {others}" if others else ""
        goes = ", ".join(record.path.name for record in proposed[1].released) if proposed else ""
        then = f"; {goes} goes once it is durable" if goes else ""
        score = ""
        if proposed is not None and self.monitor is not None:
            best = "" if self.best_model_score is None else f", best {self.best_model_score:.5f}"
            score = f" ({self.monitor} reached {moment.values[self.monitor]:.5f}{best})"
        self._say(moment, f"saving {names.name}{also}{score}{then}")

    def _say(self, moment: Moment, message: str) -> None:
        if self.verbose:
            self.framework.info(f"Epoch {moment.epoch}, global step {moment.step}: {message} [{moment.reason}]")

    # What has become of it.

    def _settle(self, trainer: Any) -> None:
        if self._runs.has_news:
            self._take_in(trainer, self._runs.settle())

    def _wait(self, trainer: Any) -> None:
        self._take_in(trainer, self._runs.wait())

    def _take_in(self, trainer: Any, settled: Settled) -> None:
        """Show what is there without what failed, tell the loggers, and raise what went wrong.

        The loggers look at the public attributes, which name what is pending, too: they are told when nothing is.
        """
        for names in settled.failed:
            self._lasts.pop(names.name, None)
        for names in settled.durable:
            last = self._lasts.pop(names.name, None)
            if last is not None and last in (str(self._runs.directory / name) for name in names.all):
                self._durable_last = last
        if settled.durable:
            self._secured = settled.stats[-1].step, str(self._runs.directory / settled.durable[-1].name)
        if settled.failed:
            self._count_as_unsaved()
        if not settled.is_whole:
            self._show(self._runs.ledger.records)
            self.last_model_path = self._durable_last
        self._tell_costs(trainer, settled)
        self._untold += len(settled.durable)
        if self._runs.idle:
            self._notify(trainer)
        self._runs.report(settled)

    def _count_as_unsaved(self) -> None:
        """Let the last that is said to be saved be one that is, unless a later one is still on its way."""
        asked = any(request.run is self._run for request in self._exchange.requests)
        if self._runs.idle and not asked and self._secured[0] != self._last_global_step_saved:
            self._failed_step = self._last_global_step_saved
            self._last_global_step_saved, self._last_checkpoint_saved = self._secured

    def _is_saved(self, trainer: Any) -> bool:
        """Tell whether this step is saved, or on its way."""
        return self._as_rank_0_knows(trainer, known=self._last_global_step_saved == trainer.global_step)

    def _has_saved(self, trainer: Any) -> bool:
        """Tell whether anything is saved, or on its way."""
        return self._as_rank_0_knows(trainer, known=bool(self._last_checkpoint_saved))

    def _as_rank_0_knows(self, trainer: Any, *, known: bool) -> bool:
        """Return what is ``known`` on rank 0: where training goes on after failures, it alone hears of them."""
        return bool(trainer.strategy.broadcast(known)) if self._options.on_error == "warn" else known

    def _tell_costs(self, trainer: Any, settled: Settled) -> None:
        for stats in settled.stats:
            if self.verbose:
                self.framework.info(str(stats))
            if self._log_stats and trainer.is_global_zero:
                costs = {f"checkpoint/{name}": float(getattr(stats, name)) for name in _COSTS}
                for logger in trainer.loggers:
                    logger.log_metrics(costs, step=stats.step)

    def _notify(self, trainer: Any) -> None:
        """Tell the loggers, once for each checkpoint that has become durable."""
        untold, self._untold = self._untold, 0
        if trainer.is_global_zero:
            for logger in trainer.loggers * untold:
                logger.after_save_checkpoint(weakref.proxy(self))

    @contextmanager
    def _in_the_frameworks_words(self) -> Iterator[None]:
        """Raise our errors about arguments as the framework's own kind, too."""
        try:
            yield
        except ConfigurationError as error:
            raise self.framework.misconfiguration(str(error)) from error


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else tensor(value)


def number(value: Any) -> float:
    """Return a logged value as a plain number; an integer stays one."""
    number: float = value.item() if hasattr(value, "item") else value
    return number
