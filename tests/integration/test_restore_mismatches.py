"""What does not fit, and what may be trusted: told as an error of ours, and honestly as to what has been changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safepoint import Checkpointer, CheckpointError, ConfigurationError, StateMismatchError, keep, load, when


class Holder:
    """An object whose state is whatever it is given."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        """Return it."""
        return self.state

    def load_state_dict(self, state: Any) -> None:
        """Take it."""
        self.state = state


def _saver(directory: Path, **state: object) -> Checkpointer:
    return Checkpointer(directory, state=state, save=when.at(steps=[9]), keep=keep.all())


def _save(directory: Path, **state: object) -> Path:
    with _saver(directory, **state) as saver:
        return saver.save()


@pytest.mark.parametrize(
    ("saved", "live", "told"),
    [
        (Holder([1, 2]), {"kept": 1}, "a list in the checkpoint, where a dict needs a dict"),
        (Holder(None), torch.nn.Linear(2, 2), "a NoneType in the checkpoint, where a module needs a dict"),
        ({"lr": 0.1}, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]), "no parameter groups in the checkpoint"),
    ],
    ids=["dict", "module", "optimizer"],
)
def test_restore_refuses_another_kind_of_object_before_it_changes_anything(
    tmp_path: Path, saved: object, live: Any, told: str
) -> None:
    """The error is a StateMismatchError that names the entry, and the live object is as it was."""
    _save(tmp_path, part=saved)
    before = dict(live) if isinstance(live, Mapping) else None
    with _saver(tmp_path, part=live) as saver, pytest.raises(StateMismatchError, match=f"part: {told}"):
        saver.restore()
    assert before is None or live == before


def test_restore_says_what_may_be_changed_when_an_object_refuses(tmp_path: Path) -> None:
    """Whatever a load_state_dict raises is a StateMismatchError, which does not pretend that nothing was changed."""

    class Refusing(Holder):
        def load_state_dict(self, state: Any) -> None:
            raise AssertionError("wrong vocabulary")

    _save(tmp_path, model=torch.nn.Linear(2, 2), last=Holder({"a": 1}))
    told = r"wrong vocabulary\. It, and what stands before it.*may be changed"
    saver = _saver(tmp_path, model=torch.nn.Linear(2, 2), last=Refusing({}))
    with saver, pytest.raises(StateMismatchError, match=told):
        saver.restore()


def test_restore_initialises_a_lazy_module(tmp_path: Path) -> None:
    """A module that has no shapes yet takes those of the checkpoint."""
    trained = torch.nn.LazyLinear(3)
    trained(torch.randn(2, 5))
    _save(tmp_path, model=trained)
    fresh = torch.nn.LazyLinear(3)
    with _saver(tmp_path, model=fresh) as saver:
        saver.restore()
    assert torch.equal(fresh.weight, trained.weight)


def test_restore_takes_what_is_trusted(tmp_path: Path) -> None:
    """A state with numpy scalars (a scheduler's, for example) is refused with the way out, and restored with it."""
    _save(tmp_path, scheduler=Holder({"lr": np.float64(0.25)}))
    live = Holder({})
    with _saver(tmp_path, scheduler=live) as saver:
        with pytest.raises(CheckpointError, match="trust="):
            saver.restore()
        saver.restore(trust=[np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType])
    assert live.state == {"lr": 0.25}


@pytest.mark.parametrize("trust", [dict, ["os.system"], "os.system"])
def test_trust_takes_classes_and_functions_only(tmp_path: Path, trust: Any) -> None:
    """Names are no objects: whoever passes them would trust nothing, or believe to."""
    path = _save(tmp_path, a={"x": 1})
    with pytest.raises(ConfigurationError, match="give a list of classes and functions"):
        load(path, trust=trust)
