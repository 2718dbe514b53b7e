"""Golden files that together use all of format version 1, and a watch over what is written today.

What is in them, and how they were made, is in ``make_more_of_format_1``.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import files
import make_more_of_format_1 as golden
import pytest
import torch
from contents import content
from make_more_of_format_1 import Namespace
from models import NOT_EMPTY, OLD_TREESPEC

import safepoint
from safepoint import Checkpointer, image, keep, reader, when
from safepoint.capture import capture
from safepoint.catalog import Catalog

HERE = Path(__file__).parent
NAMES = tuple(golden.WRITERS)
TRUST = {"trusted": [golden.Fraction, Namespace]}

pytestmark = [
    OLD_TREESPEC,
    NOT_EMPTY,
    pytest.mark.filterwarnings("ignore:.*[Qq]uant:UserWarning", "ignore:.*TypedStorage:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
]


def file_of(name: str) -> Path:
    """Return the golden file called ``name``."""
    return HERE / f"format-1-{name}.ckpt"


def put(name: str, directory: Path) -> Path:
    """Put the golden file called ``name`` into ``directory``, under the name that it had when it was saved."""
    manifest = reader.read_manifest(file_of(name))
    (own,) = (entry.name for entry in manifest.history if entry.step == manifest.step and entry.name != "last.ckpt")
    directory.mkdir(exist_ok=True)
    return Path(shutil.copy(file_of(name), directory / own))


def restored(name: str, directory: Path, state: dict[str, Any], **options: Any) -> safepoint.Progress:
    """Restore the golden file called ``name`` into ``state``."""
    put(name, directory)
    policies = {"save": when.train_end(), "keep": keep.latest(), "exclude_frozen": name == "frozen"}
    return Checkpointer(directory, state=state, **policies).restore(**options)


# What is there is read for ever.


def test_golden_files_are_small() -> None:
    """Nobody minds to have them all checked in."""
    assert all(path.stat().st_size < 100_000 for path in HERE.glob("*.ckpt"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
@pytest.mark.filterwarnings("ignore:.*was saved with exclude_frozen=True:RuntimeWarning")
def test_golden_file_loads_as_torch_loads_it(name: str, *, mmap: bool) -> None:
    """Each is sound, and by either loader, restricted and mapped or not, the same state comes out bit for bit."""
    assert safepoint.verify(file_of(name)) == []
    loaded = safepoint.load(file_of(name), mmap=mmap, trust=TRUST.get(name, ()))
    with torch.serialization.safe_globals(TRUST.get(name, [])):
        expected = torch.load(file_of(name), mmap=mmap, weights_only=True)
    assert content(capture(loaded)) == content(capture(expected))


@pytest.mark.parametrize("name", ["tensors", "kinds"])
def test_golden_tensors_are_what_was_saved(name: str) -> None:
    """Values, dtypes, shapes, strides and sharing: saved again, what is loaded gives the bytes of the original."""
    made = {"tensors": golden.tensors, "kinds": golden.kinds}[name]()
    loaded = safepoint.load(file_of(name))[name]
    assert content(capture(loaded)) == content(capture(made))
    assert list(loaded) == list(made)


def test_golden_objects_need_trust() -> None:
    """A class of the user's own is refused by name, and is what it was where it is trusted."""
    with pytest.raises(safepoint.CheckpointError, match=r"cannot be loaded safely.*fractions\.Fraction.*trust="):
        safepoint.load(file_of("trusted"))
    for options in ({"trust": TRUST["trusted"]}, {"weights_only": False}):
        objects = safepoint.load(file_of("trusted"), **options)["objects"]
        assert objects["fraction"] == golden.Fraction(1, 3)
        assert (objects["arguments"].name, objects["arguments"].tensor.tolist()) == ("golden", [0, 1, 2])


@pytest.mark.parametrize("name", ["tensors", "kinds", "trusted"])
def test_golden_state_restores(tmp_path: Path, name: str) -> None:
    """Each goes back into a live object."""
    entry = {"trusted": "objects"}.get(name, name)
    state: dict[str, Any] = {entry: {}}
    progress = restored(name, tmp_path, state, trust=TRUST.get(name, ()))
    assert (progress.step, progress.epoch, progress.batch) == (0, 0, 0)
    expected = safepoint.load(file_of(name), trust=TRUST.get(name, ()))
    assert content(capture(state[entry])) == content(capture(expected[entry]))


def test_golden_run_goes_on(tmp_path: Path) -> None:
    """A model and its optimizer are restored in place, and the run goes on where it was, under its identity."""
    live = golden.model()
    optimizer = torch.optim.SGD(live[1].parameters(), momentum=0.5)
    progress = restored("history", tmp_path, {"model": live, "optimizer": optimizer})
    assert (progress.step, progress.epoch, progress.batch) == (6, 5, 1)
    expected = torch.load(file_of("history"), weights_only=True)
    assert all(torch.equal(tensor, expected["model"][key]) for key, tensor in live.state_dict().items())
    moments = optimizer.state_dict()["state"]
    assert all(
        torch.equal(moments[key]["momentum_buffer"], expected["optimizer"]["state"][key]["momentum_buffer"])
        for key in (0, 1)
    )


def test_golden_frozen_parameters_are_compared(tmp_path: Path) -> None:
    """What was left out is the live one's, and a live one that is another is told of."""
    torch.manual_seed(0)
    same = golden.model()
    assert restored("frozen", tmp_path, {"model": same}).step == 1
    with torch.no_grad():
        same[0].weight.zero_()
    with pytest.warns(RuntimeWarning, match=r"model.*0\.weight"):
        restored("frozen", tmp_path, {"model": same})


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is ranked by the validation of step:UserWarning")
def test_golden_lightning_file_resumes(tmp_path: Path) -> None:
    """A trainer resumes from the drop-in's file, and the callback from its state, wherever the files lie now."""
    path = put("lightning", tmp_path)
    fitted = golden.fit(tmp_path, epochs=3, ckpt_path=path)
    assert fitted.global_step == 12
    assert fitted.checkpoint_callback is not None
    assert {Path(held).name for held in fitted.checkpoint_callback.best_k_models} >= {"step=6.ckpt", "step=9.ckpt"}
    (run,) = Catalog.of(tmp_path).runs()
    assert run == reader.read_manifest(file_of("lightning")).run


def test_golden_catalog_tells_all(tmp_path: Path) -> None:
    """Record, pin, metrics that JSON has no word for, history, reasons and what saves cost: all as they were."""
    path = put("history", tmp_path)
    catalog = Catalog.of(tmp_path)
    (record,) = catalog.records
    assert (record.step, record.epoch, record.pinned, record.reasons) == (6, 5, True, ("requested",))
    assert record.metrics["Präzision ✓"] == 1
    assert math.isnan(record.metrics["not a number"])
    assert record.metrics["below"] == -math.inf
    assert (catalog.fates[path].kept, catalog.fates[path].reason) == (True, "the latest")
    told = catalog.history(record.run)
    assert [(fate.record.step, fate.kept) for fate in told] == [
        (1, False),
        (2, False),
        (3, False),
        (4, True),
        (5, False),
        (6, True),
    ]
    assert told[3].reason == "best by val_loss (-inf)"
    assert told[4].reason == "not the best by val_loss (0.75) and not the latest"
    assert told[4].record.metrics == {"val_loss": 0.75, "late": 0.125}
    assert math.isnan(told[0].record.metrics["val_loss"])
    assert all(fate.record.stats is not None and fate.record.stats.size_bytes > 40_000 for fate in told[:5])


def test_golden_lightning_file_tells_all(tmp_path: Path) -> None:
    """The step at which a metric was measured, the other name of the file, and the one before it."""
    path = put("lightning", tmp_path)
    (tmp_path / "last.ckpt").hardlink_to(path)
    catalog = Catalog.of(tmp_path)
    assert {record.path.name for record in catalog.records} == {"step=6.ckpt", "last.ckpt"}
    assert all(record.measured_at == {"val_loss": 4} for record in catalog.records)
    assert catalog.manifests[path].position is None
    assert catalog.fates[tmp_path / "last.ckpt"].reason == "another name of step=6.ckpt"
    assert [fate.record.path.name for fate in catalog.history(catalog.records[0].run)] == [
        "step=4.ckpt",
        "step=6.ckpt",
        "last.ckpt",
    ]
    assert catalog.best("val_loss") is None


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_golden_files_on_the_command_line(tmp_path: Path, command: str) -> None:
    """Both commands read them all."""
    for name in NAMES:
        put(name, tmp_path / name)
    executable = str(Path(sys.executable).with_name("safepoint"))
    result = subprocess.run([executable, command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    if command == "verify":
        assert lines[-1] == "all 6 sound"
    else:
        assert lines[-1].startswith("6 checkpoints, ")
        (pinned,) = (line for line in lines if line.startswith("history/"))
        assert "Präzision ✓ 1" in pinned
        assert "below -inf, not a number nan" in pinned
        assert pinned.rstrip().endswith("pinned")


# What is written today is what was written then.


def shape(value: Any) -> Any:
    """Return the structure of parsed JSON: fields, lengths of lists, and kinds of values, but no value."""
    if isinstance(value, dict):
        return {key: shape(held) for key, held in value.items()}
    if isinstance(value, list):
        return [shape(held) for held in value]
    return type(value).__name__


def parts(path: Path) -> tuple[dict[str, Any], list[tuple[str, int, int]], bytes]:
    """Return a file's manifest as JSON, the other records with where they begin and how long they are, their bytes."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read(image.MANIFEST_RECORD))
        *others, last = archive.infolist()
        assert last.filename == image.MANIFEST_RECORD
        records = [(info.filename, info.header_offset, info.file_size) for info in others]
    return manifest, records, path.read_bytes()[: last.header_offset]


CHANGED = "what is written has changed: raise manifest.FORMAT_VERSION, read the old one too, and add golden files"


@pytest.mark.parametrize("name", NAMES)
def test_manifest_has_the_fields_of_its_format(name: str, tmp_path: Path) -> None:
    """The same state, saved today, has a manifest with the fields of the golden one, in their order, of their kinds."""
    then, _, _ = parts(file_of(name))
    now, _, _ = parts(golden.written(name, tmp_path))
    assert now["format_version"] == then["format_version"] == 1
    if name == "lightning":  # a trainer's checkpoint holds more than it did, of the same kinds
        for manifest in (now, then):
            manifest["tensors"], manifest["storages"] = manifest["tensors"][:1], manifest["storages"][:1]
    assert json.dumps(shape(now)) == json.dumps(shape(then)), CHANGED
    same = ["excluded", "measured_at", "reasons", "pinned", "position"]
    same += ["tensors"] if name != "lightning" else []  # there, keys of the framework's hold paths
    assert {field: now.get(field) for field in same} == {field: then.get(field) for field in same}, CHANGED


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lightning"])
def test_archive_has_the_layout_of_its_format(name: str, tmp_path: Path) -> None:
    """The same state, saved today, is byte for byte the same file up to the manifest, digests included.

    With another torch its pickle may differ; the framework's own state holds paths. The layout must be the same.
    """
    then, records_then, bytes_then = parts(file_of(name))
    now, records_now, bytes_now = parts(golden.written(name, tmp_path))
    if now["producer"]["torch"] == then["producer"]["torch"]:
        assert records_now == records_then, CHANGED
        assert bytes_now == bytes_then, CHANGED
        assert (now["pickle"], now["storages"]) == (then["pickle"], then["storages"]), CHANGED
    else:
        assert [record for record, _, _ in records_now] == [record for record, _, _ in records_then], CHANGED


def test_file_of_a_newer_format_is_refused_everywhere(tmp_path: Path) -> None:
    """Each way of reading says which format it is, which are read, and to upgrade."""
    path = tmp_path / "newer.ckpt"
    files.write(path, files.manifest(format_version=2))
    said = "written in format 2; this Safepoint reads up to 1: upgrade it"
    assert safepoint.verify(path) == [said]
    assert Catalog.of(tmp_path).unreadable == {path: said}
    with pytest.raises(safepoint.NotACheckpointError, match=said):
        safepoint.load(path)
    with pytest.raises(safepoint.RestoreError, match=said):
        Checkpointer(tmp_path, state={"a": {}}, save=when.train_end(), keep=keep.all()).restore()
