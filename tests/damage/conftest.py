"""What the tests of damage share: checkpoints that are small, and yet have something of everything."""

from __future__ import annotations

import pytest
import torch
from spoil import Sample

from safepoint import Checkpointer, keep, when


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Return a small checkpoint: two tensors on one storage, two alone, an empty one, random state."""
    shared = torch.arange(6.0)
    tensors = {"a": shared[:4], "b": shared[2:], "alone": torch.arange(3), "half": torch.ones(5).bfloat16()}
    return _saved(tmp_path_factory, {"model": {**tensors, "empty": torch.zeros(0)}})


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Return a checkpoint whose pickle, manifest, directory and tensors are all longer than a block."""
    state = {f"tensor {key}": torch.arange(700) + key for key in range(45)}
    return _saved(tmp_path_factory, {"model": state, "other": {"words": list(map(str, range(2000)))}})


def _saved(factory: pytest.TempPathFactory, state: dict[str, object]) -> Sample:
    directory = factory.mktemp("sound")
    with Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        checkpointer.step(loss=0.5)
    (path,) = directory.glob("*.ckpt")
    return Sample.of(path)
