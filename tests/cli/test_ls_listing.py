"""``safepoint ls`` of whole trees: several runs, other programs' files, orders, filters, JSON, and what is damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import files
import foreign
import pytest
from commands import on_terminal, safepoint
from loop import Training
from models import OLD_TREESPEC
from nets import flip

from safepoint import Checkpointer, keep, when

pytestmark = OLD_TREESPEC
LOSSES = {"a": (0.5, 0.25, 0.75), "b": (0.4, 0.3)}


def run(directory: Path, losses: tuple[float, ...], **options: Any) -> Path:
    """Return the directory of a run that has kept a checkpoint of every epoch."""
    training = Training()
    policies = {"save": when.every(epochs=1), "keep": keep.all(), **options}
    with Checkpointer(directory, state=training.state, **policies) as checkpointer:
        for loss in losses:
            training.advance()
            checkpointer.step()
            checkpointer.epoch_end(val_loss=loss)
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tree of two runs of Safepoint's, and of what other programs write."""
    tree = tmp_path_factory.mktemp("made")
    for name, losses in LOSSES.items():
        run(tree / "runs" / name, losses)
    foreign.of_lightning(tree / "lightning")
    foreign.of_trainer(tree / "trainer")
    foreign.of_torch(tree / "files" / "weights.pt", step=3, loss=0.125)
    foreign.of_safetensors(tree / "files" / "model.safetensors")
    foreign.of_dcp(tree / "sharded" / "step-1")
    return tree


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a copy of the tree, the same files where nobody changes them."""
    shutil.copytree(made, tmp_path / "tree", copy_function=shutil.copy2)
    return tmp_path / "tree"


def listed(*arguments: object, **options: Any) -> dict[str, Any]:
    """Return the document that ``ls --json`` prints."""
    result = safepoint("ls", "--json", *arguments, **options)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def names(*arguments: object) -> list[str]:
    """Return the names of what ``ls`` lists, in its order."""
    return [each["name"] for each in listed(*arguments)["checkpoints"]]


def test_ls_lists_runs_by_directory(made: Path) -> None:
    """Several runs have a heading each, under one head of columns, and each tells why its checkpoints are kept."""
    result = safepoint("ls", made / "runs")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["name", "step", "epoch", "metrics"]
    headings = [index for index, line in enumerate(lines) if line.startswith(str(made))]
    assert [lines[index].partition(": ")[::2] for index in headings] == [
        (str(made / "runs" / name), lines[index].partition(": ")[2]) for name, index in zip("ab", headings, strict=True)
    ]
    assert "3 checkpoints, " in lines[headings[0]]
    assert lines[headings[0] + 1].startswith("epoch=0-step=1.ckpt ")
    assert all("all are kept" in lines[headings[1] + below] for below in (1, 2))
    assert lines[-1].startswith("5 checkpoints, ")
    assert lines[-1].endswith("; not checked")


def test_ls_lists_where_it_is_called_by_default(made: Path) -> None:
    """Without a path, what is here and below, by paths from here."""
    there = os.getcwd()
    os.chdir(made)
    try:
        paths = [each["path"] for each in listed()["checkpoints"]]
        assert "runs/a/epoch=0-step=1.ckpt" in paths
        assert listed() == listed(".")
        assert "\nruns/a: 3 checkpoints" in safepoint("ls").stdout
    finally:
        os.chdir(there)


def test_ls_lists_what_other_programs_have_written(made: Path) -> None:
    """With what each tells of itself, and in a column of its own which program it was."""
    result = safepoint("ls", made)
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert (result.returncode, "cannot be read" in result.stdout) == (0, False)
    for name, told in {
        "epoch=3.ckpt": ("8", "3", "val_loss 0.98", "lightning"),
        "weights.pt": ("3", "loss 0.125", "torch"),
        "model.safetensors": ("safetensors",),
        "checkpoint-4": ("4", "eval_loss 0.25", "hugging-face"),
        "step-1": ("dcp",),
        "epoch=2-step=3.ckpt": ("3", "2", "val_loss 0.75", "safepoint", "all are kept"),
    }.items():
        assert all(part in rows[name] for part in told), rows[name]


def test_ls_says_once_who_wrote_the_files_of_a_directory(made: Path) -> None:
    """In its heading, if all are of one kind there and in every other; nowhere, if all are Safepoint's."""
    lines = safepoint("ls", made / "lightning", made / "trainer", made / "runs" / "a").stdout.splitlines()
    assert "format" not in lines[0]
    assert [line.partition(": ")[2].partition(", ")[0] for line in lines if line.startswith(str(made))] == [
        "lightning",
        "hugging-face",
        "safepoint",
    ]


def test_ls_verifies_other_programs_as_far_as_they_can_be(made: Path) -> None:
    """What was compared is told where it is less than everything."""
    lines = safepoint("ls", "--verify", made / "files", made / "runs" / "b").stdout.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    assert "sound (crc-32)" in rows["weights.pt"]
    assert "sound (structure)" in rows["model.safetensors"]
    assert "sound (" not in rows["epoch=0-step=1.ckpt"]


def test_ls_takes_several_paths_and_files(made: Path) -> None:
    """A file is listed with what its run says of it, and nothing twice."""
    one = made / "runs" / "a" / "epoch=1-step=2.ckpt"
    assert names(one) == [one.name]
    assert "all are kept" in safepoint("ls", one).stdout
    assert names(one, made / "runs" / "b", one) == [one.name, "epoch=0-step=1.ckpt", "epoch=1-step=2.ckpt"]
    assert names(made / "trainer" / "checkpoint-4", made / "files" / "weights.pt") == ["checkpoint-4", "weights.pt"]


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--sort", "val_loss"], [0.25, 0.3, 0.4, 0.5, 0.75]),
        (["--sort", "val_loss", "--reverse"], [0.75, 0.5, 0.4, 0.3, 0.25]),
        (["--sort", "name"], [0.5, 0.25, 0.75, 0.4, 0.3]),
        (["--sort", "time", "--reverse"], [0.3, 0.4, 0.75, 0.25, 0.5]),
        (["--filter", "val_loss<0.4"], [0.25, 0.3]),
        (["--filter", "val_loss<0.5", "--filter", "step=1"], [0.4]),
        (["--filter", "name=*/a/*", "--filter", "epoch!=1"], [0.5, 0.75]),
        (["--filter", "age>1d"], []),
        (["--filter", "size>1kB", "--filter", "format=safepoint"], [0.5, 0.25, 0.75, 0.4, 0.3]),
        (["--reverse"], [0.3, 0.4, 0.75, 0.25, 0.5]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[:1], list) and value and isinstance(value[0], str) else "",
)
def test_ls_puts_in_order_and_leaves_out(made: Path, arguments: list[str], values: list[float]) -> None:
    """By what is asked for, across all runs."""
    found = listed(made / "runs", *arguments)["checkpoints"]
    assert [each["metrics"]["val_loss"] for each in found] == values


def test_ls_puts_what_does_not_tell_at_the_end(made: Path) -> None:
    """In either order: a file without the metric is neither the best nor the worst."""
    for more in ([], ["--reverse"]):
        found = listed(made, "--sort", "val_loss", *more)["checkpoints"]
        having = ["val_loss" in each["metrics"] for each in found]
        assert having == sorted(having, reverse=True)
        assert not all(having)


def test_ls_shows_paths_where_directories_do_not_count(made: Path) -> None:
    """In an order of its own, each line says where its checkpoint is, from the one path that was given."""
    lines = safepoint("ls", made / "runs", "--sort", "step").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [f"{name}/epoch=0-step=1.ckpt" for name in "ab"]
    lines = safepoint("ls", *(made / "runs" / name for name in "ab"), "--sort", "step").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [f"{made}/runs/{name}/epoch=0-step=1.ckpt" for name in "ab"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--filter", "val_los<1"], "'val_loss'. Did you mean 'val_loss'?"),
        (["--filter", "val_loss"], "is no filter"),
        (["--filter", "size>big"], "as in size>1GB"),
        (["--sort", "accuracy"], "the metrics given are: 'val_loss'"),
    ],
)
def test_ls_refuses_what_it_does_not_know(made: Path, arguments: list[str], told: str) -> None:
    """A wrong filter or key is one line that says what there is, and exit code 2."""
    result = safepoint("ls", made / "runs", *arguments)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert told in result.stderr


def test_ls_of_what_passes_no_filter_says_so(made: Path) -> None:
    """Nothing is no error."""
    result = safepoint("ls", made / "runs", "--filter", "step>100")
    assert (result.returncode, result.stdout) == (0, "no checkpoints\n")


def test_ls_counts_shared_bytes_once(tree: Path) -> None:
    """Hard links and symbolic ones add names and no bytes, over several directories."""
    before = listed(tree)["size_bytes"]
    (tree / "runs" / "b" / "linked.ckpt").hardlink_to(tree / "runs" / "a" / "epoch=0-step=1.ckpt")
    (tree / "lightning" / "last.ckpt").symlink_to("epoch=5.ckpt")
    (tree / "elsewhere").symlink_to(tree / "runs")
    found = listed(tree)
    assert found["size_bytes"] == before
    assert {"linked.ckpt", "last.ckpt"} <= {each["name"] for each in found["checkpoints"]}
    assert "some with several names), " in safepoint("ls", tree).stdout.splitlines()[-1]


def test_ls_verifies_every_byte_when_asked(tree: Path) -> None:
    """Each is sound or damaged, the damage is told, and decides the exit code."""
    result = safepoint("ls", "--verify", tree / "runs")
    assert result.returncode == 0
    assert "sound" in result.stdout.splitlines()[0]
    assert "not checked" not in result.stdout
    flip(tree / "runs" / "a" / "epoch=1-step=2.ckpt", "model.0.weight")
    result = safepoint("ls", "--verify", tree / "runs")
    assert result.returncode == 1
    assert "damaged: a/epoch=1-step=2.ckpt: tensor 'model.0.weight' does not match its digest" in result.stdout
    result = safepoint("ls", "--verify", "--json", tree / "runs")
    found = {each["path"]: each for each in json.loads(result.stdout)["checkpoints"]}
    assert [each["sound"] for each in found.values()] == ["sound", "damaged", "sound", "sound", "sound"]
    assert found[str(tree / "runs" / "a" / "epoch=1-step=2.ckpt")]["problems"]
    assert {each["sound"] for each in listed(tree)["checkpoints"]} == {"not checked"}


def test_ls_names_what_is_half_written(tree: Path) -> None:
    """A file that was cut off is no checkpoint, and is not passed over; with --verify it is damage."""
    for path in (tree / "files" / "weights.pt", tree / "runs" / "a" / "epoch=1-step=2.ckpt"):
        path.write_bytes(path.read_bytes()[:-100])
    (tree / "files" / "notes.bin").write_bytes(b"something else")
    result = safepoint("ls", tree / "files", tree / "runs")
    assert result.returncode == 0
    told = [line for line in result.stdout.splitlines() if line.startswith("cannot be read: ")]
    assert [line.split(": ")[1] for line in told] == [
        str(tree / "files" / "weights.pt"),
        str(tree / "runs" / "a" / "epoch=1-step=2.ckpt"),
    ]
    assert [each["path"] for each in listed(tree / "files")["unreadable"]] == [str(tree / "files" / "weights.pt")]
    assert safepoint("ls", "--verify", tree / "files").returncode == 1
    result = safepoint("ls", tree / "files" / "weights.pt")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)


def test_ls_shows_emergencies_and_flaws(tmp_path: Path) -> None:
    """What an exception left says so, and why it is not gone on from."""
    files.write(tmp_path / "a.ckpt", files.manifest(time=1e9, pinned=True))
    flaw = {"emergency": "ValueError", "flaw": "model.weight holds NaN"}
    files.write(tmp_path / "b.ckpt", files.manifest(run="x", history=(files.told("b.ckpt", 1),), **flaw))
    lines = safepoint("ls", tmp_path).stdout.splitlines()
    assert lines[1].endswith("pinned")
    assert lines[2].endswith("kept for step 1; not gone on from: model.weight holds NaN")
    found = listed(tmp_path)["checkpoints"]
    assert [(each["emergency"], each["pinned"]) for each in found] == [("", True), ("ValueError", False)]


def test_ls_tells_of_the_removed_of_every_run(tmp_path: Path) -> None:
    """By the newest of each, with their reasons, as lines and in the document."""
    for name in ("a", "b"):
        run(tmp_path / name, (0.5, 0.25), keep=keep.latest())
    told = [line for line in safepoint("ls", "--removed", tmp_path).stdout.splitlines() if line.startswith("removed")]
    assert told == [f"removed: {name}/epoch=0-step=1.ckpt (step 1): not the latest" for name in "ab"]
    found = listed("--removed", tmp_path)
    assert [each["why"] for each in found["removed"]] == ["not the latest"] * 2
    assert listed(tmp_path)["removed"] is None


def test_document_of_ls_tells_all_of_a_checkpoint(made: Path) -> None:
    """Whatever the table leaves out."""
    path = made / "runs" / "a" / "epoch=2-step=3.ckpt"
    found = listed(made / "runs" / "a")
    assert found["schema"] == "safepoint.ls/1"
    last = found["checkpoints"][-1]
    assert last.pop("time") == pytest.approx(path.stat().st_mtime, abs=60)
    assert len(last.pop("run")) == 32
    assert last == {
        "path": str(path),
        "directory": str(path.parent),
        "name": path.name,
        "format": "safepoint",
        "step": 3,
        "epoch": 2,
        "metrics": {"val_loss": 0.75},
        "size_bytes": path.stat().st_size,
        "kept": True,
        "why": "all are kept",
        "reasons": ["every epoch"],
        "pinned": False,
        "emergency": "",
        "flaw": "",
        "sound": "not checked",
        "check": None,
        "problems": [],
    }


def test_document_of_ls_holds_names_that_are_no_unicode(tmp_path: Path) -> None:
    """The document is JSON still, and Python reads the very name back."""
    path = tmp_path / os.fsdecode(b"bytes\xff\x1b[31m\n.ckpt")
    files.write(path, files.manifest(metrics={"loss": "nan"}))
    (found,) = listed(tmp_path)["checkpoints"]
    assert found["path"] == str(path)
    assert found["metrics"] == {"loss": "nan"}


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_ls_fits_the_terminal_with_all_its_columns(made: Path, columns: int) -> None:
    """No row is wider than the terminal, if that leaves room for something to read."""
    code, text = on_terminal("ls", made / "runs" / "a", columns=columns, NO_COLOR="1")
    assert code == 0
    rows = text.splitlines()[:-1]
    assert max(map(len, rows)) <= max(columns, 58)


def test_ls_on_a_terminal_is_told_apart_and_folded(made: Path) -> None:
    """Headings are bold where styles are wanted, in a group, too."""
    _, text = on_terminal("ls", made / "runs", columns=100)
    bold = [line for line in text.splitlines() if line.startswith("\x1b[1m")]
    assert len(bold) == 3
    _, text = on_terminal("ls", made / "runs", columns=100, NO_COLOR="1")
    assert "\x1b" not in text
