"""Hostile checkpoints that are sound pickles: what is in them is of another kind than what is live."""

from __future__ import annotations

import random
import traceback
from pathlib import Path
from typing import Any

import forge
import numpy as np
import pytest
import torch
from forge import called, state, text
from kinds import made
from test_doors import make

import safepoint
from safepoint.randomness import has_rng_state, rng_state, set_rng_state

LONG = torch.zeros(1, dtype=torch.uint8).expand(1 << 40)

FORGED: dict[str, dict[str, Any]] = {
    "python": {"python": (3, LONG, None)},
    "python's next number": {"python": (*random.getstate()[:2], torch.ones(()))},
    "python's version": {"python": (torch.tensor(3), *random.getstate()[1:])},
    "a list of tensors": {"python": (3, [torch.tensor(1)] * 625, None)},
    "too long a list": {"python": (3, [1] * 10_000, None)},
    "numpy": {"numpy": ("MT19937", LONG, 1, 0, 0.0)},
    "the position in numpy's": {"numpy": (*np.random.get_state()[:2], torch.ones(()), 0, 0.0)},  # type: ignore[index]
    "torch": {"torch": LONG},
    "cuda": {"cuda": [LONG]},
    "cuda as one tensor": {"cuda": torch.zeros(1, 16, dtype=torch.uint8).expand(1 << 40, 16)},
}


@pytest.mark.parametrize("name", FORGED)
def test_random_state_of_another_kind_is_refused_unseen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is converted that is not what ``rng_state`` returns: a tensor may be without end."""

    def untouched(*_: Any) -> Any:
        pytest.fail("it was tried out")

    monkeypatch.setattr("safepoint.randomness._tuples", untouched)
    assert not has_rng_state({**rng_state(), **FORGED[name]})


def test_random_state_of_every_generator_is_put_back() -> None:
    """An honest one is what it was, also after a normal number has been kept for later."""
    random.gauss(0, 1)
    np.random.randn()
    found = rng_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)]}
    assert has_rng_state(found)
    set_rng_state({name: found[name] for name in ("python", "torch", "numpy")})
    assert random.getstate() == found["python"]


def test_nested_tensor_in_place_of_a_weight_is_a_mismatch(tmp_path: Path) -> None:
    """It has no shape, and torch raises for the question."""
    nested = made("nested")
    pickled, storages = forge.parts({"model": {"weight": nested, "bias": torch.ones(2)}})
    forge.write(tmp_path / "a.ckpt", pickled, storages)
    with pytest.raises(safepoint.StateMismatchError, match=r"model +weight +\(2, 2\) +Tensor without a shape"):
        make(tmp_path, {"model": torch.nn.Linear(2, 2)}).restore()


@pytest.mark.parametrize("value", [called("os.sys\x1b[2Jtem"), called("torch.device", text("a\x1b[2Jb"))])
def test_whole_traceback_is_plain(tmp_path: Path, value: bytes) -> None:
    """What torch says is repeated as the cause, and a terminal shows that as well."""
    path = forge.write(tmp_path / "a.ckpt", state(value))
    for door in (safepoint.load, lambda _: make(tmp_path, {"notes": {}}).restore()):
        with pytest.raises(safepoint.CheckpointError) as raised:
            door(path)
        told = "".join(traceback.format_exception(raised.value))
        assert "\x1b" not in told
        assert r"\x1b[2J" in told


def test_traceback_of_what_an_object_refuses_is_plain(tmp_path: Path) -> None:
    """An object's own error keeps its traceback, and says nothing that a terminal obeys."""

    class Refusing:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, saved: dict[str, Any]) -> None:
            raise KeyError(*saved) if saved else ValueError("\x1b[2J")

    with make(tmp_path, {"notes": Refusing()}) as checkpointer:
        checkpointer.save()
    with pytest.raises(safepoint.StateMismatchError, match="refuses what was saved") as raised:
        make(tmp_path, {"notes": Refusing()}).restore()
    told = "".join(traceback.format_exception(raised.value))
    assert "\x1b" not in told
    assert "in load_state_dict" in told
