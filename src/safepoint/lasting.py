"""How long a reason keeps a checkpoint, as far as words tell: no file has the policy that gave it.

How many places a policy has is read from what it said of others. Pure: reads the words of ``keep``, ``ledger`` and the
drop-in's top k back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

_LONGEST = 1000
"""No honest reason is longer, and what is looked for in one takes the longer the longer it is."""
_UNKNOWN = "how many its policy keeps, no file says"


@dataclass(frozen=True, slots=True)
class Places:
    """How many checkpoints a policy keeps as the latest, and as the best by each metric, as far as it is known."""

    latest: int | None = None
    best: Mapping[str, int] = field(default_factory=dict)


def places(told: Iterable[str]) -> Places:
    """Return what is known from ``told``, what was said of a run's checkpoints, oldest first: the last word counts."""
    latest: int | None = None
    best: dict[str, int] = {}
    for reason in told:
        if len(reason) > _LONGEST:
            continue
        for count in re.findall(r"not the latest|among the latest (\d{1,9})", reason):
            latest = int(count or 1)
        for count, metric in re.findall(r"(?:not the best|not among the best (\d{1,9})) by (.+?) \(", reason):
            best[metric] = int(count or 1)
    return Places(latest, best)


def reasons_in(told: str) -> list[str]:
    """Return the reasons that were joined into one."""
    return [reason for reason in told.split("; ") if reason]


def until(reason: str, later: int, known: Places) -> str:
    """Return, as the end of "it stays ...", how long ``reason`` lasts, "" where its words do not tell.

    ``later``: how many have been saved later and count for a policy.
    """
    if len(reason) > _LONGEST:
        return ""
    for pattern, told in _LASTING:
        if (found := re.fullmatch(pattern, reason)) is not None:
            return told(found, later, known)
    return ""


_Told = Callable[[re.Match[str], int, Places], str]


def _always(text: str) -> _Told:
    return lambda found, later, known: found.expand(text)  # noqa: ARG005 - one signature for all


def _best(found: re.Match[str], later: int, known: Places) -> str:  # noqa: ARG001 - one signature for all
    rank, metric = int(found[1] or 1), found[2]
    if (count := known.best.get(metric)) is None or count < rank:
        return f"until enough are better by {metric}: {_UNKNOWN}"
    return f"until {_more(count - rank + 1)} better by {metric}"


def _latest(found: re.Match[str], later: int, known: Places) -> str:
    count = int(found[1]) if found[1] else known.latest
    if count is None:
        return f"until enough are saved after it: {_UNKNOWN}"
    return f"until {_more(max(count - later, 1))} saved"


def _more(count: int) -> str:
    return "one more is" if count == 1 else f"{count} more are"


_LASTING: tuple[tuple[str, _Told], ...] = (
    (r"(?:best|number (\d{1,9})) by (.+) \(.*\)", _best),
    (r"the best by (.+) \(.*\)", _always(r"until one is better by \1")),
    (r"among the best \d+ by (.+) \(.*\)", _always(r"until one that is better by \1 needs its place")),
    (r"the latest()", _latest),
    (r"among the latest (\d{1,9})", _latest),
    (r"one for every \d+ steps", _always("for good")),
    (r"one for every \d+ epochs", _always("for good, unless its epoch is saved once more")),
    (r"at most (.+) s older than the newest", _always(r"until one is saved more than \1 s after it")),
    (r"among the newest (.+) GB", _always(r"until later ones fill \1 GB")),
    (r"pinned", _always("until it is unpinned")),
    (r"all are kept", _always("for as long as its policy keeps everything")),
    (r"the newest is never removed", _always("until the next save: its policy has no place for it")),
    (r"the run was resumed from it", _always("for as long as the process lives that was resumed from it")),
    (r"saved at an exception \(.*\), until the run saves again", _always("until its run saves again")),
)
