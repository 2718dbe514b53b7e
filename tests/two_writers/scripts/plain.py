"""Do with a checkpointer what standard input says, a command a line, and answer each with a line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings

import torch
from loop import Training

from safepoint import Checkpointer, RunAliveError, keep, when

warnings.simplefilter("ignore")


def main(directory: str) -> None:
    """Answer until standard input ends; ``die`` and ``linger`` end in their own ways."""
    torch.set_num_threads(1)
    training = Training()
    checkpointer = Checkpointer(directory, state=training.state, save=when.every(steps=1), keep=keep.latest(2))

    def restore() -> object:
        try:
            return checkpointer.restore().step
        except RunAliveError as error:
            return f"alive: {error}"

    def step() -> object:
        training.advance()
        checkpointer.step()
        checkpointer.wait()
        latest = checkpointer.latest()
        return latest and latest.path

    def fork() -> object:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.write(write, b"!")
            time.sleep(600)
            os._exit(0)
        os.read(read, 1)
        return child

    def linger() -> object:
        print("lingering", flush=True)
        time.sleep(1)
        path = step()
        checkpointer.close()
        return path

    commands = {
        "restore": restore,
        "step": step,
        "fork": fork,
        "start": lambda: subprocess.Popen(["sleep", "600"], close_fds=False).pid,
        "close": checkpointer.close,
        "linger": linger,
    }
    print("ready", flush=True)
    for line in sys.stdin:
        print(commands[line.strip()](), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
