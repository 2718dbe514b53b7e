"""A save where the system gives no more threads: it is made all the same, with what was there to be saved."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from invariants import whole_checkpoints

import safepoint
from safepoint import Checkpointer, keep, when


@pytest.mark.parametrize("refused", ["", "safepoint-writer"], ids=["all", "writer"])
@pytest.mark.parametrize("options", [{}, {"staging": "deferred"}, {"max_host_bytes": 1}])
@pytest.mark.filterwarnings("ignore:checkpoints of:RuntimeWarning")
def test_save_without_a_thread_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], refused: str
) -> None:
    """Each file holds its own step, and old ones go, though for one save no thread could be started."""
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = {"model": model, "optimizer": optimizer}
    saver = Checkpointer(tmp_path, state=state, save=when.every(steps=1), keep=keep.latest(2), **options)

    start_really = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith(refused):
            raise RuntimeError("can't start new thread")
        start_really(thread)

    with saver:
        for step in range(1, 7):
            model.weight.data.fill_(step)
            with monkeypatch.context() as patch:
                if step == 1:
                    patch.setattr(threading.Thread, "start", start)
                saver.step()
            model(torch.ones(1, 300)).sum().backward()
            optimizer.step()
        saver.wait()
        pool = saver._run.pipeline._pool
        assert len(pool._free) == pool._count == len({id(image) for image in pool._free})
    paths = whole_checkpoints(tmp_path)
    assert [path.name for path in paths] == ["epoch=0-step=5.ckpt", "epoch=0-step=6.ckpt"]
    for path, step in zip(paths, (5, 6), strict=True):
        assert torch.equal(safepoint.load(path)["model"]["weight"], torch.full((300, 300), float(step)))
