"""What speaks against going on from a state: any NaN in it, however it is stored, and half an update."""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from safepoint.flaws import holding_nan, interrupted_update

FLOATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_is_found_in_any_dtype(dtype: torch.dtype) -> None:
    """One NaN among many numbers is found, in halves and eighths of a float as well."""
    values = torch.arange(40.0).to(dtype)
    assert holding_nan({"a": values}) == ""
    values[17:18] = torch.tensor([math.nan]).to(dtype)
    assert holding_nan({"a": values}) == "a holds NaN"


def strange(number: float) -> dict[str, torch.Tensor]:
    """Return tensors that are not simply a row of numbers; each holds ``number``."""
    plain = torch.tensor([[0.0, number], [1.0, 2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layouts that are new
        return {
            "a scalar": torch.tensor(number),
            "transposed": plain.t(),
            "a view": plain[:, 1],
            "channels last": plain.expand(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
            "expanded": plain[0, 1].expand(1 << 40),
            "conjugated": torch.complex(plain, plain).conj(),
            "an imaginary part": torch.complex(plain, plain).conj().imag,
            "a parameter": torch.nn.Parameter(plain),
            "sparse": plain.to_sparse(),
            "twice at one place": torch.sparse_coo_tensor([[0, 0]], [number, 1.0], (2,)),
            "compressed": plain.to_sparse_csr(),
            "in blocks": plain.to_sparse_bsr((1, 1)),
            "nested": torch.nested.nested_tensor([torch.ones(2), plain[0]]),
            "jagged": torch.nested.nested_tensor([torch.ones(2), plain[0]], layout=torch.jagged),
        }


@pytest.mark.parametrize("kind", strange(0.0))
def test_nan_is_found_in_any_kind_of_tensor(kind: str) -> None:
    """However the numbers lie, none is overlooked; infinity is a number."""
    assert holding_nan([strange(math.nan)[kind]]) == "0 holds NaN"
    assert holding_nan([strange(-math.inf)[kind]]) == ""


def test_what_holds_no_such_numbers_is_sound() -> None:
    """Integers, booleans, quantised, empty and meta tensors, and what is no tensor, hold no NaN, and crash nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    fours = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    tensors = [torch.arange(3), torch.ones(2, dtype=torch.bool), quantised, torch.empty(0), fours]
    assert holding_nan({"tensors": tensors, "meta": torch.empty(3, device="meta"), "no tensor": math.nan}) == ""


def test_first_nan_is_told_by_its_path() -> None:
    """Of a module's and an optimizer's state, the first tensor in the order of the state is named."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    optimizer.state_dict()["state"][2]["exp_avg"][0] = math.nan
    assert holding_nan({"model": model.state_dict(), "optimizer": optimizer.state_dict()}) == (
        "optimizer.state.2.exp_avg holds NaN"
    )
    model[1].bias.data[1] = math.nan
    assert holding_nan({"model": model.state_dict(), "optimizer": optimizer.state_dict()}) == "model.1.bias holds NaN"


LOOK = """
import resource, torch
from safepoint.flaws import holding_nan
plain = torch.zeros(1 << 13, 1 << 13)
eighths = torch.zeros(1 << 28, dtype=torch.uint8).view(torch.float8_e4m3fn)
holding_nan([torch.zeros(9), torch.zeros(9).to(torch.float8_e5m2)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert not holding_nan([plain, plain.t(), plain.view(1 << 12, 2, 1 << 13).permute(1, 2, 0), eighths])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_looking_takes_no_memory() -> None:
    """Neither a plain tensor nor one with its dimensions the other way round is copied to be looked through."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10


# Half an update.


class RaisedError(Exception):
    """What interrupts here."""


def stop(*_: object, **__: object) -> Any:
    """Raise."""
    raise RaisedError


def raised_by(function: Callable[..., object], *arguments: object) -> BaseException:
    """Return what ``function`` raises."""
    try:
        function(*arguments)
    except BaseException as error:  # noqa: BLE001 - it is the result
        return error
    raise AssertionError


class Halfway(torch.optim.SGD):
    """Breaks when it has updated the first parameter."""

    def step(self, closure: Any = None) -> Any:
        """Update one parameter, and raise."""
        self.param_groups[0]["params"][0].data.zero_()
        raise RaisedError


class Twice(torch.optim.SGD):
    """Moves the weights before it asks the closure, as SAM does."""

    def step(self, closure: Any = None) -> Any:
        """Move, ask, and move."""
        super().step()
        return closure()


class Wrapper(torch.optim.SGD):
    """Hands on to another optimizer's step, as a framework's wrapper does."""

    def step(self, closure: Any = None) -> Any:
        """Let the other do it."""
        return torch.optim.Adam(self.param_groups[0]["params"]).step(functools.partial(closure))


def weights() -> list[torch.nn.Parameter]:
    """Return parameters with gradients."""
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    return parameters


def test_error_in_an_update_interrupts_it() -> None:
    """What is raised by an optimizer's step itself, or by what it calls, leaves half an update."""
    assert interrupted_update(raised_by(Halfway(weights()).step)) == "Halfway was interrupted in its step"
    optimizer = torch.optim.Adam(weights(), foreach=False)
    optimizer.step()
    optimizer.state[optimizer.param_groups[0]["params"][1]]["exp_avg"] = torch.ones(7)
    assert interrupted_update(raised_by(optimizer.step)) == "Adam was interrupted in its step"
    scheduled = Halfway(weights())
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    assert interrupted_update(raised_by(scheduled.step)) == "Halfway was interrupted in its step"


class Watched(torch.Tensor):
    """A gradient that has Ctrl-C pressed as soon as it is used."""

    @classmethod
    def __torch_function__(cls, function: Any, *arguments: Any, **options: Any) -> Any:
        """Send the signal, which comes before the next line, where the gradient is used up."""
        if function.__name__ == "add_":
            os.kill(os.getpid(), signal.SIGINT)
        return super().__torch_function__(function, *arguments, **options)


def test_keyboard_interrupt_in_an_update_interrupts_it() -> None:
    """Ctrl-C that comes in an optimizer's step is recognised by where it came."""
    parameters = weights()
    parameters[1].grad = torch.ones(3).as_subclass(Watched)
    error = raised_by(torch.optim.SGD(parameters, foreach=False).step)
    assert isinstance(error, KeyboardInterrupt)
    assert interrupted_update(error) == "SGD was interrupted in its step"
    assert not parameters[0].equal(torch.ones(3))


def test_error_in_a_closure_interrupts_no_update_that_comes_after_it() -> None:
    """Torch's own optimizers ask the closure first, whatever it is made of; a training step that fails is no flaw."""

    class Closures:
        def __call__(self) -> Any:
            stop()

        def method(self) -> Any:
            stop()

    closures = (stop, torch.enable_grad()(stop), functools.partial(stop, 1), Closures(), Closures().method)
    for closure in closures:
        for kind in (torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop):
            assert interrupted_update(raised_by(kind(weights()).step, closure)) == ""
        assert interrupted_update(raised_by(Wrapper(weights()).step, closure)) == ""


def test_error_in_a_closure_interrupts_an_update_that_may_have_begun() -> None:
    """L-BFGS asks many times, and of other people's optimizers nobody knows."""
    assert interrupted_update(raised_by(torch.optim.LBFGS(weights()).step, stop)) == "LBFGS was interrupted in its step"
    assert interrupted_update(raised_by(Twice(weights()).step, stop)) == "Twice was interrupted in its step"


def test_update_within_a_closure_can_be_interrupted() -> None:
    """The optimizer that is stepped by another's closure is the one that counts."""
    inner = Halfway(weights())
    assert interrupted_update(raised_by(torch.optim.SGD(weights()).step, inner.step)) == (
        "Halfway was interrupted in its step"
    )


def test_what_an_interrupted_update_led_to_tells_of_it() -> None:
    """An error that was raised while another was handled, from another, or is a group of them, tells of all."""
    halfway = Halfway(weights())

    def clean_up() -> None:
        try:
            halfway.step()
        finally:
            stop()

    def translate() -> None:
        try:
            halfway.step()
        except RaisedError as error:
            raise KeyError from error

    group = BaseExceptionGroup("several", [ValueError(), raised_by(halfway.step)])
    for error in (raised_by(clean_up), raised_by(translate), group):
        assert interrupted_update(error) == "Halfway was interrupted in its step"


def test_other_steps_are_no_update() -> None:
    """A scheduler, a hook before the update, and a function that happens to be called ``step`` interrupt nothing."""

    def step(self: object) -> None:
        raise RaisedError

    optimizer = torch.optim.SGD(weights())
    optimizer.register_step_pre_hook(stop)
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(weights()), lambda epoch: epoch and stop())
    optimizer_free = raised_by(lambda: step(torch.optim.SGD))
    for error in (raised_by(optimizer.step), raised_by(scheduler.step), optimizer_free, raised_by(step, 3)):
        assert interrupted_update(error) == ""
