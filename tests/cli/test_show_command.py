"""``safepoint show``: all that one checkpoint is, of each format that is one file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from commands import on_terminal, safepoint
from loop import best_and_latest
from models import FRAMEWORKS, OLD_TREESPEC, VAL_LOSSES, fit
from nets import flip, save
from safetensors.torch import save_file
from torch import nn

from safepoint import Checkpointer, keep, reader, when
from safepoint.cli.columns import cells
from safepoint.cli.documents import Show


class Stream(torch.utils.data.IterableDataset[int]):
    """Tells no position."""

    def __iter__(self) -> Iterator[int]:
        yield from range(3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a directory in which a run kept its best and its latest of four checkpoints."""
    return best_and_latest(tmp_path / "run")


def head(path: Path) -> dict[str, str]:
    """Return what is said of the checkpoint as a whole, by label."""
    result = safepoint("show", path)
    assert (result.returncode, result.stderr) == (0, "")
    first, *lines = result.stdout.split("\n\n")[0].splitlines()
    assert first == str(path)
    found: dict[str, str] = {}
    label = ""
    for line in lines:
        begins, told = re.fullmatch(r"(\S[a-z ]*?)?  +(.*)", line).groups()  # type: ignore[union-attr]
        label = begins or label
        found[label] = f"{found[label]}; {told}" if label in found else told
    return found


def tree(path: Path, *options: object) -> list[str]:
    """Return the lines of the tree."""
    return safepoint("show", path, *options).stdout.split("\n\n")[-1].splitlines()


def document(path: Path) -> Show:
    """Return the document."""
    return msgspec.json.decode(safepoint("show", "--json", path).stdout, type=Show)


def test_show_tells_of_a_checkpoint_as_a_whole(run: Path) -> None:
    """When and why it was saved, why it is kept, what it holds, who wrote it, what its save cost."""
    path = run / "epoch=1-step=2.ckpt"
    found = head(path)
    manifest = reader.read_manifest(path)
    assert found["format"] == "Safepoint"
    assert (found["step"], found["epoch"], found["run"]) == ("2", "1", manifest.run)
    assert "val_loss 0.25" in found["metrics"]
    assert found["why saved"] == ", ".join(manifest.reasons)
    assert found["kept"] == "best by val_loss (0.25)"
    assert found["goes on"] == "at step 2, epoch 2, batch 0"
    assert found["holds"].startswith("model: 25 parameters, 100 bytes in 4 tensors; optimizer: 216 bytes in 12 tensors")
    assert found["written by"].startswith("safepoint ")
    assert f"torch {torch.__version__}" in found["written by"]
    assert found["its save"].startswith("training held up ")
    assert "GB/s" in found["its save"]


def test_show_tells_no_cost_of_the_newest(run: Path) -> None:
    """A file cannot say how long its own writing took."""
    assert "its save" not in head(run / "epoch=3-step=4.ckpt")


def test_show_says_what_would_become_of_a_copy(run: Path) -> None:
    """A copy is nobody's to remove; a second name of the same file is told."""
    (run / "mine.ckpt").write_bytes((run / "epoch=1-step=2.ckpt").read_bytes())
    (run / "second.ckpt").hardlink_to(run / "mine.ckpt")
    found = head(run / "mine.ckpt")
    assert found["kept"] == "copied, renamed, or counted no more: no policy touches it"
    assert found["size"].endswith("the file has 2 names")


@pytest.mark.filterwarnings("ignore:a run that is resumed will not go on exactly:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*holds NaN:RuntimeWarning")
def test_show_tells_of_pins_exceptions_and_what_was_left_out(tmp_path: Path) -> None:
    """Pinned, saved at an exception with its flaw, entries that do not go on exactly, frozen parameters left out."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    state = {"model": model, "loader": torch.utils.data.DataLoader(Stream())}
    kept = keep.latest() | keep.pinned()
    checkpointer = Checkpointer(tmp_path, state=state, save=when.exception(), keep=kept, exclude_frozen=True)
    with pytest.raises(RuntimeError), checkpointer:
        pinned = checkpointer.save(pinned=True)
        model[1].weight.data.fill_(math.nan)
        checkpointer.step()
        raise RuntimeError
    assert head(pinned)["kept"] == "pinned"
    (newest,) = set(tmp_path.glob("*.ckpt")) - {pinned}
    found = head(newest)
    assert found["left out"] == "2 frozen tensors: model.0.weight, model.0.bias"
    assert found["inexact"] == f"loader: {reader.read_manifest(newest).inexact['loader']}"
    assert found["emergency"] == "saved at an exception: RuntimeError"
    assert found["kept"].endswith("; not gone on from: model.1.weight holds NaN")
    told = document(newest).run
    assert told is not None
    assert (told.emergency, told.flaw, set(told.excluded)) == (
        "RuntimeError",
        "model.1.weight holds NaN",
        {"model.0.weight", "model.0.bias"},
    )


def test_show_draws_the_state(run: Path) -> None:
    """Containers, tensors with dtype, shape, bytes and digest, and plain values."""
    path = run / "epoch=1-step=2.ckpt"
    lines = tree(path)
    manifest = reader.read_manifest(path)
    (weight,) = (tensor for tensor in manifest.tensors if tensor.path == "model.0.weight")
    digest = manifest.storages[weight.storage].digest[:8]
    assert lines[0].split() == ["dtype", "shape", "elements", "size", "digest"]
    assert lines[1].split() == ["model", "float32", "4", "tensors", "25", "100", "bytes"]
    assert lines[3].split() == ["│", "├", "weight", "float32", "[4,", "4]", "16", "64", "bytes", digest]
    assert any(line.endswith("├ lr: 0.01") for line in lines)
    assert any(line.endswith("└ params: [0, 1, 2, 3]") for line in lines)


def test_show_goes_as_deep_as_asked_for(run: Path) -> None:
    """``--depth 1`` shows the entries of the state alone."""
    lines = tree(run / "epoch=1-step=2.ckpt", "--depth", 1)
    assert [line.split()[0] for line in lines[1:]] == ["model", "optimizer", "safepoint"]
    assert safepoint("show", run / "epoch=1-step=2.ckpt", "--depth", 0).returncode == 2


def layers(count: int) -> nn.Module:
    """Return a model of equal layers."""
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(count))})


def test_show_folds_equal_layers_unless_all_are_asked_for(tmp_path: Path) -> None:
    """Thirty layers are one, ``--full`` shows each; a container that is too long is cut, and says so."""
    path = save(tmp_path, {"model": layers(30)})
    (folded,) = (line for line in tree(path) if "0-29" in line)
    assert folded.split()[:7] == ["└", "0-29", "(30", "the", "same)", "float32", "60"]
    assert sum("weight" in line for line in tree(path)) == 1
    assert sum("weight" in line for line in tree(path, "--full")) == 30
    torch.save({f"w{chr(97 + index % 26)}{chr(97 + index // 26)}": torch.ones(2) for index in range(150)}, path)
    assert len(tree(path)) == 102
    assert tree(path)[-1] == "... and 50 more: --full shows them"
    assert len(tree(path, "--full")) == 151


def test_show_counts_tied_parameters_once(tmp_path: Path) -> None:
    """What two names have is counted once, and the second names the first."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    path = save(tmp_path, {"model": model})
    assert head(path)["holds"].startswith("model: 16 parameters, 64 bytes in 2 tensors")
    assert any("weight (the same as model.0.weight)" in line for line in tree(path))


def test_show_tells_of_a_file_of_torchs(tmp_path: Path) -> None:
    """Step, epoch and metrics as far as they can be told, CRC-32s for digests, hyperparameters as a tree."""
    path = tmp_path / "state.pt"
    torch.save(
        {
            "state_dict": nn.Linear(3, 2).state_dict(),
            "optimizer": torch.optim.SGD([torch.ones(3)], lr=0.5).state_dict(),
            "epoch": 4,
            "step": 40,
            "loss": 0.5,
            "hparams": {"lr": 0.5, "betas": [0.9, 0.99], "net": {"width": 3, "act": "relu"}},
        },
        path,
    )
    found = head(path)
    assert (found["format"], found["step"], found["epoch"], found["metrics"]) == ("torch.save", "40", "4", "loss 0.5")
    assert found["holds"] == "state_dict: 8 parameters, 32 bytes in 2 tensors"
    assert not {"run", "kept", "why saved", "saved", "written by"} & found.keys()
    _, parameters, _ = safepoint("show", path).stdout.split("\n\n")
    assert parameters.splitlines() == [
        "hyperparameters",
        "lr: 0.5",
        "betas: [0.9, 0.99]",
        "net",
        "├ width: 3",
        "└ act: 'relu'",
    ]
    assert any("crc " in line for line in tree(path))


@OLD_TREESPEC
def test_show_tells_of_lightnings_file(tmp_path: Path) -> None:
    """Lightning's own checkpoint: its version, its monitored metric, and hyperparameters."""
    arguments: dict[str, Any] = {"monitor": "val_loss", "filename": "{epoch}", "save_top_k": 1}
    fit(FRAMEWORKS[0], FRAMEWORKS[0].original(tmp_path, **arguments))
    (path,) = tmp_path.glob("*.ckpt")
    found = head(path)
    assert found["format"] == "Lightning"
    assert f"val_loss {min(VAL_LOSSES):.4g}" in found["metrics"]
    assert found["written by"].startswith("lightning ")
    assert found["holds"].startswith("state_dict: 15 parameters")
    assert "hyperparameters\nmetrics\n└ val_loss: " in safepoint("show", path).stdout
    assert any("state_dict" in line for line in tree(path))


def test_show_tells_of_safetensors(tmp_path: Path) -> None:
    """A flat file of names is shown as the tree that the names make."""
    path = tmp_path / "model.safetensors"
    save_file({f"encoder.{index}.weight": torch.zeros(2, 3) for index in range(4)}, path)
    assert head(path)["holds"] == "weights: 24 parameters, 96 bytes in 4 tensors"
    assert [line.split()[:3] for line in tree(path)[1:]] == [
        ["encoder", "float32", "4"],
        ["└", "0-3", "(4"],
        ["└", "weight", "float32"],
    ]


def test_show_json_tells_of_every_tensor(run: Path) -> None:
    """Path, dtype, shape, size, digest and place of each; the record of the run; the values of the state."""
    path = run / "epoch=1-step=2.ckpt"
    found, manifest = document(path), reader.read_manifest(path)
    assert (found.path, found.format, found.step, found.epoch) == (str(path), "safepoint", 2, 1)
    assert found.metrics["val_loss"] == 0.25
    assert [tensor.path for tensor in found.tensors] == [tensor.path for tensor in manifest.tensors]
    assert [tensor.digest for tensor in found.tensors] == [
        manifest.storages[tensor.storage].digest for tensor in manifest.tensors
    ]
    state = torch.load(path)
    for tensor in found.tensors[:4]:
        live = state["model"][tensor.path.removeprefix("model.")]
        assert tensor.offset is not None
        raw = path.read_bytes()[tensor.offset : tensor.offset + tensor.size_bytes]
        assert raw == live.numpy().tobytes()
    assert found.run is not None
    assert (found.run.run, found.run.kept, found.run.why) == (manifest.run, True, "best by val_loss (0.25)")
    assert found.run.stats is not None
    assert found.run.stats.committed_s > 0
    assert [(entry.name, entry.parameters) for entry in found.entries[:2]] == [("model", 25), ("optimizer", 0)]
    assert found.values["optimizer.param_groups.0.lr"] == 0.01
    assert found.values["optimizer.param_groups.0.betas"] == [0.9, 0.999]


def test_show_json_holds_what_json_has_nothing_for(tmp_path: Path) -> None:
    """Infinities, objects, numbers beyond 64 bits, keys that are no text, names that are no Unicode."""
    path = tmp_path / os.fsdecode(b"\xff.pt")
    values = {"inf": math.inf, "dtype": torch.float32, "long": 2**80, 3: "three", "path\udcff": b"bytes", "none": None}
    torch.save({"hparams": {"lr": math.nan}, "values": values, "weight": torch.ones(2)}, path)
    found = json.loads(safepoint("show", "--json", path).stdout)
    assert found["path"] == str(path)
    values = {name: value for name, value in found["values"].items() if name.startswith("values.")}
    assert found["hyperparameters"] == {"lr": "nan"}
    assert values == {
        "values.inf": "inf",
        "values.dtype": "<torch.float32>",
        "values.long": "1208925819614629174706176",
        "values.3": "three",
        "values.path\\udcff": "5 bytes",
        "values.none": None,
    }


@pytest.mark.parametrize("columns", [24, 40, 80, 200])
def test_show_fits_into_the_terminal(run: Path, columns: int) -> None:
    """No line is wider than the terminal, whatever there is to tell; the first names the file, as it is."""
    code, text = on_terminal("show", run / "epoch=1-step=2.ckpt", columns=columns, NO_COLOR="1")
    assert code == 0
    assert "\x1b" not in text
    assert max(map(cells, text.splitlines()[1:])) <= columns
    assert "lr: 0.01" in text


def test_show_is_styled_on_a_terminal_alone(run: Path) -> None:
    """Headings are bold on a terminal; piped, all is plain text."""
    path = run / "epoch=1-step=2.ckpt"
    assert "\x1b[1m" in on_terminal("show", path)[1]
    assert "\x1b" not in on_terminal("show", path, NO_COLOR="1")[1]
    assert "\x1b" not in safepoint("show", path).stdout


def test_show_draws_with_what_the_terminal_has(run: Path) -> None:
    """Where lines cannot be drawn, the tree is indented."""
    result = safepoint("show", run / "epoch=1-step=2.ckpt", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert result.stdout.isascii()
    assert "\n    weight " in result.stdout


def test_show_writes_out_what_a_terminal_would_obey(tmp_path: Path) -> None:
    """Keys, values, metrics and names of tensors come from a file that anybody may have made."""
    path = tmp_path / "\x1b[2J.pt"
    codes = "\x1b[31mred\x07\n\x9b2J\u202e"
    torch.save({codes: {codes: torch.ones(2)}, "hparams": {codes: codes}, "metrics": {codes: 0.5}}, path)
    result = safepoint("show", path)
    assert result.returncode == 0
    assert "".join(result.stdout.splitlines()).isprintable()
    assert "\\x1b[31mred" in result.stdout


def test_show_of_what_is_no_checkpoint_fails_in_one_line(run: Path, tmp_path: Path) -> None:
    """A missing path, another kind of file, one that is cut off, a directory of several: 2, and what to do."""
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "half.ckpt").write_bytes((run / "epoch=1-step=2.ckpt").read_bytes()[:5000])
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path / "nope.ckpt", "no such file"),
        (tmp_path / "notes.txt", "no checkpoint"),
        (tmp_path / "half.ckpt", "cut off"),
        (tmp_path / "pipe", "not a regular file"),
        (run, f"'safepoint ls {run}'"),
    ):
        result = safepoint("show", path)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert told in result.stderr


def test_show_tells_what_it_can_of_a_damaged_checkpoint(run: Path) -> None:
    """A damaged tensor is not read, and so is shown; whether it is sound is for ``verify`` to say."""
    path = run / "epoch=1-step=2.ckpt"
    flip(path, "model.0.weight")
    assert safepoint("show", path).returncode == 0
