"""The manifest as JSON: there and back, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safepoint import manifest as manifests
from safepoint.errors import CaptureError, NotACheckpointError
from safepoint.manifest import Blob, HistoryEntry, Manifest, Position, Tensor, check_readable, decode, encode
from safepoint.records import Fate, Progress, Record

DIGEST = "0123456789abcdef" * 2
DIRECTORY = Path("/runs/a")


def _manifest(**changes: Any) -> Manifest:
    manifest = Manifest(
        format_version=1,
        run="run",
        step=120,
        epoch=3,
        metrics={"loss": 0.5, "count": 3},
        time=1.5e9,
        reasons=("every epoch", "requested"),
        pinned=True,
        position=Position(120, 4, 0),
        producer={"safepoint": "0.1.0"},
        pickle=Blob(100, DIGEST),
        storages=(Blob(24, DIGEST), Blob(0, DIGEST)),
        tensors=(
            Tensor("model.weight", "float32", (2, 3), storage=0),
            Tensor("model.view", "float32", (3, 2), storage=0, offset=1, strides=(1, 2)),
            Tensor("model.empty", "int64", (0,), storage=1),
        ),
        history=(HistoryEntry("a.ckpt", 1, 0, {"loss": "nan"}, 1.0, kept=False, reason="not the latest"),),
    )
    return msgspec.structs.replace(manifest, **changes)


def _edited(**changes: Any) -> bytes:
    fields = json.loads(encode(_manifest()))
    return json.dumps({**fields, **changes}).encode()


def test_manifest_survives_encoding() -> None:
    """What is decoded is what was encoded, whole numbers still whole."""
    decoded = decode(encode(_manifest()))
    assert decoded == _manifest()
    assert [type(value) for value in decoded.metrics.values()] == [float, int]


def test_manifest_is_plain_json() -> None:
    """Any JSON reader can read it, and the fields bear the names that the format promises."""
    fields = json.loads(encode(_manifest()))
    assert list(fields) == [
        "format_version",
        "run",
        "step",
        "epoch",
        "metrics",
        "time",
        "reasons",
        "pinned",
        "position",
        "producer",
        "pickle",
        "storages",
        "tensors",
        "history",
    ]
    assert fields["tensors"][0] == {"path": "model.weight", "dtype": "float32", "shape": [2, 3], "storage": 0}
    assert fields["storages"][0] == {"size_bytes": 24, "digest": DIGEST}


def test_manifest_tells_its_record() -> None:
    """The record of a file is what its manifest says, at the path where it was found."""
    path = DIRECTORY / "x.ckpt"
    assert _manifest().record(path, 4096) == Record(
        path=path,
        step=120,
        epoch=3,
        metrics={"loss": 0.5, "count": 3},
        time=1.5e9,
        size_bytes=4096,
        reasons=("every epoch", "requested"),
        pinned=True,
        run="run",
    )


def test_manifest_tells_of_an_exception_only_where_there_was_one() -> None:
    """What an emergency checkpoint says is in its record; all others leave the fields out, as older files do."""
    assert not {"emergency", "flaw"} & json.loads(encode(_manifest())).keys()
    told = decode(encode(_manifest(emergency="ValueError", flaw="model.weight holds NaN"))).record(Path("a.ckpt"), 1)
    assert (told.emergency, told.flaw) == ("ValueError", "model.weight holds NaN")
    ordinary = decode(encode(_manifest())).record(Path("a.ckpt"), 1)
    assert (ordinary.emergency, ordinary.flaw) == ("", "")


def test_manifest_tells_where_to_go_on() -> None:
    """A plain loop goes on at the position, which need not be the step and the epoch of the save."""
    path = DIRECTORY / "x.ckpt"
    assert _manifest().progress(path) == Progress(120, 4, 0, {"loss": 0.5, "count": 3}, path)
    assert _manifest(position=None).progress(path) is None


@given(st.dictionaries(st.text(), st.floats() | st.integers(-(2**63), 2**63 - 1)))
def test_metrics_survive_json(metrics: dict[str, float]) -> None:
    """Every number comes back as it was: NaN, infinities, negative zero and whole numbers too."""
    encoded = manifests.encoded_metrics(metrics)
    decoded = dict(manifests.decoded_metrics(decode(encode(_manifest(metrics=encoded))).metrics))
    assert {name: repr(value) for name, value in metrics.items()} == {n: repr(value) for n, value in decoded.items()}


def test_metrics_spell_what_json_cannot() -> None:
    """NaN and the infinities are words in JSON."""
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}
    assert manifests.encoded_metrics(metrics) == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b"{}",
        encode(_manifest())[:-1],
        encode(_manifest()) + b"}",
        _edited(format_version=0),
        _edited(format_version="1"),
        _edited(step=-1),
        _edited(step=2**62),
        _edited(step=1.5),
        _edited(epoch=None),
        _edited(run=None),
        _edited(metrics={"loss": "high"}),
        _edited(metrics={"loss": None}),
        _edited(pickle={"size_bytes": 1, "digest": "0" * 31}),
        _edited(pickle={"size_bytes": 1, "digest": "0" * 33}),
        _edited(pickle={"size_bytes": 1, "digest": "G" * 32}),
        _edited(pickle={"size_bytes": -1, "digest": DIGEST}),
        _edited(storages=[{"size_bytes": 2**62, "digest": DIGEST}, {"size_bytes": 0, "digest": DIGEST}]),
        _edited(storages=None),
        _edited(tensors=[{"path": "a", "dtype": "float32", "shape": [-1], "storage": 0}]),
        _edited(tensors=[{"path": "a", "dtype": "float32", "shape": [1], "storage": -1}]),
        _edited(position={"step": 1, "epoch": 1}),
        _edited(history=[{}]),
        b'{"format_version":1,"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_decode_refuses_what_is_no_manifest(data: bytes) -> None:
    """Whatever is malformed is refused with one kind of error, and never with another."""
    with pytest.raises(NotACheckpointError, match="its manifest is malformed"):
        decode(data)


@pytest.mark.parametrize(
    "field",
    [
        "run",
        "step",
        "epoch",
        "metrics",
        "time",
        "reasons",
        "pinned",
        "position",
        "producer",
        "pickle",
        "storages",
        "tensors",
        "history",
        "format_version",
    ],
)
def test_decode_needs_every_field(field: str) -> None:
    """A manifest in which a field is missing is refused, and the message names the field."""
    fields = json.loads(encode(_manifest()))
    del fields[field]
    with pytest.raises(NotACheckpointError, match=field):
        decode(json.dumps(fields).encode())


def test_decode_refuses_a_tensor_without_storage() -> None:
    """A tensor that names a storage which is not there is refused."""
    with pytest.raises(NotACheckpointError, match="names a storage that is not there"):
        decode(_edited(tensors=[{"path": "a", "dtype": "float32", "shape": [1], "storage": 2}]))


@pytest.mark.parametrize("rest", [{}, {"step": "in another form"}])
def test_decode_refuses_a_newer_format_whatever_its_fields(rest: dict[str, Any]) -> None:
    """A file of a newer Safepoint is told apart from a malformed one, and the message says to upgrade."""
    with pytest.raises(NotACheckpointError, match=r"written in format 2.*upgrade"):
        decode(_edited(format_version=2, **rest))


def test_decode_ignores_fields_that_it_does_not_know() -> None:
    """A later Safepoint may add fields within the format."""
    assert decode(_edited(more={"of": ["anything"]})) == _manifest()


@given(st.binary(max_size=64))
def test_decode_raises_one_kind_of_error(data: bytes) -> None:
    """Arbitrary bytes are no manifest, and nothing else happens."""
    with pytest.raises(NotACheckpointError):
        decode(data)


def _fate(index: int, *, kept: bool, directory: Path = DIRECTORY) -> Fate:
    path = directory / f"{index}.ckpt"
    return Fate(Record(path, index, 0, {"loss": math.nan}, float(index), 9, ("r",), run="run"), kept, "why")


def test_history_names_files_relative_to_the_directory() -> None:
    """A moved directory loses nothing: names are relative, those elsewhere are bare names."""
    fates = (
        _fate(1, kept=True),
        _fate(2, kept=True, directory=DIRECTORY / "sub"),
        _fate(3, kept=False, directory=Path("/elsewhere")),
    )
    assert [entry.name for entry in manifests.encoded_history(fates, DIRECTORY)] == ["1.ckpt", "sub/2.ckpt", "3.ckpt"]


def test_history_survives_encoding_and_a_move() -> None:
    """The fates come back with records in the directory where the file is now."""
    entries = manifests.encoded_history((_fate(1, kept=True), _fate(2, kept=False)), DIRECTORY)
    moved = Path("/moved")
    fates = manifests.decoded_history(manifests.decode_history(encode(_manifest(history=entries))), moved, "run")
    assert [fate.record.path for fate in fates] == [moved / "1.ckpt", moved / "2.ckpt"]
    assert [(fate.kept, fate.reason, fate.record.step, fate.record.run) for fate in fates] == [
        (True, "why", 1, "run"),
        (False, "why", 2, "run"),
    ]
    assert all(math.isnan(fate.record.metrics["loss"]) for fate in fates)


def test_summary_is_a_part_of_the_manifest() -> None:
    """What a list needs can be had alone, and says what the whole says."""
    whole = _manifest(measured_at={"loss": 100})
    summary = manifests.decode_summary(encode(whole))
    assert not hasattr(summary, "tensors")
    assert summary.record(DIRECTORY / "a.ckpt", 9) == whole.record(DIRECTORY / "a.ckpt", 9)


@pytest.mark.parametrize("decoder", [decode, manifests.decode_summary, manifests.decode_history])
def test_decoders_refuse_a_newer_format_first(decoder: Callable[[bytes], object]) -> None:
    """A newer format is told as such, whether or not its fields still fit."""
    for changes in ({}, {"history": 1, "run": 2}):
        with pytest.raises(NotACheckpointError, match="written in format 2;"):
            decoder(_edited(format_version=2, **changes))


def test_history_forgets_the_oldest_removed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was removed the last ones are remembered; what is kept is listed however old it is."""
    monkeypatch.setattr(manifests, "HISTORY_LIMIT", 2)
    fates = (
        _fate(1, kept=True),
        _fate(2, kept=False),
        _fate(3, kept=False),
        _fate(4, kept=True),
        _fate(5, kept=False),
    )
    assert [entry.step for entry in manifests.encoded_history(fates, DIRECTORY)] == [1, 3, 4, 5]


def test_manifest_that_nobody_could_read_is_not_written() -> None:
    """A field of the wrong kind is found before it is on a disk."""
    with pytest.raises(CaptureError, match="could not be read again"):
        check_readable(_manifest(measured_at={"loss": -1}))
