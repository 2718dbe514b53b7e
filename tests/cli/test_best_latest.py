"""``safepoint best`` and ``safepoint latest``: one path, for scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import files
import foreign
import pytest
from commands import COMMAND, environment, on_terminal, safepoint
from loop import Training
from models import OLD_TREESPEC

from safepoint import Checkpointer, keep, when

pytestmark = OLD_TREESPEC


def printed(*arguments: object) -> str:
    """Return the one line that a command prints."""
    result = safepoint(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("\n")
    return result.stdout[:-1]


def completed(**request: str) -> str:
    """Return what the program, under its own name, answers to a shell's request."""
    program = str(Path(sys.executable).with_name("safepoint"))
    done = subprocess.run([program], capture_output=True, text=True, check=False, env=environment(request))
    assert done.stderr == ""
    return done.stdout


def refused(*arguments: object) -> str:
    """Return the line in which a command says that it cannot be done."""
    result = safepoint(*arguments)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    return result.stderr


@pytest.fixture(scope="module")
def foreigners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the checkpoints of other programs."""
    directory = tmp_path_factory.mktemp("foreign")
    foreign.of_lightning(directory / "lightning")
    foreign.of_trainer(directory / "trainer")
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the directory of a run, whose name has what a shell would part."""
    training, directory = Training(), tmp_path / "my run"
    with Checkpointer(directory, state=training.state, save=when.every(epochs=1), keep=keep.all()) as checkpointer:
        for loss in (0.5, 0.25, 0.75):
            training.advance()
            checkpointer.step()
            checkpointer.epoch_end(val_loss=loss, acc=loss)
    return directory


def test_best_and_latest_print_a_path_alone(run: Path) -> None:
    """The best by a metric, either way, and the newest; in a shell, quoted, they are one word."""
    assert printed("best", run, "--metric", "val_loss") == str(run / "epoch=1-step=2.ckpt")
    assert printed("best", run, "--metric", "acc", "--mode", "max") == str(run / "epoch=2-step=3.ckpt")
    assert printed("latest", run) == str(run / "epoch=2-step=3.ckpt")
    script = 'test -f "$("$1" -c "$2" latest "$3")"'
    subprocess.run(["sh", "-c", script, "sh", COMMAND[0], COMMAND[2], run], check=True)


def test_best_and_latest_of_other_programs(foreigners: Path) -> None:
    """Lightning's and Hugging Face's checkpoints are ranked by what they tell."""
    lightning, trainer = foreigners / "lightning", foreigners / "trainer"
    assert printed("best", lightning, "--metric", "val_loss") == str(lightning / "epoch=3.ckpt")
    assert printed("latest", lightning) == str(lightning / "epoch=5.ckpt")
    assert printed("best", trainer, "--metric", "eval_loss") == str(trainer / "checkpoint-4")
    assert printed("latest", trainer) == str(trainer / "checkpoint-6")


def test_latest_of_other_programs_is_the_one_of_the_greatest_step(foreigners: Path, tmp_path: Path) -> None:
    """Whatever a copy has made of the times of the files."""
    for kind, newest in (("lightning", "epoch=5.ckpt"), ("trainer", "checkpoint-6")):
        copied = shutil.copytree(foreigners / kind, tmp_path / kind)
        for path in (copied / newest).rglob("*"):
            os.utime(path, (1e9, 1e9))
        os.utime(copied / newest, (1e9, 1e9))
        assert printed("latest", copied) == str(copied / newest)


def test_several_runs_are_one_choice(tmp_path: Path) -> None:
    """The best of all below, and the newest of the run that saved last."""
    for run, loss, time in (("a", 1.0, 3e9), ("b", 0.5, 2e9)):
        (tmp_path / run).mkdir()
        for step in (1, 2):
            manifest = files.manifest(run=run, step=step, time=time + step, metrics={"loss": loss + step})
            files.write(tmp_path / run / f"{step}.ckpt", manifest)
    assert printed("best", tmp_path, "--metric", "loss") == str(tmp_path / "b" / "1.ckpt")
    assert printed("latest", tmp_path) == str(tmp_path / "a" / "2.ckpt")


def test_best_takes_neither_nan_nor_emergencies_nor_later_measurements(tmp_path: Path) -> None:
    """What cannot be compared, or was measured on other weights, or is what an exception left, is never the best."""
    never: dict[str, dict[str, Any]] = {
        "nan": {"metrics": {"loss": "nan"}},
        "emergency": {"metrics": {"loss": 0.1}, "emergency": "ValueError"},
        "elsewhere": {"metrics": {"loss": 0.1}, "measured_at": {"loss": 3}},
        "without": {},
    }
    for step, (name, changes) in enumerate(never.items()):
        files.write(tmp_path / f"{name}.ckpt", files.manifest(step=step, **changes))
    told = refused("best", tmp_path, "--metric", "loss")
    assert "has loss as a number" in told
    for run in "ab":
        (tmp_path / run).mkdir()
    files.write(tmp_path / "b" / "worse.ckpt", files.manifest(step=9, metrics={"loss": 7.0}))
    files.write(tmp_path / "a" / "later.ckpt", files.manifest(step=10, time=2e9, metrics={"loss": 7.0}))
    assert printed("best", tmp_path, "--metric", "loss") == str(tmp_path / "b" / "worse.ckpt")


def test_best_by_an_unknown_metric_names_those_that_are_there(run: Path) -> None:
    """A slip is found at once."""
    told = refused("best", run, "--metric", "val_los")
    assert "'acc', 'val_loss'. Did you mean 'val_loss'?" in told


def test_latest_passes_over_flaws(tmp_path: Path) -> None:
    """As restore() does: an exception's checkpoint counts, one with a flaw only if there is no other, with a remark."""
    flaw = {"emergency": "ValueError", "flaw": "model.weight holds NaN"}
    files.write(tmp_path / "flawed.ckpt", files.manifest(step=3, time=1.5e9 + 3, **flaw))
    result = safepoint("latest", tmp_path)
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'flawed.ckpt'}\n")
    assert "is not to be gone on from: model.weight holds NaN" in result.stderr
    files.write(tmp_path / "a.ckpt", files.manifest(step=1, time=1.5e9 + 1))
    assert printed("latest", tmp_path) == str(tmp_path / "a.ckpt")
    files.write(tmp_path / "b.ckpt", files.manifest(step=2, time=1.5e9 + 2, emergency="ValueError"))
    assert printed("latest", tmp_path) == str(tmp_path / "b.ckpt")


@pytest.mark.parametrize("arguments", [["latest"], ["best", "--metric", "loss"]], ids=["latest", "best"])
def test_nothing_to_choose_from_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    """A missing path, an empty directory, and one of what cannot be read: one line that says what to do."""
    assert "no such file or directory" in refused(*arguments, tmp_path / "nope")
    assert "holds no checkpoint that can be read" in refused(*arguments, tmp_path)
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04")
    assert "holds no checkpoint that can be read" in refused(*arguments, tmp_path)
    assert "half.ckpt: " in refused(*arguments, tmp_path / "half.ckpt")


def test_path_is_printed_as_it_is_where_it_is_piped(tmp_path: Path) -> None:
    """Whatever bytes are in it, as $(...) needs them; on a terminal nothing of it is obeyed."""
    path = tmp_path / os.fsdecode(b"a b\n\x1b[31m\xff.ckpt")
    files.write(path, files.manifest(metrics={"loss": 1.0}))
    for arguments in (["latest", tmp_path], ["best", tmp_path, "--metric", "loss"]):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, check=True)
        assert done.stdout == os.fsencode(path) + b"\n"
        code, text = on_terminal(*arguments, columns=400)
        assert (code, text) == (0, f"{tmp_path}/a b\\n\\x1b[31m\\udcff.ckpt\n")


def test_documents_of_best_and_latest(run: Path) -> None:
    """They tell of the checkpoint what a list does."""
    found = json.loads(printed("best", run, "--metric", "val_loss", "--json"))
    assert (found["schema"], found["metric"], found["mode"], found["value"]) == (
        "safepoint.best/1",
        "val_loss",
        "min",
        0.25,
    )
    assert found["checkpoint"]["path"] == str(run / "epoch=1-step=2.ckpt")
    found = json.loads(printed("latest", run, "--json"))
    assert (found["schema"], found["checkpoint"]["step"]) == ("safepoint.latest/1", 3)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("safepoint l", {"ls", "latest"}),
        ("safepoint best --me", {"--metric"}),
        ("safepoint ls --so", {"--sort"}),
        ("safepoint best {run} --metric v", {"val_loss"}),
        ("safepoint best {run} --metric ", {"val_loss", "acc"}),
        ("safepoint ls {run} --sort ", {"name", "step", "epoch", "time", "size", "acc", "val_loss"}),
        ("safepoint best {run}/nope --metric ", set()),
    ],
)
def test_shells_complete_commands_options_and_metrics(run: Path, line: str, expected: set[str]) -> None:
    """By typer's protocol, in bash, zsh and fish; the metrics are those of the run on the line."""
    line = line.format(run=run.rename(run.with_name("run")))
    words = str(len(line.split(" ")) - 1)
    found = completed(_SAFEPOINT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=words)
    assert set(found.split()) == expected
    found = completed(_SAFEPOINT_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)
    assert {word for word in expected if f'"{word}"' in found} == expected
    fish = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    found = completed(_SAFEPOINT_COMPLETE="complete_fish", **fish)
    assert {each.split("\t")[0] for each in found.splitlines() if each} == expected


def test_bash_completes_what_is_typed_into_it(run: Path, tmp_path: Path) -> None:
    """With the script that the program prints for bash, and its own machinery."""
    script = tmp_path / "completion.sh"
    script.write_text(completed(_SAFEPOINT_COMPLETE="source_bash"))
    line = f"COMP_WORDS=(safepoint best {run.rename(run.with_name('run'))} --metric v); COMP_CWORD=4"
    asked = f'. {script}; {line}; _safepoint_completion safepoint; echo "${{COMPREPLY[@]}}"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", asked], capture_output=True, text=True, check=True, env=environment({"PATH": path})
    )
    assert done.stdout == "val_loss\n"
