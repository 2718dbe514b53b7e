"""A scheduler takes the machine away: real processes, real signals, and the exit status that a shell sees."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants import whole_checkpoints
from loop import Training, equal
from other_process import Other
from torch.optim.swa_utils import AveragedModel

import safepoint
from safepoint import Checkpointer, ConfigurationError, Preempted, keep, reader, signals, when
from safepoint.catalog import Catalog
from safepoint.stores import Chunk, direct
from safepoint.stores.disk import Disk

SCRIPT = Path(__file__).parent / "scripts" / "preempted.py"
TERMINATED = 128 + signal.SIGTERM

Begin = Callable[..., Other]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a training in some way, and wait until it has made a step; what is left of them in the end is killed."""
    begun: list[Other] = []

    def start(way: str, directory: Path, under: Sequence[str] = ()) -> Other:
        arguments = (way,) if way.endswith(".py") else (str(SCRIPT), way)
        begun.append(Other(*arguments, directory, under=under))
        assert begun[-1].answer() == "ready"
        return begun[-1]

    yield start
    for other in begun:
        other.end()


def reasons(directory: Path) -> list[str]:
    """Return why each checkpoint in ``directory``, all of which must be whole, was saved, oldest first."""
    whole_checkpoints(directory)
    return [reason for record in Catalog.of(directory).records for reason in record.reasons]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_signal_saves_and_ends_the_process(tmp_path: Path, begin: Begin, name: str) -> None:
    """The step is saved and durable, and the exit status is the one that a shell gives to what a signal has killed."""
    other = begin("train", tmp_path / "run")
    other.process.send_signal(signal.Signals[name])
    assert other.process.wait() == 128 + signal.Signals[name]
    (record,) = Catalog.of(tmp_path / "run").records
    assert reasons(tmp_path / "run") == [f"preempted: {name}"]
    assert record.path.name == f"epoch=0-step={record.step}-preempted.ckpt"
    training = Training()
    with Checkpointer(tmp_path / "run", state=training.state, save=when.every(steps=9), keep=keep.all()) as saver:
        assert saver.restore().step == record.step


def test_blocks_are_left_in_good_order(tmp_path: Path, begin: Begin) -> None:
    """``finally`` runs, ``except Exception`` does not, and neither an exception's save nor the last one is made."""
    other = begin("with_cleaning", tmp_path / "run")
    other.process.terminate()
    assert other.answer() == "cleaned"
    assert other.process.wait() == TERMINATED
    assert reasons(tmp_path / "run") == ["preempted: SIGTERM"]


def test_timeout_sends_two_signals_and_the_save_is_made(tmp_path: Path, begin: Begin) -> None:
    """``timeout`` signals the process and then its group: both together are one request."""
    other = begin("train", tmp_path / "run", under=("timeout", "--signal=TERM", "600"))
    other.process.terminate()  # which timeout passes on as it does when the time is over
    assert other.process.wait() == TERMINATED
    assert reasons(tmp_path / "run") == ["preempted: SIGTERM"]


def test_end_of_a_finished_training_does_not_swallow_the_signal(tmp_path: Path) -> None:
    """A signal after the last step is answered by ``close()``."""
    other = Other(str(SCRIPT), "closing", tmp_path / "run")
    assert other.process.communicate()[0] == ""
    assert other.process.returncode == TERMINATED
    assert reasons(tmp_path / "run") == ["preempted: SIGTERM"]


def test_handler_from_before_is_called(tmp_path: Path, begin: Begin) -> None:
    """Once, as without us."""
    other = begin("chained", tmp_path / "run")
    other.process.terminate()
    assert other.answer() == f"chained {signal.SIGTERM.value}"
    assert other.process.wait() == TERMINATED
    assert reasons(tmp_path / "run") == ["preempted: SIGTERM"]


def test_handler_in_c_stays(tmp_path: Path, begin: Begin) -> None:
    """faulthandler's, which Python does not tell of: it dumps, and the training goes on."""
    other = begin("dumping", tmp_path / "run")
    other.process.send_signal(signal.SIGUSR1)
    while not (tmp_path / "run.dump").stat().st_size:
        assert other.process.poll() is None
        time.sleep(0.05)
    other.process.terminate()
    assert other.process.wait() == TERMINATED
    assert reasons(tmp_path / "run") == ["preempted: SIGTERM"]


def test_handler_that_raises_costs_no_save(tmp_path: Path, begin: Begin) -> None:
    """What it raises goes on its way, after the save."""
    other = begin("raising", tmp_path / "run")
    other.process.terminate()
    assert other.process.wait() == 1
    assert reasons(tmp_path / "run") == ["preempted: SIGTERM"]


def test_second_signal_ends_the_process_at_once(tmp_path: Path, begin: Begin) -> None:
    """In the middle of the write; nothing is torn, and nothing is there."""
    other = begin("slow", tmp_path / "run")
    other.process.terminate()
    time.sleep(2.5)
    assert other.process.poll() is None
    other.process.send_signal(signal.SIGUSR1)
    assert other.process.wait() == -signal.SIGUSR1
    assert whole_checkpoints(tmp_path / "run") == []


def test_save_that_fails_ends_the_process_all_the_same(tmp_path: Path) -> None:
    """With the same status."""
    other = Other(str(SCRIPT), "failing", tmp_path / "run")
    other.process.communicate()
    assert other.process.returncode == TERMINATED


@pytest.mark.parametrize("way", ["streamed", "deferred"])
def test_every_way_of_staging_is_durable_in_the_end(tmp_path: Path, begin: Begin, way: str) -> None:
    """A state that passes through a buffer, and one that is copied later."""
    other = begin(way, tmp_path / "run")
    time.sleep(0.3)
    other.process.terminate()
    assert other.process.wait() == TERMINATED
    assert reasons(tmp_path / "run")[-1] in ("preempted: SIGTERM", "every 5 steps")


@pytest.mark.parametrize("to_all", [False, True], ids=["to torchrun", "to all"])
def test_torchrun_ends_its_ranks_in_good_order(tmp_path: Path, begin: Begin, *, to_all: bool) -> None:
    """The ranks get the signal from torchrun, and from Slurm as well: the first saves while the others still train."""
    under = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")
    other = begin(str(SCRIPT.with_name("preempted_ranks.py")), tmp_path / "run", under=under)
    ranks = [int(pid) for pid in Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text().split()]
    assert len(ranks) == 2
    for pid in (other.pid, *(ranks if to_all else ())):
        os.kill(pid, signal.SIGTERM)
    other.process.communicate(timeout=100)
    assert other.process.returncode != 0
    assert reasons(tmp_path / "run") == ["preempted: SIGTERM"]
    assert Catalog.of(tmp_path / "run").records[0].emergency == ""


# In this very process.


def checkpointer(directory: Path, **options: Any) -> Checkpointer:
    """Return a checkpointer that keeps everything, over a tiny training."""
    return Checkpointer(
        directory, **{"state": Training().state, "save": when.preempted(), "keep": keep.all(), **options}
    )


def test_preempted_tells_what_is_there(tmp_path: Path) -> None:
    """The exception has the signal, the path and the status."""
    with pytest.raises(Preempted) as caught, checkpointer(tmp_path) as saver:
        saver.step()
        signal.raise_signal(signal.SIGTERM)
        saver.step()
    assert (caught.value.signal, caught.value.code) == ("SIGTERM", TERMINATED)
    assert caught.value.path == tmp_path / "epoch=0-step=2-preempted.ckpt"
    assert str(caught.value.path) in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_step_that_is_saved_is_not_saved_again(tmp_path: Path) -> None:
    """It is waited for."""
    with pytest.raises(Preempted) as caught, checkpointer(tmp_path, save=when.preempted() | when.every(steps=1)) as s:
        signal.raise_signal(signal.SIGTERM)
        s.step()
    assert reasons(tmp_path) == ["every step"]
    assert caught.value.path == tmp_path / "epoch=0-step=1.ckpt"


def test_epoch_end_answers_too(tmp_path: Path) -> None:
    """Where to go on is the next epoch."""
    with pytest.raises(Preempted), checkpointer(tmp_path) as saver:
        saver.step()
        signal.raise_signal(signal.SIGTERM)
        saver.epoch_end()
    with checkpointer(tmp_path) as saver:
        assert (saver.restore().epoch, saver.restore().batch) == (1, 0)


def test_error_on_its_way_is_not_hidden(tmp_path: Path) -> None:
    """A signal before an error: the step is saved, once, and the error comes out."""
    policy = when.preempted() | when.exception()
    with pytest.raises(ZeroDivisionError), checkpointer(tmp_path, save=policy) as saver:
        saver.step()
        signal.raise_signal(signal.SIGTERM)
        1 / 0  # noqa: B018 - the error
    assert reasons(tmp_path) == ["preempted: SIGTERM"]
    assert Catalog.of(tmp_path).records[0].emergency == "ZeroDivisionError"  # perhaps in the middle of a step


def test_failed_save_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The exception says that there is nothing to go on from; an exception's save does not try once more."""
    policy = when.preempted() | when.exception()
    with pytest.raises(Preempted) as caught, checkpointer(tmp_path / "run", save=policy) as saver:
        (tmp_path / "run").write_text("in the way")
        signal.raise_signal(signal.SIGTERM)
        try:
            saver.step()
        finally:
            (tmp_path / "run").unlink()
    assert caught.value.path is None
    assert "could not be saved" in str(caught.value)
    assert any("was not saved" in message for message in caplog.messages)
    assert not (tmp_path / "run").exists()


def test_signal_named_by_both_goes_to_the_one_that_goes_on(tmp_path: Path) -> None:
    """``when.signal()`` keeps what it names, of the default set; by name for both is refused before anything else."""
    with pytest.raises(Preempted), checkpointer(tmp_path, save=when.preempted() | when.signal("SIGUSR1")) as saver:
        signal.raise_signal(signal.SIGUSR1)
        saver.step()
        signal.raise_signal(signal.SIGUSR2)
        saver.step()
    assert reasons(tmp_path) == ["signal: SIGUSR1", "preempted: SIGUSR2"]
    with pytest.raises(ConfigurationError, match="give it to one"):
        checkpointer(tmp_path / "run", save=when.preempted(signals=["SIGUSR1"]) | when.signal("SIGUSR1"))
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_signal_that_somebody_uses_stays_theirs(tmp_path: Path) -> None:
    """A script's own SIGUSR1 does not end the run, unless it is asked for by name; then it is called, too."""
    noted: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: noted.append(number))
    try:
        with checkpointer(tmp_path / "default") as saver:
            signal.raise_signal(signal.SIGUSR1)
            saver.step()
        with (
            pytest.raises(Preempted),
            checkpointer(tmp_path / "named", save=when.preempted(signals=["SIGUSR1"])) as saver,
        ):
            signal.raise_signal(signal.SIGUSR1)
            saver.step()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert noted == [signal.SIGUSR1, signal.SIGUSR1]


def test_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """SIGUSR1 and SIGUSR2, unless they are asked for by name; SIGTERM is answered in any case."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        with pytest.raises(Preempted) as ended, checkpointer(tmp_path / "default") as saver:
            signal.raise_signal(signal.SIGUSR1)
            saver.step()
            signal.raise_signal(signal.SIGTERM)
            saver.step()
        with (
            pytest.raises(Preempted),
            checkpointer(tmp_path / "named", save=when.preempted(signals=["SIGUSR1"])) as saver,
        ):
            signal.raise_signal(signal.SIGUSR1)
            saver.step()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.signal == "SIGTERM"


def test_kernel_that_tells_nothing_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, or no such line in it, what Python says of the handlers counts alone."""
    (tmp_path / "status").write_text("Name:\tpython\n")
    for name in ("nothing", "status"):
        monkeypatch.setattr(signals, "_STATUS", tmp_path / name)
        with pytest.raises(Preempted), checkpointer(tmp_path / f"run-{name}") as saver:
            signal.raise_signal(signal.SIGUSR1)
            saver.step()


@pytest.mark.parametrize("step", [0, 1], ids=["before the first step", "before a save"])
def test_handler_that_replaces_ours_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    """Which signals, whose it is now, and what to do; the handler from before is back in the end."""
    before = signal.getsignal(signal.SIGTERM)
    with checkpointer(tmp_path, save=when.preempted() | when.at(steps=[2, 3])) as saver:
        for number in range(3):
            if number == step:
                signal.signal(signal.SIGTERM, _deaf)
                signal.signal(signal.SIGUSR2, signal.SIG_DFL)
            saver.step()
    signal.signal(signal.SIGTERM, before)
    (message,) = (message for message in caplog.messages if "handler" in message)
    assert f"SIGTERM (now {__name__}._deaf), SIGUSR2 (now SIG_DFL) was set after" in message
    assert "make the Checkpointer last" in message


def _deaf(number: int, frame: object) -> None:
    """Call nobody."""


def test_handlers_of_another_checkpointer_are_not_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They pass signals on. But the one that was made before somebody else's handler says so."""
    with checkpointer(tmp_path / "a") as a, checkpointer(tmp_path / "b") as b:
        a.step()
        b.step()
        a.save()
    assert not [message for message in caplog.messages if "handler" in message]
    before = signal.getsignal(signal.SIGTERM)
    with checkpointer(tmp_path / "c") as c:
        signal.signal(signal.SIGTERM, _deaf)
        with checkpointer(tmp_path / "d") as d:
            d.step()
            assert not [message for message in caplog.messages if "handler" in message]
            c.step()
            assert [message for message in caplog.messages if "handler" in message]
    signal.signal(signal.SIGTERM, before)


def test_two_checkpointers_both_save(tmp_path: Path) -> None:
    """The one that comes to its step first ends the run, and the other saves on the way out."""
    with pytest.raises(Preempted), checkpointer(tmp_path / "a") as a, checkpointer(tmp_path / "b") as b:
        a.step()
        b.step()
        signal.raise_signal(signal.SIGTERM)
        a.step()
    assert reasons(tmp_path / "a") == reasons(tmp_path / "b") == ["preempted: SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# What does not fit.


class Large:
    """A model with a frozen part, an averaged copy and two optimizers, of a few hundred kilobytes each."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 100))
        self.model[1].requires_grad_(requires_grad=False)
        self.average = AveragedModel(self.model)
        self.first = torch.optim.Adam([self.model[0].weight], lr=0.01)
        self.second = torch.optim.SGD([self.model[0].bias], lr=0.1, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.first, 1)

    @property
    def state(self) -> dict[str, object]:
        """The objects to save and restore."""
        return {name: getattr(self, name) for name in ("first", "model", "average", "second", "schedule")}

    def advance(self) -> None:
        """Make one step."""
        self.model(torch.randn(4, 300)).square().mean().backward()
        for optimizer in (self.first, self.second):
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.model)
        self.schedule.step()


def preempted(directory: Path, large: Large, monkeypatch: pytest.MonkeyPatch, grace_s: float, **options: Any) -> None:
    """Train ``large`` with a disk that takes a megabyte a second, and have it preempted."""
    slow = Disk.write

    def write(disk: Disk, descriptor: int, chunks: Iterable[Chunk], share: direct.Share) -> int:
        def slowly() -> Iterator[Chunk]:
            for chunk in chunks:
                time.sleep(len(chunk) / 1e6)
                yield chunk

        return slow(disk, descriptor, slowly(), share)

    monkeypatch.setattr(Disk, "write", write)
    policy = when.first_step() | when.preempted(grace_s=grace_s)
    with pytest.raises(Preempted), checkpointer(directory, state=large.state, save=policy, **options) as saver:
        for _ in range(2):
            large.advance()
            saver.step()
            saver.wait()
        signal.raise_signal(signal.SIGTERM)
        large.advance()
        saver.step()
    monkeypatch.undo()


def test_what_does_not_fit_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that goes on from there says so; the learning rate is there all the same, and nothing went for it."""
    large = Large()
    preempted(tmp_path, large, monkeypatch, 1.0, keep=keep.latest())
    (message,) = (message for message in caplog.messages if "saved without" in message)
    assert "frozen model, averaged average, optimizer first, optimizer second" in message
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "epoch=0-step=1.ckpt",
        "epoch=0-step=3-preempted.ckpt",
    ]
    assert safepoint.verify(tmp_path / "epoch=0-step=3-preempted.ckpt") == []
    manifest = reader.read_manifest(tmp_path / "epoch=0-step=3-preempted.ckpt")
    assert sorted(manifest.inexact) == ["average", "first", "second"]
    assert sorted(manifest.excluded) == ["model.1.bias", "model.1.weight"]
    assert manifest.reasons[0] == "preempted: SIGTERM"
    again = Large()
    with (
        checkpointer(tmp_path, state=again.state, keep=keep.latest()) as saver,
        pytest.warns(RuntimeWarning, match="(?s)first: what it had gathered is left out"),
    ):
        assert saver.restore().step == 3
    assert equal(list(again.model.parameters()), list(large.model.parameters()))
    assert again.first.param_groups[0]["lr"] == large.first.param_groups[0]["lr"]
    assert again.first.state_dict()["state"] == {}
    assert again.average.n_averaged == 0
    again.advance()


def test_what_fits_is_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With time enough nothing is left out, and what it supersedes goes."""
    large = Large()
    preempted(tmp_path, large, monkeypatch, 60.0, keep=keep.latest())
    assert reasons(tmp_path) == ["preempted: SIGTERM"]
    manifest = reader.read_manifest(tmp_path / "epoch=0-step=3-preempted.ckpt")
    assert (manifest.inexact, manifest.excluded) == ({}, {})


def test_run_that_goes_on_after_all_saves_whole(tmp_path: Path) -> None:
    """Who catches the end and trains on gets whole checkpoints, however late it is."""
    large = Large()
    with checkpointer(tmp_path, state=large.state, save=when.every(steps=1) | when.preempted(0.01)) as saver:
        large.advance()
        saver.step()
        saver.wait()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted):
            saver.epoch_end()
        large.advance()
        saver.step()
    whole = {path.name: not reader.read_manifest(path).inexact for path in tmp_path.iterdir()}
    assert whole == {"epoch=0-step=1.ckpt": True, "epoch=0-step=1-preempted.ckpt": False, "epoch=1-step=2.ckpt": True}
