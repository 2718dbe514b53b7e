"""Restoring into modules and optimizers that load in ways of their own: the same as by ``load_state_dict``, always."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import make, save

from safepoint.in_place import live_storages


class Averaging(torch.nn.Module):
    """Loads half of what it is given, beside half of what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        self.w.data.mul_(0.5).add_(state[f"{prefix}w"], alpha=0.5)


def keep_bias(module: torch.nn.Module, state: Any, prefix: str, *_: Any) -> None:
    """Have the live bias loaded in place of the saved one."""
    state[f"{prefix}bias"] = module.get_parameter("bias").detach().clone()


class KeepsBias(torch.nn.Linear):
    """Keeps its bias, whatever is loaded, by a hook."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_load_state_dict_pre_hook(keep_bias)


class Above(torch.nn.Module):
    """Loads what is below it as it likes: not at all where that is all zeros now."""

    def __init__(self) -> None:
        super().__init__()
        self.below = torch.nn.Linear(2, 2)
        self.register_load_state_dict_pre_hook(self._keep_zeros)

    def _keep_zeros(self, module: torch.nn.Module, state: Any, prefix: str, *_: Any) -> None:
        if not self.below.weight.any():
            state[f"{prefix}below.weight"] = self.below.weight.detach().clone()


class Tied(torch.nn.Module):
    """A plain parameter that a module with a hook has too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = KeepsBias()
        self.bias = self.inner.bias


class Untied(torch.nn.Module):
    """The same names on tensors of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = KeepsBias()
        self.bias = torch.nn.Parameter(torch.ones(3))


PAIRS = [
    (Averaging, Averaging),
    (KeepsBias, KeepsBias),
    (Above, Above),
    (Tied, Tied),
    (Untied, Tied),
]


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda kind: kind.__name__)
def test_restore_of_modules_that_load_in_their_own_way(
    tmp_path: Path, before: type[torch.nn.Module], after: type[torch.nn.Module]
) -> None:
    """What reads its live tensors while it loads finds in them what was there, as with ``load_state_dict``."""
    saved = torch.nn.Sequential(before(), torch.nn.BatchNorm1d(3))
    for tensor in saved.parameters():
        tensor.data.fill_(3)
    path = save(tmp_path, {"model": saved})
    live = torch.nn.Sequential(after(), torch.nn.BatchNorm1d(3))
    for tensor in live.parameters():
        tensor.data.zero_()
    expected = copy.deepcopy(live)
    expected.load_state_dict(torch.load(path, weights_only=True)["model"])
    with make(tmp_path, {"model": live}) as checkpointer:
        checkpointer.restore()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(live.state_dict()[name], tensor), name


def test_restore_lets_the_hooks_of_an_optimizer_see_what_was_there(tmp_path: Path) -> None:
    """A hook in front of an optimizer's ``load_state_dict`` finds its state as it was, not the saved one."""
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    parameter.grad = torch.ones(4)
    optimizer.step()
    save(tmp_path, {"optimizer": optimizer})
    optimizer.step()
    expected = optimizer.state[parameter]["momentum_buffer"].clone()
    seen: list[torch.Tensor] = []
    optimizer.register_load_state_dict_pre_hook(
        lambda optimizer, _: seen.append(optimizer.state[parameter]["momentum_buffer"].clone())
    )
    with make(tmp_path, {"optimizer": optimizer}) as checkpointer:
        checkpointer.restore()
    assert torch.equal(seen[0], expected)
    assert optimizer.state[parameter]["momentum_buffer"].tolist() == [1, 1, 1, 1]


class Renames(torch.nn.Linear):
    """Takes its weight under an older name, and in another shape."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}old" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}old").view(2, 3)
        super()._load_from_state_dict(state, prefix, *rest)


class Older(torch.nn.Module):
    """What ``Renames`` was once."""

    def __init__(self) -> None:
        super().__init__()
        self.old = torch.nn.Parameter(torch.arange(6.0))
        self.bias = torch.nn.Parameter(torch.ones(2))


def test_restore_leaves_names_and_shapes_to_what_converts_them(tmp_path: Path) -> None:
    """A module that takes other names and shapes than its own is given what was saved."""
    save(tmp_path, {"model": torch.nn.Sequential(Older())})
    live = torch.nn.Sequential(Renames(3, 2))
    with make(tmp_path, {"model": live}) as checkpointer:
        checkpointer.restore()
    assert live.get_parameter("0.weight").tolist() == [[0, 1, 2], [3, 4, 5]]


class Remembers(torch.nn.Linear):
    """Has a tensor as its extra state, however long."""

    def __init__(self, *seen: float) -> None:
        super().__init__(2, 2)
        self.seen = torch.tensor(seen)

    def get_extra_state(self) -> torch.Tensor:
        """Return what was seen."""
        return self.seen

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take what was seen."""
        self.seen = state


def test_restore_takes_extra_state_of_any_shape(tmp_path: Path) -> None:
    """A module's extra state need not be of the shape that it has now."""
    save(tmp_path, {"model": torch.nn.Sequential(Remembers(1, 2, 3))})
    live = Remembers()
    with make(tmp_path, {"model": torch.nn.Sequential(live)}) as checkpointer:
        checkpointer.restore()
    assert live.seen.tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("root", [False, True])
def test_restore_gives_lazy_modules_their_shapes(tmp_path: Path, *, root: bool) -> None:
    """A module that has not seen its first batch takes the shapes of the checkpoint."""
    plain, lazy = torch.nn.Linear(3, 2), torch.nn.LazyLinear(2)
    save(tmp_path, {"model": plain if root else torch.nn.Sequential(plain)})
    with make(tmp_path, {"model": lazy if root else torch.nn.Sequential(lazy)}) as checkpointer:
        checkpointer.restore()
    assert torch.equal(lazy.weight, plain.weight)


def test_restore_of_a_state_without_an_end(tmp_path: Path) -> None:
    """A dict that holds itself is restored as it was."""
    notes: dict[str, Any] = {"tensor": torch.ones(2)}
    notes["self"] = notes
    save(tmp_path, {"notes": notes})
    live: dict[str, Any] = {}
    with make(tmp_path, {"notes": live}) as checkpointer:
        checkpointer.restore()
    assert live["self"]["self"]["tensor"].tolist() == [1, 1]


def test_live_storages_of_a_deep_state_are_looked_for() -> None:
    """Lists in lists, deeper than Python recurses, have their tensors found."""
    deep: list[Any] = [torch.ones(2)]
    for _ in range(2000):
        deep = [deep]
    seen: list[int] = []
    live_storages({}, {"notes": deep}, lambda storage: seen.append(storage.nbytes()), [8])
    assert seen == [8]
