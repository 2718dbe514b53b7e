"""What a catalog tells of a directory, from files with nothing but a manifest in them."""

from __future__ import annotations

import json
from pathlib import Path

import files
from files import told

from safepoint.catalog import Catalog
from safepoint.manifest import encode

MANY = 200


def test_catalog_of_many_files_is_whole_and_in_order(tmp_path: Path) -> None:
    """Files that are read side by side come out oldest first, and each of those that cannot be read with its reason."""
    for step in range(MANY):
        files.write(tmp_path / f"{step}.ckpt", files.manifest(step=step, time=1.5e9 - step))
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04")
    (tmp_path / "gone.ckpt").symlink_to(tmp_path / "nowhere")
    catalog = Catalog.of(tmp_path)
    assert [record.step for record in catalog.records] == list(reversed(range(MANY)))
    assert [record.size_bytes for record in catalog.records] == [r.path.stat().st_size for r in catalog.records]
    assert list(catalog.unreadable) == [tmp_path / "half.ckpt"]


def test_catalog_tells_fates_of_what_the_run_itself_wrote(tmp_path: Path) -> None:
    """A fate goes with the name and the step that the run's newest checkpoint tells of, not with a copy."""
    history = (told("a.ckpt", 1), told("b.ckpt", 2), told("gone.ckpt", 3))
    files.write(tmp_path / "a.ckpt", files.manifest(step=1, time=1.5e9 + 1))
    files.write(tmp_path / "b.ckpt", files.manifest(step=9, time=1.5e9 + 2))
    files.write(tmp_path / "copy.ckpt", files.manifest(step=1, time=1.5e9 + 1))
    files.write(tmp_path / "other.ckpt", files.manifest(run="other", step=1, history=history))
    files.write(tmp_path / "newest.ckpt", files.manifest(step=4, time=1.5e9 + 4, history=history))
    catalog = Catalog.of(tmp_path)
    assert {path.name: fate.reason for path, fate in catalog.fates.items()} == {"a.ckpt": "kept for step 1"}
    assert [record.path.name for record in catalog.written_by("run")] == ["a.ckpt"]
    assert [fate.record.path.name for fate in catalog.history("run")] == ["a.ckpt", "b.ckpt", "gone.ckpt"]
    assert catalog.history("nobody") == ()


def test_catalog_takes_metrics_that_came_late(tmp_path: Path) -> None:
    """What later checkpoints tell of an earlier one is added to its record, if it is that very one."""
    history = (told("a.ckpt", 1, late=0.5), told("b.ckpt", 2, late=0.25))
    files.write(tmp_path / "a.ckpt", files.manifest(step=1, time=1.5e9 + 1, metrics={"loss": 2.0}))
    files.write(tmp_path / "b.ckpt", files.manifest(step=2, time=1.5e9 + 2.5))
    files.write(tmp_path / "c.ckpt", files.manifest(step=3, time=1.5e9 + 3, history=history))
    metrics = {record.path.name: record.metrics for record in Catalog.of(tmp_path).records}
    assert metrics == {"a.ckpt": {"loss": 2.0, "late": 0.5}, "b.ckpt": {}, "c.ckpt": {}}


def test_catalog_takes_the_history_of_the_newest_that_has_one(tmp_path: Path) -> None:
    """Where the newest checkpoint's history cannot be read, the one before it tells."""
    files.write(tmp_path / "a.ckpt", files.manifest(step=1, time=1.5e9 + 1, history=(told("a.ckpt", 1),)))
    damaged = json.loads(encode(files.manifest(step=2, time=1.5e9 + 2))) | {"history": "none"}
    files.write(tmp_path / "b.ckpt", json.dumps(damaged).encode())
    catalog = Catalog.of(tmp_path)
    assert [record.step for record in catalog.records] == [1, 2]
    assert [fate.record.step for fate in catalog.history("run")] == [1]


def test_emergency_checkpoint_is_never_the_best(tmp_path: Path) -> None:
    """Whatever its metrics say: they may be of other weights than the exception has left."""
    files.write(tmp_path / "a.ckpt", files.manifest(step=1, metrics={"loss": 1.0}))
    files.write(tmp_path / "b.ckpt", files.manifest(step=2, metrics={"loss": 0.5}, emergency="ValueError"))
    best = Catalog.of(tmp_path).best("loss")
    assert best is not None
    assert best.step == 1
