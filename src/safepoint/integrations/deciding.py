"""When a ``ModelCheckpoint`` saves: what each hook asks the pure policies, and what it does with the answer.

The triggers are save policies; what is Lightning's here is which hook counts, what has been measured by then, and on
which rank a matter of time is decided. ``Trainer._val_check_time_interval`` is the framework's own private name, with
a contract test. ``saving`` has what is saved and under which names, ``model_checkpoint`` the hooks.
"""

from __future__ import annotations

import time
from typing import Any

from safepoint import schedule
from safepoint.errors import nearest
from safepoint.integrations import ahead
from safepoint.integrations.saving import Saving
from safepoint.records import Decision, Event, EventKind, Save, ScheduleState
from safepoint.requests import REQUEST_NAME, Requests
from safepoint.when import SavePolicy

_RANKS_LOOK_EVERY_STEPS = 50


class Deciding(Saving):
    """Decide for a ``ModelCheckpoint`` when to save: the attributes below are set by its constructor."""

    _triggers: SavePolicy
    _saves_by_steps: bool
    _schedule: ScheduleState
    _has_validated: bool
    _logged_before_validation: frozenset[str] | None
    _asked: Requests
    _looked_at: int
    _steps_looked_at: int

    def _at_step(self, trainer: Any) -> None:
        self._settle(trainer)
        if not self._saves_by_steps:
            return
        decided = self._decide(trainer, EventKind.STEP)
        if not isinstance(decided[1], Save) or self._skips(trainer):
            return
        if self._measured_later(trainer):
            decided = self._decide(trainer, EventKind.STEP, awaits=str(self.monitor))
        else:
            self._warn_of_stale_metric(trainer)
        self._follow(trainer, decided, last=True)

    def _at_validation_end(self, trainer: Any) -> None:
        self._settle(trainer)
        self._note_validation(trainer)
        if self._skips(trainer):
            return
        if self._schedule.waiting:
            self._follow(trainer, self._decide(trainer, EventKind.VALIDATION_END), last=True)
        elif not self._saves_on_train_epoch_end(trainer):
            self._save_at_epoch(trainer)

    def _at_train_epoch_end(self, trainer: Any) -> None:
        self._settle(trainer)
        if self._skips(trainer):
            return
        if self._schedule.waiting and not trainer.enable_validation:
            self._follow(trainer, self._decide(trainer, EventKind.EPOCH_END), last=True)
        elif self._saves_on_train_epoch_end(trainer):
            self._save_at_epoch(trainer)

    def _at_request(self, trainer: Any) -> None:
        """Save if somebody asks for it, at the next optimizer step, whatever else is saved there.

        Of several ranks the first looks, at the same steps on all: a broadcast at each step would be too dear.
        """
        if trainer.global_step == self._looked_at or trainer.fast_dev_run:
            return
        self._looked_at = trainer.global_step
        self._steps_looked_at += 1
        if trainer.world_size == 1:
            is_asked = self._asked.taken()
        elif self._steps_looked_at % _RANKS_LOOK_EVERY_STEPS:
            return
        else:
            is_asked = bool(trainer.strategy.broadcast(trainer.is_global_zero and self._asked.taken_now()))
        if is_asked:
            self._save_aside(trainer, f"requested: {REQUEST_NAME}")

    def _decide(self, trainer: Any, kind: EventKind, awaits: str = "") -> tuple[ScheduleState, Decision]:
        """Return what the pure core decides, and its next state; a matter of time is decided on rank 0 for all.

        Names are found when the top k is known.
        """
        now, step, epoch = time.monotonic(), trainer.global_step, trainer.current_epoch
        event = Event(kind, step, epoch, (step, epoch, 0), now, awaits=awaits)
        decided = schedule.decide(self._triggers, self._schedule, event)
        return trainer.strategy.broadcast(decided) if self._train_time_interval is not None else decided

    def _follow(self, trainer: Any, decided: tuple[ScheduleState, Decision], *, last: bool) -> None:
        """Do what was decided."""
        self._schedule, decision = decided
        if isinstance(decision, Save):
            self._save(trainer, "; ".join(decision.reasons), last=last)

    def _skips(self, trainer: Any) -> bool:
        """Tell whether nothing is saved now: outside of fitting, in a dry run, or at a step that is saved already."""
        return bool(
            trainer.fast_dev_run or trainer.state.fn != "fit" or trainer.sanity_checking or self._is_saved(trainer)
        )

    def _measured_later(self, trainer: Any) -> bool:
        """Tell whether a save at this step must wait for the metric that it is ranked by."""
        if self.monitor is None:
            return False
        if not self._is_measured(trainer):
            return True
        validates_next = trainer.is_last_batch and ahead.validates_in_this_epoch(trainer)
        return bool(validates_next and not self._saves_on_train_epoch_end(trainer))

    def _is_measured(self, trainer: Any) -> bool:
        """Tell whether the monitored metric is there; the epoch and the step always are."""
        return self.monitor in (None, "epoch", "step", *trainer.callback_metrics)

    def _saves_on_train_epoch_end(self, trainer: Any) -> bool:
        """Tell which hook saves: the training epoch's end, or validation's where that runs at other times."""
        if self._save_on_train_epoch_end is not None:
            return bool(self._save_on_train_epoch_end)
        if getattr(trainer, "_val_check_time_interval", None) is not None or trainer.check_val_every_n_epoch != 1:
            return False
        if not ahead.validation_batches(trainer):
            return True
        return bool(trainer.val_check_interval == 1.0)

    def _save_at_epoch(self, trainer: Any) -> None:
        """Save what is due at the epoch hook; where ``last`` is a "link" to nothing but itself, refresh it here."""
        decided = self._decide(trainer, EventKind.EPOCH_END)
        last = self.save_last == "link" and self.save_top_k == 0 and self._has_saved(trainer)
        if not isinstance(decided[1], Save):
            if last:
                self._save(trainer, "epoch end", last=True)
        elif self._is_measured(trainer) or self._has_validated or not trainer.enable_validation:
            self._follow(trainer, decided, last=last)
        else:
            self._warn_once(
                "waits",
                f"ModelCheckpoint(monitor={self.monitor!r}) saves nothing until the first validation: so far, "
                f"{', '.join(map(repr, sorted(trainer.callback_metrics))) or 'nothing'} is logged.",
            )

    def _note_validation(self, trainer: Any) -> None:
        """Note when validation was and what it measures; tell of a misspelt ``monitor`` at the first chance."""
        logged = frozenset(trainer.callback_metrics)
        self._validation_metrics |= logged - (self._logged_before_validation or frozenset())
        if not trainer.sanity_checking:
            self._has_validated, self._validated_at = True, trainer.global_step
        near = nearest(self.monitor, logged) if self.monitor is not None and not self._is_measured(trainer) else []
        if near:
            self._warn_once(
                "near",
                f"ModelCheckpoint(monitor={self.monitor!r}): validation logs no such metric, but {near[0]!r}. Is that "
                "what is meant? If the metric is logged in training, ignore this.",
            )

    def _warn_of_stale_metric(self, trainer: Any) -> None:
        """Tell that a save in mid-training is ranked by what was measured on other weights."""
        if self.monitor in self._validation_metrics and self._validated_at != trainer.global_step:
            self._warn_once(
                "stale",
                f"ModelCheckpoint(monitor={self.monitor!r}): the checkpoint of step {trainer.global_step} is ranked by "
                f"the validation of step {self._validated_at}, which measured other weights. The manifest says so "
                "(measured_at). To rank by a checkpoint's own metric, save at validation's end: leave "
                "every_n_train_steps and train_time_interval out.",
            )

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self.framework.warn(message)
