"""Lightning's checkpoints, and Safepoint's own: what their states tell beside the tensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import files
import kinds
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from models import FRAMEWORKS, OLD_TREESPEC, VAL_LOSSES, Framework, fit
from nets import flip, save
from torch import nn

from safepoint import formats, manifest, reader
from safepoint.contents import Format, Opaque, Tensor
from safepoint.errors import DamagedCheckpointError, NotACheckpointError

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
ARGUMENTS: dict[str, Any] = {"monitor": "val_loss", "filename": "{epoch}", "save_top_k": 2, "save_last": True}


@OLD_TREESPEC
@every_framework
def test_lightning_file_tells_what_its_state_does(tmp_path: Path, framework: Framework) -> None:
    """Step, epoch, the monitored metric of its own epoch, hyperparameters and Lightning's version."""
    fit(framework, framework.original(tmp_path, **ARGUMENTS))
    path = tmp_path / "epoch=3.ckpt"
    found = formats.contents(path)
    outline = found.outline
    assert outline == formats.outline(path)
    assert formats.format_of(path) is Format.LIGHTNING
    assert (outline.step, outline.epoch) == (8, 3)
    assert outline.metrics == pytest.approx({"val_loss": VAL_LOSSES[3]})
    assert found.hyperparameters == {"metrics": {"val_loss": VAL_LOSSES}}
    assert found.producer == {"lightning": framework.pl.__version__}
    state = torch.load(path)
    assert list(found.tree) == list(state)
    assert found.tree["loops"] == state["loops"]
    assert [tensor.path for tensor in found.tensors][:2] == ["state_dict.layer.weight", "state_dict.layer.bias"]


@OLD_TREESPEC
def test_lightning_file_has_no_metric_that_may_be_anothers(tmp_path: Path) -> None:
    """``last.ckpt`` may have been saved after the last metric that the callback took; a renamed file keeps its own."""
    framework = FRAMEWORKS[0]
    fit(framework, framework.original(tmp_path, **ARGUMENTS))
    assert formats.outline(tmp_path / "last.ckpt").step == 12
    assert formats.outline(tmp_path / "last.ckpt").metrics == {}
    renamed = (tmp_path / "epoch=3.ckpt").rename(tmp_path / "good.ckpt")
    assert formats.outline(renamed).metrics == pytest.approx({"val_loss": VAL_LOSSES[3]})


@OLD_TREESPEC
def test_lightning_file_has_the_metric_of_the_callback_that_saved_it(tmp_path: Path) -> None:
    """What another callback saw last may be of another epoch; of a file of both, both count."""
    framework = FRAMEWORKS[0]
    arguments = {"filename": "{epoch}", "save_top_k": 1}
    best = framework.original(tmp_path / "a", monitor="val_loss", **arguments)
    other = framework.original(tmp_path / "b", monitor="score", mode="max", **arguments)
    scores = {"val_loss": VAL_LOSSES, "score": (0.5, 0.25, 0.125, 0.25, 0.75, 0.25)}
    fit(framework, best, other, metrics=scores)
    assert formats.outline(tmp_path / "a" / "epoch=3.ckpt").metrics == pytest.approx({"val_loss": VAL_LOSSES[3]})
    assert formats.outline(tmp_path / "b" / "epoch=4.ckpt").metrics == pytest.approx({"score": 0.75})


def test_hyperparameters_of_lightnings_own_classes_are_plain(tmp_path: Path) -> None:
    """An AttributeDict, and a namespace in it, come out as dictionaries; those of a data module are among them."""
    path = tmp_path / "a.ckpt"
    parameters = AttributeDict(lr=0.1, model=argparse.Namespace(width=3, layers=[AttributeDict(size=2)]))
    state = {"pytorch-lightning_version": "2.6.6", "hyper_parameters": parameters}
    torch.save({**state, "datamodule_hyper_parameters": {"batch_size": 8, "lr": 5}}, path)
    expected = {"batch_size": 8, "lr": 0.1, "model": {"width": 3, "layers": [{"size": 2}]}}
    assert formats.contents(path).hyperparameters == expected


@OLD_TREESPEC
@every_framework
def test_file_of_the_drop_in_is_safepoints_with_lightnings_state(tmp_path: Path, framework: Framework) -> None:
    """The format is Safepoint's, and the hyperparameters are there."""
    fit(framework, framework.ModelCheckpoint(tmp_path, **ARGUMENTS))
    path = tmp_path / "epoch=3.ckpt"
    found = formats.contents(path)
    assert found.outline.format is Format.SAFEPOINT
    assert found.outline == formats.outline(path)
    assert found.hyperparameters == {"metrics": {"val_loss": VAL_LOSSES}}
    assert found.tree["global_step"] == 8
    assert found.tree["state_dict"]["layer.weight"] == found.tensors[0]


class Everything:
    """Has tensors and objects of every kind in its state."""

    def state_dict(self) -> dict[str, Any]:
        """Return them, and some below keys that are no text."""
        state = {name: kinds.made(name) for name in (*kinds.TENSORS, *kinds.OBJECTS)}
        return {**state, "keyed": {kinds.Colour.RED: torch.ones(5), torch.float32: torch.ones(6)}}

    def load_state_dict(self, _: Any) -> None:
        """Take nothing."""


def test_safepoint_file_has_its_state_for_a_tree(tmp_path: Path) -> None:
    """The tree is the state, with the storages and digests of the manifest; plain values are there."""
    model = nn.Linear(2, 3)
    path = save(tmp_path, {"model": model, "notes": {"lr": [0.1, 0.2], "by layer": {(1, "a"): 5}}})
    found = formats.contents(path)
    assert found.tree["notes"] == {"lr": [0.1, 0.2], "by layer": {(1, "a"): 5}}
    assert found.tree["model"] == {tensor.path.removeprefix("model."): tensor for tensor in found.tensors[:2]}
    told = reader.read_manifest(path).tensors
    assert [tensor.path for tensor in found.tensors] == [tensor.path for tensor in told]
    assert all(tensor.parts[0].storage.digest for tensor in found.tensors)


def test_safepoint_file_of_every_kind_lists_what_its_manifest_names(tmp_path: Path) -> None:
    """Every tensor of the manifest is there once, and beside them those that it does not tell of."""
    with pytest.warns(RuntimeWarning, match="weights_only"):
        path = save(tmp_path, {"all": Everything()})
    found = formats.contents(path)
    paths = [tensor.path for tensor in found.tensors]
    told = [tensor.path for tensor in reader.read_manifest(path).tensors]
    assert len(paths) == len(set(paths))
    assert [path for path in paths if path in told] == told
    assert {"all.keyed.Colour.RED", "all.keyed.torch.float32", "all.sparse COO.values"} <= set(paths)
    assert found.tree["all"]["enumeration"] == Opaque("kinds.Colour(1)")
    assert isinstance(found.tree["all"]["meta"], Tensor)


def test_safepoint_file_with_an_absurd_shape_is_refused(tmp_path: Path) -> None:
    """A manifest may say anything of a shape; nobody counts the elements of a million dimensions."""
    path = tmp_path / "a.ckpt"
    told = manifest.Tensor("a", "float32", (2,) * 1_000_000, 0)
    files.write(path, files.manifest(storages=(manifest.Blob(4, "0" * 32),), tensors=(told,)), (4,))
    with pytest.raises(NotACheckpointError, match="absurdly many dimensions"):
        formats.contents(path)


def test_safepoint_file_with_a_damaged_structure_says_so(tmp_path: Path) -> None:
    """A pickle that does not match its digest is not walked through."""
    path = save(tmp_path, {"model": nn.Linear(2, 3)})
    flip(path, "pickle")
    assert formats.outline(path).format is Format.SAFEPOINT
    with pytest.raises(DamagedCheckpointError, match=f"^{path}: .*structure.*Take another"):
        formats.contents(path)
