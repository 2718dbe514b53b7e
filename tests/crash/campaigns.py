"""Kill children of this process, as it is told: ``campaigns.py CAMPAIGN DIRECTORY [LIFE MEDIUM] [NUMBER]``.

A program of its own, so that none of a test's threads is there when it forks. An assertion that fails ends it, with a
traceback; so does, with the exit code ``REFUSED``, a machine that does not let us kill in that way.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import disks
import torch
from forks import Child, look
from invariants import temporaries
from scenarios import LIVES, LOOP, SUPERSEDED, Life, Session

from safepoint.stores.disk import Disk

REFUSED = 77
LONGEST_LIFE_S = 0.15
FEWEST_STEPS = 70
"""No life has fewer."""
CALLS = (
    "?mkdir,?mkdirat",
    "?link,?linkat",
    "?rename,?renameat,?renameat2",
    "?unlink,?unlinkat",
    "fsync",
    "fallocate",
    "pwrite64",
    "flock",
)
"""What the commit protocol asks of the kernel; "?": where it has it."""
_MIB = 1 << 20


def every_step(ground: Path, life: Life, medium: str) -> None:
    """Kill in front of step 0, 1, ... until there is none left."""
    kills = next(at for at in itertools.count() if not _killed_at(ground, life, medium, at))
    print(f"{kills} kills")


def some_steps(ground: Path, kills: int) -> None:
    """Kill in front of steps chosen by chance, so many in each life on each medium."""
    for life, medium in itertools.product(LIVES, disks.MEDIA):
        for at in random.sample(range(FEWEST_STEPS), kills):
            assert _killed_at(ground, life, medium, at)


def _killed_at(ground: Path, life: Life, medium: str, at: int) -> bool:
    """Kill in front of step ``at``, and look at what that has left; ``False``: there is no such step."""
    directory = _emptied(ground / "run")
    child = Child(life.live, directory, disks.CountedDisk(at, disks.kill, medium), ground / "told")
    killed = child.killed()
    look(life, directory, child.acknowledged, f"killed in front of step {at} of {life} on {medium}")
    return killed


def random_moments(ground: Path, life: Life, medium: str, seconds: int) -> None:
    """Kill at random moments, again and again in one directory, for a while."""
    seed = random.randrange(10**9)
    moments, ends_s = random.Random(seed), time.monotonic() + seconds
    directory, acknowledged = ground / "run", dict[str, float]()
    kills = left_behind = 0
    while time.monotonic() < ends_s:
        child = Child(life.live, directory, disks.SteppedDisk(medium), ground / "told")
        kills += child.killed(moments.uniform(0, LONGEST_LIFE_S))
        acknowledged |= child.acknowledged
        left_behind += len(temporaries(directory))
        acknowledged = look(life, directory, acknowledged, f"seed {seed}, kill {kills}")
    assert acknowledged, "nothing was ever saved: this proves nothing"
    print(f"seed {seed}: {kills} kills, {left_behind} left a temporary, reached step {life.begin(directory)}")


def some_calls(ground: Path) -> None:
    """Kill at one system call of each kind, chosen by chance."""
    kills = sum(_killed_at_call(ground, call, random.randint(1, 3)) for call in CALLS)
    print(f"{kills} kills")
    assert kills


def every_call(ground: Path) -> None:
    """Kill at the first system call of each kind in a thread, the second, ..., until there is none left."""
    for call in CALLS:
        kills = next(n - 1 for n in itertools.count(1) if not _killed_at_call(ground, call, n))
        print(f"{call}: {kills} kills")


def _killed_at_call(ground: Path, call: str, number: int) -> bool:
    """Kill as a thread enters its system call ``call`` for the n-th time; ``False``: none does so often."""
    directory = _emptied(ground / "run")
    gate, opens = os.pipe()

    def live(directory: Path, session: Session) -> None:
        os.read(gate, 1)
        SUPERSEDED.live(directory, session)

    child = Child(live, directory, Disk(), ground / "told")
    os.close(gate)
    with _traced(child.pid, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"):
        os.write(opens, b"o")
        os.close(opens)
        killed = child.killed()
    look(SUPERSEDED, directory, child.acknowledged, f"killed at {call}, the {number}. time")
    return killed


@contextlib.contextmanager
def _traced(pid: int, *options: str) -> Iterator[None]:
    """Have strace see every thread of a process."""
    with subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid), *options]) as strace:
        while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
            if strace.poll() is not None:
                os.kill(pid, 9)
                sys.exit(REFUSED)
            time.sleep(0.001)
        yield


def out_of_memory(ground: Path) -> None:
    """Give the child 2 MiB, 4 MiB, ... to live in, until it survives: the kernel kills it wherever that ends."""
    kills = saves = 0
    for limit_bytes in itertools.count(2 * _MIB, 2 * _MIB):
        directory = _emptied(ground / "run")
        with _memory_group(limit_bytes) as group:

            def live(directory: Path, session: Session, group: Path = group) -> None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
                LOOP.live(directory, session)

            child = Child(live, directory, Disk(), ground / "told")
            killed = child.killed()
        look(LOOP, directory, child.acknowledged, f"out of memory at {limit_bytes} bytes")
        if not killed:
            break
        kills, saves = kills + 1, saves + len(child.acknowledged)
    print(f"{kills} kills, {saves} saves before them")
    assert kills


@contextlib.contextmanager
def _memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a control group that may take so much memory."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"safepoint-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(limit_bytes))
                yield group
                return
        finally:
            group.rmdir()
    sys.exit(REFUSED)


def _emptied(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    return directory


CAMPAIGNS = {
    campaign.__name__: campaign
    for campaign in (every_step, some_steps, random_moments, some_calls, every_call, out_of_memory)
}


def main(campaign: str, ground: str, *arguments: str) -> None:
    """Carry ``campaign`` out in the directory ``ground``."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    lives = {str(life): life for life in LIVES}
    read = [lives.get(each) or (int(each) if each.isdigit() else each) for each in arguments]
    CAMPAIGNS[campaign](Path(ground), *read)


if __name__ == "__main__":
    main(*sys.argv[1:])
