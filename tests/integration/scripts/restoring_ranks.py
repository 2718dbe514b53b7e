"""Restore as one of two ranks, and say what became of the random state; the first saves, too."""

from __future__ import annotations

import sys

import torch

from safepoint import Checkpointer, StateMismatchError, keep, load, when


def main(directory: str, meeting_point: str, rank: int) -> None:
    """Restore with ``strict=True``, then without."""
    torch.set_num_threads(1)
    torch.manual_seed(100 + rank)
    torch.rand(3)
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    notes: dict[str, int] = {}
    checkpointer = Checkpointer(directory, state={"notes": notes}, save=when.every(steps=1), keep=keep.all())
    before = torch.get_rng_state()
    try:
        checkpointer.restore(strict=True)
    except StateMismatchError:
        print("refused")
    group.barrier()
    progress = checkpointer.restore()
    why = progress.report.inexact["random state"].partition(" saved, ")[0]
    is_own = torch.equal(before, torch.get_rng_state())
    print(f"restored {why} saved, random state {'its own' if is_own else 'of the file'}")
    if rank == 0:
        checkpointer.step()
        checkpointer.close()
        print("saved by", load(checkpointer.records()[-1].path)["safepoint"]["world_size"])
    group.barrier()
    group.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
