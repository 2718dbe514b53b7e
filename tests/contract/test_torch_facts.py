"""What deferred staging and restoring in place rely on in torch beyond its interface: each fails loudly."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from safepoint.in_place import load_pre_hooks, own_ways
from safepoint.transfer import version

OPTIMIZERS = sorted(
    (
        found
        for found in vars(torch.optim).values()
        if inspect.isclass(found) and issubclass(found, Optimizer) and found is not Optimizer
    ),
    key=lambda found: found.__name__,
)


def _parameter(optimizer: type[Optimizer]) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    parameter.grad = torch.ones(4, 4)
    if optimizer is torch.optim.SparseAdam:
        parameter.grad = parameter.grad.to_sparse()
    return parameter


def test_torch_has_the_optimizers_that_we_look_at() -> None:
    """The list is not empty by accident."""
    assert {torch.optim.AdamW, torch.optim.SGD, torch.optim.LBFGS} <= set(OPTIMIZERS)


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_torch_optimizer_evaluates_the_closure_before_it_changes_anything(kind: Any) -> None:
    """The barrier stands behind the closure: up to its end, parameters and state are those of the step before."""
    parameter = _parameter(kind)
    optimizer = kind([parameter])
    seen: list[torch.Tensor] = []
    steps: list[torch.Tensor] = []

    def closure() -> torch.Tensor:
        seen.append(parameter.detach().clone())
        steps.extend(
            value.clone() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
        )
        return torch.ones(())

    def moments() -> list[torch.Tensor]:
        return [v.clone() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]

    optimizer.step(closure)
    before, before_state = parameter.detach().clone(), moments()
    seen.clear()
    steps.clear()
    optimizer.step(closure)
    assert torch.equal(seen[0], before)
    assert all(torch.equal(a, b) for a, b in zip(steps[: len(before_state)], before_state, strict=True))
    assert type(optimizer).step.__module__.startswith("torch.optim.")


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_torch_optimizer_calls_the_hook_that_is_common_to_all(kind: Any) -> None:
    """Whatever optimizer steps, the barrier is asked first, and what it puts in the place of the closure is called."""
    called: list[str] = []

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        called.append("hook")
        return args, {**kwargs, "closure": lambda: called.append("closure") or torch.ones(())}

    handle = register_optimizer_step_pre_hook(hook)
    try:
        kind([_parameter(kind)]).step(closure=lambda: pytest.fail("the hook's closure takes its place"))
    finally:
        handle.remove()
    assert called[:2] == ["hook", "closure"]


def test_torch_counts_changes_in_place() -> None:
    """The version counter rises with a change in place, through detach() and through a view; not through .data."""
    tensor = torch.nn.Parameter(torch.ones(8))
    changes = (
        lambda: tensor.add_(1),
        lambda: tensor.detach().add_(1),
        lambda: tensor[:2].zero_(),
        lambda: torch.nn.init.zeros_(tensor),
        lambda: tensor.copy_(torch.ones(8)),
    )
    with torch.no_grad():
        for change in changes:
            before = version(tensor)
            change()
            assert version(tensor) > before
        before = version(tensor)
        tensor.data.add_(1)
        assert version(tensor) == before


def test_torch_keeps_hooks_in_front_of_loading_where_we_look() -> None:
    """A hook in front of ``load_state_dict`` is seen while it is registered, at a module and at an optimizer."""
    layer = torch.nn.Linear(1, 1)
    targets: tuple[Any, ...] = (layer, torch.optim.SGD(layer.parameters()))
    for target in targets:
        assert not load_pre_hooks(target)
        handle = target.register_load_state_dict_pre_hook(lambda *_: None)
        assert len(load_pre_hooks(target)) == 1
        handle.remove()
        assert not load_pre_hooks(target)


def test_torch_calls_the_extension_point_that_we_look_at() -> None:
    """``load_state_dict`` of a module loads those below by ``_load_from_state_dict``, and torch's own are told."""
    called: list[str] = []

    class Own(torch.nn.Linear):
        def _load_from_state_dict(self, *arguments: Any) -> None:
            called.append(arguments[1])
            super()._load_from_state_dict(*arguments)

    root = torch.nn.Sequential(torch.nn.BatchNorm1d(1), Own(1, 1))
    root.load_state_dict(root.state_dict())
    assert called == ["1."]
    assert own_ways(root) == ("1.",)
