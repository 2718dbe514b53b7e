"""Note signals, to be answered at the next step: the only file that touches signal handlers and signal masks."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

from safepoint.errors import ConfigurationError, in_line
from safepoint.when import Ending

logger = logging.getLogger("safepoint")

_ECHO_S = 1.0
"""How long the signals that end the run count as one: ``timeout`` sends SIGTERM twice, torchrun passes on what Slurm
has sent to its workers already."""

_STATUS = Path("/proc/self/status")
_NO_ENDINGS: Mapping[str, Ending] = MappingProxyType({})
_open_ones: weakref.WeakSet[Signals] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Came:
    """A signal that has come: when, by ``time.monotonic``, and where it ends the run, how long that may take."""

    name: str
    at_s: float
    grace_s: float | None = None


class Signals:
    """Note which signals have come, and call the Python handlers that were there before.

    Those called ``names`` are noted, and the run goes on. Those in ``endings`` end it: the first is noted, too, and a
    further one of them, a second later or more, has its default action, which ends the process at once. One that is in
    both belongs to ``names``, and one of the default set, SIGTERM apart, to whoever else has a handler for it, in C
    too, or ignores it.

    The default action of a signal, which may end the process, does not take place otherwise while its handler is
    replaced. Once ``restore`` was called, a signal that still comes here, by way of whoever has replaced the handler
    since, is only passed on, to the default action too. So it is in a forked child, where SIGUSR1 and the like are
    ignored instead, if nobody else has a handler: they were meant for the run.

    Raises:
        ConfigurationError: this is not the main thread, the only one that Python lets set handlers; or a signal was
            given by name for both.

    """

    def __init__(self, names: Collection[str], endings: Mapping[str, Ending] = _NO_ENDINGS) -> None:
        self._pid = os.getpid()
        self._come: list[Came] = []
        self._ends_since_s: float | None = None
        self._is_closed = self._has_told = False
        self._before: dict[signal.Signals, Any] = {}
        self._endings = _accepted(names, endings)
        for name in sorted({*names, *self._endings}):
            number = signal.Signals[name]
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError as error:
                self.restore()
                owner = "preempted" if name in self._endings else "signal"
                raise ConfigurationError(f"when.{owner}({name!r}): {error}; make the Checkpointer there.") from None
        _open_ones.add(self)

    def take(self) -> Came | None:
        """Return a signal that has come since the last call, one that ends the run first, or ``None``."""
        if not self._come:
            return None
        come, self._come = self._come, []
        return next((found for found in come if found.grace_s is not None), come[0])

    def restore(self) -> None:
        """Put the handlers from before back, unless somebody has replaced these since."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                before = _open(handler, number)
                signal.signal(number, signal.SIG_DFL if before is None else before)
        self._is_closed = True
        _open_ones.discard(self)

    def warn_of_replaced(self) -> None:
        """Log, once, which signals no longer come here for certain, as somebody has replaced the handler since."""
        replaced = {} if self._has_told else self._replaced()
        if not replaced:
            return
        self._has_told = True
        told = ", ".join(f"{name} (now {_called(handler)})" for name, handler in sorted(replaced.items()))
        logger.warning(
            "%s",
            in_line(
                f"the handler of {told} was set after the Checkpointer was made: the signal saves only if that handler "
                "calls the one that signal.signal() returned. Let it do so, or make the Checkpointer last."
            ),
        )

    def _replaced(self) -> dict[str, Any]:
        """Return the handlers that are in the place of those here, by the names of the signals."""
        found = {}
        for number in self._before:
            handler = signal.getsignal(number)
            while isinstance(owner := getattr(handler, "__self__", None), Signals) and owner is not self:
                handler = owner._before[number]  # noqa: SLF001
            if owner is not self:
                found[number.name] = handler
        return found

    @property
    def numbers(self) -> frozenset[signal.Signals]:
        """The signals that are noted."""
        return frozenset(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        handler = _open(self._before[signal.Signals(number)], number)
        is_ours = not _is_over(self)
        ends = is_ours and self._ends_at_once(signal.Signals(number))
        if callable(handler):
            handler(number, frame)
        elif not is_ours and handler is not signal.SIG_IGN:
            ends = self._pid == os.getpid() or number == signal.SIGTERM
        if ends:
            ours = signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, ours)

    def _ends_at_once(self, number: signal.Signals) -> bool:
        """Note a signal; return whether it ends the process at once."""
        now, ending = time.monotonic(), self._endings.get(number.name)
        if ending is None:
            self._come.append(Came(number.name, now))
            return False
        if self._ends_since_s is None:
            self._ends_since_s = now
            self._come.append(Came(number.name, now, ending.grace_s))
        return now - self._ends_since_s > _ECHO_S


@contextlib.contextmanager
def held_from_children() -> Iterator[bool]:
    """Let what is forked meanwhile inherit a mask of the signals that any ``Signals`` notes; here, they come late.

    Gives whether there are any.
    """
    numbers = frozenset(number for each in _open_ones for number in each.numbers)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield bool(numbers)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _accepted(names: Collection[str], endings: Mapping[str, Ending]) -> dict[str, Ending]:
    """Return those of ``endings`` that are nobody else's."""
    accepted: dict[str, Ending] = {}
    caught = _caught()
    for name, ending in endings.items():
        if ending.is_asked and name in names:
            raise ConfigurationError(
                f"when.signal({name!r}) saves and goes on, when.preempted(signals=...) ends the run: give it to one."
            )
        if name not in names and (ending.is_asked or name == "SIGTERM" or _is_free(signal.Signals[name], caught)):
            accepted[name] = ending
    return accepted


def _is_free(number: signal.Signals, caught: int) -> bool:
    """Tell whether nobody but other ``Signals`` has a handler, be it in C, as ``caught`` tells, or ignores it."""
    handler = signal.getsignal(number)
    if handler is signal.SIG_DFL:  # which Python says of a handler that is none of its own, too
        return not caught >> (number - 1) & 1
    return isinstance(getattr(handler, "__self__", None), Signals)


def _caught() -> int:
    """Return the signals that this process has handlers for, as bits, by the kernel; 0 where it does not tell."""
    try:
        told = _STATUS.read_text(errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in told.splitlines() if line.startswith("SigCgt:")), 0)


def _called(handler: Any) -> str:
    """Return what the author of ``handler`` knows it by."""
    if isinstance(handler, signal.Handlers):
        return handler.name
    of = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"{getattr(of, '__module__', None)}.{of.__qualname__}"


def _open(handler: Any, number: int) -> Any:
    """Return ``handler``, or what was there before it where it is that of ``Signals`` that are over."""
    while isinstance(owner := getattr(handler, "__self__", None), Signals) and _is_over(owner):
        handler = owner._before[signal.Signals(number)]  # noqa: SLF001
    return handler


def _is_over(signals: Signals) -> bool:
    """Tell whether ``signals`` are closed, or those of the process that forked this one."""
    return signals._is_closed or signals._pid != os.getpid()  # noqa: SLF001
