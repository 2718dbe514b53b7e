"""The drop-in for Lightning's ``ModelCheckpoint``: the body that both packages share.

It keeps the framework's constructor, attributes, hooks and file names, and replaces what stands behind them: decisions
come from the pure policies, files from the run's pipeline. Lightning's sentinel values and spellings end here.

This part has the constructor, the hooks, and how a callback joins and leaves a trainer; ``deciding`` has when,
``saving`` what and under which names. A private name of the framework is overridden, with a contract test:
``ModelCheckpoint._find_last_checkpoints``, which the trainer asks for ``ckpt_path="last"``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from safepoint import schedule
from safepoint.integrations import ahead, configuration, resume
from safepoint.integrations.deciding import Deciding
from safepoint.integrations.exactness import Exactness
from safepoint.integrations.exchange import Exchange
from safepoint.integrations.saving import number
from safepoint.integrations.vanguard import vanguard
from safepoint.ledger import Ledger
from safepoint.pipeline import OnError, Options, Staging
from safepoint.records import EventKind
from safepoint.requests import Requests
from safepoint.run import Run
from safepoint.staging import image_bytes
from safepoint.stores.local import check_directory

_NOWHERE = (-1, -1, -1)
"""A position that no event has: whether a step is saved already is asked of the framework's own attribute."""


class ModelCheckpointBody(Deciding):
    """Lightning's ``ModelCheckpoint`` on Safepoint: every argument means what it means there.

    Besides, by keyword: ``staging``, ``blocking`` (each save is durable when its hook returns), ``max_images``,
    ``max_host_bytes``, ``exclude_frozen``, ``on_error`` and ``verify_after_write`` as for ``Checkpointer``;
    ``log_stats``: the loggers get what each save cost, as ``checkpoint/stalled_s``, ``checkpoint/committed_s`` and so
    on (see ``SaveStats``). Files become durable in the background, in order, and at the latest when ``fit`` returns; a
    superseded file goes only after its successor is durable.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        *,
        staging: Staging = "copy",
        blocking: bool = False,
        max_images: int = 2,
        max_host_bytes: int | None = None,
        exclude_frozen: bool = False,
        on_error: OnError = "raise",
        verify_after_write: bool = False,
        log_stats: bool = False,
    ) -> None:
        self._log_stats = log_stats
        self._options = Options(
            staging, blocking, max_images, max_host_bytes, exclude_frozen, on_error, verify_after_write
        )
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
        super().__init__(  # type: ignore[call-arg]  # the framework's, next in line
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
        self._saves_by_steps = bool(every_n_train_steps) or train_time_interval is not None
        self._schedule = schedule.start(_NOWHERE, 0.0)
        self._run: Run | None = None
        self._exchange = Exchange()
        self._resolved: tuple[Any, Path] = None, Path()
        self._carried: tuple[str, Ledger] | None = None
        self._scores: dict[Path, Tensor] = {}
        self._durable_last = ""
        self._lasts: dict[str, str] = {}
        self._secured = (0, "")
        self._failed_step = -1
        self._restored_step: int | None = None
        self._is_training = False
        self._untold = 0
        self._resumed_from: Path | None = None
        self._plugin_named = False
        self._has_validated = False
        self._told: set[str] = set()
        self._has_memory = False
        self._asked, self._looked_at, self._steps_looked_at = Requests(Path()), 0, 0
        self._vanguard: Any = None
        self._validated_at = -1
        self._validation_metrics: frozenset[str] = frozenset()
        self._logged_before_validation: frozenset[str] | None = None
        if (warning := configuration.contradiction(monitor, mode)) is not None:
            self.framework.warn(warning)

    # The framework's hooks.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - the framework's signature
        """Decide the directory, refuse one that cannot be written to, and see that what is loaded is verified."""
        self.dirpath = trainer.strategy.broadcast(ahead.directory(trainer, self.dirpath))
        directory = self._directory()
        self._resumed_from = None
        self._is_training = False
        exchange = self.framework.intercept(trainer.strategy)
        if self._run is not None and exchange is not self._exchange:
            self._leave(trainer)  # of another trainer, which has told nobody that it ended
        self._exchange = exchange
        if stage == "fit":
            if exchange.exactness is None:
                exchange.exactness = Exactness.of(trainer, self.framework.callback, self.framework.warn)
            if exchange.exactness is not None:
                exchange.exactness.follow(trainer)
            self._exchange.claims.append(lambda path: resume.claim(self._runs, path, self.FILE_EXTENSION))
            with self._in_the_frameworks_words():
                check_directory(directory, owner="dirpath")
            if self.save_top_k != 0 and directory.is_dir() and any(directory.iterdir()):
                self.framework.warn(f"Checkpoint directory {self.dirpath} exists and is not empty.")
                if trainer.is_global_zero and (told := resume.living(directory, self.FILE_EXTENSION)):
                    self.framework.warn(told)
        else:
            self._exchange.claims.clear()
        if self._run is None:
            self._has_memory = False
            self._asked, self._looked_at, self._steps_looked_at = Requests(directory), trainer.global_step, 0
            self._run = self._joined(directory, claims=stage == "fit" and trainer.is_global_zero)
            if stage == "fit" and self._options.staging == "deferred":
                self._vanguard = vanguard(self.framework.callback, self._run.pipeline.hold_back)
                # A new list, as the old one is just being gone through.
                trainer.callbacks = [self._vanguard, *trainer.callbacks]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Start the clock of ``train_time_interval``, and go on where the checkpoint was made."""
        self._schedule = schedule.start(_NOWHERE, time.monotonic())
        self._restored_step = trainer.global_step if trainer.ckpt_path else None
        self._is_training = True
        self._exchange.claims.clear()
        if self._exchange.exactness is not None:
            self._exchange.exactness.at_train_start(trainer)
        if self._validated_at < 0:  # what was measured before the resume was, at its step at the latest
            self._validated_at = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Save if ``every_n_train_steps`` or ``train_time_interval`` is due, or somebody asks for it."""
        if not self._has_memory and trainer.global_step:
            self._prepare_memory(trainer)
        self._at_step(trainer)
        self._at_request(trainer)
        if self._exchange.requests:
            self._write_requests(trainer, "on_train_batch_end", trains_on=ahead.trains_on(trainer, batch_idx))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Note what was logged before the first validation: what comes to it there is measured in validation."""
        if self._logged_before_validation is None:
            self._logged_before_validation = frozenset(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Save what waited for this validation, or what is due at validation's end."""
        self._at_validation_end(trainer)
        self._write_requests(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Save what is due at the end of the training epoch, or waited for it because no validation comes."""
        self._at_train_epoch_end(trainer)
        self._write_requests(trainer, "on_train_epoch_end")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Put the random state back where a resumed run had nothing left to train."""
        if self._exchange.exactness is not None:
            self._exchange.exactness.at_fit_end(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - the framework's signature
        """Save what still waits or has failed here, see to ``save_last``, and return when everything is durable."""
        self._wait(trainer)  # what has failed by now counts as not saved
        if self._as_rank_0_knows(trainer, known=self._failed_step == trainer.global_step) and not self._skips(trainer):
            self._save(trainer, "train end, as the save at this step failed", last=True)
        if self._schedule.waiting and not self._skips(trainer):
            self._follow(trainer, self._decide(trainer, EventKind.TRAIN_END), last=True)
        if self.save_last and not trainer.fast_dev_run and not self._has_saved(trainer):
            self._save(trainer, "train end", top_k=False, last=True)
        self._write_requests(trainer)
        self._wait(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Save if ``save_on_exception`` says so; in any case return when everything is durable, hiding nothing.

        Saved is only what a fit has trained: neither what is half restored, nor what was restored and is there already.
        """
        if self._run is None:
            return
        with self._warned_during(exception):
            self._write_requests(trainer)
            if self.save_on_exception:
                with self._warned_during(exception):
                    self._wait(trainer)  # what has failed by now counts as not saved
            if self.save_on_exception and self._has_trained(trainer):
                self._save_emergency(trainer, exception)
                self._write_requests(trainer)
        if self.save_on_exception and trainer.received_sigterm and isinstance(exception, SystemExit):
            exception.code = exception.code or 128 + signal.SIGTERM  # the framework's own would end in success
        with self._warned_during(exception):
            self._leave(trainer)  # the framework calls no teardown() after this

    def _has_trained(self, trainer: Any) -> bool:
        """Tell whether a fit has come to a step that is neither saved nor the one that it was resumed from."""
        unsaved = trainer.global_step not in (self._last_global_step_saved, self._restored_step)
        return self._is_training and unsaved and not trainer.fast_dev_run

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - the framework's signature
        """Return when everything is durable, and end the background thread."""
        if self._run is not None:
            self._leave(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Take note of the checkpoint that the run is resumed from: it is not removed by this run."""
        self._resumed_from = resume.local_path(trainer.ckpt_path)
        if self._exchange.exactness is not None:
            self._exchange.exactness.take(checkpoint, trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Add what a resumed run needs to be this one, and the framework does not keep."""
        if self._exchange.exactness is not None:
            self._exchange.exactness.add_to(checkpoint, trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what an earlier run held, whether its callback was this one or the framework's own."""
        if self.dirpath is not None:
            directory = self._directory()
            state_dict = resume.absolute(state_dict, str(self.dirpath), directory)
            state_dict = resume.rebased(state_dict, directory)
            state_dict = resume.believed(state_dict, directory, self.FILE_EXTENSION, self._resumed_from)
            if state_dict.get("dirpath") == str(directory):
                state_dict = {**state_dict, "dirpath": self.dirpath}  # as the framework compares it
        super().load_state_dict(state_dict)  # type: ignore[misc]
        if self._run is None:
            return
        held = self.best_k_models if self.monitor is not None else dict.fromkeys(filter(None, [self.best_model_path]))
        identity, ledger = resume.ledger(
            self._run.directory, self.FILE_EXTENSION, held, self.monitor, self._resumed_from
        )
        self._scores = {Path(path): score for path, score in held.items() if score is not None}
        self._durable_last = self.last_model_path
        if identity is None:  # of files that the framework wrote itself
            self._run.pipeline.predecessors.add("")
        self._exchange.adopt(self._run, identity or self._run.identity, ledger)

    # The framework's public methods.

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Return the path that a checkpoint with these metrics has; a name that no metric bears is an error."""
        stem = self._stem({name: number(value) for name, value in metrics.items()}, filename or self.filename)
        stem = stem if prefix is None else f"{prefix}{self.CHECKPOINT_JOIN_CHAR}{stem}"
        stem = stem if ver is None else f"{stem}{self.CHECKPOINT_JOIN_CHAR}v{ver}"
        name = f"{stem}{self.FILE_EXTENSION}"
        return os.path.join(self.dirpath, name) if self.dirpath else name

    # Of one trainer at a time.

    def _joined(self, directory: Path, *, claims: bool) -> Run:
        """Return a run in ``directory`` that goes on with what an earlier fit held, if nobody else does.

        Raises:
            RunAliveError: with ``claims``, another process goes on with it; what is carried stays for a later fit.

        """
        run = Run(self._exchange.pipeline(directory, self._options))
        if self._carried is None:
            return run
        try:
            if claims and self._carried[1].durable:
                resume.claim(run, self._carried[1].durable[-1].path, self.FILE_EXTENSION)
            self._exchange.adopt(run, *self._carried)
        except BaseException:
            self._exchange.leave(run)
            raise
        return run

    def _leave(self, trainer: Any) -> None:
        """Return when everything is durable, with no part in this trainer any more; a later fit goes on from here."""
        run = self._runs
        try:
            self._take_in(trainer, run.close())
        finally:
            self._exchange.leave(run)
            self._run, self._exchange = None, Exchange()
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self._vanguard]
            self._carried = (run.identity, run.ledger)

    @contextmanager
    def _warned_during(self, exception: BaseException) -> Iterator[None]:
        """Warn of what fails while ``exception`` is handled: that must come out, and nothing else."""
        try:
            yield
        except Exception as late:  # noqa: BLE001 - whatever it is
            self.framework.warn(f"While {type(exception).__name__} was handled, a checkpoint failed too: {late}")

    # When to write what was asked for.

    def _write_requests(self, trainer: Any, hook: str = "", *, trains_on: bool = False) -> None:
        """Write what is asked for, unless another callback is about to come to the same ``hook`` and may join in."""
        if self._exchange.requests and not (hook and self._others_follow(trainer, hook)):
            self._exchange.write(trainer, self.framework, trains_on=trains_on)

    def _others_follow(self, trainer: Any, hook: str) -> bool:
        """Tell whether a callback that shares our writes is still to come to ``hook``.

        One whose class overrides it does not count: it may never call ours.
        """
        ours = getattr(ModelCheckpointBody, hook)
        after = trainer.callbacks[trainer.callbacks.index(self) + 1 :] if self in trainer.callbacks else ()
        return any(
            isinstance(other, ModelCheckpointBody)
            and other._exchange is self._exchange  # noqa: SLF001 - of the same class
            and getattr(type(other), hook) is ours
            for other in after
        )

    def _prepare_memory(self, trainer: Any) -> None:
        """Have memory ready before the first save; after a first step the optimizers have their state."""
        self._has_memory = True
        if self._run is None or not trainer.is_global_zero or not (self.save_top_k or self.save_last):
            return
        module, optimizers = trainer.lightning_module, () if self.save_weights_only else trainer.optimizers
        state = (*module.parameters(), *module.buffers(), *(list(o.state.values()) for o in optimizers))
        self._run.pipeline.prepare(image_bytes(state), at_most=self._policy.at_most if self.save_top_k else 1)

    # Where, and what the trainer asks.

    def _directory(self) -> Path:
        """Return where ``dirpath`` was when it was first asked for: the process may change its own directory."""
        if self._resolved[0] != self.dirpath:
            self._resolved = self.dirpath, Path(os.path.abspath(self.dirpath))
        return self._resolved[1]

    def _find_last_checkpoints(self, trainer: Any) -> set[str]:
        """Return the newest sound checkpoint called ``last``, or, if none is sound, the newest sound one at all."""
        directory = Path(ahead.directory(trainer, None)) if self.dirpath is None else self._directory()
        found = resume.newest_last(
            directory,
            self.CHECKPOINT_NAME_LAST,
            self.FILE_EXTENSION,
            self.framework.warn,
        )
        return set() if found is None else {str(found)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the thread behind when the callback is sent to another process."""
        state = self.__dict__.copy()
        if self._run is not None:
            state["_carried"] = (self._run.identity, self._run.ledger)
        return {**state, "_run": None, "_exchange": Exchange(), "_vanguard": None}
