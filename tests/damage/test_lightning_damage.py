"""What a trainer does with damage, wherever it loads: an error that names what to take instead, or a warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import files
import pytest
import spoil
import torch
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, VAL_LOSSES, Framework, fit, listing, loader, model, trainer
from nets import flip
from spoil import Sample

import safepoint
from safepoint import image, reader
from safepoint.integrations import resume

pytestmark = [
    OLD_TREESPEC,
    NOT_EMPTY,
    pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name),
]

WEIGHT = "state_dict.layer.weight"


def callback(framework: Framework, directory: Path, **options: Any) -> Any:
    """Return the drop-in, which keeps every epoch's checkpoint unless ``options`` say otherwise."""
    return framework.ModelCheckpoint(dirpath=directory, filename="{epoch}", **{"save_top_k": -1, **options})


def saved(framework: Framework, directory: Path, epochs: int = 3, **options: Any) -> Any:
    """Fit, and return the trainer."""
    return fit(framework, callback(framework, directory, **options), epochs=epochs)


def flip_in_manifest(path: Path) -> None:
    """Flip a bit of the manifest: all of the state is sound, and torch loads it without a word."""
    entry = Sample.of(path).layout.manifest
    spoil.put(path, spoil.flipped(path.read_bytes(), entry.data_offset + entry.size_bytes // 2, 0))
    torch.load(path, weights_only=True)


def of_a_newer_format(path: Path) -> None:
    """Let the manifest say that a later Safepoint wrote it."""
    sample = Sample.of(path)
    entry = sample.layout.manifest
    told = sample.data[entry.data_offset :][: entry.size_bytes].replace(b'"format_version":1', b'"format_version":2')
    crcs = dict.fromkeys((e.name for e in sample.layout.entries), 0) | {entry.name: files.checksums(told).crc}
    changed = bytearray(sample.data)
    changed[entry.data_offset : entry.data_offset + entry.size_bytes] = told
    for offset, own in image.frame(sample.layout, crcs):
        if offset >= entry.data_offset:
            changed[offset : offset + len(own)] = own
    path.write_bytes(changed)


def spoilt(path: Path) -> None:
    """Flip a bit of the weights."""
    flip(path, WEIGHT)


def cut(path: Path) -> None:
    """Lose the second half."""
    spoil.put(path, path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    """Lose everything but the name."""
    spoil.put(path, b"")


def zeroed(path: Path) -> None:
    """Hold nothing but zeros, as a file does whose blocks never came to the disk."""
    spoil.put(path, bytes(path.stat().st_size))


DAMAGES = {
    spoilt: f"tensor '{WEIGHT}' does not match its digest",
    flip_in_manifest: "the manifest does not match its CRC-32",
    cut: "no whole zip archive",
    emptied: "no whole zip archive",
    zeroed: "no whole zip archive",
    of_a_newer_format: "written in format 2; this Safepoint reads up to 1: upgrade it",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_fit_refuses_a_damaged_path(framework: Framework, tmp_path: Path, damage: Any) -> None:
    """``fit(ckpt_path=...)`` says what is damaged and names the newest sound one; the module is as it was."""
    saved(framework, tmp_path)
    path = tmp_path / "epoch=2.ckpt"
    damage(path)
    spoilt(tmp_path / "epoch=1.ckpt")
    fresh = model(framework, seed=8)
    before = fresh.layer.weight.clone()
    with pytest.raises(safepoint.DamagedCheckpointError) as caught:
        trainer(framework, callback(framework, tmp_path)).fit(fresh, loader(), loader(), ckpt_path=path)
    assert str(path) in str(caught.value)
    assert DAMAGES[damage] in str(caught.value)
    assert f"The newest sound checkpoint beside it is {tmp_path / 'epoch=0.ckpt'}." in str(caught.value)
    assert torch.equal(fresh.layer.weight, before)


def test_sound_checkpoint_of_another_run_is_not_recommended(framework: Framework, tmp_path: Path) -> None:
    """What lies beside a damaged file and is of another run is no replacement for it."""
    saved(framework, tmp_path, epochs=2)
    saved(framework, tmp_path / "other", epochs=1)
    (tmp_path / "other" / "epoch=0.ckpt").rename(tmp_path / "newest.ckpt")
    spoilt(tmp_path / "epoch=1.ckpt")
    other = trainer(framework, callback(framework, tmp_path))
    with pytest.raises(safepoint.DamagedCheckpointError, match=r"beside it is .*epoch=0\.ckpt\.$"):
        other.fit(model(framework), loader(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")


@pytest.mark.parametrize("call", ["validate", "test", "predict"])
def test_other_entry_points_refuse_damage_too(
    framework: Framework, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``validate``, ``test`` and ``predict`` load by the same way, ``"best"`` among their paths."""
    monkeypatch.setattr(framework.module, "forward", lambda self, batch: self.layer(batch[0]))
    fitted = saved(framework, tmp_path, epochs=1, monitor="val_loss")
    spoilt(tmp_path / "epoch=0.ckpt")
    with pytest.raises(safepoint.DamagedCheckpointError, match=rf"{WEIGHT}.*No checkpoint beside it is sound"):
        getattr(fitted, call)(dataloaders=loader(), ckpt_path="best")


def test_trainer_loads_nothing_damaged(framework: Framework, tmp_path: Path) -> None:
    """Damage of every kind, through the plugin that all loading of a trainer goes through."""
    saved(framework, tmp_path, epochs=1)
    path = tmp_path / "epoch=0.ckpt"
    other = trainer(framework, callback(framework, tmp_path))
    framework.ModelCheckpoint.framework.intercept(other.strategy)
    loaded: list[str] = []
    for what, data in spoil.few(Sample.of(path), 150):
        spoil.put(path, data)
        try:
            other.strategy.load_checkpoint(path)
            loaded.append(what)
        except safepoint.CheckpointError as error:
            loaded += [what] if str(path) not in str(error) else []
    assert loaded == []


def test_only_what_goes_through_a_trainer_is_verified(framework: Framework, tmp_path: Path) -> None:
    """``load_from_checkpoint`` reads by torch alone, and sees no damage: ``safepoint.verify`` has to be asked."""
    saved(framework, tmp_path, epochs=1)
    path = tmp_path / "epoch=0.ckpt"
    spoilt(path)
    assert framework.module.load_from_checkpoint(path).layer.weight.shape == (3, 4)
    assert safepoint.verify(path) == [f"tensor '{WEIGHT}' does not match its digest"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_last_is_skipped(framework: Framework, tmp_path: Path, damage: Any) -> None:
    """``fit(ckpt_path="last")`` warns of what is damaged, whatever it is, and goes on from the newest sound one."""
    saved(framework, tmp_path, save_last="link")
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "epoch=2.ckpt").rename(tmp_path / "last.ckpt")
    damage(tmp_path / "last.ckpt")
    resumed = trainer(framework, callback(framework, tmp_path, save_last="link"), epochs=3)
    with pytest.warns(UserWarning, match=rf"last\.ckpt was skipped: .*{re.escape(DAMAGES[damage][:20])}"):
        resumed.fit(model(framework), loader(), loader(), ckpt_path="last")
    assert resumed.ckpt_path == str(tmp_path / "epoch=1.ckpt")


@pytest.mark.filterwarnings("ignore:.* was skipped:UserWarning")
def test_last_among_nothing_but_damage_is_an_error(framework: Framework, tmp_path: Path) -> None:
    """Where no checkpoint is sound, training does not begin afresh by itself: the error lists what was tried."""
    saved(framework, tmp_path, epochs=2, save_last=True)
    spoilt(tmp_path / "last.ckpt")  # and with it epoch=1.ckpt
    cut(tmp_path / "epoch=0.ckpt")
    spoil.put(tmp_path / "last-v1.ckpt", b"")
    resumed = trainer(framework, callback(framework, tmp_path, save_last=True), epochs=3)
    with pytest.raises(safepoint.RestoreError) as caught:
        resumed.fit(model(framework), loader(), loader(), ckpt_path="last")
    for name, why in (("last", WEIGHT), ("epoch=1", WEIGHT), ("last-v1", "no whole zip archive")):
        assert re.search(rf"  {tmp_path}/{name}\.ckpt: .*{why}", str(caught.value))
    assert resumed.global_step == 0


@pytest.mark.parametrize("damage", [cut, flip_in_manifest, emptied], ids=lambda damage: damage.__name__)
def test_damaged_best_holds_no_place(framework: Framework, tmp_path: Path, damage: Any) -> None:
    """An unreadable best of the run does not keep its place in the top k: a sound one gets it, the damaged lies on."""
    losses = {"val_loss": (1.0, 5.0, 4.0, 3.0, 2.0, 6.0)}
    options = {"monitor": "val_loss", "save_top_k": 1, "save_last": True}
    fit(framework, callback(framework, tmp_path, **options), metrics=losses, epochs=3)
    assert listing(tmp_path) == ["epoch=0.ckpt", "last.ckpt"]
    whole = (tmp_path / "last.ckpt").read_bytes()  # which is the same file
    damage(tmp_path / "epoch=0.ckpt")
    before = (tmp_path / "epoch=0.ckpt").read_bytes()
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").write_bytes(whole)
    ours = callback(framework, tmp_path, **options)
    fit(framework, ours, metrics=losses, ckpt_path=tmp_path / "last.ckpt")
    assert listing(tmp_path) == ["epoch=0.ckpt", "epoch=4.ckpt", "last.ckpt"]
    assert ours.best_model_path == str(tmp_path / "epoch=4.ckpt")
    assert (tmp_path / "epoch=0.ckpt").read_bytes() == before


def test_what_was_skipped_holds_no_place(framework: Framework, tmp_path: Path) -> None:
    """After a fallback from a damaged best the run ranks what is sound, and keeps what it came from."""
    saved(framework, tmp_path, epochs=4, monitor="val_loss", save_top_k=2, save_last=True)
    assert listing(tmp_path) == ["epoch=1.ckpt", "epoch=3.ckpt", "last.ckpt"]
    assert min(VAL_LOSSES) == VAL_LOSSES[3]
    spoilt(tmp_path / "last.ckpt")  # and with it epoch=3.ckpt, the best
    ours = callback(framework, tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    resumed = trainer(framework, ours, epochs=5)
    with pytest.warns(UserWarning, match=r"(last|epoch=3)\.ckpt was skipped"):
        resumed.fit(model(framework), loader(), loader(), ckpt_path="last")
    assert resumed.ckpt_path == str(tmp_path / "epoch=1.ckpt")
    assert sorted(Path(path).name for path in ours.best_k_models) == ["epoch=3-v1.ckpt", "epoch=4.ckpt"]
    assert listing(tmp_path) == ["epoch=1.ckpt", "epoch=3-v1.ckpt", "epoch=3.ckpt", "epoch=4.ckpt", "last.ckpt"]
    assert [path.name for path in tmp_path.iterdir() if reader.verify(path)] == ["epoch=3.ckpt"]


def test_directory_called_last_is_left_to_the_framework(framework: Framework, tmp_path: Path) -> None:
    """What a sharded strategy wrote is a directory, which is no damage."""
    (tmp_path / "last.ckpt").mkdir()
    warned: list[str] = []
    assert resume.newest_last(tmp_path, "last", ".ckpt", warned.append) == tmp_path / "last.ckpt"
    assert warned == []
    assert framework.name
