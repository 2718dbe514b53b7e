"""Optimizers and schedulers of another class, parameters in another order, tensors of another dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import equal
from nets import make, save
from torch.optim import lr_scheduler

import safepoint
from safepoint import RestoreReport
from safepoint.optimizers import optimizer_change, optimizer_difference, scheduler_difference

Optimizer = torch.optim.Optimizer
OPTIMIZERS = {
    name: found
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer
}
OPTIONS: dict[str, Any] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
}
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2),
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "ExponentialLR": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 9),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.001, 0.1, cycle_momentum=False),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "SWALR": lambda optimizer: torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 9)], [3]
    ),
    "other SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.StepLR(optimizer, 9)], [3]
    ),
    "ChainedScheduler": lambda optimizer: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(optimizer)]),
}


def net() -> torch.nn.Module:
    """Return a module whose parameters all have other shapes."""
    return torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(8, 2, bias=False))


def advance(optimizer: Optimizer) -> None:
    """Make one step on its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def loss() -> float:
        for parameter in parameters:
            dense = torch.ones_like(parameter)
            parameter.grad = dense.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else dense
        return 1.0

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(loss)
    else:
        loss()
        optimizer.step()


def made(name: str, module: torch.nn.Module) -> Optimizer:
    """Return one of torch's optimizers of the parameters of ``module``."""
    made: Optimizer = OPTIMIZERS[name](module.parameters(), **OPTIONS.get(name, {}))
    return made


def stepped(optimizer: Optimizer) -> Optimizer:
    """Return it after one step."""
    advance(optimizer)
    return optimizer


def restored(directory: Path, state: dict[str, Any], **options: Any) -> RestoreReport:
    """Restore ``state`` from ``directory``."""
    with make(directory, state) as checkpointer:
        return checkpointer.restore(**options).report


def content(state: dict[str, Any]) -> str:
    """Return what is in ``state``, as text."""
    return str({name: target.state_dict() for name, target in state.items()})


def assert_refused(directory: Path, there: dict[str, Any], here: dict[str, Any], row: str) -> None:
    """Assert that what was saved of ``there`` does not fit ``here``, and leaves it as it was."""
    save(directory, there)
    before = content(here)
    with pytest.raises(safepoint.StateMismatchError, match=f"nothing was restored:(.|\n)*{row}"):
        restored(directory, here)
    assert content(here) == before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_of_the_same_class_is_restored(tmp_path: Path, name: str) -> None:
    """Each of torch's own, exactly, and it goes on."""
    before, live = net(), net()
    state = {"model": before, "optimizer": stepped(made(name, before))}
    save(tmp_path, state)
    new = {"model": live, "optimizer": made(name, live)}
    assert restored(tmp_path, new, strict=True).is_exact
    assert content(new) == content(state)
    for optimizer in (state["optimizer"], new["optimizer"]):
        advance(optimizer)  # type: ignore[arg-type]
    assert equal(list(before.parameters()), list(live.parameters()))


@pytest.mark.parametrize("there", OPTIMIZERS)
@pytest.mark.parametrize("here", OPTIMIZERS)
def test_optimizer_of_another_class_is_refused_or_goes_on(here: str, there: str) -> None:
    """None is given a state with which its next step fails."""
    live, saved = made(here, net()), copy.deepcopy(stepped(made(there, net())).state_dict())
    if optimizer_difference(live, saved) is None:
        live.load_state_dict(saved)
        advance(live)
    else:
        assert here != there


@pytest.mark.parametrize(
    ("there", "here", "row"),
    [
        (
            "AdamW",
            "SGD",
            "optimizer +param_groups +SGD, with dampening, momentum, nesterov +of another class, with am",
        ),
        ("AdamW", "RMSprop", "optimizer +param_groups +RMSprop, with alpha, centered, momentum +of another class"),
        ("Adam", "Adamax", r"optimizer +state\.0 +Adamax, with exp_avg, exp_inf +exp_avg, exp_avg_sq"),
    ],
)
def test_optimizer_of_another_class_is_an_error(tmp_path: Path, there: str, here: str, row: str) -> None:
    """A table says which options and what of its state tell; with ``strict=False`` it is left alone as a whole."""
    before, live = net(), net()
    state: dict[str, Any] = {"model": live, "optimizer": made(here, live)}
    assert_refused(tmp_path, {"model": before, "optimizer": stepped(made(there, before))}, state, row)
    first = str(state["optimizer"].state_dict())
    with pytest.warns(RuntimeWarning, match="restored in part"):
        assert restored(tmp_path, state, strict=False).left == ("optimizer",)
    assert str(state["optimizer"].state_dict()) == first
    assert equal(list(before.parameters()), list(live.parameters()))


def test_parameters_in_another_order_are_an_error(tmp_path: Path) -> None:
    """The moments of one would be those of another."""
    before, live = net(), net()
    optimizer = torch.optim.AdamW(list(live.parameters())[::-1])
    saved = {"model": before, "optimizer": stepped(torch.optim.AdamW(before.parameters()))}
    row = r"optimizer +state\.0\.exp_avg +\(2, 8\) +\(8, 4\)"
    assert_refused(tmp_path, saved, {"model": live, "optimizer": optimizer}, row)


class Narrow(Optimizer):
    """Somebody's optimizer, which gathers less than a parameter has elements."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> Any:
        """Gather the first row."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["exp_avg"] = self._row(parameter)
        return closure

    def _row(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter.detach()[:1].clone()


class Whole(Narrow):
    """Somebody's optimizer, which gathers as much as there is."""

    def _row(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter.detach().clone()


class Converting(Narrow):
    """Somebody's optimizer, which knows what older versions of it have saved."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("lr", group.pop("learning_rate", 0.1))


def test_optimizers_of_others_are_left_to_themselves() -> None:
    """What they gather may be smaller, and what they have saved of another version; another order is found."""
    live, saved = Narrow(net().parameters()), stepped(Narrow(net().parameters())).state_dict()
    assert optimizer_difference(live, saved) is None
    assert optimizer_difference(Whole(net().parameters()), saved) is None
    turned = stepped(Whole(list(net().parameters())[::-1])).state_dict()
    assert optimizer_difference(Whole(net().parameters()), turned) == ("state.0.exp_avg", "(8, 4)", "(2, 8)")
    older = {**saved, "param_groups": [{"learning_rate": 0.1, "params": [0, 1]}]}
    assert optimizer_difference(Converting(net().parameters()), older) is None
    assert optimizer_difference(live, older) is not None


def test_optimizer_of_another_version_fits() -> None:
    """One side has options that the other lacks; what schedulers and the program put into the groups is none."""
    module = net()
    optimizer = stepped(made("SGD", module))
    lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    lr_scheduler.CyclicLR(optimizer, 0.001, 0.1)
    torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.1)
    optimizer.param_groups[0]["name"] = "all"
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["fused"]
    live = torch.optim.SGD([{"params": list(net().parameters()), "name": "all"}], lr=0.1, momentum=0.9)
    assert optimizer_difference(live, saved) is None
    named = torch.optim.SGD(net().named_parameters(), lr=0.1, momentum=0.9).state_dict()
    del named["param_groups"][0]["fused"]
    assert optimizer_difference(made("SGD", net()), named) is None


HOSTILE: list[Any] = [
    {"state": {0: 5, 1: []}},
    {"state": {0: {"exp_avg": 5, "exp_avg_sq": "a"}}},
    {"state": {0: {10**5000: torch.ones(1), ("a",): 1}}},
    {"state": {10**5000: {"exp_avg": torch.ones(1, dtype=torch.half)}}, "params": [10**5000, [1]]},
    {"params": "ab"},
    {"params": {5: 6, 7: 8}},
    {"params": [[], {}]},
    {10**5000: 1, "lr": 0.1},
    {("a", "b"): 1, 5: 2},
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_no_state_of_an_optimizer_crashes_the_comparison(number: int) -> None:
    """Whatever is where numbers, names and mappings belong."""
    for name in OPTIMIZERS:
        given = {**made(name, net()).state_dict()["param_groups"][0], **HOSTILE[number]}
        saved = {"state": given.pop("state", {}), "param_groups": [given]}
        found = optimizer_difference(made(name, net()), saved)
        assert found is None or all(isinstance(cell, str) for cell in found)
        assert isinstance(optimizer_change(made(name, net()), saved), str | None)


@pytest.mark.parametrize("saved", [None, [], {10**5000: 1}, {"_schedulers": 5}, {"_schedulers": [5]}, {("a",): 5}])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_state_of_a_scheduler_crashes_the_comparison(name: str, saved: Any) -> None:
    """Whatever it is."""
    found = scheduler_difference(SCHEDULERS[name](made("SGD", net())), saved)
    assert found is None or all(isinstance(cell, str) for cell in found)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_of_the_same_class_is_restored(tmp_path: Path, name: str) -> None:
    """Each of torch's own; what an older version has saved fits, too."""
    optimizer, other = made("SGD", net()), made("SGD", net())
    scheduler, live = SCHEDULERS[name](optimizer), SCHEDULERS[name](other)
    advance(optimizer)
    scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    save(tmp_path, {"optimizer": optimizer, "scheduler": scheduler})
    older = {**scheduler.state_dict(), "verbose": False}
    older.pop("_is_initial", None)
    assert scheduler_difference(live, older) is None
    assert restored(tmp_path, {"optimizer": other, "scheduler": live}, strict=True).is_exact
    assert str(live.state_dict()) == str(scheduler.state_dict())


@pytest.mark.parametrize(
    ("there", "here", "row"),
    [
        ("StepLR", "CosineAnnealingLR", "CosineAnnealingLR, with T_max, .* of another class, with .*gamma"),
        ("StepLR", "ReduceLROnPlateau", "scheduler +.all. +ReduceLROnPlateau, with "),
        ("StepLR", "SequentialLR", "scheduler +.all. +SequentialLR"),
        ("SequentialLR", "StepLR", "scheduler +.all. +StepLR"),
        ("SequentialLR", "other SequentialLR", "scheduler +.all. +SequentialLR"),
        ("SequentialLR", "ChainedScheduler", "scheduler +.all. +ChainedScheduler"),
    ],
)
def test_scheduler_of_another_class_is_an_error(tmp_path: Path, there: str, here: str, row: str) -> None:
    """Before anything is changed: the optimizer neither."""
    saved, live = (
        {"optimizer": optimizer, "scheduler": SCHEDULERS[name](optimizer)}
        for name, optimizer in ((there, stepped(made("SGD", net()))), (here, made("SGD", net())))
    )
    assert_refused(tmp_path, saved, live, row)


class Own(lr_scheduler.LRScheduler):
    """Somebody's scheduler, which loads what it likes."""

    limit = 5

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rates from before."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what is known by another name."""
        super().load_state_dict({"limit": state.pop("most"), **state})


def test_scheduler_that_loads_by_itself_is_left_to_that() -> None:
    """Its keys are its own business."""
    live = Own(made("SGD", net()))
    saved = {"most": 7, "T_max": 1}
    assert scheduler_difference(live, saved) is None
    live.load_state_dict(saved)
    assert live.limit == 7


def test_another_dtype_is_not_exact(tmp_path: Path) -> None:
    """A parameter and a buffer that are narrower here, and what an optimizer has gathered: told, and restored."""
    before = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.BatchNorm1d(4, affine=False))
    live = copy.deepcopy(before).half()
    save(tmp_path, {"model": before, "optimizer": stepped(torch.optim.Adam(before.parameters()))})
    state: dict[str, Any] = {"model": live, "optimizer": torch.optim.Adam(live.parameters())}
    first = content(state)
    told = (
        r"model: 3 tensors are of another dtype here: float32 in the checkpoint, float16 here, first: 0\.weight"
        r"(.|\n)*optimizer: 2 tensors are of another dtype here: .* here, first: state\.0\.exp_avg"
    )
    with pytest.raises(safepoint.StateMismatchError, match=f"strict=True; nothing was restored(.|\n)*{told}"):
        restored(tmp_path, state, strict=True)
    assert content(state) == first
    with pytest.warns(RuntimeWarning, match=f"not go on exactly(.|\n)*{told}"):
        report = restored(tmp_path, state)
    assert report.is_whole
    assert not report.is_exact
    assert equal([tensor.half() for tensor in before.parameters()], list(live.parameters()))


def test_one_tensor_of_another_dtype_is_told_of(tmp_path: Path) -> None:
    """In the singular."""
    save(tmp_path, {"model": torch.nn.Linear(2, 1, bias=False)})
    with pytest.warns(RuntimeWarning, match="model: 1 tensor is of another dtype here: float32 in the checkpoint"):
        restored(tmp_path, {"model": torch.nn.Linear(2, 1, bias=False).double()})
