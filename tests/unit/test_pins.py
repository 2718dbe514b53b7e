"""Pins: which checkpoint each means, what is made of those that nobody can read, and what a catalog tells of them."""

from __future__ import annotations

import os
from pathlib import Path

import files
import pytest

from safepoint import pins
from safepoint.catalog import Catalog
from safepoint.manifest import HistoryEntry
from safepoint.pinning import Pinning, is_pinned, set_pinned
from safepoint.pins import Pin
from safepoint.places import place_of
from safepoint.removal import Left, Removal, remove, set_aside
from safepoint.stores import NOTE_LIMIT_BYTES, Store
from safepoint.stores.lease import is_held_here
from safepoint.stores.local import LocalStore, clean
from safepoint.stores.memory import MemoryStore
from safepoint.survey import Survey

TIME = 1.5e9


def told(name: str, step: int, reason: str = "the latest") -> HistoryEntry:
    """Return what a checkpoint tells of itself."""
    return HistoryEntry(name, step, 0, {}, TIME + step, kept=True, reason=reason)


def saved(path: Path, step: int = 1, *, pinned: bool = False, name: str = "", reason: str = "the latest") -> Path:
    """Make a checkpoint that tells of itself as a run saves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    history = (told(name or path.name, step, reason),)
    files.write(path, files.manifest(step=step, time=TIME + step, pinned=pinned, history=history))
    return path


def pinned_in(directory: Path) -> list[str]:
    """Return the names of what a catalog of ``directory`` tells to be pinned."""
    return [record.path.name for record in Catalog.of(directory).records if record.pinned]


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Return one store of each kind."""
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path)


def test_pin_comes_back_from_every_store(store: Store) -> None:
    """What is put beside a checkpoint is read there, replaced by a later one, and dropped."""
    assert pins.read(store, "epoch=1/a.ckpt") is None
    for pin in (Pin("run", 3, TIME), Pin("run", 3, TIME, pinned=False)):
        pins.put(store, "epoch=1/a.ckpt", pin)
        assert pins.read(store, "epoch=1/a.ckpt") == pin
    assert store.noted("epoch=1/.a.ckpt.pin") is not None
    pins.drop(store, "epoch=1/a.ckpt")
    assert pins.read(store, "epoch=1/a.ckpt") is None


def test_pin_leaves_the_lock_of_a_living_run(tmp_path: Path) -> None:
    """The store that a run saves with may write pins, too: what it holds is its newest checkpoint all the same."""
    store = LocalStore(tmp_path)
    store.write("a.ckpt", [b"data"], 4, replace=False)
    pins.put(store, "a.ckpt", Pin("run", 1, TIME))
    assert is_held_here(tmp_path / "a.ckpt")
    assert not is_held_here(tmp_path / ".a.ckpt.pin")
    pins.drop(store, "a.ckpt")
    assert is_held_here(tmp_path / "a.ckpt")
    store.let_go()


def test_pin_means_one_checkpoint() -> None:
    """Another run's, and a later one of the same name, are not meant."""
    for pinned in (True, False):
        pin = Pin("run", 3, TIME, pinned)
        assert pin.verdict("run", (TIME, TIME + 1)) is pinned
        assert pin.verdict("run", (TIME + 1,)) is None
        assert pin.verdict("other", (TIME,)) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 4000,
        b'{"version":2,"run":"run","step":1,"time":1.0,"pinned":false}',
        b'{"version":1,"run":"run","step":1,"time":"now","pinned":false}',
        b'{"version":1,"run":"run","step":1,"time":1.0,"pinned":false}' + b" " * NOTE_LIMIT_BYTES,
    ],
    ids=["empty", "no text", "deep", "newer", "malformed", "long"],
)
def test_pin_that_nobody_understands_is_one(store: Store, content: bytes) -> None:
    """Somebody may have meant to keep what it lies beside."""
    store.note(pins.name_of("a.ckpt"), content)
    pin = pins.read(store, "a.ckpt")
    assert pin is not None
    assert pin.verdict("run", ()) is True


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "FIFO"])
def test_pin_that_is_no_file_is_one(tmp_path: Path, make: object) -> None:
    """It is not opened, and never waited for."""
    saved(tmp_path / "a.ckpt")
    make(tmp_path / ".a.ckpt.pin")  # type: ignore[operator]
    assert pinned_in(tmp_path) == ["a.ckpt"]


def test_pin_that_is_a_link_to_nothing_is_none(tmp_path: Path) -> None:
    """Nothing is said there."""
    saved(tmp_path / "a.ckpt")
    (tmp_path / ".a.ckpt.pin").symlink_to(tmp_path / "nowhere")
    assert pinned_in(tmp_path) == []


def test_names_too_long_for_a_pin_have_none(tmp_path: Path) -> None:
    """The file system has no such name, and so nobody has pinned it."""
    assert pins.read(LocalStore(tmp_path), "x" * 250 + ".ckpt") is None


def test_catalog_tells_of_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those beside the checkpoints that they mean, wherever these lie; they count more than the manifest."""
    for name in ("a.ckpt", "b.ckpt", "deep/er/a.ckpt"):
        saved(tmp_path / name)
    saved(tmp_path / "saved.ckpt", pinned=True)
    assert pinned_in(tmp_path) == ["saved.ckpt"]
    set_pinned(place_of(tmp_path / "deep/er/a.ckpt"), pinned=True)
    set_pinned(place_of(tmp_path / "saved.ckpt"), pinned=False)
    pinned = [record.path for record in Catalog.of(tmp_path).records if record.pinned]
    assert pinned == [tmp_path / "deep/er/a.ckpt"]
    surveyed = [entry.path for entry in Survey.of(tmp_path).entries if entry.record and entry.record.pinned]
    assert surveyed == [tmp_path / "deep/er/a.ckpt"]
    monkeypatch.chdir(tmp_path)
    assert [record.path for record in Catalog.of(Path()).records if record.pinned] == [Path("deep/er/a.ckpt")]


def test_catalog_passes_over_pins_of_what_is_gone(tmp_path: Path) -> None:
    """Another checkpoint that has got the name is not pinned by them."""
    set_pinned(place_of(saved(tmp_path / "a.ckpt", step=1)), pinned=True)
    saved(tmp_path / "a.ckpt", step=2)
    assert pinned_in(tmp_path) == []


def test_pin_of_a_checkpoint_called_like_a_temporary_is_not_cleaned(tmp_path: Path) -> None:
    """Its name begins as those of temporaries do, and is none."""
    path = saved(tmp_path / "safepoint-1.ckpt")
    set_pinned(place_of(path), pinned=True)
    assert clean(tmp_path) == []
    LocalStore(tmp_path).write("other.ckpt", [b"data"], 4, replace=False)
    assert pinned_in(tmp_path) == ["safepoint-1.ckpt"]


def test_pinning_goes_back_and_forth(tmp_path: Path) -> None:
    """Whatever a checkpoint was saved as; nothing is left of a pin that says what the manifest does."""
    for is_saved in (False, True):
        place = place_of(saved(tmp_path / "a.ckpt", pinned=is_saved))
        assert set_pinned(place, pinned=is_saved) is Pinning.AS_BEFORE
        for pinned in (not is_saved, is_saved, not is_saved, is_saved):
            assert set_pinned(place, pinned=pinned) is Pinning.DONE
            assert is_pinned(place) == pinned
            assert pinned_in(tmp_path) == (["a.ckpt"] if pinned else [])
        assert (tmp_path / ".a.ckpt.pin").exists() == is_saved


# Whose a name is.


def test_record_is_found_through_every_name(tmp_path: Path) -> None:
    """A further name that the run gave, a link that somebody made, and names that lead into directories."""
    main = saved(tmp_path / "epoch=1" / "a.ckpt", name="epoch=1/a.ckpt")
    place = place_of(main)
    assert (place.directory, place.record) == (tmp_path, main)
    by_hand = main.with_name("mine.ckpt")
    by_hand.symlink_to(main)
    assert place_of(by_hand).record == main
    flat = saved(tmp_path / "flat" / "a.ckpt")
    os.link(flat, flat.with_name("mine.ckpt"))
    assert place_of(flat.with_name("mine.ckpt")).record == flat
    history = (told("a.ckpt", 1), told("last.ckpt", 1, "another name of a.ckpt"))
    for name in ("a.ckpt", "last.ckpt"):
        files.write(tmp_path / "flat" / name, files.manifest(step=1, time=TIME + 1, history=history))
    assert place_of(tmp_path / "flat" / "last.ckpt").record == tmp_path / "flat" / "a.ckpt"
    (tmp_path / "flat" / "a.ckpt").unlink()
    assert place_of(tmp_path / "flat" / "last.ckpt").record == tmp_path / "flat" / "last.ckpt"


def test_copy_has_no_record(tmp_path: Path) -> None:
    """Under another name, it is nobody's but who made it; a copied directory is a run's as the one before."""
    main = saved(tmp_path / "a.ckpt")
    copy = tmp_path / "mine.ckpt"
    copy.write_bytes(main.read_bytes())
    assert place_of(copy).record is None
    assert set_pinned(place_of(copy), pinned=True) is Pinning.UNKNOWN
    elsewhere = tmp_path / "elsewhere" / "a.ckpt"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(main.read_bytes())
    assert place_of(elsewhere).record == elsewhere


# The last look.


def test_removal_leaves_what_is_pinned(tmp_path: Path) -> None:
    """By a pin or as it was saved, the pin before the manifest; its pin goes with what goes."""
    store, removal = LocalStore(tmp_path), Removal("a.ckpt", frozenset(("run",)), frozenset((TIME + 1,)))
    path = saved(tmp_path / "a.ckpt", pinned=True)
    assert remove(store, removal) is Left.PINNED
    set_pinned(place_of(path), pinned=False)
    assert remove(store, removal) is Left.NOTHING
    assert list(tmp_path.iterdir()) == []
    saved(path)
    set_pinned(place_of(path), pinned=True)
    assert remove(store, removal) is Left.PINNED
    saved(path, step=2)
    assert remove(store, removal) is Left.ANOTHERS
    assert remove(store, Removal("a.ckpt", frozenset(("run",)))) is Left.NOTHING
    assert list(tmp_path.iterdir()) == []
    assert remove(store, removal) is Left.NOTHING


def test_what_is_pinned_is_set_aside(tmp_path: Path) -> None:
    """It goes on under the next free name, with its pin; what is not pinned, or gone, is nobody's concern."""
    store, path = LocalStore(tmp_path), saved(tmp_path / "last.ckpt")
    assert set_aside(store, "last.ckpt") is None
    set_pinned(place_of(path), pinned=True)
    (tmp_path / "last-v1.ckpt").touch()
    assert set_aside(store, "last.ckpt") == "last-v2.ckpt"
    assert sorted(os.listdir(tmp_path)) == [".last-v2.ckpt.pin", "last-v1.ckpt", "last-v2.ckpt", "last.ckpt"]
    assert pinned_in(tmp_path) == ["last-v2.ckpt"]
    pins.put(store, "last.ckpt", Pin("run", 7, TIME + 7))
    pins.put(store, "gone.ckpt", Pin("run", 7, TIME + 7))
    before = sorted(os.listdir(tmp_path))
    assert set_aside(store, "last.ckpt") is None
    assert set_aside(store, "gone.ckpt") is None
    assert sorted(os.listdir(tmp_path)) == before
