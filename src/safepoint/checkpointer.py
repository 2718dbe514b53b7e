"""The facade for a plain PyTorch loop: counts, asks the policies, and hands to the run what is due."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safepoint import flaws, schedule
from safepoint.catalog import Catalog, best_of
from safepoint.errors import ConfigurationError, MissingMetricError, Preempted, SaveError, plain
from safepoint.keep import Mode, PreservationPolicy
from safepoint.lighter import Lightened
from safepoint.loading import Trust
from safepoint.measured import Measured
from safepoint.naming import check_template, first_free
from safepoint.neighbours import Neighbours
from safepoint.pipeline import OnError, Options, Pipeline, Snapshot, Staging
from safepoint.records import NO_METRICS, Event, EventKind, Progress, Record, Save, SaveStats
from safepoint.requests import REQUEST_NAME, Requests
from safepoint.run import Run, Settled
from safepoint.signals import Came, Signals
from safepoint.staging import image_bytes
from safepoint.start import Starter
from safepoint.stores.local import check_directory
from safepoint.training_state import TrainingState
from safepoint.when import SavePolicy
from safepoint.writer import Names

logger = logging.getLogger("safepoint")

_STATS_LIMIT = 10_000
_FILENAMES = {EventKind.EXCEPTION: "{epoch}-{step}-exception", EventKind.PREEMPTION: "{epoch}-{step}-preempted"}


class Checkpointer:
    """Save a run's state when ``save`` says so, keep what ``keep`` says, and put a run back where it was.

    A context manager, one per run and per directory; for one thread. ``state`` maps names to live objects with
    ``state_dict()`` and ``load_state_dict()``, or to dicts. ``filename`` is a template over ``epoch``, ``step`` and the
    metrics of the save. Saves return once the state is staged and become durable in the background (``blocking=True``:
    at once).

    ``staging="copy"``: a save copies the state into host memory. ``staging="deferred"``: parameters and optimizer state
    are copied while the next forward and backward run, and the optimizers' next steps and ``load_state_dict`` wait for
    what is left; between a save and the next step, nothing may write into parameters through ``tensor.data`` or
    ``tensor.numpy()`` (what does so in other ways is noticed, and the checkpoint given up). ``max_images``: how many
    states there are in host memory at most, of ``max_host_bytes`` together (``None``: half of what is available); one
    that does not fit goes to disk through a buffer of 96 MiB while training waits. ``exclude_frozen``: parameters that
    need no gradient are left out; on ``restore()`` the live ones stay, and are compared with what was left out.

    ``resume_from`` is where to start if the directory holds no checkpoint: another run's directory or a file, as a
    path, a record or a text: ``"PATH"``, ``"PATH@latest"``, ``"PATH@best:METRIC"`` (``"PATH@best:METRIC:max"``) or
    ``"PATH@step:N"``. ``restore()`` then takes everything from there, and the run goes on counting, under an identity
    and in a directory of its own; what lies there is read only. Once the directory holds a checkpoint, that counts
    alone: the same script starts, and starts again.

    A background error is raised at the next call, once, as a SaveError; with ``on_error="warn"`` it is a
    warning, and the next save tries again. ``verify_after_write``: each checkpoint is read back from the disk and
    verified before it gets its name, at the cost of reading it.

    Raises:
        ConfigurationError: an argument is wrong, or the directory is a file or not writable. Nothing was touched.

    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        state: Mapping[str, object],
        save: SavePolicy,
        keep: PreservationPolicy,
        filename: str = "{epoch}-{step}",
        staging: Staging = "copy",
        blocking: bool = False,
        max_images: int = 2,
        max_host_bytes: int | None = None,
        exclude_frozen: bool = False,
        on_error: OnError = "raise",
        verify_after_write: bool = False,
        resume_from: str | os.PathLike[str] | Record | None = None,
    ) -> None:
        options = Options(staging, blocking, max_images, max_host_bytes, exclude_frozen, on_error, verify_after_write)
        options.check("Checkpointer")
        _check_policies(save, keep)
        _check_flat(filename)
        self.directory = Path(os.path.abspath(os.path.expanduser(directory)))
        check_directory(self.directory, owner="directory")
        self._save_policy = save
        self._keep_policy = keep
        self._filename = filename
        self._run = Run(Pipeline(self.directory, options))
        self._state = TrainingState(state, excludes_frozen=exclude_frozen)
        self._neighbours = Neighbours(self._run)
        self._starter = Starter(self._run, self._state.objects, resume_from)
        self._progress = Progress()
        self._schedule = schedule.start((0, 0, 0), time.monotonic())
        self._measured = Measured({})
        self._step_ended_s = self._schedule.last_save_s
        self._seen: set[str] = set()
        self._protected: dict[Path, str] = {}
        self._raised = self._interrupted = ""
        self._has_saved = False
        self._last_path = self.directory
        self._has_memory = False
        self._stats: deque[SaveStats] = deque(maxlen=_STATS_LIMIT)
        self._closed = False
        self._preempted: Came | None = None
        self._requests = Requests(self.directory)
        self._signals = Signals(save.signals, save.endings) if save.signals or save.endings else None

    def __enter__(self) -> Self:
        """Return the checkpointer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error in the loop, save if ``when.exception()`` says so, wait, and never hide that error."""
        if error is None:
            self.close()
            return
        try:
            try:
                if not isinstance(error, Preempted):
                    self._raised = type(error).__name__ or "an exception"
                    self._interrupted = flaws.interrupted_update(error)
                if not self._closed and (came := self._end_asked_for()) is not None:
                    self._saved_before_end(came, self._running_epoch())
                if not self._closed and self._preempted is None:
                    self._decide(EventKind.EXCEPTION, self._running_epoch(), cause=type(error).__name__)
            finally:
                self._finish()
        except Exception as late:  # noqa: BLE001 - the error that is on its way must come out, not this one
            error.add_note(f"While this error was on its way, a checkpoint failed too: {late}")

    def restore(
        self,
        *,
        only: Iterable[str] | None = None,
        except_: Iterable[str] | None = None,
        strict: bool | None = None,
        rename: Mapping[str, str] | None = None,
        trust: Trust = (),
    ) -> Progress:
        """Put the newest checkpoint that verifies back into the live objects and the random generators.

        Of those in the directory itself: what lies below it is another run's, or somebody's copy. Where it holds none,
        what ``resume_from=`` means is taken instead; if that is not given, the run starts afresh. Which of these it is,
        is told in a line: in the log, or on standard error where no logging is set up.

        Checkpoints that do not verify are skipped with a warning that says why, and are left where they are; so are
        those that were saved at an exception, with a flaw (``Record.flaw``). The run goes on under its old identity:
        the checkpoints that it wrote before count for ``keep`` again.

        Nothing is changed before the state has been found to fit. Then the file is read once, and verified on its way
        into the tensors that are there; damage found on the way is made good by the next older checkpoint. Keys of
        modules that differ by the wrappers of ``torch.compile`` and ``DistributedDataParallel`` only are the same.

        ``only`` names the entries of ``state=`` to restore, and nothing else is: the run starts at step 0, as a new
        one, whose random state stays as it is. ``except_`` names those that stay as they are. With ``resume_from=``,
        both say what to take from there; the run's own checkpoints are always restored whole.

        ``strict=None``: the state must fit, and a warning tells what cannot be put back exactly. ``strict=True``: that
        is an error, too. ``strict=False``: what fits by its name and shape is restored, and a warning tells what stays
        as it is; an optimizer stays as it is as a whole, and of each module something must fit. ``rename`` maps
        prefixes of keys in the checkpoint to those of modules here, for keys that these do not have. ``trust`` lists
        the classes and functions that may be loaded besides PyTorch's own safe ones.

        Returns where to go on; a fresh start (``path=None``, ``step=0``) if there is no checkpoint. Its ``report`` says
        how it fitted.

        Raises:
            RunAliveError: another living process saves as the run to go on with. It was waited for, for some seconds.
            RestoreError: there are checkpoints, and none verifies that has no flaw; says what was tried. If it says so,
                the objects in ``state`` may hold parts of a damaged one, and must not be used.
            StateMismatchError: the newest sound one is of another model or optimizer, or cannot be gone on from exactly
                although ``strict=True``; nothing was restored, unless it says that the objects may hold parts of it.
            CheckpointError: it needs a class that is neither safe nor in ``trust``, or cannot be built; or what
                ``resume_from=`` means is none of Safepoint's.
            ConfigurationError: an argument is wrong, or there is nothing that ``resume_from=`` means.

        """
        self._check_open()
        wanted = self._starter.wanted(only, except_, strict, rename)
        self.wait()
        start = self._starter.start(wanted, trust)
        p = self._progress = start.progress
        if p.path is not None:
            self._schedule = schedule.start((p.step, p.epoch, p.batch), time.monotonic())
            self._measured = Measured(p.metrics)
            self._seen |= start.seen
            self._protected, self._neighbours.are_known = dict(start.protected), start.is_own
        return p

    def step(self, **metrics: Any) -> None:
        """Count one optimizer step and save if that is due; call it once after each ``optimizer.step()``.

        ``metrics`` are numbers or one-element tensors measured at this step; they are read only if a save is due.

        Raises:
            Preempted: a signal of ``when.preempted()`` has come; this step is saved, and everything durable.

        """
        self._check_open()
        p = self._progress
        self._progress = Progress(p.step + 1, p.epoch, p.batch + 1, NO_METRICS, p.path)
        self._state.mark()
        self._measured = Measured(metrics)
        self._seen |= metrics.keys()
        if not self._has_memory:
            self._prepare_memory()
        try:
            self._decide(EventKind.STEP, p.epoch, cause=REQUEST_NAME if self._requests.taken() else "")
        finally:
            self._answer_signal(p.epoch)

    def epoch_end(self, **metrics: Any) -> None:
        """Count one epoch and save if that is due; call it once after each epoch, with what was measured at its end.

        Raises:
            MissingMetricError: a save is due and ``keep`` ranks by a metric that was not passed so far.
            Preempted: see ``step``.

        """
        self._check_open()
        p = self._progress
        self._measured = self._measured.with_more(metrics)
        self._seen |= metrics.keys()
        self._progress = Progress(p.step, p.epoch + 1, 0, NO_METRICS, p.path)
        self._state.end_epoch()
        self._decide(EventKind.EPOCH_END, p.epoch)
        if metrics and any(record.step == p.step for record in self._run.ledger.records):
            self._run.ledger = self._run.ledger.measured(p.step, dict(self._measured))
        self._answer_signal(p.epoch)

    def save(self, *, pinned: bool = False) -> Path:
        """Save now, whatever the policy says; return the path as soon as the state is staged.

        A ``pinned`` checkpoint is never removed, and keeps its name, until somebody unpins it; others are pinned by
        ``safepoint pin``. With ``on_error="warn"``, the path is the one that was meant, also where the save has failed
        already (``blocking``, or streamed), which a warning has told by then.
        """
        self._check_open()
        self._decide(EventKind.REQUEST, self._running_epoch(), pinned=pinned)
        return self._last_path

    def attach(self, step: int, /, **metrics: Any) -> None:
        """Add ``metrics`` that were measured late, on the weights of optimizer step ``step``, to what was saved there.

        They count for ``keep`` and show in ``records()`` from the next save on, which carries them to disk.

        Raises:
            ConfigurationError: this run has saved nothing at that step, or a metric is not a number.

        """
        self._check_open()
        ledger = self._run.ledger
        if all(fate.record.step != step for fate in ledger.history()):
            raise ConfigurationError(f"attach({step!r}): this run has saved nothing at step {step!r}; see records().")
        self._run.ledger = ledger.measured(step, dict(Measured(metrics)))
        self._seen |= metrics.keys()

    def explain(self, checkpoint: Record | str | os.PathLike[str]) -> str:
        """Return a sentence: why ``checkpoint``, a record or a path, is kept or was removed, and what it would take.

        Raises:
            ConfigurationError: it is not a checkpoint of this run.

        """
        path = checkpoint.path if isinstance(checkpoint, Record) else self.directory / checkpoint
        self._run.take_pins()
        told = self._run.ledger.explain(path, self._keep_policy, protected=self._protected)
        if told is None:
            raise ConfigurationError(f"{path} is not a checkpoint of this run: it stays, whatever keep= says.")
        return told

    def wait(self) -> None:
        """Return when every checkpoint saved so far is durable."""
        self._take_in(self._run.wait())

    def close(self) -> None:
        """End the run: save if ``when.train_end()`` asks for it, wait until everything is durable, release all.

        Raises:
            MissingMetricError: ``keep`` ranks by a metric that was never passed; everything is saved all the same.
            Preempted: see ``step``.

        """
        if self._closed:
            return
        epoch = self._running_epoch()
        try:
            self._decide(EventKind.TRAIN_END, epoch)
            self.wait()
        finally:
            try:
                if (came := self._end_asked_for()) is not None:
                    raise self._saved_before_end(came, epoch)
            finally:
                self._finish()
        if (came := self._end_asked_for()) is not None:  # while the threads were ending
            raise self._ended_by(came)
        if self._has_saved:
            self._check_ranked_by(())

    def records(self) -> tuple[Record, ...]:
        """Return the durable checkpoints in the directory, oldest first, those of earlier runs too."""
        self._take_in(self._run.settle())
        ledger = self._run.ledger
        known = {(record.path, record.time): record.stats for record in ledger.records}
        return tuple(
            replace(record, stats=known.get((record.path, record.time)) or record.stats)
            for record in Catalog.of(self.directory, below=False).records
            if record.path not in ledger.pending
        )

    def stats(self) -> tuple[SaveStats, ...]:
        """Return what each save of this process that is durable by now has cost, oldest first; the last 10,000."""
        self._take_in(self._run.settle())
        return tuple(self._stats)

    def latest(self) -> Record | None:
        """Return the durable checkpoint without a flaw that was saved last, at an exception or not, or ``None``."""
        return next((record for record in reversed(self.records()) if not record.flaw), None)

    def best(self, metric: str, mode: Mode = "min") -> Record | None:
        """Return the durable checkpoint with the best ``metric``, the earlier of equals; ``None`` if none has it.

        One that was saved at an exception is never the best.
        """
        return best_of(self.records(), metric, mode)

    def _decide(self, kind: EventKind, epoch: int, *, cause: str = "", pinned: bool = False) -> None:
        late = self._late_error() if self._run.has_news else None
        has_ended = self._decide_now(kind, epoch, cause=cause, pinned=pinned)
        new = self._late_error() if has_ended else None
        if late is not None and new is not None:
            late.add_note(str(new))
        if (error := late or new) is not None:  # not before the present save has been made: it may be the last
            raise error

    def _late_error(self) -> SaveError | None:
        """Take notice of what has ended, and return what went wrong."""
        try:
            self._take_in(self._run.settle())
        except SaveError as error:
            return error
        return None

    def _decide_now(self, kind: EventKind, epoch: int, *, cause: str, pinned: bool) -> bool:
        """Save if that is due; return whether a save was made that has ended already, well or not."""
        p, now = self._progress, time.monotonic()
        step_s, template, metrics = 0.0, self._filename, self._measured
        if kind is EventKind.STEP:
            step_s, self._step_ended_s = now - self._step_ended_s, now
        elif kind in _FILENAMES:  # a name without metrics: some may not be measured yet
            template = _FILENAMES[kind]
        if self._raised:  # what was measured may be of other weights than the exception leaves
            metrics = Measured({})
        event = Event(kind, p.step, epoch, (p.step, p.epoch, p.batch), now, step_s, metrics, cause=cause)
        state, decision = schedule.decide(self._save_policy, self._schedule, event, (template,))
        if not isinstance(decision, Save):
            return False
        has_ended = self._save_now(event, decision, pinned=pinned)
        self._schedule = schedule.begun(state, time.monotonic() - now)
        return has_ended

    def _answer_signal(self, epoch: int) -> None:
        came = None if self._signals is None else self._signals.take()
        if came is None:
            return
        if came.grace_s is None:
            self._decide(EventKind.SIGNAL, epoch, cause=came.name)
        else:
            late = sys.exception()
            raise self._saved_before_end(came, epoch, late if isinstance(late, SaveError) else None)

    def _warn_of_signals(self) -> None:
        if self._signals is not None:
            self._signals.warn_of_replaced()

    def _end_asked_for(self) -> Came | None:
        """Return the signal that has come to end the run, if one has."""
        came = None if self._signals is None else self._signals.take()
        return None if came is None or came.grace_s is None else came

    def _saved_before_end(self, came: Came, epoch: int, failure: Exception | None = None) -> Preempted:
        """Save unless this step is saved, wait until all is durable, and return what ends the process, in any case.

        What failed, ``failure`` included, is logged: the end of a process by SystemExit shows no error.
        """
        self._preempted = came
        for _ in range(2):  # what is on its way may fail yet
            if failure is not None:
                logger.error("%s", plain(f"{came.name} has come, and meanwhile: {failure}"))
            try:
                self._decide(EventKind.PREEMPTION, epoch, cause=came.name)
                self.wait()
            except Exception as error:  # noqa: BLE001 - whatever it is, the process ends
                failure = error
            else:
                break
        else:
            logger.error("%s", plain(f"{came.name} has come, and this step could not be saved: {failure}"))
        return self._ended_by(came)

    def _ended_by(self, came: Came) -> Preempted:
        p, records = self._progress, self._run.ledger.durable
        is_saved = self._schedule.secured_position == (p.step, p.epoch, p.batch)
        ended = Preempted(came.name, records[-1].path if records and is_saved else None)
        logger.warning("%s", ended)
        return ended

    def _take_in(self, settled: Settled) -> None:
        """Take notice of what became durable, and raise what went wrong."""
        if settled.failed:
            self._schedule = schedule.failed(self._schedule)
        elif settled.durable and self._run.idle:
            self._schedule = schedule.secured(self._schedule, settled.stats[-1].write_s)
        for stats in settled.stats:
            logger.info("%s", plain(str(stats)))
        self._stats += settled.stats
        self._run.report(settled)

    def _prepare_memory(self) -> None:
        """Have memory ready before the first save; after a first step the optimizers have their state."""
        self._has_memory = True
        self._warn_of_signals()  # here as well: it may be that nothing but a signal leads to a save
        self._run.pipeline.prepare(image_bytes(self._state.captured()[0]), at_most=self._keep_policy.at_most)

    def _save_now(self, event: Event, decision: Save, *, pinned: bool) -> bool:
        metrics = dict(event.metrics)
        if event.kind is EventKind.EPOCH_END:
            self._check_ranked_by(metrics)
        (stem,) = decision.names
        self._run.take(self._run.changes())
        self._neighbours.warn_of_ranks()
        self._warn_of_signals()
        state, excluded = self._state.captured()
        flaw = (self._interrupted or self._state.holding_nan(state)) if self._raised else ""
        own = {record.path: record for record in self._run.ledger.records}
        same_step = {
            path
            for path, record in own.items()
            if record.step == event.step and (not self._raised or (record.emergency and (record.flaw or not flaw)))
        }
        replaceable = {path for path in same_step if not own[path].pinned}
        name = first_free(
            stem, lambda name: self.directory / name not in replaceable and self._run.taken(self.directory / name)
        )
        came = self._preempted if event.kind is EventKind.PREEMPTION else None
        lightened = Lightened()
        if came is not None:
            lightened = self._state.lightened(state, came, tuple(self._stats), self._run.pipeline.pending_bytes)
        snapshot = Snapshot(
            event.step,
            event.epoch,
            event.position,
            metrics,
            decision.reasons + tuple(f"{entry}: {why}" for entry, why in lightened.inexact.items()),
            pinned,
            excluded=excluded | lightened.excluded,
            inexact=self._state.inexact() | lightened.inexact,
            emergency=self._raised,
            flaw=flaw,
        )
        is_whole = not lightened.inexact  # else nothing goes for it
        proposed = self._run.ledger.propose(
            self._run.candidate(snapshot, name),
            self._keep_policy,
            protected=self._protected if is_whole else dict.fromkeys(own, f"{name} is not as whole"),
            superseded=dict.fromkeys(
                same_step - {self.directory / name} if is_whole else (),
                f"superseded by {name}, saved later at the same step",
            ),
        )
        self._neighbours.warn_of_runs()
        names = Names(name, replace=self.directory / name in replaceable)
        has_ended = self._run.save(state, snapshot, names, proposed, self._state.live)
        self._has_saved, self._last_path = True, self.directory / name
        return has_ended

    def _check_ranked_by(self, present: Iterable[str]) -> None:
        """Raise if ``keep`` ranks by a metric that was not passed so far; ``present`` are those of this moment."""
        for metric in sorted(self._keep_policy.metrics - self._seen):
            remedy = f"Pass epoch_end({metric}=...); in an epoch without a measurement, float('nan')."
            raise MissingMetricError(metric, f"keep.best({metric!r})", present or self._seen, remedy)

    def _running_epoch(self) -> int:
        """Return the epoch that is running or, between two epochs, the one that just ended."""
        p = self._progress
        return p.epoch if p.batch or not p.epoch else p.epoch - 1

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigurationError("this Checkpointer is closed: make another, and restore() to go on with the run.")

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                self._take_in(self._run.close())
            finally:
                if self._signals is not None:
                    self._signals.restore()


def _check_policies(save: object, keep: object) -> None:
    if not isinstance(save, SavePolicy):
        raise ConfigurationError(f"save={save!r}: give a policy from safepoint.when, such as when.every(epochs=1).")
    if not isinstance(keep, PreservationPolicy):
        raise ConfigurationError(f"keep={keep!r}: give a policy from safepoint.keep, such as keep.latest(2).")


def _check_flat(filename: str) -> None:
    check_template(filename)
    if "/" in filename:
        raise ConfigurationError(f"filename={filename!r}: the files of a run lie side by side; take out the '/'.")
