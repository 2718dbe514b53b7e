"""Names that a checkpoint tells, of files that a run may remove or replace: only its own, and only in its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import files
import forge
import pytest
import torch
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, Framework, fit
from test_doors import make

import safepoint
from safepoint import reader
from safepoint.catalog import Catalog
from safepoint.cli.ls import ls
from safepoint.integrations import resume
from safepoint.manifest import HistoryEntry

NAMES = ("../precious.ckpt", "/etc/passwd", "a/../../x.ckpt", "..", "", ".", "a/", "\0", "x\0.ckpt", ".safepoint-1.tmp")


def gone(name: str, **changes: Any) -> HistoryEntry:
    """Return a line of a history: of a checkpoint that has been removed."""
    fields = {"step": 1, "epoch": 0, "metrics": {}, "time": 1.0, "kept": False, "reason": "", **changes}
    return HistoryEntry(name, **fields)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "removed"])
def test_history_that_names_what_lies_elsewhere_is_refused(tmp_path: Path, name: str, *, kept: bool) -> None:
    """A name that leaves the directory makes the manifest malformed; listing goes on without the history."""
    path = tmp_path / "a.ckpt"
    files.write(path, files.manifest(history=(gone(name, kept=kept),)))
    with pytest.raises(safepoint.NotACheckpointError, match="a name in its history"):
        reader.read_manifest(path)
    with pytest.raises(safepoint.NotACheckpointError, match="a name in its history"):
        reader.read_history(path)
    assert Catalog.of(tmp_path).history("run") == ()
    ls([tmp_path], removed=True)


def test_run_that_goes_on_from_a_forged_history_removes_nothing_else(tmp_path: Path) -> None:
    """It may claim what it likes: other runs' files, files of other kinds, and what lies outside stay."""
    run = tmp_path / "run"
    pickled, storages = forge.parts({"notes": {}})
    with make(run, {"notes": {}}) as other:  # another run's checkpoint
        theirs = other.save()
    others = [theirs, run / "notes.txt", run / "foreign.ckpt", tmp_path / "outside.ckpt"]
    (run / "notes.txt").write_text("mine")
    torch.save({}, run / "foreign.ckpt")
    forge.write(tmp_path / "outside.ckpt", pickled, storages)
    (run / "link.ckpt").symlink_to(tmp_path / "outside.ckpt")
    before = {path: path.read_bytes() for path in others}
    claims = tuple(
        files.told(name, step) for name in (theirs.name, "notes.txt", "foreign.ckpt", "link.ckpt") for step in (0, 1)
    )
    forge.write(run / "forged.ckpt", pickled, storages, time=4e9, history=(*claims, files.told("forged.ckpt", 1)))
    with make(run, {"notes": {}}) as checkpointer:
        assert checkpointer.restore().path == run / "forged.ckpt"
        for _ in range(3):
            checkpointer.step()
    assert {path: path.read_bytes() for path in others} == before


def test_metric_of_a_checkpoint_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    """A metric with a slash in its name stays inside its directory, or is refused."""
    pickled, storages = forge.parts({"notes": {}})
    forge.write(tmp_path / "a.ckpt", pickled, storages, metrics={"../../x": 1.0}, history=(files.told("a.ckpt", 1),))
    with make(tmp_path, {"notes": {}}) as checkpointer:
        assert checkpointer.restore().metrics == {"../../x": 1.0}
        assert checkpointer.save().parent == tmp_path


def test_duplicate_fields_and_names_are_one(tmp_path: Path) -> None:
    """Of two fields of one name the last counts, as everywhere in JSON; of two lines of history, too."""
    pickled, storages = forge.parts({"notes": {}})
    told = forge.told(pickled, storages, history=(files.told("a.ckpt", 1), files.told("a.ckpt", 1)))
    text = forge.encode(told).replace(b'"step":1,', b'"step":7,"step":1,', 1)
    (tmp_path / "a.ckpt").write_bytes(forge.sealed(pickled, storages, manifest=text))
    assert json.loads(text)["step"] == 1
    assert [(record.path.name, record.step) for record in Catalog.of(tmp_path).records] == [("a.ckpt", 1)]
    assert safepoint.verify(tmp_path / "a.ckpt") == []


def _state(directory: Path, **changes: Any) -> dict[str, Any]:
    paths = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), "")
    return {"dirpath": str(directory), "best_k_models": {}, "best_model_score": None, **paths, **changes}


def test_trainers_callback_believes_no_path_that_its_run_cannot_have_saved(tmp_path: Path) -> None:
    """What the callback's state names is left out if it leaves the directory, is no checkpoint, or is another run's."""
    inside, outside = tmp_path / "run", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    files.write(inside / "from.ckpt", files.manifest(run="mine"))
    files.write(inside / "mine.ckpt", files.manifest(run="mine"))
    files.write(inside / "other.ckpt", files.manifest(run="other"))
    files.write(outside / "x.ckpt", files.manifest(run="mine"))
    torch.save({}, inside / "lightnings.ckpt")
    (inside / "notes.txt").write_text("mine")
    (inside / "elsewhere").symlink_to(outside)
    held = {
        str(inside / name): torch.tensor(1.0)
        for name in ("mine.ckpt", "lightnings.ckpt", "other.ckpt", "notes.txt", "elsewhere/x.ckpt", "../outside/x.ckpt", "\0")
    }  # fmt: skip
    for last, believed in (("../outside/x.ckpt", ""), ("other.ckpt", ""), ("mine.ckpt", str(inside / "mine.ckpt"))):
        state = _state(inside, best_k_models=held, last_model_path=str(inside / last))
        found = resume.believed(state, inside, ".ckpt", inside / "from.ckpt")
        assert {Path(name).name for name in found["best_k_models"]} == {"mine.ckpt", "lightnings.ckpt"}
        assert found["last_model_path"] == believed


@pytest.mark.parametrize("held", [[], 5, {"a.ckpt": "1"}, {"a.ckpt": torch.ones(2)}, None], ids=str)
def test_trainers_callback_refuses_scores_that_are_none(tmp_path: Path, held: Any) -> None:
    """Scores are tensors of one element."""
    with pytest.raises(safepoint.CheckpointError, match="best_k_models"):
        resume.believed(_state(tmp_path, best_k_models=held), tmp_path, ".ckpt", None)


@OLD_TREESPEC
@NOT_EMPTY
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_trainer_that_resumes_from_a_forged_checkpoint_removes_nothing_elsewhere(
    tmp_path: Path, framework: Framework
) -> None:
    """A real fit, resumed from a checkpoint that claims a file outside as the one to remove next."""
    run, precious = tmp_path / "run", tmp_path / "precious.ckpt"
    options = {"dirpath": run, "filename": "{epoch}", "monitor": "val_loss", "save_last": True}
    fit(framework, framework.ModelCheckpoint(**options), epochs=1)
    (path,) = (found for found in run.glob("epoch*.ckpt"))
    checkpoint, run_of_both = torch.load(path, weights_only=True), reader.read_summary(path).run
    path.unlink()
    torch.save({}, precious)  # as Lightning saves: no manifest says whose it is
    mine = precious.read_bytes()
    (callback,) = (key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint"))
    claimed = f"{run}/../precious.ckpt"
    checkpoint["callbacks"][callback] |= {
        "last_model_path": claimed, "best_model_path": claimed, "kth_best_model_path": claimed,
        "best_k_models": {claimed: torch.tensor(1e9)}, "kth_value": torch.tensor(1e9),
    }  # fmt: skip
    pickled, storages = forge.parts(checkpoint, own=False)
    forge.write(run / "forged.ckpt", pickled, storages, position=None, run=run_of_both)
    fit(framework, framework.ModelCheckpoint(**options), epochs=3, ckpt_path=run / "forged.ckpt")
    assert precious.read_bytes() == mine
