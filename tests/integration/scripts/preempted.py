"""Train until a signal comes, in one of several ways; says ``ready`` once, and what has become of it in the end."""

from __future__ import annotations

import faulthandler
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from loop import Training

from safepoint import Checkpointer, keep, when
from safepoint.stores import Chunk, direct
from safepoint.stores.disk import Disk

ENDLESS = 10**9


def train(directory: Path, *, width: int = 4, steps: int = ENDLESS, pause_s: float = 0.005, **options: Any) -> None:
    """Make steps; say ``ready`` after the first."""
    training = Training(width)
    given = {"save": when.preempted(), "keep": keep.all(), **options}
    with Checkpointer(directory, state=training.state, **given) as saver:
        saver.restore()
        for step in range(steps):
            training.advance()
            saver.step()
            if not step:
                print("ready", flush=True)
            time.sleep(pause_s)
    print("finished", flush=True)


def with_cleaning(directory: Path) -> None:
    """Say that ``finally`` is run; let ``except Exception`` try to keep the process alive; save nothing twice."""
    try:
        train(directory, save=when.preempted() | when.exception() | when.train_end())
    except Exception:  # noqa: BLE001 - as some loops do
        time.sleep(600)
    finally:
        print("cleaned", flush=True)


def raising(directory: Path) -> None:
    """Have a handler from before that raises, as torchrun's agent has."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise RuntimeError(f"stopped by {number}")

    signal.signal(signal.SIGTERM, handler)
    train(directory)


def chained(directory: Path) -> None:
    """Have a handler from before that notes."""
    signal.signal(signal.SIGTERM, lambda number, frame: print("chained", number, flush=True))
    train(directory)


def dumping(directory: Path) -> None:
    """Have a handler from before that is written in C, and of which Python knows nothing."""
    with directory.with_suffix(".dump").open("w") as dump:
        faulthandler.register(signal.SIGUSR1, dump, chain=False)
        train(directory)


def closing(directory: Path) -> None:
    """Be told to end when the last step is done, with nothing saved so far."""
    training = Training()
    with Checkpointer(directory, state=training.state, save=when.preempted(), keep=keep.all()) as saver:
        training.advance()
        saver.step()
        signal.raise_signal(signal.SIGTERM)
    print("went on", flush=True)


def failing(directory: Path) -> None:
    """Lose the directory before the signal comes."""
    training = Training()
    with Checkpointer(directory, state=training.state, save=when.preempted(), keep=keep.all()) as saver:
        directory.write_text("in the way")
        signal.raise_signal(signal.SIGTERM)
        saver.step()


def slowly(rate: float) -> None:
    """Let the disk take ``rate`` bytes a second at most."""

    def write(disk: Disk, descriptor: int, chunks: Iterable[Chunk], share: direct.Share) -> int:
        def slow() -> Iterator[Chunk]:
            for chunk in chunks:
                for _ in range(100):
                    time.sleep(len(chunk) / rate / 100)
                yield chunk

        return direct.write_chunks(descriptor, slow(), share)

    Disk.write = write  # type: ignore[method-assign]


def slow(directory: Path) -> None:
    """Write for many seconds: the test does not wait for it."""
    slowly(100_000)
    train(directory, width=500, pause_s=0.1)


def short_of_time(directory: Path) -> None:
    """Measure a slow disk, and have less than a second for four seconds' worth of state."""
    slowly(3e6)
    train(directory, width=1000, save=when.first_step() | when.preempted(grace_s=3))


def streamed(directory: Path) -> None:
    """Have no room for an image."""
    train(directory, width=200, max_host_bytes=1)


def deferred(directory: Path) -> None:
    """Stage what can wait later."""
    train(directory, width=200, staging="deferred", save=when.every(steps=5) | when.preempted(), keep=keep.latest(2))


def asked(directory: Path) -> None:
    """Save nothing but the first step, and what is asked for."""
    train(directory, save=when.first_step() | when.preempted())


WAYS: dict[str, Callable[[Path], None]] = {
    way.__name__: way
    for way in (
        train,
        with_cleaning,
        raising,
        chained,
        dumping,
        closing,
        failing,
        slow,
        short_of_time,
        streamed,
        deferred,
        asked,
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    WAYS[sys.argv[1]](Path(sys.argv[2]))
