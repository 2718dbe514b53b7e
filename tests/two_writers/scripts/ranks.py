"""Restore as one of two ranks, in turn, and stay until standard input ends."""

from __future__ import annotations

import sys

import torch
from loop import Training

from safepoint import Checkpointer, keep, when


def main(directory: str, meeting_point: str, rank: int) -> None:
    """Let rank 0 restore first, and rank 1 while that lives."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    checkpointer = Checkpointer(directory, state=Training().state, save=when.every(steps=1), keep=keep.latest(2))
    for turn in range(2):
        if turn == rank:
            print("restored", checkpointer.restore().path, flush=True)
        group.barrier()
    sys.stdin.read()
    group.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
