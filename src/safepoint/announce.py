"""Say what nobody must miss: in the log, or on standard error where no logging is set up."""

from __future__ import annotations

import logging
import sys

from safepoint.errors import in_line

_logger = logging.getLogger("safepoint")


def announce(message: str, level: int = logging.INFO) -> None:
    """Log ``message`` at ``level``; where no logging is set up, which would swallow it, write it to standard error.

    To have it silenced, set the level of the logger ``safepoint`` above WARNING.
    """
    if _logger.hasHandlers():
        _logger.log(level, "%s", in_line(message))
    elif _logger.isEnabledFor(logging.WARNING) and sys.stderr is not None:
        print(f"safepoint: {in_line(message)}", file=sys.stderr, flush=True)  # noqa: T201 - see above
