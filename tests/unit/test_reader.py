"""What verification finds, on real checkpoints."""

from __future__ import annotations

import errno
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import files
import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safepoint import Checkpointer, image, keep, load, reader, verify, when
from safepoint.errors import NotACheckpointError
from safepoint.image import Layout
from safepoint.manifest import Blob, Manifest, encode


@dataclass(frozen=True)
class Sample:
    """A checkpoint in memory, with where everything lies in it."""

    data: bytes
    manifest: Manifest
    layout: Layout


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Write a small checkpoint by the public API: two tensors on one storage, one alone, one empty."""
    shared = torch.arange(6.0)
    state = {"model": {"a": shared[:4], "b": shared[2:], "empty": torch.zeros(0), "alone": torch.arange(3)}}
    directory = tmp_path_factory.mktemp("sample")
    with Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.latest()) as checkpointer:
        checkpointer.step(loss=0.5)
    (path,) = directory.glob("*.ckpt")
    data, manifest = path.read_bytes(), reader.read_manifest(path)
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(image.MANIFEST_RECORD).file_size
    layout = image.lay_out(manifest.pickle.size_bytes, [blob.size_bytes for blob in manifest.storages], size)
    return Sample(data, manifest, layout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a test puts its variant of the sample."""
    return tmp_path / "variant.ckpt"


def _flipped(data: bytes, offset: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


def _storage_of(sample: Sample, tensor: str) -> int:
    key = next(found.storage for found in sample.manifest.tensors if found.path == tensor)
    return sample.layout.storages[key].data_offset


def test_verify_finds_nothing_in_a_sound_checkpoint(sample: Sample, path: Path) -> None:
    """A checkpoint is sound wherever it is copied to."""
    path.write_bytes(sample.data)
    assert verify(path) == []
    assert verify(str(path)) == []


def test_verify_names_the_tensor_of_a_flipped_bit(sample: Sample, path: Path) -> None:
    """One bit in a storage: one problem, told once, which names the tensor by its path in the state."""
    path.write_bytes(_flipped(sample.data, _storage_of(sample, "model.alone")))
    assert verify(path) == ["tensor 'model.alone' does not match its digest"]


def test_verify_counts_the_tensors_that_share_a_damaged_storage(sample: Sample, path: Path) -> None:
    """A storage with two tensors is named by the first, and the other is counted."""
    path.write_bytes(_flipped(sample.data, _storage_of(sample, "model.a")))
    assert verify(path)[0] == "tensor 'model.a' (and 1 more on its storage) does not match its digest"


def test_verify_names_every_damaged_tensor(sample: Sample, path: Path) -> None:
    """Verification goes on after the first problem."""
    twice = _flipped(_flipped(sample.data, _storage_of(sample, "model.a")), _storage_of(sample, "model.alone"))
    path.write_bytes(twice)
    named = [problem for problem in verify(path) if problem.startswith("tensor")]
    assert [problem.split("'")[1] for problem in named] == ["model.a", "model.alone"]


def test_verify_finds_a_flipped_bit_in_the_pickle(sample: Sample, path: Path) -> None:
    """Damage in the structure of the state is told apart from damage in a tensor."""
    path.write_bytes(_flipped(sample.data, sample.layout.pickle.data_offset))
    assert verify(path)[0] == "the structure of the state (data.pkl) does not match its digest"


def test_verify_finds_a_flipped_bit_in_padding(sample: Sample, path: Path) -> None:
    """Padding has a content too; the problem names the offset of the header that it belongs to."""
    entry = sample.layout.storages[0]
    path.write_bytes(_flipped(sample.data, entry.data_offset - 1))
    (problem,) = verify(path)
    assert problem.startswith(f"the archive's own bytes at offset {entry.header_offset} are not what they must be")


@pytest.mark.parametrize("record", ["version", "byteorder", ".format_version", ".storage_alignment"])
def test_verify_finds_a_flipped_bit_in_a_constant_record(sample: Sample, path: Path, record: str) -> None:
    """The records that are the same in every file are compared with what they must be."""
    (entry,) = (entry for entry, _ in sample.layout.constants if entry.name == f"archive/{record}")
    path.write_bytes(_flipped(sample.data, entry.data_offset))
    assert verify(path) != []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), bit=st.integers(0, 7))
def test_verify_finds_any_flipped_bit(sample: Sample, path: Path, data: st.DataObject, bit: int) -> None:
    """No bit of a checkpoint can change unseen, and verification answers instead of raising."""
    offset = data.draw(st.integers(0, len(sample.data) - 1))
    path.write_bytes(_flipped(sample.data, offset, bit))
    assert verify(path) != []


def test_verify_finds_every_flipped_bit_of_the_tail(sample: Sample, path: Path) -> None:
    """The central directory and its end records, which zip readers steer by: each byte of them, two bits each."""
    path.write_bytes(sample.data)
    unseen: list[int] = []
    for offset in range(sample.layout.manifest.end, len(sample.data)):
        for bit in (0, 7):
            path.write_bytes(_flipped(sample.data, offset, bit))
            if not verify(path):
                unseen.append(offset)
    assert unseen == []


def test_verify_finds_every_flipped_bit_of_a_local_header(sample: Sample, path: Path) -> None:
    """Every bit of a local header and of the descriptor behind the data."""
    entry = sample.layout.storages[0]
    behind = entry.data_offset + entry.size_bytes
    for offset in (*range(entry.header_offset, entry.header_offset + 60), *range(behind, entry.end)):
        path.write_bytes(_flipped(sample.data, offset, offset % 8))
        assert verify(path) != []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_verify_finds_any_truncation(sample: Sample, path: Path, data: st.DataObject) -> None:
    """A file cut off anywhere is no checkpoint, down to the empty file."""
    path.write_bytes(sample.data[: data.draw(st.integers(0, len(sample.data) - 1))])
    assert verify(path) != []


@pytest.mark.parametrize("size", [0, 1, 4096, -1, -22])
def test_verify_says_that_a_file_is_cut_off(sample: Sample, path: Path, size: int) -> None:
    """What is no whole archive is said to be cut off or damaged, once."""
    path.write_bytes(sample.data[:size])
    (problem,) = verify(path)
    assert problem.startswith("no whole zip archive")


@pytest.mark.parametrize("more", [b"\0", b"x" * 100, b"PK\x05\x06" + bytes(18)])
def test_verify_finds_appended_bytes(sample: Sample, path: Path, more: bytes) -> None:
    """Bytes behind the end are found, also if they look like an end record."""
    path.write_bytes(sample.data + more)
    assert verify(path) != []


def test_verify_counts_appended_bytes(sample: Sample, path: Path) -> None:
    """The problem says how many bytes are accounted for."""
    path.write_bytes(sample.data + b"\0")
    assert verify(path) == [f"it has {len(sample.data) + 1} bytes where {len(sample.data)} are accounted for"]


def test_verify_finds_bytes_in_front(sample: Sample, path: Path) -> None:
    """Zip readers skip what lies in front of an archive; verification does not."""
    path.write_bytes(b"#!/bin/sh\n" + sample.data)
    assert verify(path) != []


def test_verify_finds_other_tensor_data_with_right_checksums(sample: Sample, path: Path) -> None:
    """An archive that every zip reader finds sound, with other bytes in a tensor, does not pass: the digests tell."""
    entry, layout = sample.layout.storages[0], sample.layout
    changed = bytearray(sample.data)
    changed[entry.data_offset : entry.data_offset + entry.size_bytes] = bytes(entry.size_bytes)
    crcs = {e.name: zlib.crc32(changed[e.data_offset : e.data_offset + e.size_bytes]) for e in layout.entries}
    for offset, own in image.frame(layout, crcs):
        changed[offset : offset + len(own)] = own
    path.write_bytes(changed)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert verify(path) == ["tensor 'model.a' (and 1 more on its storage) does not match its digest"]


def test_verify_finds_a_hole(sample: Sample, path: Path) -> None:
    """A whole block of zeros, as a file system leaves after a crash, is found."""
    offset = sample.layout.pickle.data_offset
    path.write_bytes(sample.data[:offset] + bytes(4096) + sample.data[offset + 4096 :])
    assert verify(path) != []


def test_verify_finds_flipped_bits_throughout_a_file_of_many_slabs(tmp_path: Path) -> None:
    """In a file that is read ahead in slabs each damaged tensor is named, at the borders of the slabs too."""
    state = {"model": {str(key): torch.arange(300_000) + key for key in range(7)}}
    with Checkpointer(tmp_path, state=state, save=when.every(steps=1), keep=keep.latest()) as checkpointer:
        checkpointer.step()
    (path,) = tmp_path.glob("*.ckpt")
    assert verify(path) == []
    data, manifest = path.read_bytes(), reader.read_manifest(path)
    layout = image.lay_out(manifest.pickle.size_bytes, [blob.size_bytes for blob in manifest.storages])
    for border in range(1 << 20, len(data), 1 << 20):
        for offset in (border - 1, border):
            path.write_bytes(_flipped(data, offset, offset % 8))
            entry = next(e for e in reversed(layout.entries) if e.header_offset <= offset)
            assert verify(path)[0] == f"tensor 'model.{entry.name.split('/')[-1]}' does not match its digest"


def _foreign(path: Path) -> None:
    torch.save({"a": torch.ones(3)}, path)


def _legacy(path: Path) -> None:
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(image.MANIFEST_RECORD, json.dumps({"format_version": 1}))


def _malformed(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(image.MANIFEST_RECORD, "{}")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_foreign, "it holds no Safepoint manifest: another program wrote it"),
        (_legacy, "no whole zip archive"),
        (_zip, "it holds no Safepoint manifest: another program wrote it"),
        (_compressed, "its manifest is compressed or absurdly long"),
        (_malformed, "its manifest is malformed"),
        (os.mkfifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
        (Path.touch, "no whole zip archive"),
    ],
    ids=["torch.save", "torch.save before 1.6", "zip", "compressed", "malformed", "FIFO", "directory", "empty"],
)
def test_verify_tells_what_is_no_checkpoint(make: Callable[[Path], None], problem: str, path: Path) -> None:
    """A file that Safepoint did not write is one problem that says so; a FIFO is not waited for."""
    make(path)
    (found,) = verify(path)
    assert found.startswith(problem)
    with pytest.raises(NotACheckpointError):
        reader.read_manifest(path)


def test_verify_raises_for_a_missing_file(path: Path) -> None:
    """A file that is not there is an error of the caller's, not a damaged checkpoint."""
    with pytest.raises(FileNotFoundError) as caught:
        verify(path)
    assert caught.value.errno == errno.ENOENT


def test_verify_runs_no_code(path: Path, tmp_path: Path, sample: Sample) -> None:
    """A pickle that would run code when loaded is only ever read as bytes."""
    proof = tmp_path / "ran"
    evil = b"cbuiltins\nexec\n(S'open(%r, \"w\")'\ntR." % str(proof).encode()
    offset = sample.layout.pickle.data_offset
    path.write_bytes(sample.data[:offset] + evil + sample.data[offset + len(evil) :])
    assert verify(path) != []
    assert not proof.exists()


def test_manifest_that_speaks_of_more_than_there_is_is_told(sample: Sample, path: Path) -> None:
    """Sizes beyond the end of the file, however large, are one problem, and no attempt is made to read that much."""
    blob = msgspec.structs.replace(sample.manifest.pickle, size_bytes=1 << 61)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(image.MANIFEST_RECORD, encode(msgspec.structs.replace(sample.manifest, pickle=blob)))
    (problem,) = verify(path)
    assert problem.startswith("cut off: its manifest speaks of ")
    with pytest.raises(NotACheckpointError), reader.opened(path):
        pass


def test_pieces_are_handed_out_one_at_a_time(tmp_path: Path) -> None:
    """Who takes the bytes of the storages gets all of them in order, and is waited for before the next are read."""
    state = {"model": {"a": torch.arange(700_000), "b": torch.arange(3), "c": torch.arange(900_000)}}
    with Checkpointer(tmp_path, state=state, save=when.train_end(), keep=keep.all()) as checkpointer:
        path = checkpointer.save()
    taken = [bytearray() for _ in reader.read_manifest(path).storages]
    busy: list[int] = []

    def sink(key: int, offset: int, piece: memoryview) -> Callable[[], object]:
        assert busy == []
        assert offset == len(taken[key])
        busy.append(key)
        taken[key] += piece
        return busy.pop

    with reader.opened(path) as checkpoint:
        assert list(reader.problems(checkpoint, sink)) == []
    assert busy == []
    assert [bytes(found) for found in taken[:3]] == [t.numpy().tobytes() for t in state["model"].values()]


def test_read_manifest_reads_no_tensor_data(sample: Sample, path: Path) -> None:
    """What a checkpoint says of itself can be read even where its tensors are damaged."""
    path.write_bytes(_flipped(sample.data, _storage_of(sample, "model.a")))
    assert reader.read_manifest(path) == sample.manifest


def test_manifest_describes_every_tensor(sample: Sample) -> None:
    """Path, dtype, shape, and where on which storage each tensor lies."""
    found = {tensor.path: (tensor.dtype, tensor.shape, tensor.offset) for tensor in sample.manifest.tensors}
    assert {path: found[path] for path in ("model.a", "model.b", "model.empty", "model.alone")} == {
        "model.a": ("float32", (4,), 0),
        "model.b": ("float32", (4,), 2),
        "model.empty": ("float32", (0,), 0),
        "model.alone": ("int64", (3,), 0),
    }
    storages = {tensor.path: tensor.storage for tensor in sample.manifest.tensors}
    assert storages["model.a"] == storages["model.b"] != storages["model.alone"]


@pytest.mark.parametrize("sizes", [(1 << 40,), (2**62 - 1,) * 5], ids=["more than the file", "more than any file"])
def test_manifest_that_speaks_of_more_than_the_file_has_is_refused(path: Path, sizes: tuple[int, ...]) -> None:
    """Nobody makes room for what cannot be there."""
    files.write(path, files.manifest(storages=tuple(Blob(size, files.EMPTY.digest) for size in sizes)))
    assert verify(path)[0].startswith("cut off: its manifest speaks of")
    with pytest.raises(NotACheckpointError, match="cut off"):
        load(path)


def test_structure_longer_than_a_piece_is_verified(tmp_path: Path) -> None:
    """A pickle that is hashed in several pieces is sound, and is not with a byte changed at its end."""
    state = {"notes": {"long": b"0" * (9 << 20)}}
    with Checkpointer(tmp_path, state=state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        path = checkpointer.save()
    with reader.opened(path) as checkpoint:
        assert checkpoint.sound_pickle() is not None
        end = checkpoint.layout.pickle.data_offset + checkpoint.layout.pickle.size_bytes
    with path.open("r+b") as file:
        file.seek(end - 1)
        file.write(b"!")
    with reader.opened(path) as checkpoint:
        assert checkpoint.sound_pickle() is None
