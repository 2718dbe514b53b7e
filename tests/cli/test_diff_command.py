"""``safepoint diff`` as a user runs it: what it prints of two checkpoints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Net, save

from safepoint import Checkpointer, comparison, formats, keep, reader, when
from safepoint.difference import everything, unseen
from safepoint.errors import CheckpointError

COMMAND = [sys.executable, "-c", "from safepoint.cli import main; main()"]
STYLES = re.compile(r"\x1b\[[0-9;]*m")


def diff(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint diff`` with its output piped."""
    command = [*COMMAND, "diff", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def on_a_terminal(columns: int, *arguments: object, **environment: str) -> str:
    """Run ``safepoint diff`` on a terminal so wide, and return what stands there."""
    theirs, ours = os.openpty()
    termios.tcsetwinsize(ours, (24, columns))
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    command = [*COMMAND, "diff", *map(str, arguments)]
    with open(theirs, "rb", buffering=0) as terminal:
        subprocess.run(command, stdout=ours, stdin=ours, env={**kept, **environment}, check=False)
        os.close(ours)
        return terminal.read(1 << 16).decode()


def block() -> torch.nn.Sequential:
    """Return two linear layers."""
    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of two steps in which one layer is frozen; ``step=1.ckpt`` and ``step=2.ckpt``."""
    directory = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"body": block(), "head": torch.nn.Linear(6, 2)})
    model["body"][0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(
        directory, state=state, save=when.every(steps=1), keep=keep.all(), filename="{step}"
    ) as checkpointer:
        for step in range(2):
            model["head"](model["body"](torch.randn(4, 6))).square().mean().backward()
            optimizer.step()
            checkpointer.step(val_loss=0.5 - step / 4)
            optimizer.param_groups[0]["lr"] = 0.01
    return directory


@pytest.fixture
def pair(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of the run's two checkpoints."""
    return tuple(Path(shutil.copy(run / f"step={step}.ckpt", tmp_path / name)) for step, name in ((1, "a"), (2, "b")))  # type: ignore[return-value]


def test_diff_of_two_checkpoints_of_a_run(run: Path) -> None:
    """Metrics, step and epoch of both; the parts of the state that changed; other values; exit code 1."""
    result = diff(run / "step=1.ckpt", run / "step=2.ckpt")
    assert (result.returncode, result.stderr) == (1, "")
    head, one, other, *lines = result.stdout.splitlines()
    assert head.split() == ["checkpoint", "step", "epoch", "metrics", "format", "size"]
    assert one.split()[:7] == ["A", str(run / "step=1.ckpt"), "1", "0", "val_loss", "0.5", "safepoint"]
    assert other.split()[:7] == ["B", str(run / "step=2.ckpt"), "2", "0", "val_loss", "0.25", "safepoint"]
    assert [re.sub(" +", " ", line) for line in lines] == [
        "changed model.body.1.* 2 tensors, 42 elements",
        "changed model.head.* 2 tensors, 14 elements",
        "changed optimizer.state.* 12 tensors, 116 elements",
        "changed safepoint.rng.torch uint8 [5056]",
        "value optimizer.param_groups.0.lr 0.1 -> 0.01",
        "tensors: 17 changed, 2 the same",
        "values: 1 differs",
    ]


def test_diff_of_a_checkpoint_and_its_copy(run: Path, tmp_path: Path) -> None:
    """They are the same, whatever they are called: exit code 0."""
    for other in (run / "step=1.ckpt", shutil.copy(run / "step=1.ckpt", tmp_path / "copy.ckpt")):
        result = diff(run / "step=1.ckpt", other)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines()[-2:] == ["tensors: 19 the same", "values: all the same"]


def test_diff_lists_each_tensor_if_asked_for(run: Path) -> None:
    """``--all``: by its whole name, with dtype and shape."""
    result = diff(run / "step=1.ckpt", run / "step=2.ckpt", "--all", "--keys", "model")
    assert [re.sub(" +", " ", line) for line in result.stdout.splitlines()[3:]] == [
        "changed model.body.1.weight float32 [6, 6]",
        "changed model.body.1.bias float32 [6]",
        "changed model.head.weight float32 [2, 6]",
        "changed model.head.bias float32 [2]",
        "tensors: 4 changed, 2 the same",
        "values: all the same",
    ]


def test_diff_compares_what_is_chosen(run: Path) -> None:
    """``--keys`` and ``--except`` take patterns; one that matches nothing is an error that says what there is."""
    result = diff(run / "step=1.ckpt", run / "step=2.ckpt", "--keys", "model.body.0")
    assert result.returncode == 0
    result = diff(run / "step=1.ckpt", run / "step=2.ckpt", "--except", "optimizer", "--except", "safepoint", "--json")
    document = json.loads(result.stdout)
    assert [pair["a"]["path"].partition(".")[0] for pair in document["changed"]] == ["model"] * 4
    assert document["values"] == []
    result = diff(run / "step=1.ckpt", run / "step=2.ckpt", "--keys", "optimizer.param_groups")
    assert "value  optimizer.param_groups.0.lr  0.1 -> 0.01" in result.stdout
    result = diff(run / "step=1.ckpt", run / "step=2.ckpt", "--keys", "modle")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--keys 'modle' matches nothing" in result.stderr
    assert "'model'" in result.stderr


def test_diff_tells_added_removed_reshaped_and_moved(tmp_path: Path) -> None:
    """Each by itself; a tensor that bears another name has moved if its elements are the same."""
    torch.manual_seed(0)
    kept, moved, weight = torch.randn(3), block(), torch.randn(4, 2)
    one = {"m": Net(kept=kept, old=torch.randn(5), grown=weight, cast=weight), "layers": moved}
    other = {"m": Net(kept=kept, new=torch.randn(6), grown=torch.randn(8, 2), cast=weight.half()), "blocks": moved}
    a, b = save(tmp_path / "a", one), save(tmp_path / "b", other)
    result = diff(a, b, "--keys", "m", "--keys", "layers", "--keys", "blocks")
    assert result.returncode == 1
    assert [re.sub(" +", " ", line) for line in result.stdout.splitlines()[3:]] == [
        "removed m.old float32 [5]",
        "added m.new float32 [6]",
        "moved layers.* -> blocks.* 4 tensors, 84 elements",
        "reshaped m.grown float32 [4, 2] -> float32 [8, 2]",
        "reshaped m.cast float32 [4, 2] -> float16 [4, 2]",
        "tensors: 1 added, 1 removed, 4 moved, 2 reshaped, 1 the same",
        "values: all the same",
    ]
    listed = [line.split() for line in diff(a, b, "--all").stdout.splitlines()]
    assert ["moved", "layers.0.weight", "->", "blocks.0.weight", "float32", "[6,", "6]"] in listed


def hide_data(path: Path) -> None:
    """Overwrite all data of tensors with zeros, as if the disk had lost it."""
    with reader.opened(path) as checkpoint:
        places = [(entry.data_offset, entry.size_bytes) for entry in checkpoint.layout.storages]
    with path.open("r+b") as file:
        for offset, size_bytes in places:
            file.seek(offset)
            file.write(bytes(size_bytes))


def test_diff_reads_no_data_of_safepoints_own(run: Path, pair: tuple[Path, Path]) -> None:
    """Their digests tell: the answer is the same when there is no data any more."""
    before = diff(*pair, "--json")
    for path in pair:
        hide_data(path)
    assert diff(*pair, "--json").stdout == re.sub(r'"time":[\d.]+', lambda found: found[0], before.stdout)
    a, b = pair
    assert diff(a, run / "step=1.ckpt").returncode == 0
    assert json.loads(diff(a, b, "--values", "--json").stdout)["changed"][0]["drift"]["changed"] == 0


def test_diff_reads_what_digests_do_not_tell(tmp_path: Path) -> None:
    """Views of one storage: what lies on it is compared by itself, and only the one that changed has."""
    whole = torch.arange(12.0)
    one, other = whole.clone(), whole.clone()
    other[7] = 0
    paths = [save(tmp_path / name, {"w": Net(head=t[:6], tail=t[6:])}) for name, t in (("a", one), ("b", other))]
    document = json.loads(diff(*paths, "--keys", "w", "--json").stdout)
    assert ([pair["a"]["path"] for pair in document["changed"]], document["same"]) == (["w.tail"], 1)


def test_diff_measures_how_far_each_layer_went(run: Path) -> None:
    """``--values``: a bar, norms and counts for each module, and for what an optimizer keeps; all of it in JSON."""
    one, other = (torch.load(run / f"step={step}.ckpt") for step in (1, 2))
    result = diff(run / "step=1.ckpt", run / "step=2.ckpt", "--values")
    assert result.returncode == 1
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if " all" in line}
    assert list(rows) == [
        *("model.body.1", "model.head"),
        *(f"optimizer.state.*.{name}" for name in ("step", "exp_avg", "exp_avg_sq")),
    ]
    step = [other["model"][f"body.1.{name}"] - one["model"][f"body.1.{name}"] for name in ("weight", "bias")]
    base = [one["model"][f"body.1.{name}"] for name in ("weight", "bias")]
    norm, base_norm = (
        torch.cat([tensor.flatten().double() for tensor in those]).norm().item() for those in (step, base)
    )
    assert f"{norm / base_norm * 100:.3g}%" in rows["model.body.1"].split()
    assert f"{norm:.3g}" in rows["model.body.1"].split()
    document = json.loads(diff(run / "step=1.ckpt", run / "step=2.ckpt", "--values", "--json").stdout)
    (layer,) = [layer for layer in document["layers"] if layer["layer"] == "model.body.1"]
    assert layer["tensors"] == 2
    assert layer["drift"] == {
        "elements": 42,
        "changed": 42,
        "norm": pytest.approx(norm),
        "base_norm": pytest.approx(base_norm),
        "relative": pytest.approx(norm / base_norm),
        "max_abs": pytest.approx(max(tensor.abs().max().item() for tensor in step)),
        "not_finite": 0,
    }
    assert document["changed"][0]["drift"]["norm"] == pytest.approx(step[0].norm().item())


def test_diff_shows_the_most_changed_first(run: Path) -> None:
    """``--sort change``, with ``--all`` tensor by tensor: the longest bar is the first."""
    lines = diff(
        run / "step=1.ckpt", run / "step=2.ckpt", "--values", "--all", "--sort", "change", "--keys", "model"
    ).stdout
    bars = [line.split()[1].count("█") for line in lines.splitlines() if "█" in line]
    assert len(bars) == 4
    assert bars == sorted(bars, reverse=True)
    assert bars[0] == 40


def test_diff_tells_of_what_is_not_finite(tmp_path: Path) -> None:
    """A NaN has a line of its own, in the list of layers, and stands in the document."""
    broken = torch.ones(4)
    broken[2:] = torch.nan
    paths = [save(tmp_path / name, {"w": Net(x=t)}) for name, t in (("a", torch.ones(4)), ("b", broken))]
    result = diff(*paths, "--values")
    assert "w: 2 NaN or infinite in B" in result.stdout.splitlines()
    (changed,) = json.loads(diff(*paths, "--values", "--keys", "w", "--json").stdout)["changed"]
    assert (changed["drift"]["not_finite"], changed["drift"]["norm"]) == (2, 0.0)
    paths = [save(tmp_path / name, {"w": Net(x=t)}) for name, t in (("c", torch.zeros(4)), ("d", torch.ones(4)))]
    assert (
        json.loads(diff(*paths, "--values", "--keys", "w", "--json").stdout)["layers"][0]["drift"]["relative"] == "inf"
    )


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_diff_fits_into_the_terminal(run: Path, columns: int) -> None:
    """Bars and names take the width that there is, and figures are left out where there is little."""
    text = on_a_terminal(columns, run / "step=1.ckpt", run / "step=2.ckpt", "--values")
    lines = [STYLES.sub("", line) for line in text.splitlines()]
    assert max(map(len, lines)) <= columns
    assert any("█" in line for line in lines)
    assert any("norm" in line for line in lines) == (columns > 40)


def test_diff_is_plain_where_that_is_wanted(run: Path) -> None:
    """No styles in a pipe or with NO_COLOR, and number signs for bars where the encoding has no blocks."""
    arguments = (run / "step=1.ckpt", run / "step=2.ckpt", "--values")
    assert "\x1b" not in diff(*arguments).stdout
    assert "\x1b" in on_a_terminal(100, *arguments)
    assert "\x1b" not in on_a_terminal(100, *arguments, NO_COLOR="1")
    plain = diff(*arguments, PYTHONIOENCODING="ascii").stdout
    assert plain.isascii()
    assert "#" * 40 in plain


def test_diff_prints_a_document(run: Path) -> None:
    """``--json`` has all of it."""
    document: dict[str, Any] = json.loads(diff(run / "step=1.ckpt", run / "step=2.ckpt", "--json").stdout)
    assert document["schema"] == "safepoint.diff/1"
    assert document["differs"] is True
    assert document["a"] | {"size_bytes": 0, "time": 0} == {
        "path": str(run / "step=1.ckpt"),
        "format": "safepoint",
        "size_bytes": 0,
        "time": 0,
        "step": 1,
        "epoch": 0,
        "metrics": {"val_loss": 0.5},
    }
    assert document["changed"][0] == {
        "a": {"path": "model.body.1.weight", "dtype": "float32", "shape": [6, 6]},
        "b": {"path": "model.body.1.weight", "dtype": "float32", "shape": [6, 6]},
        "drift": None,
    }
    assert document["values"] == [{"path": "optimizer.param_groups.0.lr", "there": "both", "a": 0.1, "b": 0.01}]
    assert (document["same"], document["layers"], document["prefixes"]) == (2, None, None)


def bad(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield what is no checkpoint, with what is told of it."""
    yield directory / "nope.ckpt", "no such file or directory"
    (directory / "empty.ckpt").touch()
    yield directory / "empty.ckpt", "it is empty"
    (directory / "half.ckpt").write_bytes(b"PK\x03\x04 cut off")
    yield directory / "half.ckpt", "no whole zip archive"
    (directory / "text.ckpt").write_text("a text")
    yield directory / "text.ckpt", "no checkpoint of any kind"
    os.mkfifo(directory / "pipe.ckpt")
    yield directory / "pipe.ckpt", "not a regular file"


def test_diff_of_what_is_no_checkpoint_fails_in_one_line(run: Path, tmp_path: Path) -> None:
    """On either side: what it is, exit code 2, nothing on standard output, no traceback."""
    for turn, (path, message) in enumerate(bad(tmp_path)):
        result = diff(*((run / "step=1.ckpt", path) if turn % 2 else (path, run / "step=1.ckpt")))
        assert (result.returncode, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1
        assert f"{path}: " in result.stderr
        assert message in result.stderr


def test_diff_of_a_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    """What has to be read and is not there is named: the file, and the tensor."""
    weights = {f"{number}": torch.randn(64, 64) for number in range(4)}
    torch.save(weights, tmp_path / "w.pt")
    data = bytearray((tmp_path / "w.pt").read_bytes())
    (tmp_path / "v.pt").write_bytes(data)
    one, other = (formats.contents(tmp_path / name) for name in ("w.pt", "v.pt"))
    os.truncate(tmp_path / "v.pt", len(data) // 2)
    with pytest.raises(CheckpointError, match=r"v\.pt: tensor '\d' cannot be read: the file ends before it does"):
        comparison.compare(one, other, everything, unseen)


def test_diff_notices_that_a_file_was_replaced(pair: tuple[Path, Path]) -> None:
    """A running job may put a newer one in its place: what was read would be of both."""
    a, b = pair
    with pytest.raises(CheckpointError, match="was replaced or written to"), comparison.opened(a, b):
        os.replace(b, a)


def test_names_from_files_do_not_command_the_terminal(tmp_path: Path) -> None:
    """Terminal codes in names and values are written out."""
    state = {"\x1b[31mred\n": torch.zeros(3), "text": "\x1b[2J"}
    torch.save(state, tmp_path / "a.pt")
    torch.save({"\x1b[31mred\n": torch.ones(3), "text": "\x1b[3J"}, tmp_path / "b.pt")
    for options in ((), ("--values",), ("--all",)):
        result = diff(tmp_path / "a.pt", tmp_path / "b.pt", *options)
        assert result.returncode == 1
        assert "\x1b" not in result.stdout
        assert "\\x1b[31mred" in result.stdout
        assert "\\x1b[2J" in result.stdout


def test_diff_needs_neither_torch_nor_numpy_for_digests(run: Path) -> None:
    """It starts quickly: numpy is loaded when data is read, and torch never."""
    code = (
        "import sys\n"
        "from safepoint.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)\n"
    )
    for options, unwanted in (([], {"torch", "numpy", "rich.console"}), (["--values"], {"torch", "rich.console"})):
        arguments = [sys.executable, "-c", code, "diff", str(run / "step=1.ckpt"), str(run / "step=2.ckpt"), *options]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert "safepoint.difference" in done.stderr.split()
        assert unwanted.intersection(done.stderr.split()) == set()
