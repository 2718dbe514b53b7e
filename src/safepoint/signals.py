"""Note signals, to be answered at the next step: the only file that touches signal handlers."""

from __future__ import annotations

import signal
from collections.abc import Collection
from types import FrameType
from typing import Any

from safepoint.errors import ConfigurationError


class Signals:
    """Note which of the signals called ``names`` have come, and call the Python handlers that were there before.

    The default action of a signal, which may end the process, does not take place while its handler is replaced. Once
    ``restore`` was called, a signal that still comes here, by way of whoever has replaced the handler since, is only
    passed on, to the default action too.

    Raises:
        ConfigurationError: this is not the main thread, the only one that Python lets set handlers.

    """

    def __init__(self, names: Collection[str]) -> None:
        self._come: list[str] = []
        self._is_closed = False
        self._before: dict[signal.Signals, Any] = {}
        for name in sorted(names):
            number = signal.Signals[name]
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError as error:
                raise ConfigurationError(f"when.signal({name!r}): {error}; make the Checkpointer there.") from None

    def take(self) -> str | None:
        """Return the name of a signal that has come since the last call, or ``None``."""
        if not self._come:
            return None
        name = self._come[0]
        self._come.clear()
        return name

    def restore(self) -> None:
        """Put the handlers from before back, unless somebody has replaced these since."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                before = _open(handler, number)
                signal.signal(number, signal.SIG_DFL if before is None else before)
        self._is_closed = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._is_closed:
            self._come.append(signal.Signals(number).name)
        handler = _open(self._before[signal.Signals(number)], number)
        if callable(handler):
            handler(number, frame)
        elif self._is_closed and handler is not signal.SIG_IGN:
            ours = signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, ours)


def _open(handler: Any, number: int) -> Any:
    """Return ``handler``, or what was there before it where it is that of ``Signals`` that are closed."""
    while isinstance(owner := getattr(handler, "__self__", None), Signals) and owner._is_closed:  # noqa: SLF001
        handler = owner._before[signal.Signals(number)]  # noqa: SLF001
    return handler
