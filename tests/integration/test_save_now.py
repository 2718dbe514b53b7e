"""Ask a running job to save: by the command, by a file; what it answers, and when nobody is there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from invariants import whole_checkpoints
from loop import Training
from models import OLD_TREESPEC, Framework, fit
from other_process import Other

from safepoint import Checkpointer, keep, requests, when
from safepoint.catalog import Catalog
from safepoint.cli.documents import SaveNow
from safepoint.requests import REQUEST_NAME, Requests

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture
def begin() -> Iterator[Callable[[Path], Other]]:
    """Start a training that saves its first step only, and wait until it has made it."""
    begun: list[Other] = []

    def start(directory: Path) -> Other:
        begun.append(Other(str(SCRIPTS / "preempted.py"), "asked", directory))
        assert begun[-1].answer() == "ready"
        return begun[-1]

    yield start
    for other in begun:
        other.end()


def save_now(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint save-now``."""
    command = [str(Path(sys.executable).with_name("safepoint")), "save-now", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def checkpointer(directory: Path, **options: Any) -> Checkpointer:
    """Return a checkpointer that saves nothing by itself, over a tiny training."""
    return Checkpointer(
        directory, **{"state": Training().state, "save": when.every(steps=1000), "keep": keep.all(), **options}
    )


def reasons(directory: Path) -> list[str]:
    """Return why each checkpoint in ``directory``, all of which must be whole, was saved, oldest first."""
    whole_checkpoints(directory)
    return [reason for record in Catalog.of(directory).records for reason in record.reasons]


def test_command_waits_for_the_checkpoint(tmp_path: Path, begin: Callable[[Path], Other]) -> None:
    """It prints the path, training goes on, and nothing is left of the request."""
    other = begin(tmp_path)
    while not Catalog.of(tmp_path).records:
        time.sleep(0.05)
    result = save_now("--wait", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    path = Path(result.stdout.splitlines()[-1])
    assert Catalog.of(tmp_path).records[-1].path == path
    assert reasons(tmp_path) == ["at step 1", "requested: .save-now"]
    assert other.process.poll() is None
    assert not (tmp_path / REQUEST_NAME).exists()
    assert save_now(tmp_path).stdout == "asked\n"


def test_command_tells_when_the_job_ends(tmp_path: Path, begin: Callable[[Path], Other]) -> None:
    """A job that is stopped takes no request; once it is dead, nobody is waited for."""
    other = begin(tmp_path)
    while not Catalog.of(tmp_path).records:
        time.sleep(0.05)
    other.process.send_signal(signal.SIGSTOP)
    command = [str(Path(sys.executable).with_name("safepoint")), "save-now", "--wait", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
        while not (tmp_path / REQUEST_NAME).exists():
            time.sleep(0.05)
        time.sleep(0.5)
        other.kill()
        output, _ = asking.communicate(timeout=100)
    assert asking.returncode == 1
    assert "has ended" in output
    assert not (tmp_path / REQUEST_NAME).exists()


def test_command_does_not_wait_for_ever(tmp_path: Path, begin: Callable[[Path], Other]) -> None:
    """Not for a job that stands still, nor where nobody is: its request is taken back."""
    (tmp_path / "empty").mkdir()
    other = begin(tmp_path / "run")
    while not Catalog.of(tmp_path / "run").records:
        time.sleep(0.05)
    other.process.send_signal(signal.SIGSTOP)
    for name in ("empty", "run"):
        result = save_now("--wait", "--timeout", 1, tmp_path / name)
        assert result.returncode == 1
        assert "after 1 s: nobody has taken the request, and it is taken back" in result.stdout
        assert not (tmp_path / name / REQUEST_NAME).exists()


def test_command_tells_of_a_request_that_led_to_nothing(tmp_path: Path) -> None:
    """One that was taken, and one that cannot be removed."""
    (tmp_path / "stuck" / REQUEST_NAME).mkdir(parents=True)  # which unlink refuses, also for root
    result = save_now("--wait", "--timeout", 1, tmp_path / "stuck")
    assert result.returncode == 1
    assert "cannot be removed" in result.stdout
    (tmp_path / "taken").mkdir()
    command = [str(Path(sys.executable).with_name("safepoint")), "save-now", "--wait", "--timeout", "3"]
    with subprocess.Popen([*command, str(tmp_path / "taken")], stdout=subprocess.PIPE, text=True) as asking:
        while not Requests(tmp_path / "taken").taken():
            time.sleep(0.05)
        output, _ = asking.communicate(timeout=100)
    assert asking.returncode == 1
    assert "the request was taken" in output


def test_command_refuses_what_is_above_runs(tmp_path: Path, begin: Callable[[Path], Other]) -> None:
    """Also if it holds a dead run of its own: the living one below does not look there."""
    begin(tmp_path / "living")
    while not Catalog.of(tmp_path / "living").records:
        time.sleep(0.05)
    result = save_now(tmp_path)
    assert result.returncode == 2
    assert f"runs below it do: {tmp_path / 'living'}. Give" in result.stderr
    assert result.stderr.count("\n") == 1
    with checkpointer(tmp_path) as saver:
        saver.step()
        saver.save()
    result = save_now(tmp_path)
    assert result.returncode == 2
    assert "no living job" in result.stderr
    assert not (tmp_path / REQUEST_NAME).exists()
    assert save_now(tmp_path / "living").stdout == "asked\n"


def test_command_says_that_nobody_is_there(tmp_path: Path) -> None:
    """A directory without a living run, a file, and nothing at all; no request is left."""
    with checkpointer(tmp_path) as saver:
        saver.step()
        saver.save()
    for target, said in (
        (tmp_path, "no living job"),
        (Catalog.of(tmp_path).records[0].path, "is a file"),
        (tmp_path / "nothing", "no such file"),
    ):
        result = save_now(target)
        assert result.returncode == 2
        assert said in result.stderr
    assert not (tmp_path / REQUEST_NAME).exists()


def test_command_asks_where_nobody_can_tell(tmp_path: Path) -> None:
    """Before the first checkpoint of a directory the request is made, and the command says what it does not know."""
    result = save_now(tmp_path)
    assert result.returncode == 0
    assert "first checkpoint" in result.stdout
    with checkpointer(tmp_path) as saver:
        saver.step()
    assert reasons(tmp_path) == ["requested: .save-now"]


def test_request_joins_what_is_due(tmp_path: Path) -> None:
    """One save for both; a step that nobody asks for is not saved."""
    with checkpointer(tmp_path, save=when.at(steps=[2])) as saver:
        saver.step()
        saver._requests._looked_s = float("-inf")
        requests.ask(tmp_path)
        saver.step()
        saver.step()
    assert reasons(tmp_path) == ["at step 2", "requested: .save-now"]
    assert len(Catalog.of(tmp_path).records) == 1


def test_requests_are_looked_for_once_a_second(tmp_path: Path) -> None:
    """Steps stay as fast as they are: between two looks, nothing is asked of the file system."""
    found = Requests(tmp_path)
    requests.ask(tmp_path)
    assert found.taken()
    requests.ask(tmp_path)
    assert not found.taken()
    time.sleep(1.1)
    assert found.taken()
    assert not (tmp_path / REQUEST_NAME).exists()


def test_request_that_cannot_be_removed_counts_once(tmp_path: Path) -> None:
    """And once more when it is touched; one warning."""
    found = Requests(tmp_path)
    (tmp_path / REQUEST_NAME).mkdir()  # which unlink refuses, also for root
    with pytest.warns(RuntimeWarning, match="cannot be removed"):
        assert found.taken_now()
    assert not found.taken_now()
    (tmp_path / REQUEST_NAME / "touched").touch()
    assert found.taken_now()
    assert not found.taken_now()


def test_directory_that_is_gone_asks_for_nothing(tmp_path: Path) -> None:
    """Nor does one that has become a file."""
    assert not Requests(tmp_path / "gone").taken_now()
    (tmp_path / "file").touch()
    assert not Requests(tmp_path / "file").taken_now()


# In Lightning.


class Asking:
    """Ask, when the third step is done."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Put the request there."""
        if trainer.global_step == 3:
            time.sleep(1.1)  # it was looked for at the first step
            requests.ask(self.directory)


@OLD_TREESPEC
def test_trainer_saves_beside_the_top_k(tmp_path: Path, framework: Framework) -> None:
    """Once for two callbacks in one directory; under its own name, which no ranking takes away."""
    asking = type("Asks", (Asking, framework.pl.Callback), {})(tmp_path)
    kept = framework.ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", save_last=True)
    other = framework.ModelCheckpoint(dirpath=tmp_path, filename="other", every_n_epochs=100)
    fit(framework, asking, kept, other, metrics={"val_loss": (1.0, 0.9, 0.8)}, epochs=3)
    records = [r for r in Catalog.of(tmp_path).records if "requested: .save-now" in r.reasons]
    assert [record.path.name for record in records] == ["epoch=1-step=3.ckpt"]
    assert kept.best_model_path == str(tmp_path / "epoch=2-step=6.ckpt")
    assert sorted(path.name for path in whole_checkpoints(tmp_path)) == [
        "epoch=1-step=3.ckpt",
        "epoch=2-step=6.ckpt",
        "last.ckpt",
    ]


@OLD_TREESPEC
def test_names_may_lead_into_directories(tmp_path: Path, framework: Framework) -> None:
    """What lies there is the run's own, not that of a run below."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}/{step}"), epochs=1)
    assert Catalog.of(tmp_path).records[0].path.parent != tmp_path
    assert "no living job" in save_now(tmp_path).stderr


def test_ranks_look_at_the_same_steps(tmp_path: Path) -> None:
    """Two processes: the first looks at every 50th step, and both save."""
    script = SCRIPTS / "asked_ranks.py"
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")], capture_output=True, text=True, timeout=200, check=False
    )
    assert process.returncode == 0, process.stderr
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == ["epoch=0-step=50.ckpt"]


def test_command_answers_in_json(tmp_path: Path, begin: Callable[[Path], Other]) -> None:
    """One document for each answer: asked, saved with its path, and not saved."""
    begin(tmp_path)
    while not Catalog.of(tmp_path).records:
        time.sleep(0.05)
    result = save_now("--json", "--wait", tmp_path)
    found = msgspec.json.decode(result.stdout, type=SaveNow)
    assert (result.returncode, found.answer, found.path) == (0, "saved", str(Catalog.of(tmp_path).records[-1].path))
    result = save_now("--json", tmp_path)
    found = msgspec.json.decode(result.stdout, type=SaveNow)
    assert (result.returncode, found) == (0, SaveNow(str(tmp_path), "asked", None, "asked"))
    (tmp_path / "empty").mkdir()
    result = save_now("--json", "--wait", "--timeout", 1, tmp_path / "empty")
    found = msgspec.json.decode(result.stdout, type=SaveNow)
    assert (result.returncode, found.answer, found.path) == (1, "not-saved", None)
