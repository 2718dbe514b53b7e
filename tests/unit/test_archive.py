"""Finding the manifest in a file: how little is read, and what damaged and hostile files cannot do."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import files
import pytest

from safepoint import archive, image
from safepoint.errors import NotACheckpointError
from safepoint.manifest import encode

MANIFEST = encode(files.manifest())
FAR = 1 << 40
NAME = image.MANIFEST_RECORD.encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a test puts its file."""
    return tmp_path / "variant.ckpt"


def _reads() -> tuple[int, int]:
    """Return the calls that this process made to read, and the bytes they gave."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["syscr"]), int(told["rchar"])


def _cost(path: Path) -> tuple[int, int]:
    """Return the calls and bytes that it takes to read the manifest, without those of looking."""
    before, between = _reads(), _reads()
    archive.manifest_at(path)
    after = _reads()
    calls, size_bytes = (2 * b - a - c for a, b, c in zip(before, between, after, strict=True))
    return -calls, -size_bytes


def test_manifest_of_a_small_file_comes_with_the_first_read(path: Path) -> None:
    """Where manifest and directory are short, the end of the file holds both."""
    files.write(path, MANIFEST)
    assert _cost(path)[0] == 1


@pytest.mark.parametrize("storages", [(), (64,) * 2000], ids=["long manifest", "long directory too"])
def test_manifest_takes_two_reads(path: Path, storages: tuple[int, ...]) -> None:
    """The end of the file, then the manifest: whatever its length, and however many storages the directory lists."""
    long = encode(files.manifest(history=[files.told(f"{step}.ckpt", step) for step in range(1000)]))
    files.write(path, long, storages)
    calls, size_bytes = _cost(path)
    assert calls == 2
    assert len(long) < size_bytes < len(long) + (32 << 10)
    assert archive.manifest_at(path) == long


def test_manifest_behind_four_gigabytes_is_found(path: Path) -> None:
    """An offset that takes 64 bits stands in a field of its own."""
    files.write(path, MANIFEST, (5 << 30,))
    assert archive.manifest_at(path) == MANIFEST


@pytest.mark.parametrize("comment", [b"", b"short", b"x" * 0xFFFF], ids=["none", "short", "longest"])
def test_archive_of_another_program_is_told_from_damage(path: Path, comment: bytes) -> None:
    """A whole archive without a manifest is another program's, whatever comment it ends in."""
    with zipfile.ZipFile(path, "w") as other:
        other.comment = comment
        other.writestr("data.pkl", b"content")
    with pytest.raises(NotACheckpointError, match="another program wrote it"):
        archive.manifest_at(path)


def test_manifest_that_is_not_the_last_record_is_none_of_ours(path: Path) -> None:
    """An archive that something was added to is not as Safepoint wrote it."""
    files.write(path, MANIFEST)
    with zipfile.ZipFile(path, "a") as other:
        other.writestr("more", b"content")
    with pytest.raises(NotACheckpointError, match="holds no Safepoint manifest"):
        archive.manifest_at(path)


def test_any_flipped_bit_gives_the_manifest_or_one_error(path: Path) -> None:
    """From the manifest's header to the end of the file: each bit that changes is seen, or changes nothing."""
    files.write(path, MANIFEST)
    whole = path.read_bytes()
    layout = image.lay_out(len(files.PICKLE), (), len(MANIFEST))
    for offset in range(layout.manifest.header_offset, len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1 << offset % 8]) + whole[offset + 1 :])
        try:
            found = archive.manifest_at(path)
        except NotACheckpointError:
            continue
        assert found == MANIFEST


def test_manifest_with_another_checksum_is_refused(path: Path) -> None:
    """The manifest is compared with its CRC-32."""
    files.write(path, MANIFEST)
    path.write_bytes(path.read_bytes().replace(MANIFEST, MANIFEST.replace(b'"step":1', b'"step":2')))
    with pytest.raises(NotACheckpointError, match="does not match its CRC-32"):
        archive.manifest_at(path)


@pytest.mark.parametrize(
    ("signature", "problem"),
    [(b"PK\x03\x04", "header is not where the directory says"), (b"PK\x01\x02", "entry in its directory is not")],
)
def test_manifest_without_its_signature_is_refused(path: Path, signature: bytes, problem: str) -> None:
    """The manifest's own header and its entry in the directory both have to be there."""
    files.write(path, MANIFEST)
    front, behind = path.read_bytes().rsplit(signature, 1)
    path.write_bytes(front + b"none" + behind)
    with pytest.raises(NotACheckpointError, match=problem):
        archive.manifest_at(path)


def _entry(*, size: int = 10, offset: int = 0, extra: bytes = b"") -> bytes:
    fixed = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *(0,) * 7, size, size, len(NAME), len(extra), *(0,) * 4, offset)
    return fixed + NAME + extra


def _extra(offset: int) -> bytes:
    return struct.pack("<2HQ", 1, 8, offset)


def _end(directory_bytes: int, start: int) -> bytes:
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, directory_bytes, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
    return end64 + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def _file_of(tail: bytes) -> Callable[[Path], None]:
    """Return what makes a file of a terabyte, all of it a hole but for its ``tail``."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.seek(FAR)
            file.write(tail)

    return make


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_file_of(_entry() + _end(len(_entry()), FAR)), "does not lie in front of its directory"),
        (_file_of(_entry(size=2**32 - 1) + _end(len(_entry()), FAR)), "compressed or absurdly long"),
        (_file_of(_end(FAR, 0)), "the last entry of its directory is not whole"),
        (_file_of(_end(2**64 - 1, 1)), "not where its end record says"),
        (_file_of(_end(0, 2**63)), "not where its end record says"),
        (_file_of(_entry(extra=_extra(2**63), offset=2**32 - 1) + _end(89, FAR)), "in front of"),
        (_file_of(b"PK\x05\x06"), "lies outside"),
        (_file_of(b"nothing"), "it has no end record"),
        (lambda path: path.write_bytes(_end(0, 0)[-42:]), "lies outside"),
        (_file_of(_entry() + _end(0, FAR + len(_entry()))), "holds no Safepoint manifest"),
        (_file_of(_entry(size=0, offset=2**32 - 1, extra=_extra(FAR)) + _end(89, FAR)), "header is cut off"),
        (_file_of(b"PK\x06\x07" + bytes(16) + _end(0, 0)[-22:]), "its long end record is missing"),
    ],
    ids=[
        "far",
        "long",
        "all directory",
        "longer",
        "outside",
        "far in 64 bits",
        "cut off",
        "none",
        "long end record in front",
        "entry in front",
        "no room",
        "no long end record",
    ],
)
def test_hostile_file_costs_nothing(path: Path, make: Callable[[Path], None], problem: str) -> None:
    """Whatever lengths and offsets a file claims, it is refused with little memory and little reading."""
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(NotACheckpointError, match=problem):
            archive.manifest_at(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_file_that_shrinks_meanwhile_is_refused(path: Path) -> None:
    """A file that is cut off between two reads is no checkpoint, and no other error."""
    long = encode(files.manifest(history=[files.told(f"{step}.ckpt", step) for step in range(1000)]))
    files.write(path, long)
    descriptor = archive.open_regular(path)
    try:
        source = archive.Source(descriptor)
        os.truncate(path, 100)
        with pytest.raises(NotACheckpointError, match="shorter"):
            source.read(0, 4096)
    finally:
        os.close(descriptor)
