"""The memory that states are staged in: how much, when it is made, and what happens where there is none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from invariants import whole_checkpoints

from safepoint import Checkpointer, keep, load, sealing, staging, when
from safepoint.catalog import Catalog
from safepoint.staging import Image, Pool, image_bytes

MIB = 1 << 20
NEVER = when.at(steps=[10**9])


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Return a pool of two images, whose thread ends with the test."""
    pool = Pool(2, 1 << 30)
    yield pool
    pool.close()


def _acquired(pool: Pool, size_bytes: int = MIB) -> Image:
    image = pool.acquire(size_bytes)
    assert image is not None
    return image


def _resident_bytes(image: Image) -> int:
    """Return how much of the image's memory is there, as the kernel tells it."""
    address = image.buffer.memory.address
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        first, _, rest = line.partition("-")
        if rest and " " in rest and int(first, 16) <= address < int(rest.split()[0], 16):
            return next(int(field.split()[1]) << 10 for field in lines if field.startswith("Rss:"))
    raise AssertionError("no such mapping")


def test_pool_faults_the_first_image_in_before_it_is_needed(pool: Pool) -> None:
    """As soon as the size is known, the memory comes in the background; the first save finds it there."""
    pool.prepare(8 * MIB)
    pool._thread.close()
    image = _acquired(pool, 8 * MIB)
    assert _resident_bytes(image) >= 8 * MIB


def test_pool_reuses_an_image(pool: Pool) -> None:
    """One save after another is staged in the same memory."""
    first = _acquired(pool)
    pool.release(first)
    assert _acquired(pool) is first


def test_pool_grows_in_the_background_and_takes_what_is_free_first(pool: Pool) -> None:
    """Where the only image is in use, another is made aside, faulted in before anybody gets it."""
    first = _acquired(pool)
    second = _acquired(pool)
    assert second is not first
    assert _resident_bytes(second) >= MIB


def test_pool_makes_a_third_save_wait(pool: Pool) -> None:
    """With two images in use a third save waits, and goes on with the one that is given back."""
    _first, second = _acquired(pool), _acquired(pool)
    got: list[Image] = []
    third = threading.Thread(target=lambda: got.append(_acquired(pool)), daemon=True)
    third.start()
    third.join(0.05)
    assert got == []
    pool.release(second)
    third.join(60)
    assert got == [second]


def test_pool_replaces_an_image_that_has_become_too_small(pool: Pool) -> None:
    """A state that has grown gets an image that holds it, and the small one goes."""
    small = _acquired(pool)
    pool.release(small)
    large = _acquired(pool, 4 * MIB)
    assert large.size_bytes >= 4 * MIB
    assert pool._count == 1


def test_pool_gives_nothing_beyond_its_budget() -> None:
    """``max_host_bytes`` decides how many images there may be, and whether any."""
    pool = Pool(2, 3 * MIB)
    try:
        assert pool.acquire(4 * MIB) is None
        first = _acquired(pool, 2 * MIB)
        waiting = threading.Thread(target=lambda: pool.release(_acquired(pool, 2 * MIB)), daemon=True)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        assert pool._count == 1
        pool.release(first)
        waiting.join(60)
        assert not waiting.is_alive()
    finally:
        pool.close()


def test_pool_that_cannot_grow_goes_on_with_what_it_has(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the kernel refuses more memory, saves wait for the images that are there, and that is said."""
    first = _acquired(pool)

    def refused(size_bytes: int) -> Image:
        raise MemoryError

    monkeypatch.setattr(staging, "Image", refused)
    waiting = threading.Thread(target=lambda: pool.release(_acquired(pool)), daemon=True)
    with caplog.at_level(logging.WARNING):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        pool.release(first)
        waiting.join(60)
    assert "no memory for a further image" in caplog.text


def test_pool_takes_half_of_the_memory_available_if_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``max_host_bytes`` it looks once, when it is first asked."""
    monkeypatch.setattr(staging, "available_bytes", lambda: 10 * MIB)
    pool = Pool(2)
    assert pool.max_host_bytes == 5 * MIB
    assert pool.acquire(6 * MIB) is None


def test_image_bytes_is_enough_for_the_state_and_counts_shared_storages_once() -> None:
    """What is prepared holds the state, page for each storage included, without counting a view twice."""
    base = torch.zeros(MIB)
    state = {"a": base, "view": base[:10], "small": [torch.zeros(1) for _ in range(100)]}
    assert 4 * MIB + 100 * 4096 < image_bytes(state) < 6 * MIB


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file have many slabs, whose ends fall into the middle of storages and of headers."""
    for module in (sealing, staging):
        monkeypatch.setattr(module, "SLAB_BYTES", 12288)


def _state() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    shapes = (1, 1000, 1024, 1025, 3000, 3072, 3071, 0, 20_000, 7, 12_288)
    return {"tensors": {str(index): torch.randn(size) for index, size in enumerate(shapes)}}


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("max_host_bytes", [None, 1])
def test_checkpoint_of_many_slabs_is_whole(tmp_path: Path, max_host_bytes: int | None) -> None:
    """Wherever a slab ends, in an image or in a streamed state, the file verifies and gives the state back."""
    state = _state()
    saver = Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), max_host_bytes=max_host_bytes)
    with saver:
        if max_host_bytes is None:
            path = saver.save()
        else:
            with pytest.warns(RuntimeWarning, match="do not fit into the host memory allowed"):
                path = saver.save()
            assert path.exists()
    assert whole_checkpoints(tmp_path) == [path]
    loaded = load(path)["tensors"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state["tensors"].items())


def test_checkpointer_streams_what_does_not_fit_and_says_so_once(tmp_path: Path) -> None:
    """Each save is durable when it returns, needs no image, and is right; the warning comes with the first one."""
    state = _state()
    with Checkpointer(tmp_path, state=state, save=NEVER, keep=keep.all(), max_host_bytes=1) as saver:
        with pytest.warns(RuntimeWarning, match="each goes to disk through a buffer of 96 MiB while training waits"):
            saver.save()
        for step in range(3):
            saver.step()
            state["tensors"]["1"].add_(1)
            path = saver.save()
            assert torch.equal(load(path)["tensors"]["1"], state["tensors"]["1"])
            assert saver.stats()[-1].step == step + 1
        assert saver._run.pipeline._pool._count == 0


def test_stats_tell_what_each_save_cost(tmp_path: Path) -> None:
    """Every durable save has its times in order, its bytes, and a line that says them; the record has it, too."""
    with Checkpointer(tmp_path, state=_state(), save=NEVER, keep=keep.all()) as saver:
        saver.save()
        saver.wait()
        saver.step()
        began = time.perf_counter()
        path = saver.save()
        stalled_s = time.perf_counter() - began
        saver.wait()
        took_s = time.perf_counter() - began
        first, second = saver.stats()
    assert second.path == path
    assert (second.step, second.size_bytes) == (1, path.stat().st_size)
    assert second.written_bytes == second.size_bytes
    assert 0 <= second.waited_s <= second.stalled_s <= stalled_s
    assert 0 < second.staged_s <= second.written_s <= second.committed_s <= took_s
    assert str(first).startswith(f"{first.path.name} is durable: ")
    assert [record.stats for record in saver.records()] == [first, second]
    assert [record.stats for record in Catalog.of(tmp_path).records] == [first, None]


def test_stats_survive_in_the_history_of_the_next_checkpoint(tmp_path: Path) -> None:
    """A checkpoint cannot hold what its own save cost; the next one of the run tells it."""
    with Checkpointer(tmp_path, state=_state(), save=NEVER, keep=keep.all()) as saver:
        saver.save()
        saver.wait()
        saver.step()
        saver.save()
        saver.wait()
        told = saver.stats()[0]
        run = saver._run.identity
    first, last = Catalog.of(tmp_path).history(run)
    assert first.record.stats == told
    assert last.record.stats is None


def test_stats_tell_how_long_a_save_waited_for_an_image(tmp_path: Path) -> None:
    """With the only image on its way to a slow disk, the next save waits, and says for how long."""
    with Checkpointer(tmp_path, state=_state(), save=NEVER, keep=keep.all(), max_images=1) as saver:
        pool = saver._run.pipeline._pool
        saver.save()
        saver.wait()
        held = _acquired(pool)
        threading.Timer(0.2, pool.release, (held,)).start()
        saver.step()
        saver.save()
        saver.wait()
        assert saver.stats()[-1].waited_s > 0.1
