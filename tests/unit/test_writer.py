"""The background pipeline: its order, its failures, and its memory."""

from __future__ import annotations

import errno
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.serialization import config

from safepoint import keep, verify
from safepoint.capture import capture
from safepoint.deferral import Barrier, Live
from safepoint.errors import CaptureError, SaveError
from safepoint.frozen import Frozen
from safepoint.image import lay_out
from safepoint.keep import PreservationPolicy
from safepoint.manifest import Blob, Manifest
from safepoint.pipeline import Options, Pipeline, Snapshot
from safepoint.removal import Removal
from safepoint.run import Run
from safepoint.sealing import Seal
from safepoint.staging import Pool, Stager
from safepoint.stores.memory import MemoryStore
from safepoint.transfer import Copier
from safepoint.writer import Asked, Job, Names, Outcome, Writer

FULL = OSError(errno.ENOSPC, "No space left on device")


class Bench:
    """A writer on a store in memory, with as many images as a test needs."""

    def __init__(self, images: int = 8) -> None:
        self.store = MemoryStore()
        self.pool = Pool(images)
        self.writer = Writer(self.store)

    def job(self, name: str, *, state: object = None, names: Names | None = None, remove: tuple[str, ...] = ()) -> Job:
        """Return a staged job that writes ``state`` as ``name``."""
        captured = capture({"a": torch.arange(4.0)} if state is None else state)
        layout = lay_out(len(captured.pickle), [storage.nbytes() for storage in captured.storages])
        manifest = Manifest(
            format_version=1,
            run="run",
            step=1,
            epoch=0,
            metrics={},
            time=1.0,
            reasons=("test",),
            pinned=False,
            position=None,
            producer={},
            pickle=Blob(0, "0" * 32),
            storages=(),
            tensors=captured.tensors,
            history=(),
        )
        image = self.pool.acquire(layout.body_bytes)
        assert image is not None
        stager = Stager(self.pool, Barrier(), Frozen(), Copier())
        staged = stager.stage(image, captured, layout, Live(), deferred=False)
        seal = Seal(layout, manifest)
        removals = tuple(Removal(name, frozenset(("run",))) for name in remove)
        own = frozenset(("run",))
        return Job(staged, seal, Path(name), 1, names or Names(name), Asked(0.0), removals, runs=own)

    def submit(self, name: str, *, names: Names | None = None, remove: tuple[str, ...] = ()) -> None:
        """Queue a save that lets ``remove`` go."""
        self.writer.submit(self.job(name, names=names, remove=remove))

    def finished(self) -> list[Outcome]:
        """Wait for everything queued, and take what became of it."""
        self.writer.wait()
        return list(self.writer.outcomes())

    def fail(self, operation: str, name: str, error: Exception = FULL) -> None:
        """Let the next ``operation`` on ``name`` fail."""
        self.store.failures[(operation, name)] = error

    @property
    def removed(self) -> list[str]:
        """The names that were removed, in order."""
        return [name for operation, name in self.store.log if operation == "remove"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Return a writer whose thread ends with the test."""
    bench = Bench()
    yield bench
    bench.store.gate.set()
    bench.writer.close()


def test_writer_writes_then_names_then_removes(bench: Bench) -> None:
    """Nothing is removed before the checkpoint is durable under all its names."""
    bench.submit("old")
    bench.finished()
    bench.store.log.clear()
    bench.submit("new", names=Names("new", links=("last",), symlinks=("current",)), remove=("old", "older"))
    (outcome,) = bench.finished()
    assert bench.store.log == [
        ("reserve", "new"),
        ("write", "new"),
        ("sync", "new"),
        ("publish", "new"),
        ("sync_directory", "new"),
        ("link", "last"),
        ("sync_directory", "last"),
        ("symlink", "current"),
        ("sync_directory", "current"),
        ("remove", "old"),
        ("remove", "older"),
    ]
    assert (outcome.durable, outcome.error, outcome.still_there) == (True, None, ())
    assert sorted(bench.store.files) == ["current", "last", "new"]
    assert outcome.stats is not None
    assert outcome.stats.size_bytes == len(bench.store.files["new"])


def test_writer_writes_checkpoints_that_verify(bench: Bench, tmp_path: Path) -> None:
    """What arrives in the store verifies, is a sound zip archive, and is what torch.load gives back."""
    state = {"a": torch.arange(5), "b": [torch.ones(3, dtype=torch.bfloat16), torch.zeros(0)], "c": "text"}
    bench.writer.submit(bench.job("x", state=state))
    bench.finished()
    path = tmp_path / "x.ckpt"
    path.write_bytes(bench.store.files["x"])
    assert verify(path) == []
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    loaded = torch.load(path, weights_only=True)
    assert repr(loaded) == repr(state)
    assert torch.equal(loaded["b"][0], state["b"][0])


def test_writer_writes_shared_tensors_that_are_shared_when_loaded(bench: Bench) -> None:
    """Tensors on one storage are on one storage again after loading, views at their places."""
    base = torch.arange(12.0)
    state = {"base": base, "again": base, "view": base[3:7], "column": base.view(3, 4)[:, 1]}
    bench.writer.submit(bench.job("x", state=state))
    bench.finished()
    loaded = torch.load(io.BytesIO(bench.store.files["x"]))
    assert repr(loaded) == repr(state)
    loaded["base"].zero_()
    assert [int(tensor.count_nonzero()) for tensor in loaded.values()] == [0, 0, 0, 0]


def test_writer_writes_what_torch_writes(bench: Bench) -> None:
    """Up to the manifest the file is byte for byte the one that torch.save writes at the same alignment."""
    state = {"a": torch.arange(5), "b": torch.ones(2000), "c": torch.zeros(0), "d": torch.ones(3).bool()}
    job = bench.job("x", state=state)
    bench.writer.submit(job)
    bench.finished()
    theirs = io.BytesIO()
    with config.patch("save.storage_alignment", 4096):
        torch.save(state, theirs)
    body = job.seal.layout.body_bytes
    assert bench.store.files["x"][:body] == theirs.getvalue()[:body]


def test_writer_leaves_nothing_of_an_earlier_checkpoint_in_a_reused_image(tmp_path: Path) -> None:
    """A small state in an image that held a large one is a sound checkpoint of its own."""
    bench = Bench(images=1)
    path = tmp_path / "x.ckpt"
    for number, size in enumerate((100_000, 10, 5_000)):
        bench.writer.submit(bench.job(str(number), state={"a": torch.full((size,), 1.5), "b": torch.ones(number)}))
        bench.finished()
        assert len(bench.pool._free) == 1
        path.write_bytes(bench.store.files[str(number)])
        assert verify(path) == []
        assert torch.load(path)["a"].shape == (size,)
    bench.writer.close()


def test_writer_writes_the_state_as_it_was_when_staged(bench: Bench) -> None:
    """Training may change the tensors as soon as they are staged."""
    live = torch.ones(4)
    bench.store.gate.clear()
    bench.writer.submit(bench.job("x", state={"a": live}))
    live.zero_()
    bench.store.gate.set()
    bench.finished()
    assert torch.equal(torch.load(io.BytesIO(bench.store.files["x"]))["a"], torch.ones(4))


@pytest.mark.parametrize(
    ("operation", "name", "missing"),
    [
        ("write", "new", ("new", "last", "current")),
        ("link", "last", ("last", "current")),
        ("symlink", "current", ("current",)),
    ],
)
def test_writer_removes_nothing_after_a_failure(
    bench: Bench, operation: str, name: str, missing: tuple[str, ...]
) -> None:
    """A save that fails anywhere before it is durable under all its names removes nothing; it has the names it got."""
    bench.fail(operation, name)
    bench.submit("new", names=Names("new", links=("last",), symlinks=("current",)), remove=("old", "older"))
    (outcome,) = bench.finished()
    assert bench.removed == []
    assert (outcome.error, outcome.missing, outcome.still_there) == (FULL, missing, ("old", "older"))
    assert (outcome.durable, outcome.complete) == ("new" not in missing, False)
    assert {"new", "last", "current"} - bench.store.files.keys() == {*missing}


def test_writer_removes_nothing_that_was_decided_before_a_failure_was_known(bench: Bench) -> None:
    """A save queued behind one that fails counted on it, and so removes nothing, however well it goes itself."""
    bench.fail("write", "a")
    bench.store.gate.clear()
    bench.submit("a", remove=("x",))
    bench.submit("b", remove=("y",))
    bench.store.gate.set()
    first, second = bench.finished()
    assert bench.removed == []
    assert (first.durable, second.durable) == (False, True)
    assert (second.error, second.still_there) == (None, ("y",))


def test_writer_removes_nothing_for_saves_submitted_before_the_failure_was_reported(bench: Bench) -> None:
    """Not the end of the failed save but the training thread's notice of it is what lets removal go on."""
    bench.fail("write", "a")
    bench.submit("a", remove=("x",))
    bench.writer.wait()
    bench.submit("b", remove=("y",))
    bench.finished()
    assert bench.removed == []


def test_writer_resumes_removal_once_the_failure_is_known(bench: Bench) -> None:
    """What is decided in the knowledge of the failure is carried out."""
    bench.fail("write", "a")
    bench.submit("a", remove=("x",))
    bench.finished()
    bench.submit("b", remove=("y",))
    (outcome,) = bench.finished()
    assert bench.removed == ["y"]
    assert outcome.still_there == ()


def test_writer_removes_nothing_between_two_failures(bench: Bench) -> None:
    """Notice of a first failure is not notice of a second one that comes behind it."""
    bench.fail("write", "a")
    bench.fail("write", "b")
    bench.submit("a")
    bench.writer.wait()
    bench.store.gate.clear()
    bench.submit("b", remove=("x",))
    assert [outcome.durable for outcome in bench.writer.outcomes()] == [False]
    bench.submit("c", remove=("y",))
    bench.store.gate.set()
    assert [outcome.durable for outcome in bench.finished()] == [False, True]
    assert bench.removed == []


def test_writer_stays_suspended_after_notice_of_a_failed_removal(bench: Bench) -> None:
    """Notice of a removal that failed is not notice of a save that failed behind it."""
    bench.fail("remove", "x")
    bench.fail("write", "b")
    bench.submit("a", remove=("x",))
    bench.writer.wait()
    bench.store.gate.clear()
    bench.submit("b")
    assert [outcome.durable for outcome in bench.writer.outcomes()] == [True]
    bench.submit("c", remove=("y",))
    bench.store.gate.set()
    bench.finished()
    assert bench.removed == ["x"]


def test_writer_reports_a_failed_removal_with_what_is_still_there(bench: Bench) -> None:
    """The checkpoint is durable; what could not be removed, and what was still to come, is still there."""
    bench.fail("remove", "y")
    bench.submit("new", remove=("x", "y", "z"))
    (outcome,) = bench.finished()
    assert (outcome.durable, outcome.error, outcome.still_there) == (True, FULL, ("y", "z"))
    assert bench.removed == ["x", "y"]


def test_writer_goes_on_after_a_failure(bench: Bench) -> None:
    """Each save is a new attempt."""
    bench.fail("write", "a")
    for name in ("a", "b", "a"):
        bench.submit(name)
    assert [(outcome.job.names.name, outcome.durable) for outcome in bench.finished()] == [
        ("a", False),
        ("b", True),
        ("a", True),
    ]


def test_writer_refuses_a_taken_name_unless_it_may_replace(bench: Bench) -> None:
    """A name that is taken is an error, and the old content stays; with ``replace`` the new one takes its place."""
    bench.submit("x")
    bench.finished()
    old = bench.store.files["x"]
    bench.submit("x", remove=("y",))
    (outcome,) = bench.finished()
    assert isinstance(outcome.error, FileExistsError)
    assert bench.store.files == {"x": old}
    bench.writer.submit(bench.job("x", state={"a": torch.ones(3)}, names=Names("x", replace=True)))
    bench.finished()
    assert bench.store.files["x"] != old


@pytest.mark.parametrize("names", [Names("x", replace=True), Names("y", links=("x",)), Names("y", symlinks=("x",))])
def test_writer_replaces_only_what_the_run_wrote(bench: Bench, names: Names) -> None:
    """What another program has put under a name in the meantime stays, and is an error; ``overwrite`` replaces it."""
    bench.store.files["x"] = b"another program's"
    bench.submit(names.name, names=names)
    (outcome,) = bench.finished()
    assert isinstance(outcome.error, FileExistsError)
    assert bench.store.files["x"] == b"another program's"
    bench.submit(names.name, names=replace(names, overwrite=True))
    (outcome,) = bench.finished()
    assert outcome.durable
    assert bench.store.files["x"] != b"another program's"


def test_writer_tells_each_outcome_once_and_in_order(bench: Bench) -> None:
    """Outcomes come oldest first; those that were taken do not come again."""
    for name in ("a", "b", "c"):
        bench.submit(name)
    assert [outcome.job.names.name for outcome in bench.finished()] == ["a", "b", "c"]
    assert list(bench.writer.outcomes()) == []


def test_writer_has_no_outcome_for_what_is_under_way(bench: Bench) -> None:
    """Asking for outcomes never waits."""
    bench.store.gate.clear()
    bench.submit("a")
    assert list(bench.writer.outcomes()) == []


def _writer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("safepoint-writer")]


def test_writer_ends_its_thread_when_closed(bench: Bench) -> None:
    """There is a thread from the first save until ``close``, which waits; a later save starts another."""
    before = len(_writer_threads())
    bench.submit("a")
    assert len(_writer_threads()) == before + 1
    bench.writer.close()
    assert len(_writer_threads()) == before
    assert [outcome.durable for outcome in bench.writer.outcomes()] == [True]
    bench.submit("b")
    assert [outcome.durable for outcome in bench.finished()] == [True]


@pytest.mark.parametrize("failing", [False, True])
def test_writer_gives_the_image_back(bench: Bench, *, failing: bool) -> None:
    """The image is free again however the save ended."""
    if failing:
        bench.fail("write", "a")
    bench.submit("a")
    bench.finished()
    assert len(bench.pool._free) == bench.pool._count == 1


def test_writer_never_uses_more_than_the_images_of_the_pool() -> None:
    """However many saves come, and however slow the disk is, the same two buffers serve them all."""
    bench = Bench(images=2)
    bench.store.gate.clear()
    training = threading.Thread(target=lambda: [bench.submit(str(number)) for number in range(6)], daemon=True)
    training.start()
    bench.store.gate.set()
    training.join(timeout=60)
    assert not training.is_alive()
    outcomes = bench.finished()
    bench.writer.close()
    assert [outcome.durable for outcome in outcomes] == [True] * 6
    assert len({id(outcome.job.staged.image) for outcome in outcomes}) <= 2


class Bed:
    """A run on a store in memory."""

    def __init__(self, directory: Path, *, policy: PreservationPolicy, options: Options | None = None) -> None:
        self.store = MemoryStore()
        self.run = Run(Pipeline(directory, options or Options(max_images=8), self.store))
        self.policy = policy
        self.steps = 0

    def save(self, name: str, state: object = None, *, replace: bool = False, **metrics: float) -> None:
        """Save ``state`` as ``name`` and let go what the policy says."""
        self.steps += 1
        snapshot = Snapshot(self.steps, 0, (self.steps, 0, 0), metrics, ("test",))
        proposed = self.run.ledger.propose(self.run.candidate(snapshot, name), self.policy)
        state = {"a": torch.ones(2)} if state is None else state
        self.run.save(state, snapshot, Names(name, replace=replace), proposed)

    def wait(self) -> None:
        """Wait for everything queued, and raise or warn of what went wrong."""
        self.run.report(self.run.wait())

    @property
    def records(self) -> dict[str, dict[str, float]]:
        """The names and metrics of the ledger's records."""
        return {self.run.name_of(record): dict(record.metrics) for record in self.run.ledger.records}


@pytest.fixture
def make_bed(tmp_path: Path) -> Iterator[Callable[..., Bed]]:
    """Return what makes runs, whose threads end with the test."""
    made: list[Bed] = []

    def make(policy: PreservationPolicy, **options: object) -> Bed:
        made.append(Bed(tmp_path, policy=policy, options=Options(**{"max_images": 8, **options})))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for bed in made:
        bed.store.gate.set()
        bed.run.pipeline.close()


def test_run_counts_no_checkpoint_that_was_not_written(make_bed: Callable[..., Bed]) -> None:
    """Two saves fail, of which one was to let go the other: only what is in the store has a record."""
    bed = make_bed(keep.best("loss"), on_error="warn")
    bed.save("x", loss=3.0)
    bed.wait()
    bed.store.failures = {("write", "a"): FULL, ("write", "b"): FULL}
    bed.store.gate.clear()
    bed.save("a", loss=2.0)
    bed.save("b", loss=1.0)
    bed.store.gate.set()
    with pytest.warns(RuntimeWarning, match="was not saved"):
        bed.wait()
    assert sorted(bed.store.files) == ["x"]
    assert bed.records == {"x": {"loss": 3.0}}


def test_run_never_removes_the_best_for_one_that_was_not_written(make_bed: Callable[..., Bed]) -> None:
    """After failures, the best of the checkpoints that exist is the one that is kept."""
    bed = make_bed(keep.best("loss"), on_error="warn")
    bed.store.failures = {("write", "a"): FULL, ("write", "b"): FULL}
    bed.store.gate.clear()
    bed.save("a", loss=2.0)
    bed.save("b", loss=1.0)
    bed.store.gate.set()
    with pytest.warns(RuntimeWarning, match="was not saved"):
        bed.wait()
    bed.save("c", loss=3.0)
    bed.save("d", loss=4.0)
    bed.wait()
    assert sorted(bed.store.files) == ["c", "d"]


@pytest.mark.parametrize("failing", ["first", "none"])
def test_run_keeps_apart_two_pending_saves_of_one_name(make_bed: Callable[..., Bed], failing: str) -> None:
    """Two saves to one name on their way at once: the record is that of the one that is in the file in the end."""
    bed = make_bed(keep.all(), on_error="warn")
    bed.save("a", loss=3.0)
    bed.wait()
    bed.store.gate.clear()
    if failing == "first":
        bed.store.failures = {("write", "a"): FULL}
    bed.save("a", replace=True, loss=2.0)
    bed.save("a", replace=True, loss=1.0)
    bed.store.gate.set()
    if failing == "first":
        with pytest.warns(RuntimeWarning, match="was not saved"):
            bed.wait()
    else:
        bed.wait()
    assert bed.records == {"a": {"loss": 1.0}}
    assert bed.run.ledger.pending == frozenset()
    assert bed.run.ledger.records[0].size_bytes == len(bed.store.files["a"])


def test_run_raises_a_failure_once_with_its_cause(make_bed: Callable[..., Bed]) -> None:
    """The error comes out in the training thread, once, with the original error as its cause."""
    bed = make_bed(keep.all())
    bed.store.failures = {("write", "a"): FULL}
    bed.save("a")
    with pytest.raises(SaveError, match=r"a was not saved: .*No space left.*nothing was removed") as caught:
        bed.wait()
    assert caught.value.__cause__ is FULL
    assert bed.run.wait().errors == ()


def test_run_tells_all_failures_in_one_error(make_bed: Callable[..., Bed]) -> None:
    """Several failures since the last look are one error: the first, with the others as notes."""
    bed = make_bed(keep.all())
    bed.store.failures = {("write", "a"): FULL, ("write", "b"): FULL}
    bed.store.gate.clear()
    bed.save("a")
    bed.save("b")
    bed.store.gate.set()
    with pytest.raises(SaveError, match="a was not saved") as caught:
        bed.wait()
    (note,) = caught.value.__notes__
    assert "b was not saved" in note


def test_run_says_that_a_checkpoint_is_saved_though_removal_failed(make_bed: Callable[..., Bed]) -> None:
    """A failed removal is told apart from a failed save, and what is still there has its record again."""
    bed = make_bed(keep.latest())
    bed.save("a")
    bed.wait()
    bed.store.failures = {("remove", "a"): PermissionError("read-only")}
    bed.save("b")
    with pytest.raises(SaveError, match="b is saved, but a could not be removed"):
        bed.wait()
    assert list(bed.records) == ["a", "b"]


def test_run_is_unchanged_by_a_state_that_cannot_be_captured(make_bed: Callable[..., Bed]) -> None:
    """What cannot be captured changes neither ledger nor store, and takes no image."""
    bed = make_bed(keep.latest())
    bed.save("a")
    bed.wait()
    with pytest.raises(CaptureError):
        bed.save("b", state={"bad": lambda: None})
    bed.wait()
    assert list(bed.records) == ["a"]
    assert sorted(bed.store.files) == ["a"]
    assert len(bed.run.pipeline._pool._free) == bed.run.pipeline._pool._count


def test_run_gives_the_image_back_if_staging_fails(
    make_bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory for the image is the caller's error, and the next save has its image."""
    bed = make_bed(keep.latest())
    with monkeypatch.context() as patch:
        patch.setattr(Copier, "copy_in", _out_of_memory)
        with pytest.raises(MemoryError):
            bed.save("a")
    pool = bed.run.pipeline._pool
    assert len(pool._free) == pool._count == 1
    assert bed.run.ledger.records == ()


def _out_of_memory(*_: object) -> None:
    raise MemoryError


def test_run_blocks_where_told(make_bed: Callable[..., Bed]) -> None:
    """A blocking save returns when the checkpoint is durable."""
    bed = make_bed(keep.all(), blocking=True)
    bed.save("a")
    assert list(bed.store.files) == ["a"]
    assert [names.name for names in bed.run.settle().durable] == ["a"]


def test_run_times_rise_strictly(make_bed: Callable[..., Bed], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of one run never bear the same time, even if the clock stands still or goes back."""
    bed = make_bed(keep.all())
    for clock in (100.0, 100.0, 50.0):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        bed.save(f"{len(bed.records)}")
    times = [record.time for record in bed.run.ledger.records]
    assert times == sorted(set(times))


def test_bytes_still_to_be_written_are_counted() -> None:
    """Of all that is queued, and none once it has ended, well or not."""
    bench = Bench()
    bench.store.gate.clear()
    jobs = [bench.job("a"), bench.job("b")]
    for job in jobs:
        bench.writer.submit(job)
    assert bench.writer.pending_bytes == sum(job.seal.size_bytes for job in jobs)
    bench.store.gate.set()
    assert [outcome.durable for outcome in bench.finished()] == [True, True]
    assert bench.writer.pending_bytes == 0
    bench.fail("write", "c")
    bench.submit("c")
    bench.finished()
    assert bench.writer.pending_bytes == 0
