"""``safepoint diff`` of what is no plain tensor and no plain value: arrays, objects, quantised tensors, like paths."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import safepoint
from kinds import Settings
from nets import save

Make = Callable[[Any], Path]
X, Y, Z = (torch.arange(4.0) + index for index in range(3))


class _Part:
    """A part of a state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        """Return it."""
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self.state = state


@pytest.fixture(params=["safepoint", "torch"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return what saves a state, as either of two formats."""
    paths = (tmp_path / name for name in "ab")

    def of_torch(state: Any) -> Path:
        path = next(paths)
        torch.save({"part": state}, path)
        return path

    def of_safepoint(state: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it needs trust=
            return save(next(paths), {"part": _Part(state)})

    return of_safepoint if request.param == "safepoint" else of_torch


def told(a: Path, b: Path) -> tuple[int, list[str], list[str]]:
    """Return the exit code, and the paths of the tensors and of the values that changed."""
    result = safepoint("diff", a, b, "--keys", "part", "--json")
    document = json.loads(result.stdout)
    changed = [pair["a"]["path"] for pair in document["changed"]]
    return result.returncode, changed, [leaf["path"] for leaf in document["values"] or ()]


def _quantised(scale: float) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remark on quantised tensors
        return torch.quantize_per_tensor(torch.ones(3) * scale, scale, 2, torch.qint8)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.arange(3), np.arange(1, 4)),
        ([np.arange(3)], [np.arange(1, 4)]),
        (Settings(0.5), Settings(0.25)),  # type: ignore[arg-type]
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    ],
    ids=["array", "in a list", "dataclass", "generator"],
)
def test_objects_are_compared_by_what_they_are_made_of(make: Make, a: Any, b: Any) -> None:
    """Two of one class are not the same for that."""
    status, _, values = told(make({"w": X, "object": a}), make({"w": X, "object": b}))
    assert (status, {path.partition(".object")[0] for path in values}) == (1, {"part"})


def test_objects_made_of_the_same_are_the_same(make: Make) -> None:
    """However often they are made."""
    first, second = ({"w": X, "array": np.arange(3), "settings": Settings(0.5)} for _ in range(2))  # type: ignore[arg-type]
    assert told(make(first), make(second)) == (0, [], [])


def test_quantised_tensors_of_another_scale_are_changed(make: Make) -> None:
    """Their integers are the same, and their values are not."""
    assert told(make({"w": _quantised(0.5)}), make({"w": _quantised(0.25)})) == (1, ["part.w"], [])


@pytest.mark.parametrize("other", [{"a.b": Z, "a": {"b": Y}}, {"a.b": X, "a": {"b": Z}}, {"a.b": Y, "a": {"b": X}}])
def test_tensors_whose_paths_read_alike_are_all_compared(make: Make, other: dict[str, Any]) -> None:
    """A key with a dot in it, and a key within a key."""
    assert told(make({"a.b": X, "a": {"b": Y}}), make(other))[0] == 1


def test_one_of_two_tensors_whose_paths_read_alike_may_be_missing(make: Make) -> None:
    """It is removed, not overlooked."""
    assert told(make({"a.b": X, "a": {"b": X.clone()}}), make({"a.b": X}))[0] == 1
