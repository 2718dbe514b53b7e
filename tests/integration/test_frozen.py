"""Frozen parameters: not copied again, not written again where blocks can be shared, and never wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from file_systems import SHARING, mounted
from invariants import whole_checkpoints

from safepoint import Checkpointer, SaveError, keep, load, transfer, when

NEVER = when.at(steps=[10**9])
WIDTH = 256
BACKBONE_BYTES = 4 * WIDTH * WIDTH
MODES = pytest.mark.parametrize("staging", ["copy", "deferred"])


class Adapted:
    """A frozen layer with a trained one behind it, saved where told."""

    def __init__(self, directory: Path, staging: Any) -> None:
        self.model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(WIDTH, WIDTH), "head": torch.nn.Linear(WIDTH, 2)})
        self.backbone.weight.requires_grad_(requires_grad=False)
        self.optimizer = torch.optim.SGD([*self.model["head"].parameters(), self.backbone.bias], lr=0.1)
        state = {"model": self.model, "optimizer": self.optimizer}
        # One image: what it holds is what the save before has left in it.
        self.saver = Checkpointer(directory, state=state, save=NEVER, keep=keep.all(), staging=staging, max_images=1)

    @property
    def backbone(self) -> Any:
        """The frozen layer."""
        return self.model["backbone"]

    def save(self) -> Path:
        """Train a step and save; return when that is durable."""
        self.model["head"](self.backbone(torch.randn(4, WIDTH))).square().mean().backward()
        self.optimizer.step()
        self.saver.step()
        path = self.saver.save()
        self.saver.wait()
        return path

    def weight_in(self, path: Path) -> torch.Tensor:
        """Return the frozen weight as the checkpoint has it."""
        weight: torch.Tensor = load(path)["model"]["backbone.weight"]
        return weight


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the size of every storage that is copied at once, or in the background."""
    sizes: list[int] = []
    real = transfer.memory.copy

    def watched(target: int, source: int, size_bytes: int) -> None:
        sizes.append(size_bytes)
        real(target, source, size_bytes)

    monkeypatch.setattr(transfer.memory, "copy", watched)
    return sizes


@MODES
def test_frozen_parameter_is_not_copied_again(tmp_path: Path, copied: list[int], staging: str) -> None:
    """After two checkpoints with the same digest of it, its copy is left out, and the files are right all the same."""
    run = Adapted(tmp_path, staging)
    times = []
    paths = []
    with run.saver:
        for _ in range(4):
            paths.append(run.save())
            times.append(copied.count(BACKBONE_BYTES))
    assert times == [1, 2, 2, 2]
    assert whole_checkpoints(tmp_path) == sorted(paths)
    assert all(torch.equal(run.weight_in(path), run.backbone.weight) for path in paths)


@MODES
def test_frozen_teacher_that_moves_unseen_is_always_copied(tmp_path: Path, staging: str) -> None:
    """A momentum teacher is updated through .data, which no counter sees: every checkpoint has its true weights."""
    run = Adapted(tmp_path, staging)
    truth: list[tuple[Path, torch.Tensor]] = []
    with run.saver:
        for _ in range(5):
            run.backbone.weight.data.mul_(0.9)
            truth.append((run.save(), run.backbone.weight.clone()))
    assert all(torch.equal(run.weight_in(path), weight) for path, weight in truth)


@MODES
@pytest.mark.parametrize("how", ["in place", "through .data"])
def test_frozen_parameter_that_changes_late_is_copied_again(tmp_path: Path, staging: str, how: str) -> None:
    """Where the change is seen before training goes on, the checkpoint has it; else it is given up, once."""
    run = Adapted(tmp_path, staging)
    with run.saver:
        for _ in range(3):
            run.save()
        with torch.no_grad():
            (run.backbone.weight.data if how == "through .data" else run.backbone.weight).add_(1)
        if staging == "deferred" and how == "through .data":
            with pytest.raises(SaveError, match="a frozen one of 262144 bytes"):
                run.save()
        path = run.save()
        assert torch.equal(run.weight_in(path), run.backbone.weight)


@MODES
def test_frozen_parameter_that_is_trained_later_is_copied(tmp_path: Path, staging: str) -> None:
    """Once an optimizer owns it, it is like any other, from the first step on."""
    run = Adapted(tmp_path, staging)
    with run.saver:
        for _ in range(3):
            run.save()
        path = run.save()
        before = run.backbone.weight.clone()
        run.backbone.weight.requires_grad_(requires_grad=True)
        run.optimizer.add_param_group({"params": [run.backbone.weight]})
        later = run.save()
    assert torch.equal(run.weight_in(path), before)
    assert torch.equal(run.weight_in(later), run.backbone.weight)
    assert not torch.equal(before, run.backbone.weight)


def test_frozen_parameter_in_an_image_that_was_written_to_is_noticed(tmp_path: Path) -> None:
    """What is written is what was digested before: a flipped bit in host memory is an error and not a checkpoint."""
    run = Adapted(tmp_path, "copy")
    with run.saver:
        for _ in range(3):
            run.save()
        (image,) = run.saver._run.pipeline._pool._free
        (offset,) = image.held
        image.buffer.memory.view(offset + 1000, 1)[0] ^= 1
        with pytest.raises(SaveError, match="host memory has changed"):
            run.save()
        path = run.save()
        assert torch.equal(run.weight_in(path), run.backbone.weight)


@MODES
@pytest.mark.parametrize("kind", SHARING)
def test_frozen_parameter_is_not_written_again_where_blocks_can_be_shared(
    tmp_path: Path, kind: str, staging: str
) -> None:
    """On such a file system only the rest is written, the statistics say so, and every file is whole by itself."""
    with mounted(kind, tmp_path) as place:
        run = Adapted(place, staging)
        with run.saver:
            paths = [run.save() for _ in range(4)]
            written = [stats.written_bytes for stats in run.saver.stats()]
            sizes = [stats.size_bytes for stats in run.saver.stats()]
            assert [size - bytes_ for size, bytes_ in zip(sizes, written, strict=True)] == [0, 0, *[BACKBONE_BYTES] * 2]
        paths[0].unlink()
        paths[2].unlink()
        assert whole_checkpoints(place) == [paths[1], paths[3]]
        assert torch.equal(run.weight_in(paths[3]), run.backbone.weight)
