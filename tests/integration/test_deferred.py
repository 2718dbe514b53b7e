"""Deferred staging: every checkpoint holds one moment, whatever the optimizer does meanwhile; or it is given up.

The copies are slowed down here, so that a step which does not wait for them is certain to come in between.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from safepoint import Checkpointer, SaveError, deferral, keep, load, memory, when
from safepoint.transfer import Piece

NEVER = when.at(steps=[10**9])
WIDTH = 192  # a weight of 144 KiB: large enough to be deferred


class Moment:
    """Copies of a whole state at one moment."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = {name: copy.deepcopy(target.state_dict()) for name, target in state.items()}

    def is_in(self, path: Path) -> bool:
        """Tell whether the checkpoint at ``path`` holds exactly this."""
        loaded = load(path, weights_only=False)
        return all(_same(loaded[name], part) for name, part in self.state.items())


def _same(here: Any, there: Any) -> bool:
    if isinstance(here, torch.Tensor):
        return isinstance(there, torch.Tensor) and torch.equal(here, there)
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(_same(here[key], there[key]) for key in here)
    if isinstance(here, list | tuple):
        return len(here) == len(there) and all(map(_same, here, there))
    return bool(here == there)


@pytest.fixture(autouse=True)
def slow_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Make each background copy begin late and take its time; return the sizes that were copied so."""
    copied: list[int] = []
    real = memory.copy

    def slow(target: int, source: int, size_bytes: int) -> None:
        if threading.current_thread().name.startswith("safepoint-staging"):
            copied.append(size_bytes)
            time.sleep(0.002)
            real(target, source, size_bytes // 2)
            time.sleep(0.002)
            real(target + size_bytes // 2, source + size_bytes // 2, size_bytes - size_bytes // 2)
        else:
            real(target, source, size_bytes)

    monkeypatch.setattr(memory, "copy", slow)
    yield copied
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("safepoint-staging")]


def _model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH), torch.nn.Linear(WIDTH, WIDTH)
    )


def _backward(model: torch.nn.Module) -> torch.Tensor:
    loss = model(torch.randn(8, WIDTH)).square().mean()
    loss.backward()
    return loss.detach()


class MovesBeforeTheClosure(torch.optim.SGD):
    """A user's optimizer that changes the weights before it evaluates the closure, as SAM does."""

    def step(self, closure: Any = None) -> Any:
        """Take a step of its own first."""
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(0.01)  # unseen by the version counter, as a fused kernel is
        return super().step(closure)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam plain": lambda p: torch.optim.Adam(p, foreach=False),
    "adam foreach": lambda p: torch.optim.Adam(p, foreach=True, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adafactor": torch.optim.Adafactor,
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3, history_size=4),
    "moves before the closure": lambda p: MovesBeforeTheClosure(p, lr=0.1),
}


@pytest.mark.parametrize("calls", ["step()", "step(closure)", "step(closure=closure)"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_deferred_checkpoint_is_the_state_at_a_step_boundary(
    tmp_path: Path, slow_copies: list[int], name: str, calls: str
) -> None:
    """Saved at random steps, each checkpoint is bit for bit the state as it was when it was asked for."""
    if name == "lbfgs" and calls == "step()":
        pytest.skip("LBFGS always takes a closure")
    torch.manual_seed(0)
    chance = random.Random(name + calls)
    model = _model()
    optimizer = OPTIMIZERS[name](model.parameters())
    state = {"model": model, "optimizer": optimizer}
    moments: list[tuple[Path, Moment]] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        return _backward(model)

    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred", max_images=3) as saver:
        for _ in range(8):
            if calls == "step()":
                closure()
                optimizer.step()
            elif calls == "step(closure)":
                optimizer.step(closure)
            else:
                optimizer.step(closure=closure)
            saver.step()
            if chance.random() < 0.7:
                moment = Moment(state)
                moments.append((saver.save(), moment))
    assert len(moments) > 2
    assert slow_copies
    assert all(moment.is_in(path) for path, moment in moments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, slow_copies: list[int]) -> threading.Event:
    """Return what background copies wait for."""
    held, real = threading.Event(), memory.copy

    def gated(target: int, source: int, size_bytes: int) -> None:
        if threading.current_thread().name.startswith("safepoint-staging"):
            assert held.wait(60)
        real(target, source, size_bytes)

    monkeypatch.setattr(memory, "copy", gated)
    return held


def test_deferred_staging_leaves_forward_and_backward_alone(tmp_path: Path, gate: threading.Event) -> None:
    """Between a save and the next step nothing waits, gradients may accumulate, and the copies go on beside it."""
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        _backward(model)
        optimizer.step()
        saver.step()
        moment = Moment({"optimizer": optimizer})
        path = saver.save()
        for _ in range(3):
            _backward(model)
        stepping = threading.Thread(target=optimizer.step, daemon=True)
        stepping.start()
        stepping.join(0.05)
        assert stepping.is_alive()
        gate.set()
        stepping.join(60)
        saver.wait()
        assert saver.stats()[-1].stalled_s > 0.04
        assert moment.is_in(path)


def test_deferred_staging_copies_at_once_what_no_optimizer_owns(tmp_path: Path) -> None:
    """An averaged copy of the model, buffers and plain tensors may change as soon as save() returns."""
    model = _model()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "averaged": averaged, "optimizer": optimizer}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        saver.step()
        moment = Moment(state)
        path = saver.save()
        for tensor in (*averaged.parameters(), *model.buffers()):
            tensor.data.fill_(7)
        _backward(model)
        optimizer.step()
        averaged.update_parameters(model)
    assert moment.is_in(path)


def test_deferred_staging_holds_back_two_optimizers_of_two_models(tmp_path: Path) -> None:
    """Whichever optimizer steps first, the copies of both models are made before."""
    models = {"generator": _model(), "discriminator": _model()}
    optimizers = {f"{name}'s": torch.optim.Adam(model.parameters()) for name, model in models.items()}
    state = {**models, **optimizers}
    moments: list[tuple[Path, Moment]] = []
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        for turn in range(6):
            for model in models.values():
                _backward(model)
            list(optimizers.values())[turn % 2].step()
            saver.step()
            moments.append((Path(), Moment(state)))
            moments[-1] = (saver.save(), moments[-1][1])
    assert all(moment.is_in(path) for path, moment in moments)


def test_deferred_staging_holds_back_an_optimizer_that_is_not_saved(tmp_path: Path) -> None:
    """The barrier is before every optimizer of the process: another one may own the same parameters."""
    model = _model()
    saved, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    state = {"model": model, "optimizer": saved}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        _backward(model)
        saver.step()
        moment = Moment(state)
        path = saver.save()
        other.step()
    assert moment.is_in(path)


@pytest.mark.parametrize("assign", [False, True])
def test_deferred_staging_holds_back_load_state_dict(tmp_path: Path, *, assign: bool) -> None:
    """What is loaded right after a save waits for the copies, in place or by assignment; the hooks leave no trace."""
    model, other = _model(), _model()
    optimizer = torch.optim.Adam(model.parameters())
    _backward(model)
    optimizer.step()
    moments_of_other = copy.deepcopy(optimizer.state_dict())
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        saver.step()
        moment = Moment(state)
        path = saver.save()
        copied = copy.deepcopy(model)
        model.load_state_dict(other.state_dict(), assign=assign)
        optimizer.load_state_dict(moments_of_other)
    assert moment.is_in(path)
    assert _same(model.state_dict(), other.state_dict())
    assert copied.load_state_dict(other.state_dict())
    whole = io.BytesIO()
    torch.save(model, whole)
    assert b"safepoint" not in whole.getvalue()


def test_deferred_staging_gives_up_a_checkpoint_of_two_moments(tmp_path: Path, gate: threading.Event) -> None:
    """A change in place that no step makes is seen: nothing is written, the error says why, and the next save works."""
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        saver.step()
        lost = saver.save()
        with torch.no_grad():
            model[0].weight.mul_(2)
        gate.set()
        with pytest.raises(SaveError, match=r"were changed between the save and the next optimizer step.*staging="):
            saver.wait()
        assert not lost.exists()
        moment = Moment(state)
        path = saver.save()
    assert moment.is_in(path)


def test_deferred_staging_takes_its_hook_off_when_closed(tmp_path: Path) -> None:
    """After close() an optimizer's step finds no hook of ours."""
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    model = _model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        saver.save()
        assert len(hooks) == before + 1
    assert len(hooks) == before


def test_deferred_staging_goes_by_streams_and_events_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device has its own way: a stream, an event, the computing stream held back; here with torch's CPU streams."""
    device = torch.device("cpu")
    held_back: list[object] = []
    real = torch.cpu.Stream.wait_event

    def watched(stream: Any, event: Any) -> None:
        held_back.append(event)
        real(stream, event)

    def as_on_a_device(pieces: list[Piece]) -> tuple[list[Piece], dict[torch.device, list[Piece]]]:
        return [], {device: list(pieces)}

    monkeypatch.setattr(torch.cpu.Stream, "wait_event", watched)
    monkeypatch.setattr(deferral, "split", as_on_a_device)
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    state = {"model": model, "optimizer": optimizer}
    moments: list[tuple[Path, Moment]] = []
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        for _ in range(4):
            _backward(model)
            optimizer.step()
            saver.step()
            moment = Moment(state)
            moments.append((saver.save(), moment))
    assert len(held_back) == 4
    assert all(moment.is_in(path) for path, moment in moments)


def test_deferred_staging_notices_a_change_that_has_not_ended_yet(tmp_path: Path, gate: threading.Event) -> None:
    """An operation in place raises the version when it has ended: the verdict comes after it, not while it runs."""
    model = _model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        path = saver.save()
        model[0].weight.data.mul_(2)  # what the kernel of an operation in place does first
        gate.set()
        time.sleep(0.2)  # enough for the copies to end, and for the file to be written
        assert not path.exists()
        with torch.no_grad():
            model[0].weight.add_(0)  # what it does last: it raises the version
        with pytest.raises(SaveError, match="were changed between the save and the next optimizer step"):
            saver.wait()
    assert not path.exists()


@pytest.mark.parametrize("how", ["resized", "moved"])
def test_deferred_staging_gives_up_what_is_freed_or_moved_meanwhile(
    tmp_path: Path, gate: threading.Event, how: str
) -> None:
    """A storage that is not where it was is not read."""
    model = _model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        saver.save()
        storage = model[0].weight.untyped_storage()
        storage.resize_(0) if how == "resized" else model.share_memory()
        gate.set()
        with pytest.raises(SaveError, match="was moved or freed"):
            saver.wait()
        if how == "resized":
            storage.resize_(4 * WIDTH * WIDTH)


def test_deferred_barrier_stays_when_the_wait_is_interrupted(tmp_path: Path, gate: threading.Event) -> None:
    """Ctrl-C in the step that waits, and another step: it waits, too."""
    model = _model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    _backward(model)
    optimizer.step()
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        saver.step()
        moment = Moment(state)
        path = saver.save()
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
        finally:
            signal.signal(signal.SIGALRM, before)
        threading.Timer(0.1, gate.set).start()
        optimizer.step()
    assert moment.is_in(path)


def test_deferred_barrier_lets_a_child_process_go_on(tmp_path: Path, gate: threading.Event) -> None:
    """A forked child has no copies to wait for: an optimizer steps there at once."""
    model = _model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), staging="deferred") as saver:
        saver.save()
        child = multiprocessing.get_context("fork").Process(target=_step_of_a_child)
        child.start()
        child.join(30)
        assert child.exitcode == 0
        gate.set()


def _step_of_a_child() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight], lr=0.1).step()


def test_deferred_checkpoint_is_durable_when_the_program_ends_without_close(tmp_path: Path) -> None:
    """Nobody gives a verdict any more, and nothing changes any more: the file gets its name, and the program ends."""
    code = """
import sys, torch
from safepoint import Checkpointer, keep, when
model = torch.nn.Linear(300, 300)
state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
saver = Checkpointer(sys.argv[1], state=state, save=when.train_end(), keep=keep.all(), staging="deferred")
saver.save()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert len(list(tmp_path.glob("*.ckpt"))) == 1
