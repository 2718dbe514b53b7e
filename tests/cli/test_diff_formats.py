"""Checkpoints of different kinds beside each other: whatever wrote them, the same tensors are the same."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import of_trainer
from models import FRAMEWORKS, OLD_TREESPEC, fit
from nets import save
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp

from safepoint import comparison, formats
from safepoint.comparison import Comparison
from safepoint.difference import everything
from safepoint.pairing import Pair

COMMAND = [sys.executable, "-c", "from safepoint.cli import main; main()"]


def compared(a: Path, b: Path) -> Comparison:
    """Return how ``b`` differs from ``a``."""
    return comparison.compare(formats.contents(a), formats.contents(b), everything)


def model(seed: int = 0) -> torch.nn.Sequential:
    """Return a small model whose weights follow from the seed."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Embedding(7, 4))


def written(directory: Path, module: torch.nn.Module) -> dict[str, Path]:
    """Return the same weights in a file of each kind, by its kind."""
    directory.mkdir()
    state = module.state_dict()
    paths = {name: directory / name for name in ("weights.pt", "whole.pt", "model.safetensors", "dcp")}
    torch.save(state, paths["weights.pt"])
    torch.save({"epoch": 1, "model": state}, paths["whole.pt"])
    save_file(dict(state), paths["model.safetensors"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks that there is one process
        dcp.save({"model": dict(state)}, checkpoint_id=paths["dcp"], no_dist=True)
    return {"safepoint": save(directory / "own", {"model": module}), **paths}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return files of each kind: of one model, and of another."""
    directory = tmp_path_factory.mktemp("kinds")
    one, other = (written(directory / str(seed), model(seed)) for seed in range(2))
    return {kind: (one[kind], other[kind]) for kind in one}


KINDS = ("safepoint", "weights.pt", "whole.pt", "model.safetensors", "dcp")


@pytest.mark.parametrize("b", KINDS)
@pytest.mark.parametrize("a", KINDS)
def test_diff_across_kinds(kinds: dict[str, tuple[Path, Path]], a: str, b: str) -> None:
    """The same weights are the same, other ones changed, whatever their names begin with."""
    found = compared(kinds[a][0], kinds[b][0]).tensors
    assert len(weights(found.same)) == 8
    assert (found.changed, found.reshaped, found.moved, found.uncompared) == ((), (), (), ())
    assert {tensor.path for tensor in (*found.added, *found.removed)} <= {"safepoint.rng.torch"}
    is_deeper = {kind: kind in {"safepoint", "whole.pt", "dcp"} for kind in KINDS}
    prefixes = tuple("model." if is_deeper[kind] else "" for kind in (a, b))
    assert found.prefixes == (prefixes if is_deeper[a] != is_deeper[b] else None)
    found = compared(kinds[a][0], kinds[b][1]).tensors
    assert weights(found.changed) == {"0.weight", "0.bias", "2.weight"}
    assert len(weights(found.same)) == 5  # what every fresh norm has


def weights(pairs: Iterable[Pair]) -> set[str]:
    """Return the names of the model's own tensors among ``pairs``."""
    return {pair.a.path.removeprefix("model.") for pair in pairs} - {"safepoint.rng.torch"}


@OLD_TREESPEC
def test_diff_of_lightnings_file_and_the_drop_ins(tmp_path: Path) -> None:
    """One training saved by either: the same tensors; only what names the files, and what is ours alone, differs."""
    framework = FRAMEWORKS[0]
    for name, kind in (("theirs", framework.original), ("ours", framework.ModelCheckpoint)):
        fit(framework, kind(tmp_path / name, save_top_k=-1), epochs=2)
    theirs, ours = (tmp_path / name / "epoch=1-step=4.ckpt" for name in ("theirs", "ours"))
    found = compared(theirs, ours)
    assert len(found.tensors.same) == 9
    assert (found.tensors.changed, found.tensors.removed) == ((), ())
    assert {tensor.path.partition(".")[0] for tensor in found.tensors.added} == {"safepoint_resume"}
    assert {leaf.path.partition(".")[0] for leaf in found.values or ()} == {"callbacks", "safepoint_resume"}
    assert found.hyperparameters == ()
    earlier = compared(tmp_path / "theirs" / "epoch=0-step=2.ckpt", ours)
    assert {pair.a.path.partition(".")[0] for pair in earlier.tensors.changed} == {"state_dict", "optimizer_states"}
    assert ("epoch", 0, 1) in [tuple(leaf) for leaf in earlier.values or ()]


def test_diff_of_the_trainers_checkpoints(tmp_path: Path) -> None:
    """Directories are compared as files are, with all that is in theirs; a directory of a run is none."""
    run = of_trainer(tmp_path)
    two, four = run / "checkpoint-2", run / "checkpoint-4"
    found = compared(two, four)
    assert "model.weight" in {pair.a.path for pair in found.tensors.changed}
    assert (found.a.outline.step, found.b.outline.step) == (2, 4)
    assert not compared(two, two)
    alone = compared(two, two / "model.safetensors").tensors
    assert [(pair.a.path, pair.b.path) for pair in alone.same] == [("model.weight", "weight")]
    result = subprocess.run([*COMMAND, "diff", str(run), str(two)], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


@OLD_TREESPEC
def test_hyperparameters_are_told_once(tmp_path: Path) -> None:
    """What a module was made with is a section of its own, and not among the other values again."""
    framework = FRAMEWORKS[0]
    for name, losses in (("a", (1.0, 0.5)), ("b", (1.0, 0.25))):
        callback = framework.ModelCheckpoint(tmp_path / name, filename="x")
        fit(framework, callback, metrics={"val_loss": losses}, epochs=2)
    found = compared(tmp_path / "a" / "x.ckpt", tmp_path / "b" / "x.ckpt")
    assert [tuple(leaf) for leaf in found.hyperparameters] == [("metrics.val_loss", (1.0, 0.5), (1.0, 0.25))]
    assert not [leaf for leaf in found.values or () if "hyper_parameters" in leaf.path]


def test_diff_says_what_was_taken_for_the_same(kinds: dict[str, tuple[Path, Path]]) -> None:
    """One line tells the beginnings; that one of the two has no other values is told, too."""
    command = [*COMMAND, "diff", str(kinds["weights.pt"][0]), str(kinds["safepoint"][0])]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    assert lines[3] == "paths: * of A is compared with model.* of B"
    assert lines[-1] == "values: not compared, as one of the two has none"


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning", "ignore:.*beta state:UserWarning")
def test_tensors_that_are_made_of_others_are_compared_by_them(tmp_path: Path) -> None:
    """Sparse tensors and meta tensors; what nothing tells of is not called the same: exit code 2."""
    state: dict[str, Any] = {
        "sparse": torch.eye(4).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "plain": torch.ones(2),
    }
    torch.save(state, tmp_path / "a.pt")
    torch.save({**state, "sparse": (2 * torch.eye(4)).to_sparse()}, tmp_path / "b.pt")
    assert not compared(tmp_path / "a.pt", tmp_path / "a.pt")
    found = compared(tmp_path / "a.pt", tmp_path / "b.pt").tensors
    assert [pair.a.path for pair in found.changed] == ["sparse.values"]
    state["conjugate"] = torch.ones(2, dtype=torch.complex64).conj()
    for name in ("c.pt", "d.pt"):
        torch.save(state, tmp_path / name)
    command = [*COMMAND, "diff", str(tmp_path / "c.pt"), str(tmp_path / "d.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not compared  conjugate  conj: " in done.stdout
    assert done.stderr == "safepoint: what is not compared may differ: nothing that can be read tells.\n"


def test_big_endian_file_holds_the_same(tmp_path: Path) -> None:
    """A file from a machine of the other byte order is compared by its numbers."""
    weights = {"w": torch.arange(12.0).reshape(3, 4), "n": torch.arange(5), "c": torch.tensor([1 + 2j])}
    torch.save(weights, tmp_path / "little.pt")
    swapped = {name: _swapped(tensor) for name, tensor in weights.items()}
    torch.save(swapped, tmp_path / "big.pt")
    with zipfile.ZipFile(tmp_path / "big.pt") as source, zipfile.ZipFile(tmp_path / "from-big.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    found = compared(tmp_path / "little.pt", tmp_path / "from-big.pt").tensors
    assert sorted(pair.a.path for pair in found.same) == ["c", "n", "w"]


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose bytes are those of ``tensor`` in the other order."""
    numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    size = numbers.dtype.itemsize
    turned = numbers.contiguous().view(torch.uint8).reshape(-1, size).flip(1).contiguous()
    return turned.reshape(-1).view(tensor.dtype).reshape(tensor.shape)


def test_document_tells_prefixes(kinds: dict[str, tuple[Path, Path]]) -> None:
    """The beginnings stand in the document, and which kind each is."""
    command = [*COMMAND, "diff", "--json", str(kinds["model.safetensors"][0]), str(kinds["whole.pt"][1])]
    document = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert document["prefixes"] == ["", "model."]
    assert (document["a"]["format"], document["b"]["format"]) == ("safetensors", "torch")
    assert document["values"] is None
