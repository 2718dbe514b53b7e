"""What the trainer loads through the drop-in's plugin: by Safepoint in one pass, or by the plugin that has to do it."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import NOT_EMPTY, OLD_TREESPEC, Framework, fit

import safepoint

pytestmark = OLD_TREESPEC


def source(framework: Framework, plugin: Any) -> Any:
    """Return the plugin that a trainer configured with ``plugin`` loads by while it has the drop-in."""
    strategy = SimpleNamespace(checkpoint_io=plugin)
    framework.ModelCheckpoint.framework.intercept(strategy)
    return strategy.checkpoint_io


def plugins(framework: Framework) -> tuple[Any, Any]:
    """Return the framework's own plugin, which notes in a list what it loads, and that list."""
    plugin = framework.pl.plugins.io.TorchCheckpointIO()
    loaded: list[str] = []
    load = plugin.load_checkpoint
    plugin.load_checkpoint = lambda path, *rest, **options: (
        loaded.append(Path(path).name) or load(path, *rest, **options)
    )
    return plugin, loaded


@pytest.fixture
def path(framework: Framework, tmp_path: Path) -> Path:
    """Return a checkpoint that the drop-in saved."""
    fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="a"), epochs=1)
    return tmp_path / "a.ckpt"


def damaged(path: Path) -> Path:
    """Flip a bit in the layer's weight."""
    weight = torch.load(path, weights_only=True)["state_dict"]["layer.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("options", [{}, {"map_location": None}, {"map_location": "meta"}, {"weights_only": True}])
def test_own_checkpoint_is_loaded_in_one_pass(framework: Framework, path: Path, options: dict[str, Any]) -> None:
    """The framework's own plugin is not asked to read again what was verified; what comes is what it would return."""
    plugin, loaded = plugins(framework)
    found = source(framework, plugin).load_checkpoint(path, **options)
    assert loaded == []
    expected = plugin.load_checkpoint(path, **options)
    assert found.keys() == expected.keys()
    here, there = (state["state_dict"]["layer.weight"] for state in (found, expected))
    assert here.device == there.device
    assert here.device.type == "meta" or torch.equal(here, there)


def test_own_checkpoint_is_loaded_by_its_plugin_if_that_is_the_users(framework: Framework, path: Path) -> None:
    """A plugin of the user's is asked, after verification, with all that the trainer passes."""
    seen: list[Any] = []

    class Users(framework.pl.plugins.io.TorchCheckpointIO):  # type: ignore[misc,name-defined]
        def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> Any:
            seen.append(options)
            return super().load_checkpoint(path, *arguments, **options)

    assert "state_dict" in source(framework, Users()).load_checkpoint(path, weights_only=True)
    assert seen == [{"weights_only": True}]
    with pytest.raises(safepoint.DamagedCheckpointError, match=r"layer\.weight"):
        source(framework, Users()).load_checkpoint(damaged(path))
    assert len(seen) == 1


def test_damaged_checkpoint_is_not_loaded_in_one_pass_either(framework: Framework, path: Path) -> None:
    """Nothing of a damaged checkpoint is returned."""
    plugin, loaded = plugins(framework)
    with pytest.raises(safepoint.DamagedCheckpointError, match=r"layer\.weight"):
        source(framework, plugin).load_checkpoint(damaged(path))
    assert loaded == []


def test_checkpoint_of_another_program_is_left_to_the_plugin(framework: Framework, tmp_path: Path) -> None:
    """What has no manifest is loaded as before."""
    plugin, loaded = plugins(framework)
    torch.save({"a": 1}, tmp_path / "b.ckpt")
    assert source(framework, plugin).load_checkpoint(tmp_path / "b.ckpt") == {"a": 1}
    assert loaded == ["b.ckpt"]


@pytest.mark.filterwarnings("ignore:the state needs:RuntimeWarning")  # as said when it is saved
def test_class_that_may_not_be_loaded_is_refused_as_by_the_plugin(framework: Framework, tmp_path: Path) -> None:
    """The unpickler's own error comes out, which its users know, and weights_only=False loads the class."""
    state = {"notes": {"path": Path("x")}}
    with safepoint.Checkpointer(
        tmp_path, state=state, save=safepoint.when.train_end(), keep=safepoint.keep.all()
    ) as checkpointer:
        path = checkpointer.save()
    plugin, _ = plugins(framework)
    with pytest.raises(pickle.UnpicklingError, match="pathlib"):
        source(framework, plugin).load_checkpoint(path)
    assert source(framework, plugin).load_checkpoint(path, weights_only=False)["notes"] == {"path": Path("x")}


@NOT_EMPTY
def test_resumed_fit_goes_on_from_the_loaded_checkpoint(framework: Framework, path: Path) -> None:
    """``fit(ckpt_path=...)`` by the one pass resumes at the epoch and step that were saved."""
    callback = framework.ModelCheckpoint(dirpath=path.parent, filename="b")
    resumed = fit(framework, callback, epochs=2, ckpt_path=path)
    assert resumed.global_step == 4
