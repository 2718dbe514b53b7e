"""``safepoint prune``: what it says would go, what goes, and what never does."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import files
import msgspec
import pytest
import torch
from files import told
from invariants import whole_checkpoints
from loop import Training
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, fit
from pinned import pin
from spoil import Sample, flipped

from safepoint import Checkpointer, keep, keep_words, prune, when
from safepoint.catalog import Catalog
from safepoint.cli.documents import Prune
from safepoint.records import REMOVED_BY_OTHERS

PROGRAM = [sys.executable, "-c", "from safepoint.cli import main; main()", "prune"]
LOSSES = (5.0, 1.0, 4.0, 2.0, 3.0, 6.0)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint prune`` with its output piped, and nobody to be asked."""
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def document(*arguments: object) -> Prune:
    """Return what ``safepoint prune --json`` prints."""
    done = run(*arguments, "--json")
    assert done.stderr == ""
    return msgspec.json.decode(done.stdout, type=Prune)


def refused(*arguments: object) -> str:
    """Return the one line that ``safepoint prune`` refuses with."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def answers(found: Prune) -> dict[str, str]:
    """Return what becomes of each checkpoint, by its name."""
    return {Path(each.path).name: each.answer for each in found.checkpoints}


def saver(directory: Path, **options: Any) -> Checkpointer:
    """Return what saves when it is told to, and keeps everything."""
    return Checkpointer(
        directory, **{"state": Training().state, "save": when.train_end(), "keep": keep.all(), **options}
    )


def filled(directory: Path, losses: tuple[float, ...] = LOSSES, **options: Any) -> list[Path]:
    """Save once for each of ``losses``, and return the paths."""
    with saver(directory, **options) as checkpointer:
        paths = []
        for loss in losses:
            checkpointer.step(loss=loss)
            paths.append(checkpointer.save())
            checkpointer.wait()
    return paths


def names(directory: Path) -> list[str]:
    """Return the names of the checkpoints in ``directory``, all of which must be whole."""
    return [path.relative_to(directory).as_posix() for path in whole_checkpoints(directory)]


def disk_bytes(directory: Path) -> int:
    """Return what the files in ``directory`` have, each counted once."""
    there = [path.stat() for path in directory.rglob("*") if path.is_file()]
    return sum({(status.st_dev, status.st_ino): status.st_size for status in there}.values())


def test_dry_run_says_what_would_go_and_removes_nothing(tmp_path: Path) -> None:
    """Each with why, and what stays with why; what that frees."""
    filled(tmp_path)
    done = run(tmp_path, "--keep", "best:loss:2,latest:1", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [
        [answer, f"epoch=0-step={step}.ckpt"]
        for step, answer in enumerate(("goes", "stays", "goes", "stays", "goes", "stays"), start=1)
    ]
    assert "not among the best 2 by loss (5) and not the latest" in lines[1]
    assert "best by loss (1)" in lines[2]
    assert lines[7].startswith("3 of 6 checkpoints would go, which frees ")
    assert len(names(tmp_path)) == 6


def test_what_goes_is_what_was_said(tmp_path: Path) -> None:
    """The same answers before and after, and the disk has as much less as was said; a second time, nothing goes."""
    filled(tmp_path)
    arguments = tmp_path, "--keep", "best:loss:2,latest:1"
    before, shown = disk_bytes(tmp_path), document(*arguments, "--dry-run")
    done = document(*arguments, "--yes")
    assert answers(done) == {name: answer.replace("goes", "removed") for name, answer in answers(shown).items()}
    assert done.freed_bytes == shown.freed_bytes == before - disk_bytes(tmp_path) > 0
    assert names(tmp_path) == [f"epoch=0-step={step}.ckpt" for step in (2, 4, 6)]
    again = run(*arguments)
    assert again.returncode == 0
    assert "nothing goes: all 3 checkpoints stay" in again.stdout


def test_newest_and_pinned_never_go(tmp_path: Path) -> None:
    """Whatever the policy; a pin that was lifted counts no more."""
    paths = filled(tmp_path)
    for path in paths[:2]:
        pin(path)
    pin(paths[0], pinned=False)
    done = document(tmp_path, "--keep", "best:loss", "--yes")
    assert [(Path(each.path).name, each.why) for each in done.checkpoints if each.answer == "stays"] == [
        (paths[1].name, "best by loss (1)"),
        (paths[5].name, "the newest is never removed"),
    ]
    assert "--keep" in run(tmp_path, "--help").stdout
    assert document(tmp_path, "--keep", "pinned", "--yes").checkpoints[0].why == "pinned"
    assert sorted(os.listdir(tmp_path)) == [f".{paths[1].name}.pin", paths[1].name, paths[5].name]


def test_run_goes_on_after_it_was_pruned(tmp_path: Path) -> None:
    """From its newest; its history tells what has gone by hand, and its policy counts what is left."""
    paths = filled(tmp_path)
    assert run(tmp_path, "--keep", "latest:2", "--yes").returncode == 0
    with saver(tmp_path, keep=keep.latest(2)) as checkpointer:
        assert checkpointer.restore().path == paths[5]
        checkpointer.step(loss=1.0)
        checkpointer.save()
        checkpointer.wait()
        assert "was removed: by hand" in checkpointer.explain(paths[0])
    (run_id,) = Catalog.of(tmp_path).runs()
    fates = {fate.record.path: fate for fate in Catalog.of(tmp_path).history(run_id)}
    assert [fates[path].reason for path in paths[:4]] == [REMOVED_BY_OTHERS] * 4
    assert names(tmp_path) == [f"epoch=0-step={step}.ckpt" for step in (6, 7)]


@OLD_TREESPEC
@NOT_EMPTY
def test_trainer_goes_on_after_it_was_pruned(tmp_path: Path) -> None:
    """All names of a checkpoint are one; a top k of which some have gone has free places."""

    def trained(epochs: int, **options: Any) -> Any:
        callback = FRAMEWORKS[0].ModelCheckpoint(
            tmp_path, monitor="val_loss", save_top_k=3, save_last=True, filename="{epoch}/{step}"
        )
        metrics = {"val_loss": (1.0, 0.8, 0.9, 0.7, 0.6)}
        fit(FRAMEWORKS[0], callback, metrics=metrics, epochs=epochs, **options)
        return callback

    trained(4)
    found = document(tmp_path, "--keep", "latest:1", "--dry-run")
    assert [[Path(name).name for name in each.names] for each in found.checkpoints] == [
        ["step=4.ckpt"],
        ["step=6.ckpt"],
        ["step=8.ckpt", "last.ckpt"],
    ]
    assert document(tmp_path, "--keep", "latest:1", "--yes").freed_bytes == found.freed_bytes > 0
    assert names(tmp_path) == ["epoch=3/step=8.ckpt", "last.ckpt"]
    resumed = trained(5, ckpt_path="last")
    assert [Path(path).name for path in resumed.best_k_models] == ["step=8.ckpt", "step=10.ckpt"]


# What is left alone.


def test_what_the_run_did_not_write_itself_is_left_alone(tmp_path: Path) -> None:
    """Copies, links, other programs' files, what cannot be read, and what lies below; each is listed with why."""
    paths = filled(tmp_path)
    shutil.copy(paths[0], tmp_path / "copy.ckpt")
    os.link(paths[2], tmp_path / "link.ckpt")
    torch.save({}, tmp_path / "foreign.ckpt")
    (tmp_path / "half.ckpt").write_bytes(paths[0].read_bytes()[:-100])
    filled(tmp_path / "below")
    below = names(tmp_path / "below")
    done = run(tmp_path, "--keep", "latest:1", "--yes")
    assert done.returncode == 0
    for said in (
        "not touched: copy.ckpt: copied, renamed or linked by hand",
        "not touched: link.ckpt: copied, renamed or linked by hand",
        "not touched: foreign.ckpt: written by another program",
        "not touched: half.ckpt: cannot be read: no whole zip archive",
        "not touched: below/epoch=0-step=1.ckpt: below: not of a run in",
    ):
        assert said in done.stdout
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["below", "copy.ckpt", paths[5].name, "foreign.ckpt", "half.ckpt", "link.ckpt"]
    assert names(tmp_path / "below") == below


def test_bytes_with_another_name_are_not_freed(tmp_path: Path) -> None:
    """A hard link, wherever it is, keeps them."""
    paths = filled(tmp_path / "run")
    os.link(paths[0], tmp_path / "elsewhere")
    done = document(tmp_path / "run", "--keep", "latest:5", "--yes")
    assert answers(done)[paths[0].name] == "removed"
    assert done.freed_bytes == 0
    assert (tmp_path / "elsewhere").exists()


def test_what_a_symbolic_link_shows_stays(tmp_path: Path) -> None:
    """Somebody has made it for this checkpoint; it would lead to nothing."""
    paths = filled(tmp_path)
    (tmp_path / "paper.ckpt").symlink_to(paths[0].name)
    done = document(tmp_path, "--keep", "latest:1", "--yes")
    assert done.checkpoints[0].why == f"{tmp_path / 'paper.ckpt'} is a link to it"
    assert names(tmp_path) == [paths[0].name, paths[5].name, "paper.ckpt"]


def test_link_of_any_name_keeps_what_it_shows(tmp_path: Path) -> None:
    """Nobody has to call it a checkpoint, nor to put it beside one."""
    paths = filled(tmp_path)
    (tmp_path / "best").symlink_to(paths[0].name)
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "table-1").symlink_to(paths[2])
    assert run(tmp_path, "--keep", "latest:1", "--yes").returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["best", *(paths[place].name for place in (0, 2, 5)), "paper"]


def spoil(path: Path) -> None:
    """Let one bit of the weights at ``path`` be another."""
    sample = Sample.of(path)
    path.write_bytes(flipped(sample.data, sample.layout.storages[0].data_offset, 0))


def test_sound_checkpoint_stays_where_the_newest_is_damaged(tmp_path: Path) -> None:
    """The newest that is sound is the one that never goes; a damaged one counts for nothing, and is left."""
    paths = filled(tmp_path)
    spoil(paths[5])
    spoil(paths[4])
    shown = run(tmp_path, "--keep", "latest:1", "--dry-run").stdout
    for path in paths[4:]:
        assert f"not touched: {path.name}: not sound, and counts for nothing: tensor 'model." in shown
    done = document(tmp_path, "--keep", "latest:1", "--yes")
    assert answers(done) == {path.name: "removed" for path in paths[:3]} | {paths[3].name: "stays"}
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths[3:]]


def test_last_one_stays_however_damaged(tmp_path: Path) -> None:
    """Where none is sound, nothing goes but what the policy lets go of those before."""
    for path in (paths := filled(tmp_path, (1.0, 2.0))):
        spoil(path)
    assert "nothing goes: the only checkpoint stays" in run(tmp_path, "--keep", "latest:1", "--yes").stdout
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]


@pytest.mark.filterwarnings("ignore:.* holds .* checkpoints of another run:RuntimeWarning")
def test_each_run_is_pruned_by_itself(tmp_path: Path) -> None:
    """Of two in one directory, each keeps what the policy says of its own."""
    filled(tmp_path, (1.0, 2.0, 3.0))
    filled(tmp_path, (0.1, 0.2, 0.3), filename="second-{step}")
    done = document(tmp_path, "--keep", "best:loss", "--yes")
    assert answers(done) == {
        "epoch=0-step=1.ckpt": "stays",
        "epoch=0-step=2.ckpt": "removed",
        "epoch=0-step=3.ckpt": "stays",
        "second-step=1.ckpt": "stays",
        "second-step=2.ckpt": "removed",
        "second-step=3.ckpt": "stays",
    }


def test_emergency_checkpoint_counts_for_no_policy(tmp_path: Path) -> None:
    """It goes once its run has saved again, and stays while nothing has followed it."""
    with pytest.raises(KeyError), saver(tmp_path, save=when.exception()) as checkpointer:
        checkpointer.step(loss=1.0)
        checkpointer.save()
        checkpointer.step(loss=2.0)
        raise KeyError
    policy = tmp_path, "--keep", "latest:1"
    assert set(answers(document(*policy, "--yes")).values()) == {"stays"}
    with saver(tmp_path, save=when.every(steps=1)) as checkpointer:
        checkpointer.restore()
        checkpointer.step(loss=3.0)
    assert answers(document(*policy, "--yes")) == {
        "epoch=0-step=1.ckpt": "removed",
        "epoch=0-step=2-exception.ckpt": "removed",
        "epoch=0-step=3.ckpt": "stays",
    }


def test_history_that_names_what_lies_elsewhere_prunes_nothing_there(tmp_path: Path) -> None:
    """A forged one is no history, and what it speaks of is nobody's."""
    directory = tmp_path / "run"
    directory.mkdir()
    (tmp_path / "precious.ckpt").write_bytes(b"precious")
    history = (told("a.ckpt", 1), told("../precious.ckpt", 2), told("b.ckpt", 3))
    for step, name in ((1, "a.ckpt"), (3, "b.ckpt")):
        files.write(directory / name, files.manifest(step=step, time=1.5e9 + step, history=history))
    assert "holds no checkpoint of a run" in refused(directory, "--keep", "latest:1", "--yes")
    assert (tmp_path / "precious.ckpt").exists()
    assert len(list(directory.iterdir())) == 2


# What is asked for.


def test_metric_that_no_checkpoint_has_is_told(tmp_path: Path) -> None:
    """With those there are; all would go for a slip, and nothing does."""
    filled(tmp_path)
    said = refused(tmp_path, "--keep", "best:los:3", "--yes")
    assert "needs the metric 'los'" in said
    assert "Did you mean 'loss'?" in said
    assert len(names(tmp_path)) == 6


def test_metric_that_ranks_nothing_is_told(tmp_path: Path) -> None:
    """One that was measured at other steps, and one that never was a number."""
    filled(tmp_path / "nan", (float("nan"),) * 3)
    history = tuple(told(f"{step}.ckpt", step) for step in (1, 2, 3))
    (tmp_path / "late").mkdir()
    for step in (1, 2, 3):
        late = files.manifest(step=step, time=1.5e9 + step, metrics={"loss": 1.0}, measured_at={"loss": 0})
        files.write(tmp_path / "late" / f"{step}.ckpt", msgspec.structs.replace(late, history=history))
    for name in ("nan", "late"):
        said = refused(tmp_path / name, "--keep", "best:loss", "--yes")
        assert "has it as a number that was measured at its own step, and nothing was removed" in said
        assert len(os.listdir(tmp_path / name)) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing", "--keep", "latest"), "no such file or directory"),
        (("file", "--keep", "latest"), "is a file; give the directory of a run"),
        (("empty", "--keep", "latest"), "holds no checkpoint of a run"),
        ((".", "--keep", "latest"), "holds no checkpoint of a run"),
        (("run", "--keep", "newest:3"), "'newest' is none of these"),
        (("run", "--keep", "latest:1"), "nobody is there to be asked: give --yes"),
        (("run", "--keep", "latest:1", "--json"), "nobody is there to be asked: give --yes"),
    ],
    ids=["missing", "file", "empty", "above", "policy", "nobody", "json"],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """In one line, before anything is touched."""
    filled(tmp_path / "run", (1.0, 2.0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert said in refused(tmp_path / arguments[0], *arguments[1:])
    assert len(names(tmp_path / "run")) == 2


@pytest.mark.parametrize("command", ["prune", "save-now", "report", "ls"])
def test_variable_that_is_not_set_is_not_where_we_are(tmp_path: Path, command: str) -> None:
    """``prune "$RUN"`` must not remove what lies here."""
    filled(tmp_path, (1.0, 2.0))
    arguments = ["--keep", "latest:1", "--yes"] if command == "prune" else []
    done = subprocess.run(
        [*PROGRAM[:-1], command, "", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "an argument is empty" in done.stderr
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize(("answer", "status", "count"), [("y", 0, 1), ("n", 1, 3)])
def test_person_is_asked(tmp_path: Path, answer: str, status: int, count: int) -> None:
    """At a terminal, after all is shown; without a yes, nothing goes."""
    filled(tmp_path, (1.0, 2.0, 3.0))
    ours, theirs = pty.openpty()
    command = [*PROGRAM, str(tmp_path), "--keep", "latest:1"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, f"{answer}\n".encode())
        output, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert "2 of 3 checkpoints would go" in output
    assert "Remove 2 checkpoints (" in output
    assert process.returncode == status
    assert len(names(tmp_path)) == count


# What happens meanwhile.


def _acted_between(directory: Path, act: Callable[[], object]) -> prune.Pruned:
    """Plan, act, and carry the plan out."""
    policy, asked = keep_words.parsed("latest:1"), "latest:1"
    planned = prune.plan(directory, policy, asked)
    act()
    return prune.carry_out(planned, policy, asked)


def test_what_is_pinned_after_the_question_stays(tmp_path: Path) -> None:
    """What was shown to go goes only if it still does, and nothing else goes."""
    paths = filled(tmp_path, (1.0, 2.0, 3.0, 4.0))
    done = _acted_between(tmp_path, lambda: pin(paths[1]))
    assert done.left == {paths[1]: "it stays, as things are by now"}
    assert [saved.record.path for saved in done.removed] == [paths[0], paths[2]]
    assert done.failed == {}


def test_what_has_come_after_the_question_does_not_go(tmp_path: Path) -> None:
    """The run has gone on meanwhile: by now more would go than was shown."""
    paths = filled(tmp_path, (1.0, 2.0))

    def go_on() -> None:
        with saver(tmp_path) as checkpointer:
            checkpointer.restore()
            checkpointer.step()
            checkpointer.save()

    done = _acted_between(tmp_path, go_on)
    assert [saved.record.path for saved in done.removed] == [paths[0]]
    assert names(tmp_path) == [f"epoch=0-step={step}.ckpt" for step in (2, 3)]


def test_last_look_leaves_what_was_pinned_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the moment before its removal; that is no failure."""
    paths = filled(tmp_path, (1.0, 2.0, 3.0, 4.0))
    plan_of, calls = prune._plan_of, []

    def late(*arguments: Any) -> Any:
        found = plan_of(*arguments)
        calls.append(found)
        if len(calls) == 2:
            pin(paths[0])
            shutil.copy(paths[3], paths[1])
        return found

    monkeypatch.setattr(prune, "_plan_of", late)
    done = _acted_between(tmp_path, lambda: None)
    assert done.left == {
        paths[0]: "it was pinned meanwhile",
        paths[1]: "another checkpoint has its name by now",
    }
    assert [saved.record.path for saved in done.removed] == [paths[2]]


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Let nobody remove ``path``, root included."""
    done = subprocess.run(["chattr", "+i", path], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("no immutable files here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def test_what_cannot_be_removed_is_told(tmp_path: Path) -> None:
    """The others go; the exit code says that one did not."""
    paths = filled(tmp_path, (1.0, 2.0, 3.0, 4.0))
    with immutable(paths[1]):
        done = run(tmp_path, "--keep", "latest:1", "--yes")
    assert done.returncode == 1
    assert f"{paths[1]} could not be removed: Operation not permitted" in done.stdout
    assert "removed 2 checkpoints" in done.stdout
    assert names(tmp_path) == [paths[1].name, paths[3].name]
