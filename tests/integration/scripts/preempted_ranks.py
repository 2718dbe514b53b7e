"""Train with as many processes as torchrun starts; the first saves, and says ``ready`` after its first step."""

from __future__ import annotations

import sys
import time
import warnings

import torch
from loop import Training

from safepoint import Checkpointer, keep, when

warnings.simplefilter("ignore")


def main(directory: str) -> None:
    """Train until a signal comes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    training = Training(seed=rank)
    with Checkpointer(directory, state=training.state, save=when.preempted(), keep=keep.all()) as saver:
        saver.restore()
        for step in range(10**9):
            training.advance()
            for parameter in training.model.parameters():
                torch.distributed.all_reduce(parameter.data)
            if rank == 0:
                saver.step()
                if not step:
                    print("ready", flush=True)
            time.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1])
