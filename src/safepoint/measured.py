"""Metrics as a training loop has them: numbers, or tensors that are still on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safepoint.errors import ConfigurationError


class Measured(Mapping[str, float]):
    """Metrics that become plain numbers only when somebody reads them: on a GPU that waits for the device.

    Tensors are let go of their graph at once, which would otherwise live on into the next step.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {name: v.detach() if hasattr(v, "detach") else v for name, v in values.items()}

    def with_more(self, values: Mapping[str, Any]) -> Measured:
        """Return these metrics and ``values``, which win."""
        return Measured({**self._values, **values})

    def __getitem__(self, name: str) -> float:
        return number(name, self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def number(name: str, value: Any) -> float:
    """Return a metric as a plain number; an integer stays one.

    Raises:
        ConfigurationError: it is no number, or more than a float can hold, or its name is no Unicode.

    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"the metric {name!r} has a name that no file can hold; rename it.") from None
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            number = float(number)
        if not isinstance(number, float):
            float(number)
    except OverflowError:
        raise ConfigurationError(f"the metric {name} is larger than a float can be; pass a smaller number.") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"the metric {name}={value!r} is not a number ({error}); pass a number.") from None
    return float(number) if isinstance(number, float) else number
