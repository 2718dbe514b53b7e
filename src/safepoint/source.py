"""Where a run starts from if its own directory holds no checkpoint: what ``resume_from=`` says, and which it means.

Pure: which checkpoints there are is handed in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safepoint.errors import ConfigurationError, MissingMetricError
from safepoint.keep import Best, Mode
from safepoint.records import Record

_FORMS = "PATH, PATH@latest, PATH@best:METRIC, PATH@best:METRIC:max or PATH@step:N"
_PICKED = re.compile(
    r"(?P<path>.+)@(?:(?P<latest>latest)|step:(?P<step>[0-9]{1,18})|best:(?P<metric>.+?)(?::(?P<mode>min|max))?)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Source:
    """A directory or a file, and which checkpoint of a directory: the latest, the best by a metric, or that of a step.

    ``path`` is as it was given.
    """

    path: Path
    pick: Literal["latest", "best", "step"] = "latest"
    metric: str = ""
    mode: Mode = "min"
    step: int = 0

    def candidates(self, records: Sequence[Record]) -> tuple[Record, ...]:
        """Return those of ``records``, oldest first, that are meant: the one to take first, and those for lack of it.

        Raises:
            MissingMetricError: none has the metric as a number; names those that there are.
            ConfigurationError: none is of that step; names those that there are.

        """
        if self.pick == "latest":
            return tuple(reversed(records))
        if self.pick == "step":
            found = tuple(record for record in reversed(records) if record.step == self.step)
            if not found:
                steps = ", ".join(str(step) for step in sorted({record.step for record in records})[-10:])
                raise ConfigurationError(
                    f"{self.path} holds no checkpoint of step {self.step}; the last are of {steps}."
                )
            return found
        ordinary = [record for record in records if not record.emergency]
        ranked = tuple(Best(self.metric, 1, self.mode).ranked(ordinary))
        if not ranked:
            present = {name for record in records for name in record.metrics}
            remedy = f"No checkpoint in {self.path} has it as a number."
            raise MissingMetricError(self.metric, f"resume_from= with best:{self.metric}", present, remedy)
        return ranked


def parsed(value: object) -> Source:
    """Return what ``value`` means: a text such as ``"../run@best:val_loss"``, a path as it is, or a record.

    Raises:
        ConfigurationError: it is none of these, or asks for a checkpoint in a way that there is not.

    """
    if isinstance(value, Record):
        return Source(value.path)
    if isinstance(value, Path):
        return Source(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigurationError(f"resume_from={value!r}: give {_FORMS}, or a Path, or a Record.")
    if (match := _PICKED.fullmatch(value)) is None:
        name = value.rpartition("/")[2]
        if "@" in name:
            raise ConfigurationError(
                f"resume_from={value!r}: give {_FORMS}; if the '@' belongs to the name, give a pathlib.Path."
            )
        return Source(Path(value))
    path, mode = Path(match["path"]), match["mode"]
    if match["latest"]:
        return Source(path)
    if match["step"]:
        return Source(path, "step", step=int(match["step"]))
    return Source(path, "best", match["metric"], "max" if mode == "max" else "min")
