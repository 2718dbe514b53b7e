"""Numbers, sizes and times in a few words, and text that came from a file made fit to be shown."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from safepoint.errors import in_line, shortened

_MINUTE_S = 60
_HOUR_S = 3600


def text(found: object) -> str:
    """Return what a file says in one line, without what cannot be seen, and of honest length."""
    return in_line(shortened(str(found)))


def number(value: float) -> str:
    """Return a metric in four digits; integers are told whole."""
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    return f"{value:.4g}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")


def size(size_bytes: int) -> str:
    """Return a size in decimal units."""
    from rich.filesize import decimal

    return decimal(size_bytes)


def seconds(duration_s: float) -> str:
    """Return a duration in the unit in which it is read best."""
    if not math.isfinite(duration_s):
        return number(duration_s)
    if duration_s < 1:
        return f"{duration_s * 1000:.3g} ms"
    if duration_s < _MINUTE_S:
        return f"{duration_s:.3g} s"
    return f"{duration_s / _MINUTE_S:.3g} min" if duration_s < _HOUR_S else f"{duration_s / _HOUR_S:.3g} h"


def moment(time: float, precision: str = "seconds") -> str:
    """Return a time in the clock of this machine, as a chart reads it, "" for one that no calendar has."""
    try:
        local = datetime.fromtimestamp(time, UTC).astimezone()
        return local.replace(tzinfo=None).isoformat(" ", precision)
    except (ValueError, OverflowError, OSError):
        return ""


def percent(share: float) -> str:
    """Return a share in three digits."""
    return f"{share * 100:.3g} %"
