"""``safepoint explain``: why a checkpoint is kept, what would remove it, and when and why it went."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import files
import msgspec
import pytest
import torch
from files import told
from loop import Training
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, fit
from pinned import pin

from safepoint import Checkpointer, keep, pins, when
from safepoint.cli.documents import Explain
from safepoint.errors import CheckpointError
from safepoint.explanation import Answer, Explanation, explain

LOSSES = (5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0, 8.0)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint explain`` with its output piped."""
    command = [sys.executable, "-c", "from safepoint.cli import main; main()", "explain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def saver(directory: Path, **options: Any) -> Checkpointer:
    """Return what saves each step."""
    return Checkpointer(
        directory, **{"state": Training().state, "save": when.every(steps=1), "keep": keep.latest(2), **options}
    )


def filled(directory: Path, losses: tuple[float, ...] = LOSSES, **options: Any) -> None:
    """Make a step for each of ``losses``, each durable before the next."""
    with saver(directory, **options) as checkpointer:
        for loss in losses:
            checkpointer.step(loss=loss)
            checkpointer.wait()


def path(directory: Path, step: int) -> Path:
    """Return the path of the checkpoint of ``step``."""
    return directory / f"epoch=0-step={step}.ckpt"


def explained(directory: Path, step: int) -> Explanation:
    """Return what there is to say of the checkpoint of ``step``."""
    return explain(path(directory, step))


def test_kept_one_says_why_and_until_when(tmp_path: Path) -> None:
    """With each of its reasons, as far as what was said of the others tells; and what to do for it to stay."""
    filled(tmp_path, keep=keep.best("loss", 2) | keep.latest(2))
    assert explained(tmp_path, 2).why == "best by loss (1)"
    assert explained(tmp_path, 2).more == (
        "it stays until 2 more are better by loss",
        f"whatever comes, it stays with 'safepoint pin {path(tmp_path, 2)}'",
    )
    assert explained(tmp_path, 7).more[0] == "it stays until one more is saved"
    filled(tmp_path / "one", losses=LOSSES[:2], keep=keep.best("loss", 2) | keep.latest(2))
    found = explained(tmp_path / "one", 2)
    assert (found.answer, found.why) == (Answer.KEPT, "best by loss (1); the latest")
    assert found.more[0].startswith("best by loss (1): until enough are better by loss")
    assert found.more[1] == "the latest: until 2 more are saved"
    done = run(path(tmp_path, 2))
    first, second, third, _ = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first.startswith(f"{path(tmp_path, 2)}: step 2, epoch 0, loss 1, saved ")
    assert first.endswith("s ago (every step)")
    assert second == "kept: best by loss (1)"
    assert third == "  it stays until 2 more are better by loss"


def test_removed_one_says_when_and_why(tmp_path: Path) -> None:
    """As closely as the checkpoints that are left tell: some were saved when it was still there."""
    filled(tmp_path, keep=keep.best("loss", 2) | keep.latest(2) | keep.every(steps=5))
    assert sorted(os.listdir(tmp_path)) == [f"epoch=0-step={step}.ckpt" for step in (2, 4, 5, 7, 8)]
    third, first = explained(tmp_path, 3), explained(tmp_path, 1)
    assert third.answer is Answer.REMOVED
    policies = ("not among the best 2 by loss (4)", "not among the latest 2", "not the one for its 5 steps")
    assert third.why == f"removed by its run: {' and '.join(policies)}"
    assert third.by is not None
    assert (third.by.step, third.is_exact) == (5, True)
    assert first.after is not None
    assert first.by is not None
    assert (first.after.step, first.by.step, first.is_exact) == (2, 4, False)
    assert (first.outline.step, first.outline.metrics) == (1, {"loss": 5.0})
    assert "  with the save at step 5 (epoch=0-step=5.ckpt), " in run(path(tmp_path, 3)).stdout
    said = run(path(tmp_path, 1)).stdout.splitlines()[2]
    assert said.startswith("  after the save at step 2 (epoch=0-step=2.ckpt), ")
    assert "and with that at step 4 (epoch=0-step=4.ckpt), " in said


def test_when_it_went_is_right_whatever_is_left(tmp_path: Path) -> None:
    """Every removal lies between the two saves that are told, whichever checkpoints are there."""
    for every in (2, 3, 5):
        directory = tmp_path / str(every)
        filled(directory, losses=LOSSES + LOSSES, keep=keep.latest(3) | keep.every(steps=every))
        for step in range(1, 17):
            if not path(directory, step).exists():
                found = explained(directory, step)
                assert found.after is not None
                assert found.by is not None
                assert found.after.step < step + 3 <= found.by.step
                assert not found.is_exact or found.by.step == step + 3


def test_missing_one_says_that_nobody_decided_it(tmp_path: Path) -> None:
    """Gone by hand, it is kept by the history; once its run has found that out, that says so."""
    filled(tmp_path)
    path(tmp_path, 7).unlink()
    found = explained(tmp_path, 7)
    assert found.answer is Answer.MISSING
    assert found.why == "gone, though its run keeps it (among the latest 2): removed by hand, or by 'safepoint prune'"
    assert found.after is not None
    assert (found.after.step, found.by, found.is_exact) == (8, None, False)
    assert "  since the save at step 8 (" in run(path(tmp_path, 7)).stdout
    with saver(tmp_path) as checkpointer:
        checkpointer.restore()
        checkpointer.step()
    found = explained(tmp_path, 7)
    assert (found.answer, found.why) == (Answer.REMOVED, "removed: by hand, or by 'safepoint prune'")
    assert found.by is not None
    assert (found.by.step, found.is_exact) == (9, False)


def test_save_that_may_have_failed_is_told_so(tmp_path: Path) -> None:
    """Of one that nobody knows to have been durable."""
    files.write(tmp_path / "b.ckpt", files.manifest(step=2, history=(told("a.ckpt", 1), told("b.ckpt", 2))))
    assert explain(tmp_path / "a.ckpt").why.endswith("or by 'safepoint prune', unless its save had failed")


def test_pinned_one_says_by_whom_and_what_comes_without(tmp_path: Path) -> None:
    """By the command, as it was saved, or by what nobody can read."""
    filled(tmp_path)
    pin(path(tmp_path, 7))
    found = explained(tmp_path, 7)
    assert (found.answer, found.why) == (Answer.PINNED, "pinned, by 'safepoint pin': no policy removes it")
    assert found.more == (f"once it is unpinned ('safepoint unpin {path(tmp_path, 7)}'), it stays: among the latest 2",)
    (tmp_path / pins.name_of(path(tmp_path, 7).name)).write_bytes(b"")
    assert "pinned, by a file that cannot be read" in explained(tmp_path, 7).why
    with saver(tmp_path / "saved", save=when.train_end()) as checkpointer:
        checkpointer.step()
        first = checkpointer.save(pinned=True)
        checkpointer.step()
        checkpointer.save()
        checkpointer.step()
        checkpointer.save()
    found = explain(first)
    assert found.why == "pinned, as it was saved: no policy removes it"
    assert found.more[0].endswith("nothing else is known to keep it")


def test_emergency_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    """For how long it stays, and why it is not gone on from."""
    training = Training()
    with pytest.raises(KeyError), saver(tmp_path, state=training.state, save=when.exception()) as checkpointer:
        checkpointer.step()
        next(training.model.parameters()).data.fill_(float("nan"))
        raise KeyError
    found = explain(tmp_path / "epoch=0-step=1-exception.ckpt")
    assert found.why == "saved at an exception (KeyError), until the run saves again"
    assert found.more[0] == "it stays until its run saves again"
    assert "it was saved at an exception (KeyError), and counts for no policy" in found.more
    assert found.more[-1].startswith("it is not gone on from: ")


def test_superseded_one_says_by_what(tmp_path: Path) -> None:
    """A later save of its step has taken its place."""
    with saver(tmp_path, save=when.every(steps=1) | when.every(epochs=1), filename="{step}-{loss}") as checkpointer:
        checkpointer.step(loss=2.0)
        checkpointer.epoch_end(loss=1.0)
    found = explain(tmp_path / "step=1-loss=2.0.ckpt")
    assert found.why == "removed by its run: superseded by step=1-loss=1.0.ckpt, saved later at the same step"
    assert found.is_exact


def test_one_that_its_run_could_not_remove_goes(tmp_path: Path) -> None:
    """It ended in between: the next process of the run removes it."""
    filled(tmp_path, losses=LOSSES[:3], keep=keep.all())
    before = path(tmp_path, 1).read_bytes()
    with saver(tmp_path) as checkpointer:
        checkpointer.restore()
        checkpointer.step()
    path(tmp_path, 1).write_bytes(before)
    found = explained(tmp_path, 1)
    assert (found.answer, found.why) == (Answer.GOES, "to be removed by its run: not among the latest 2")
    assert "with the save at step 4 (epoch=0-step=4.ckpt), or before" in found.more[0]


# Whose it is.


def test_copies_are_touched_by_no_policy(tmp_path: Path) -> None:
    """Also one that was renamed; a link that somebody made is the checkpoint itself, and so is a copied directory's."""
    filled(tmp_path / "run")
    copy, link = tmp_path / "run" / "copy.ckpt", tmp_path / "run" / "link.ckpt"
    shutil.copy(path(tmp_path / "run", 7), copy)
    os.link(path(tmp_path / "run", 7), link)
    assert explain(copy).answer is Answer.UNTOUCHED
    assert "no policy touches it" in explain(copy).why
    assert explain(link).why == "among the latest 2"
    assert explain(link).more[0] == f"it is another name of {path(tmp_path / 'run', 7)}, which is what its run goes by"
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert explained(tmp_path / "moved", 7).why == "among the latest 2"


def test_other_programs_files_are_touched_by_no_policy(tmp_path: Path) -> None:
    """It says which program's they are."""
    torch.save({"weight": torch.ones(3)}, tmp_path / "plain.pt")
    found = explain(tmp_path / "plain.pt")
    assert (found.answer, found.why) == (
        Answer.UNTOUCHED,
        "another program's (torch): no policy of Safepoint's touches it",
    )
    done = run(tmp_path / "plain.pt")
    assert (done.returncode, done.stderr) == (0, "")


@OLD_TREESPEC
@NOT_EMPTY
def test_lightnings_own_files_may_be_touched_by_a_drop_in(tmp_path: Path) -> None:
    """None does before one goes on with them; then it counts them."""
    framework = FRAMEWORKS[0]
    losses = {"val_loss": (1.0, 2.0, 3.0)}
    options = {"dirpath": tmp_path, "monitor": "val_loss", "save_top_k": 2}
    fit(framework, framework.original(**options, save_last=True), metrics=losses, epochs=2)
    first = tmp_path / "epoch=0-step=2.ckpt"
    found = explain(first)
    assert found.answer is Answer.UNTOUCHED
    assert "another program's (lightning)" in found.why
    assert "goes on with their top k" in found.more[0]
    resumed = framework.ModelCheckpoint(**options, every_n_epochs=1)
    fit(framework, resumed, metrics={"val_loss": (1.0, 2.0, 1.5)}, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert "with which a run of Safepoint's goes on: among the best 2 by val_loss (1)" in explain(first).why


@OLD_TREESPEC
def test_names_that_lead_into_directories_are_found(tmp_path: Path) -> None:
    """From the names of others, also where a checkpoint and all beside it are gone."""
    framework = FRAMEWORKS[0]
    callback = framework.ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}/{step}", save_last=True)
    fit(framework, callback, metrics={"val_loss": (2.0, 1.0)}, epochs=2)
    assert explain(tmp_path / "epoch=1" / "step=4.ckpt").why == "the best by val_loss (1)"
    assert explain(tmp_path / "last.ckpt").why == "the best by val_loss (1)"
    assert "another name of" in explain(tmp_path / "last.ckpt").more[0]
    found = explain(tmp_path / "epoch=0" / "step=2.ckpt")
    assert (found.answer, found.why) == (Answer.REMOVED, "removed by its run: not the best by val_loss (2)")
    assert found.by is not None
    assert found.by.step == 4
    (tmp_path / "last.ckpt").unlink()
    assert explain(tmp_path / "last.ckpt").why.startswith("gone: it was another name of epoch=1/step=4.ckpt")


# What is printed.


def test_explanation_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One document, of one that is there and of one that is gone, with paths as they were given."""
    filled(tmp_path)
    monkeypatch.chdir(tmp_path)
    kept = msgspec.json.decode(run("--json", path(Path(), 7)).stdout, type=Explain)
    assert (kept.path, kept.answer, kept.step, kept.metrics) == ("epoch=0-step=7.ckpt", "kept", 7, {"loss": 7.0})
    assert (kept.after, kept.by, kept.format, kept.reasons) == (None, None, "safepoint", ("every step",))
    gone = msgspec.json.decode(run("--json", path(Path(), 6)).stdout, type=Explain)
    assert (gone.path, gone.answer) == ("epoch=0-step=6.ckpt", "removed")
    assert gone.by is not None
    assert gone.by.step == 8


def _nothing(directory: Path) -> Path:
    return directory / "nothing.ckpt"


def _far(directory: Path) -> Path:
    return directory / "no" / "such" / "directory.ckpt"


def _directory(directory: Path) -> Path:
    return directory


def _half(directory: Path) -> Path:
    path(directory, 7).write_bytes(path(directory, 7).read_bytes()[:-100])
    return path(directory, 7)


def _text(directory: Path) -> Path:
    (directory / "\x1b[2Jnotes.txt").write_text("notes")
    return directory / "\x1b[2Jnotes.txt"


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (_nothing, "no such file, and no checkpoint near it tells of one that was there"),
        (_far, "no such file"),
        (_directory, "is a directory; give a checkpoint in it"),
        (_half, "no whole zip archive"),
        (_text, "no checkpoint"),
    ],
    ids=["unknown", "far", "directory", "half", "text"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, spoilt: Callable[[Path], Path], said: str) -> None:
    """In one plain line, with its name."""
    filled(tmp_path)
    there = spoilt(tmp_path)
    done = run(there)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert there.name.removeprefix("\x1b") in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_history_that_names_what_lies_elsewhere_tells_nothing(tmp_path: Path) -> None:
    """A forged one is none."""
    (tmp_path / "run").mkdir()
    history = (told("../a.ckpt", 1), told("b.ckpt", 2))
    files.write(tmp_path / "run" / "b.ckpt", files.manifest(step=2, history=history))
    with pytest.raises(CheckpointError, match="no such file"):
        explain(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError):
        explain(tmp_path / "run" / "b.ckpt")
