"""Fresh processes for what must not share memory with anything else, all of one server; and the memory of processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_fresh_process(task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``task``, a function of a module, returns in a process that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.checkpoint", "lightning.pytorch"])  # what takes seconds
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(task, *args, **kwargs).result()


def peak_bytes() -> int:
    """Return the most memory this process has had mapped and touched at once, shared memory included."""
    return _status("VmHWM") << 10


def tree_bytes(process: int | str = "self") -> int:
    """Return the memory of a process and all its descendants now; what they share is counted once (PSS)."""
    total = 0
    for line in _read(f"/proc/{process}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            total = int(line.split()[1]) << 10
    tasks = Path(f"/proc/{process}/task")
    children = (
        [child for task in tasks.iterdir() for child in _read(str(task / "children")).split()] if tasks.is_dir() else []
    )
    return total + sum(tree_bytes(child) for child in children)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"Linux tells {name} of every process.")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # the process has ended meanwhile
        return ""
