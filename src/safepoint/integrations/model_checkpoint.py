"""The drop-in for Lightning's ``ModelCheckpoint``: the body that both packages share.

It keeps the framework's constructor, attributes, hooks and file names, and replaces what stands behind them: decisions
come from the pure policies, files from the run's pipeline. Lightning's sentinel values and spellings end here.

Private names of the framework that are used (each has a contract test): ``ModelCheckpoint._find_last_checkpoints``
(asked by the trainer for ``ckpt_path="last"``) is overridden; ``_last_global_step_saved`` and
``_last_checkpoint_saved`` (read by loggers) are kept up; ``Trainer._val_check_time_interval`` is read.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, tensor

from safepoint.errors import ConfigurationError, MissingMetricError, SaveError
from safepoint.integrations import configuration, resume
from safepoint.integrations.framework import Framework
from safepoint.integrations.top_k import TopK
from safepoint.keep import All, Latest, PreservationPolicy
from safepoint.naming import first_free, render
from safepoint.records import Event, EventKind, Record
from safepoint.run import OnError, Options, Proposed, Run, Snapshot, Staging
from safepoint.schedule import Ledger
from safepoint.stores.local import check_directory
from safepoint.writer import Names


@dataclass(frozen=True, slots=True)
class _Moment:
    """What one hook sees: the metrics as tensors and as numbers, and why a save is due."""

    step: int
    epoch: int
    tensors: Mapping[str, Any]
    values: Mapping[str, float]
    reason: str


class ModelCheckpointBody:
    """Lightning's ``ModelCheckpoint`` on Safepoint: every argument means what it means there.

    Besides, by keyword: ``staging``, ``blocking`` (each save is durable when its hook returns), ``max_images`` and
    ``on_error`` as for ``Checkpointer``. Files become durable in the background, in order, and at the latest when
    ``fit`` returns; a superseded file goes only after its successor is durable.
    """

    framework: ClassVar[Framework]

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002 - the framework's signature, here and below
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,  # noqa: FBT001, FBT002
        save_weights_only: bool = False,  # noqa: FBT001, FBT002
        mode: str = "min",
        auto_insert_metric_name: bool = True,  # noqa: FBT001, FBT002
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,  # noqa: FBT001
        enable_version_counter: bool = True,  # noqa: FBT001, FBT002
        *,
        staging: Staging = "copy",
        blocking: bool = False,
        max_images: int = 2,
        on_error: OnError = "raise",
    ) -> None:
        self._options = Options(staging, blocking, max_images, on_error)
        with self._in_the_frameworks_words():
            self._options.check("ModelCheckpoint")
            configuration.check(
                dirpath=dirpath,
                filename=filename,
                monitor=monitor,
                save_last=save_last,
                save_top_k=save_top_k,
                mode=mode,
                every_n_train_steps=every_n_train_steps,
                train_time_interval=train_time_interval,
                every_n_epochs=every_n_epochs,
            )
        super().__init__(  # type: ignore[call-arg]
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            verbose=verbose,
            save_last=save_last,
            save_top_k=save_top_k,
            save_on_exception=save_on_exception,
            save_weights_only=save_weights_only,
            mode=mode,
            auto_insert_metric_name=auto_insert_metric_name,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=enable_version_counter,
        )
        self._triggers = configuration.triggers(every_n_train_steps, train_time_interval, every_n_epochs)
        self._deferred: str | None = None
        self._run: Run | None = None
        self._carried: tuple[str, Ledger] | None = None
        self._scores: dict[Path, Tensor] = {}
        self._durable_last = ""
        self._resumed_from: Path | None = None
        self._plugin_named = False

    # The framework's hooks.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - the framework's signature
        """Decide the directory, refuse one that cannot be written to and a damaged checkpoint to resume from."""
        self.dirpath = trainer.strategy.broadcast(self._resolved_dirpath(trainer))
        directory = Path(self.dirpath)
        self._resumed_from = _local(trainer.ckpt_path)
        if stage == "fit":
            with self._in_the_frameworks_words():
                check_directory(directory, owner="dirpath")
            if self.save_top_k != 0 and directory.is_dir() and any(directory.iterdir()):
                self.framework.warn(f"Checkpoint directory {self.dirpath} exists and is not empty.")
        if self._resumed_from is not None:
            resume.check_sound(self._resumed_from, trainer.strategy)
        if self._run is None:
            self._run = Run(directory, self._options)
            if self._carried is not None:
                self._run.adopt(*self._carried)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Start the clock of ``train_time_interval``."""
        self._last_time_checked = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Save if ``every_n_train_steps`` or ``train_time_interval`` is due."""
        self._settle(trainer)
        reason = self._due(trainer, EventKind.STEP)
        if reason is None or self._skips(trainer):
            return
        if self._measured_later(trainer):
            self._deferred = f"{reason}, after validation"
            return
        self._last_time_checked = time.monotonic()
        self._save(trainer, reason, last=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Save what waited for this validation, or what is due at validation's end."""
        self._settle(trainer)
        if self._skips(trainer):
            return
        if self._deferred is not None:
            self._save_deferred(trainer)
        elif not self._saves_on_train_epoch_end(trainer):
            self._save_at_epoch(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Save what is due at the end of the training epoch."""
        self._settle(trainer)
        if not self._skips(trainer) and self._saves_on_train_epoch_end(trainer):
            self._save_at_epoch(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Save what still waits, see to ``save_last``, and return when everything is durable."""
        self._settle(trainer)
        if self._deferred is not None and not self._skips(trainer):
            self._save_deferred(trainer)
        if self.save_last and not self._last_checkpoint_saved and not trainer.fast_dev_run:
            self._save(trainer, "train end", top_k=False, last=True)
        self._wait(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Save if ``save_on_exception`` says so; in any case return when everything is durable, hiding nothing."""
        try:
            unsaved = self._last_global_step_saved != trainer.global_step
            if self.save_on_exception and unsaved and not trainer.fast_dev_run and not trainer.sanity_checking:
                self._save(trainer, f"exception: {type(exception).__name__}", top_k=False, last=True, loose=True)
            self._wait(trainer)
        except (SaveError, OSError) as late:
            self.framework.warn(f"While {type(exception).__name__} was handled, a checkpoint failed too: {late}")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - the framework's signature
        """Return when everything is durable, and end the background thread."""
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            self._notify(trainer, run.close())
        finally:
            self._carried = (run.identity, run.ledger)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what an earlier run held, whether its callback was this one or the framework's own."""
        super().load_state_dict(state_dict)  # type: ignore[misc]
        if self._run is None:
            return
        held = self.best_k_models if self.monitor is not None else dict.fromkeys(filter(None, [self.best_model_path]))
        identity, ledger = resume.ledger(Path(self.dirpath), held, self.monitor, self._resumed_from)
        self._scores = {Path(path): score for path, score in held.items() if score is not None}
        self._durable_last = self.last_model_path
        self._run.adopt(identity or self._run.identity, ledger)

    # The framework's public methods.

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Return the path that a checkpoint with these metrics has; a name that no metric bears is an error."""
        stem = self._stem({name: _number(value) for name, value in metrics.items()}, filename or self.filename)
        stem = stem if prefix is None else f"{prefix}{self.CHECKPOINT_JOIN_CHAR}{stem}"
        stem = stem if ver is None else f"{stem}{self.CHECKPOINT_JOIN_CHAR}v{ver}"
        name = f"{stem}{self.FILE_EXTENSION}"
        return os.path.join(self.dirpath, name) if self.dirpath else name

    # When.

    def _due(self, trainer: Any, kind: EventKind) -> str | None:
        """Return why a save is due; a matter of time is decided on rank 0 for all."""
        now, step, epoch = time.monotonic(), trainer.global_step, trainer.current_epoch
        event = Event(kind, step, epoch, (step, epoch, 0), now)
        due = self._triggers.due(event, self._last_time_checked or now)
        return trainer.strategy.broadcast(due) if self._train_time_interval is not None else due  # type: ignore[no-any-return]

    def _skips(self, trainer: Any) -> bool:
        """Tell whether nothing is saved now: outside of fitting, in a dry run, or at a step that is saved already."""
        return bool(
            trainer.fast_dev_run
            or trainer.state.fn != "fit"
            or trainer.sanity_checking
            or self._last_global_step_saved == trainer.global_step
        )

    def _measured_later(self, trainer: Any) -> bool:
        """Tell whether a save at this step must wait for the metric that it is ranked by."""
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            return True
        validates_next = trainer.is_last_batch and trainer.enable_validation
        return bool(validates_next and not self._saves_on_train_epoch_end(trainer))

    def _saves_on_train_epoch_end(self, trainer: Any) -> bool:
        """Tell which hook saves: the training epoch's end, or validation's where that runs at other times."""
        if self._save_on_train_epoch_end is not None:
            return bool(self._save_on_train_epoch_end)
        if getattr(trainer, "_val_check_time_interval", None) is not None or trainer.check_val_every_n_epoch != 1:
            return False
        batches = trainer.num_val_batches
        if not (sum(batches) if isinstance(batches, list) else batches):
            return True
        return bool(trainer.val_check_interval == 1.0)

    def _save_at_epoch(self, trainer: Any) -> None:
        reason = self._due(trainer, EventKind.EPOCH_END)
        if reason is not None:
            self._save(trainer, reason, last=False)

    def _save_deferred(self, trainer: Any) -> None:
        reason, self._deferred = self._deferred or "", None
        self._save(trainer, reason, last=True)

    # What, and under which names.

    def _save(self, trainer: Any, reason: str, *, last: bool, top_k: bool = True, loose: bool = False) -> None:
        """Save if the checkpoint holds a place among the top k; refresh ``last`` then, and with ``last`` in any case.

        ``loose``: save under the usual name, whatever the top k, and outside of it.
        """
        moment = self._moment(trainer, reason)
        proposed = self._proposed(trainer, moment) if top_k and self.save_top_k != 0 else None
        name = self._runs.name_of(proposed[1].record) if proposed else None
        if loose:
            name = self._name(moment, ())
        wants_last = bool(self.save_last) and (last or proposed is not None)
        if name is None and self.save_last == "link" and self._last_checkpoint_saved and self.save_top_k != 0:
            wants_last = False  # it points to the last one saved already
        if name is not None or wants_last:
            self._write(trainer, moment, proposed, name, self._last_name(moment, name) if wants_last else None)

    def _proposed(self, trainer: Any, moment: _Moment) -> Proposed | None:
        """Return the ledger with this checkpoint in it and what goes for it, or ``None`` if it holds no place."""
        if self.monitor is not None and self.monitor not in moment.values:
            remedy = f"Call self.log({self.monitor!r}, value) in the LightningModule, or give monitor= one of these."
            error = MissingMetricError(self.monitor, f"ModelCheckpoint(monitor={self.monitor!r})", moment.values, remedy)
            raise self.framework.misconfiguration(str(error)) from error
        snapshot, policy, protected = self._snapshot(moment), self._policy, self._protected()
        provisional = self._runs.candidate(snapshot, f"{self._stem(moment.values, self.filename)}/candidate")
        ledger, proposal = self._runs.ledger.propose(provisional, policy, protected=protected)
        if provisional.path not in policy.select((*self._runs.ledger.records, provisional)):
            self._say(moment, f"not saved: {policy.why_not(provisional)}")
            return None
        replaceable = {record.path for record in proposal.released}
        if self.monitor is None and self.best_model_path:
            replaceable.add(Path(self.best_model_path))
        name = self._name(moment, replaceable)
        candidate = trainer.strategy.broadcast(self._runs.candidate(snapshot, name))
        return self._runs.ledger.propose(candidate, policy, protected=protected)

    def _write(
        self, trainer: Any, moment: _Moment, proposed: Proposed | None, name: str | None, last: str | None
    ) -> None:
        """Write one checkpoint under ``name`` and ``last``; the callback's own state in it already names itself."""
        before = {attribute: getattr(self, attribute) for attribute in _SHOWN}
        names = self._names(name, last)
        path = str(self._runs.directory / names.name)
        if proposed is not None:
            self._show(proposed[0].records, moment)
        if last is not None:
            self.last_model_path = str(self._runs.directory / last)
        try:
            self._hand_over(trainer, moment, names, proposed)
        except BaseException:
            self.__dict__.update(before)
            raise
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = path
        self._tell(moment, names, proposed)

    def _hand_over(self, trainer: Any, moment: _Moment, names: Names, proposed: Proposed | None) -> None:
        """Have the trainer dump its checkpoint, and take it from there instead of letting it be written."""
        run, strategy, taken = self._runs, trainer.strategy, False

        def sink(checkpoint: dict[str, Any]) -> None:
            nonlocal taken
            taken = True
            run.save(checkpoint, self._snapshot(moment), names, proposed)

        path = str(run.directory / names.name)
        if self.framework.takes_over(strategy.checkpoint_io):
            with self.framework.redirected(strategy, sink):
                trainer.save_checkpoint(path, self.save_weights_only)
        else:
            trainer.save_checkpoint(path, self.save_weights_only)
        if not strategy.broadcast(taken):
            self._finish_their_write(trainer, names, proposed)
        if not taken and proposed is not None:
            run.ledger = proposed[0].committed(proposed[1], 0)
        self._settle(trainer)

    def _finish_their_write(self, trainer: Any, names: Names, proposed: Proposed | None) -> None:
        """Do the rest where a plugin or a sharded strategy writes in its own way, at once and without a manifest."""
        directory = self._runs.directory
        if not self._plugin_named:
            self._plugin_named = True
            writer = type(trainer.strategy.checkpoint_io).__name__
            self.framework.warn(
                f"{type(trainer.strategy).__name__} with {writer} writes checkpoints itself: they are written as it "
                "does that, while training waits, and safepoint cannot verify them."
            )
        for other in (*names.links, *names.symlinks):
            trainer.save_checkpoint(str(directory / other), self.save_weights_only)
        released = () if proposed is None else proposed[1].released
        for old in (*(record.path for record in released), *(directory / name for name in names.obsolete)):
            trainer.strategy.remove_checkpoint(str(old))
        self._notify(trainer, [names])

    def _names(self, name: str | None, last: str | None) -> Names:
        """Return all names of the checkpoint, and the name of the ``last`` that it makes obsolete."""
        directory = self._runs.directory
        main = name or last or ""
        second = (last,) if last is not None and name is not None and last != name else ()
        old = _local(self.last_model_path) if last is not None else None
        obsolete: tuple[str, ...] = ()
        if old is not None and old != directory / str(last) and old not in self._protected() and old != directory / main:
            obsolete = (old.relative_to(directory).as_posix(),) if old.is_relative_to(directory) else ()
        known = {record.path for record in self._runs.ledger.records}
        replace = directory / main in known or not self._enable_version_counter or str(directory / main) in (
            self.last_model_path,
            self.best_model_path,
        )
        return Names(
            main,
            replace=replace,
            links=() if self.save_last == "link" else second,
            symlinks=second if self.save_last == "link" else (),
            obsolete=obsolete,
        )

    def _last_name(self, moment: _Moment, name: str | None) -> str:
        """Return the name of the ``last`` checkpoint; the one before it may be replaced."""
        directory = self._runs.directory
        return first_free(
            self._stem(moment.values, self.CHECKPOINT_NAME_LAST),
            lambda n: n == name or (str(directory / n) != self.last_model_path and self._taken(n)),
            extension=self.FILE_EXTENSION,
            start=self.STARTING_VERSION,
        )

    def _name(self, moment: _Moment, replaceable: Collection[Path]) -> str:
        """Return the first free name from the template; those in ``replaceable`` count as free."""
        directory = self._runs.directory
        return first_free(
            self._stem(moment.values, self.filename),
            lambda n: directory / n not in replaceable and self._taken(n),
            extension=self.FILE_EXTENSION,
            start=self.STARTING_VERSION,
        )

    def _taken(self, name: str) -> bool:
        return bool(self._enable_version_counter) and self._runs.taken(name)

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
    def _runs(self) -> Run:
        if self._run is None:
            raise ConfigurationError("ModelCheckpoint saves within trainer.fit() only: its setup() has not been called.")
        return self._run

    def _protected(self) -> dict[Path, str]:
        """Return what this run must not remove, whatever its policy: what it came from, and what lies elsewhere."""
        directory = self._runs.directory
        protected = {
            record.path: "lies outside of dirpath"
            for record in self._runs.ledger.records
            if not record.path.is_relative_to(directory)
        }
        if self._resumed_from is not None:
            protected[self._resumed_from] = "the run was resumed from it"
        return protected

    def _show(self, records: Sequence[Record], moment: _Moment | None = None) -> None:
        """Set the public attributes to what ``records`` say; of the newest, the score as it was logged."""
        if not records:
            return
        if self.monitor is None:
            self.best_model_path = str(records[-1].path)
            return
        ranking, newest = self._ranking, records[-1]
        if moment is not None:
            self._scores[newest.path] = self.current_score = ranking.shown(moment.tensors[self.monitor])
        self.best_k_models = {str(record.path): self._scores[record.path] for record in records}
        best = ranking.best(records)
        self.best_model_path, self.best_model_score = str(best.path), self._scores[best.path]
        if self.save_top_k in (-1, len(records)):
            worst = ranking.worst(records)
            self.kth_best_model_path, self.kth_value = str(worst.path), self._scores[worst.path]

    def _snapshot(self, moment: _Moment) -> Snapshot:
        return Snapshot(moment.step, moment.epoch, None, moment.values, (moment.reason,))

    def _moment(self, trainer: Any, reason: str) -> _Moment:
        tensors = {name: _copied(value) for name, value in trainer.callback_metrics.items()}
        values = {name: _number(value) for name, value in tensors.items()}
        for own, count in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
            values[own] = int(values.get(own, count))
        return _Moment(trainer.global_step, trainer.current_epoch, tensors, values, reason)

    def _tell(self, moment: _Moment, names: Names, proposed: Proposed | None) -> None:
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

    def _say(self, moment: _Moment, message: str) -> None:
        if self.verbose:
            self.framework.info(f"Epoch {moment.epoch}, global step {moment.step}: {message} [{moment.reason}]")

    # What has become of it.

    def _settle(self, trainer: Any) -> None:
        self._taken_in(trainer, self._runs.settle)

    def _wait(self, trainer: Any) -> None:
        self._taken_in(trainer, self._runs.wait)

    def _taken_in(self, trainer: Any, settle: Callable[[], list[Names]]) -> None:
        """Let the run take in what the background has done; if a save failed, show what is there without it."""
        pending = self._runs.ledger.pending
        try:
            durable = settle()
        finally:
            if pending - self._runs.ledger.pending - {record.path for record in self._runs.ledger.records}:
                self._show(self._runs.ledger.records)
                self.last_model_path = self._durable_last
        self._notify(trainer, durable)

    def _notify(self, trainer: Any, durable: Sequence[Names]) -> None:
        """Tell the loggers, once for each checkpoint that has become durable."""
        for names in durable:
            directory = str(self._runs.directory)
            if self.last_model_path in {os.path.join(directory, n) for n in (names.name, *names.links, *names.symlinks)}:
                self._durable_last = self.last_model_path
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.after_save_checkpoint(weakref.proxy(self))

    # Where, and what the trainer asks.

    def _find_last_checkpoints(self, trainer: Any) -> set[str]:
        """Return the newest sound checkpoint called ``last``, or, if none is sound, the newest sound one at all."""
        found = resume.newest_last(Path(self._resolved_dirpath(trainer)), self.CHECKPOINT_NAME_LAST, self.framework.warn)
        return set() if found is None else {str(found)}

    def _resolved_dirpath(self, trainer: Any) -> str:
        """Return ``dirpath``, else the first logger's directory, else the trainer's, each with ``checkpoints`` below."""
        if self.dirpath is not None:
            return str(self.dirpath)
        if not trainer.loggers:
            return os.path.join(trainer.default_root_dir, "checkpoints")
        logger = trainer.loggers[0]
        root = trainer.default_root_dir if logger.save_dir is None else logger.save_dir
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return os.path.join(root, str(logger.name), version, "checkpoints")

    @contextmanager
    def _in_the_frameworks_words(self) -> Iterator[None]:
        """Raise our errors about arguments as the framework's own kind, too."""
        try:
            yield
        except ConfigurationError as error:
            raise self.framework.misconfiguration(str(error)) from error

    def __getstate__(self) -> dict[str, Any]:
        """Leave the thread behind when the callback is sent to another process."""
        state = self.__dict__.copy()
        if self._run is not None:
            state["_carried"] = (self._run.identity, self._run.ledger)
        return {**state, "_run": None}


_SHOWN = (
    "best_k_models",
    "best_model_path",
    "best_model_score",
    "current_score",
    "kth_best_model_path",
    "kth_value",
    "last_model_path",
)


def _local(path: Any) -> Path | None:
    """Return a local path as it is in the ledger, ``None`` for nothing or for another kind of address."""
    if not path or "://" in str(path):
        return None
    return Path(os.path.realpath(os.path.expanduser(path)))


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else tensor(value)


def _number(value: Any) -> float:
    number: float = value.item() if hasattr(value, "item") else value
    return number
