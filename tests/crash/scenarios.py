"""Whole lives of a checkpoint directory, short ones: a run saves, ends, and another goes on with it.

Each is a function of a directory and of the ``Session`` that it reports to. It always begins where the directory says,
so that the same function is what happens after a crash as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import models
import torch

from safepoint import Checkpointer, SaveError, keep, when
from safepoint.catalog import Catalog
from safepoint.records import Record

_NUMBERS = 20_000
Scenario = Callable[[Path, "Session"], None]


class Session:
    """What a scenario reports: what it was told to be durable, and which errors it was told.

    ``acknowledged`` has names and times of capture; it is handed to ``announce`` whenever it has grown. ``heal`` is
    called in front of the last save, to which every disk is well.
    """

    def __init__(
        self,
        announce: Callable[[dict[str, float]], None] = lambda _: None,
        heal: Callable[[], None] = lambda: None,
    ) -> None:
        self.acknowledged: dict[str, float] = {}
        self.errors: list[Exception | Warning] = []
        self.resumed: list[int] = []
        self.heal = heal
        self._announce = announce

    def durable(self, directory: Path, records: tuple[Record, ...]) -> None:
        """Take in that ``records`` are durable."""
        self.acknowledged |= {record.path.relative_to(directory).as_posix(): record.time for record in records}
        self._announce(self.acknowledged)

    def attempt(self, act: Callable[[], object]) -> None:
        """Do ``act``; training goes on after an error."""
        try:
            act()
        except SaveError as error:
            self.errors.append(error)


def loop(directory: Path, session: Session) -> None:
    """Save at every step and keep the latest two, in two runs."""
    _run(directory, session, steps=3)
    _run(directory, session, steps=2, last=True)


def superseded(directory: Path, session: Session) -> None:
    """Save every second step once more at its epoch's end, in the place of the first, and keep the best besides."""
    _run(directory, session, steps=3, epoch_steps=2)
    _run(directory, session, steps=2, epoch_steps=2, last=True)


def go_on(directory: Path, session: Session) -> None:
    """Resume and save once more."""
    _run(directory, session, steps=1, last=True)


def _run(directory: Path, session: Session, *, steps: int, epoch_steps: int = 0, last: bool = False) -> None:
    model = {"weight": torch.zeros(_NUMBERS)}
    kept = keep.best("loss", 1) | keep.latest(1) if epoch_steps else keep.latest(2)
    policy = when.every(steps=1) | when.every(epochs=1)
    saver = Checkpointer(directory, state={"model": model}, save=policy, keep=kept)
    begin = saver.restore().step
    session.resumed.append(begin)
    assert torch.equal(model["weight"], torch.full((_NUMBERS,), float(begin)))
    for step in range(begin + 1, begin + steps + 1):
        model["weight"].fill_(step)
        if last and step == begin + steps:
            session.heal()
        session.attempt(partial(saver.step, loss=step % 3))
        _wait(saver, session)
        if epoch_steps and not step % epoch_steps:
            session.attempt(partial(saver.epoch_end, loss=step % 3))
            _wait(saver, session)
    session.attempt(saver.close)


def _wait(saver: Checkpointer, session: Session) -> None:
    session.attempt(saver.wait)
    session.durable(saver.directory, saver.records())


def lightning(directory: Path, session: Session, *, save_last: Any = True, batches: int = 4) -> None:
    """Train two times with the drop-in: the best two, and the last as a file of its own or as a symbolic link."""
    for last in (False, True):
        _fit(directory, session, save_last, batches, last=last)


def lightning_link(directory: Path, session: Session) -> None:
    """Do as ``lightning`` does with ``save_last="link"``."""
    lightning(directory, session, save_last="link")


def lightning_goes_on(directory: Path, session: Session, *, save_last: Any = True) -> None:
    """Resume from the last and save once more."""
    _fit(directory, session, save_last, 1, last=True)


def _fit(directory: Path, session: Session, save_last: Any, batches: int, *, last: bool) -> None:
    framework = models.FRAMEWORKS[0]
    begin = _last(directory)

    class Reporter(framework.pl.Callback):  # type: ignore[name-defined, misc]
        """With blocking saves, what is there between two batches is durable."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            session.resumed.append(trainer.global_step)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            session.durable(directory, Catalog.of(directory).records)
            if last and trainer.global_step == begin + batches - 1:
                session.heal()

    checkpoint = framework.ModelCheckpoint(
        dirpath=directory,
        monitor="train_loss",
        save_top_k=2,
        save_last=save_last,
        every_n_train_steps=1,
        blocking=True,
        on_error="warn",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        models.fit(
            framework,
            checkpoint,
            Reporter(),
            metrics={},
            epochs=-1,
            max_steps=begin + batches,
            ckpt_path="last" if begin else None,
            limit_val_batches=0,
        )
    session.errors += [each.message for each in caught if "saved" in str(each.message)]
    session.durable(directory, Catalog.of(directory).records)


def _newest(directory: Path) -> int:
    record = Catalog.of(directory).latest()
    return 0 if record is None else record.step


def _last(directory: Path) -> int:
    last = Catalog.of(directory).manifests.get(directory / "last.ckpt")
    return 0 if last is None else last.step


@dataclass(frozen=True)
class Life:
    """A scenario, the shortest way on from it (resume, and save once more), and the step that this has to begin at."""

    live: Scenario
    go_on: Scenario
    begin: Callable[[Path], int]

    def __str__(self) -> str:
        return self.live.__name__


LOOP = Life(loop, go_on, _newest)
SUPERSEDED = Life(superseded, go_on, _newest)
LIGHTNING = Life(lightning, lightning_goes_on, _last)
LIGHTNING_LINK = Life(lightning_link, partial(lightning_goes_on, save_last="link"), _last)
LIVES = (LOOP, SUPERSEDED, LIGHTNING, LIGHTNING_LINK)
