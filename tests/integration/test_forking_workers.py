"""Data loaders fork workers whenever they like, also while an image is on its way to disk."""

from __future__ import annotations

import mmap
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from xxhash import xxh3_128

from safepoint.memory import HostMemory
from safepoint.stores.local import LocalStore

MIB = 1 << 20
IMAGE_BYTES = 32 * MIB

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def fork_workers() -> None:
    """Run through a data loader, whose two workers are forked for it and end with it."""
    loader = DataLoader(range(4), num_workers=2, multiprocessing_context="fork")  # type: ignore[arg-type]
    assert sorted(int(value) for value in torch.cat(list(loader))) == [0, 1, 2, 3]


def test_forking_workers_leave_a_direct_write_alone(tmp_path: Path) -> None:
    """However many workers are forked while images are filled and written, each file holds what was staged."""
    view = HostMemory(IMAGE_BYTES).view(0, IMAGE_BYTES)
    store, staged = LocalStore(tmp_path), list[str]()

    def save_again_and_again() -> None:
        for number in range(8):
            view[:] = os.urandom(MIB) * (IMAGE_BYTES // MIB)
            view[number * MIB : (number + 1) * MIB] = os.urandom(MIB)
            staged.append(xxh3_128(view).hexdigest())
            chunks = [view[start : start + MIB] for start in range(0, IMAGE_BYTES, MIB)]
            store.write(f"{number}.ckpt", chunks, IMAGE_BYTES, replace=False)

    saving = threading.Thread(target=save_again_and_again)
    saving.start()
    forks = 0
    while saving.is_alive():
        fork_workers()
        forks += 1
    saving.join()
    assert forks > 1
    assert [xxh3_128((tmp_path / f"{number}.ckpt").read_bytes()).hexdigest() for number in range(8)] == staged


def _pages_copied_by_a_fork(fill: Callable[[bytes], None]) -> int:
    """Return how many pages the kernel has to give this process anew because it writes to memory after a fork."""
    fill(b"a" * IMAGE_BYTES)
    after = b"b" * IMAGE_BYTES
    go, going = os.pipe()
    child = os.fork()
    if not child:
        os.read(go, 1)
        os._exit(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    fill(after)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    os.write(going, b"!")
    os.waitpid(child, 0)
    for descriptor in (go, going):
        os.close(descriptor)
    return pages


def test_fork_does_not_make_the_image_cold() -> None:
    """While a worker lives, staging goes into the pages that are there; private ones would each be copied first."""
    view = HostMemory(IMAGE_BYTES).view(0, IMAGE_BYTES)
    assert _pages_copied_by_a_fork(lambda data: view.__setitem__(slice(None), data)) < 100
    private = mmap.mmap(-1, IMAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private.madvise(mmap.MADV_NOHUGEPAGE)
    assert _pages_copied_by_a_fork(lambda data: private.__setitem__(slice(None), data)) > IMAGE_BYTES // 4096 // 2
