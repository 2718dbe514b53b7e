"""The entries of ``state=``: every kind is saved and put back, and what cannot be is refused or named."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import safepoint
from safepoint import Checkpointer, entries, keep, when
from safepoint.data import ResumableSampler


def make(directory: Path, state: dict[str, Any]) -> Checkpointer:
    """Return a checkpointer that saves at each step."""
    return Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.latest(1))


def drawn(state: dict[str, Any]) -> list[float]:
    """Return what the generators of ``state`` draw next."""
    return [
        float(torch.rand(1, generator=state["torch"])),
        state["python"].random(),
        float(state["numpy"].random()),
        float(state["philox"].random()),
        float(state["old numpy"].random_sample()),
    ]


def test_every_kind_comes_back(tmp_path: Path) -> None:
    """Generators of all libraries, tensors, dicts and lists are as they were, and the same objects as before."""

    def state(seed: int) -> dict[str, Any]:
        return {
            "torch": torch.Generator().manual_seed(seed),
            "python": random.Random(seed),
            "numpy": np.random.default_rng(seed),
            "philox": np.random.Generator(np.random.Philox(seed)),
            "old numpy": np.random.RandomState(seed),
            "tensor": torch.full((3,), float(seed)),
            "dict": {"seed": seed},
            "list": [seed],
            "name": "digits",
            "nothing": None,
            "sizes": (1, 2.5, "three"),
        }

    first = state(1)
    with make(tmp_path, first) as checkpointer:
        checkpointer.step()
    expected = drawn(first)
    second = state(2)
    tensor, held, listed = second["tensor"], second["dict"], second["list"]
    with make(tmp_path, second) as checkpointer:
        assert checkpointer.restore(strict=True).report.is_exact
    assert drawn(second) == expected
    assert (tensor.tolist(), held, listed) == ([1.0] * 3, {"seed": 1}, [1])


@pytest.mark.parametrize(
    ("here", "told"),
    [
        ({"value": 4}, "it is 4 here, and was 3"),
        ({"value": 3.0}, "it is 3.0 here, and was 3"),
        ({"value": "3"}, "it is '3' here, and was 3"),
    ],
)
def test_value_that_is_another_is_named(tmp_path: Path, here: dict[str, Any], told: str) -> None:
    """A plain value cannot be changed: that it was another is a warning, and an error if asked for."""
    with make(tmp_path, {"value": 3}) as checkpointer:
        checkpointer.step()
    with make(tmp_path, here) as checkpointer, pytest.warns(RuntimeWarning, match=told):
        checkpointer.restore()
    with make(tmp_path, here) as checkpointer, pytest.raises(safepoint.StateMismatchError, match=told):
        checkpointer.restore(strict=True)


@pytest.mark.parametrize(
    ("saved", "here", "told"),
    [
        (torch.zeros(3), torch.zeros(4), r"torch.float32 \(4,\)"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64), "torch.float64"),
        ([1], {"a": 1}, "dict"),
        (3, [1], "list"),
        (3, torch.Generator(), "no state of one"),
        (torch.zeros(3), np.random.default_rng(1), "no state of one"),
        ([1], DataLoader(TensorDataset(torch.zeros(2))), "no position of a DataLoader"),
    ],
)
def test_entry_of_another_kind_is_refused(tmp_path: Path, saved: Any, here: Any, told: str) -> None:
    """What was saved of something else is an error, with a table, before anything is changed."""
    with make(tmp_path, {"entry": saved}) as checkpointer:
        checkpointer.step()
    with make(tmp_path, {"entry": here}) as checkpointer, pytest.raises(safepoint.StateMismatchError, match=told):
        checkpointer.restore()


class Steps:
    """An iterable that tells no position."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_what_has_no_state_is_named_once_at_a_save_and_at_each_restore(tmp_path: Path) -> None:
    """A loader of one's own without a state is left out, and said to be; strict, it is an error from the start."""
    state = {"model": torch.nn.Linear(1, 1), "loader": Steps()}
    told = r"will not go on exactly(.|\n)*loader: a Steps has no state_dict"
    with make(tmp_path, state) as checkpointer, pytest.warns(RuntimeWarning, match=told) as warned:
        checkpointer.step()
        checkpointer.step()
    assert len(warned) == 1
    with make(tmp_path, state) as checkpointer, pytest.warns(RuntimeWarning, match="loader: a Steps has no state_dict"):
        report = checkpointer.restore().report
    assert set(report.inexact) == {"loader"}
    refused = pytest.raises(safepoint.StateMismatchError, match="a Steps has no state_dict")
    with make(tmp_path / "fresh", state) as checkpointer, refused:
        checkpointer.restore(strict=True)


def test_loader_that_only_says_that_it_is_one(tmp_path: Path) -> None:
    """A loader that accelerate has prepared cannot be followed, and is named."""
    loader = Accelerator(cpu=True).prepare(DataLoader(TensorDataset(torch.zeros(2))))
    objects = entries.adapted({"loader": loader})
    assert "DataLoaderShard has no state_dict" in entries.inexact(objects)["loader"]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (object(), "is a object: give an object with state_dict"),
        (torch.nn.Linear, "is the class Linear"),
        ({"a": torch.nn.Linear(1, 1)}, r"holds a Linear at 'a'(.|\n)*entry of its own"),
        ([torch.optim.SGD([torch.zeros(1)])], "holds a SGD at 0"),
        (ResumableSampler([1, 2]), "give the DataLoader"),
    ],
)
def test_entry_that_cannot_be_one_is_refused(tmp_path: Path, entry: Any, told: str) -> None:
    """It is named, with the remedy, before anything is on disk."""
    with warnings.catch_warnings(), pytest.raises(safepoint.StateMismatchError, match=told):
        make(tmp_path / "run", {"entry": entry})
    assert list(tmp_path.iterdir()) == []
