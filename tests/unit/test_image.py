"""The byte layout of a checkpoint: a plain zip archive in which every byte is accounted for."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safepoint import image
from safepoint.image import Layout

GIB = 1 << 30
sizes = st.integers(0, 3 * image.ALIGNMENT_BYTES)


def _contents(layout: Layout) -> dict[str, bytes]:
    """Return data for every record: constants as they must be, and a pattern of its own for each of the others."""
    contents = {entry.name: content for entry, content in layout.constants}
    for number, entry in enumerate((layout.pickle, *layout.storages, layout.manifest), 1):
        contents[entry.name] = bytes([number % 256]) * entry.size_bytes
    return contents


def _write(layout: Layout, file: BinaryIO, contents: dict[str, bytes]) -> None:
    crcs = {name: zlib.crc32(content) for name, content in contents.items()}
    for offset, data in image.frame(layout, crcs):
        file.seek(offset)
        file.write(data)
    for entry in (layout.pickle, *layout.storages, layout.manifest):
        file.seek(entry.data_offset)
        file.write(contents[entry.name])


@given(sizes, st.lists(sizes, max_size=4), sizes)
def test_layout_is_a_zip_archive(pickle: int, storages: list[int], manifest: int) -> None:
    """A plain zip reader finds every record, with its content and without an error, whatever the sizes."""
    layout = image.lay_out(pickle, storages, manifest)
    contents, file = _contents(layout), io.BytesIO()
    _write(layout, file, contents)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents


@given(sizes, st.lists(sizes, max_size=4), sizes)
def test_layout_accounts_for_every_byte_once(pickle: int, storages: list[int], manifest: int) -> None:
    """Frame and data together cover the file from its first to its last byte, without a gap and without overlap."""
    layout = image.lay_out(pickle, storages, manifest)
    crcs = dict.fromkeys((entry.name for entry in layout.entries), 0)
    data = [(entry.data_offset, entry.size_bytes) for entry in (layout.pickle, *layout.storages, layout.manifest)]
    spans = sorted((*((offset, len(part)) for offset, part in image.frame(layout, crcs)), *data))
    end = 0
    for offset, size in spans:
        assert offset == end
        end += size


@given(sizes, st.lists(sizes, max_size=4))
def test_layout_aligns_all_data(pickle: int, storages: list[int]) -> None:
    """The data of every record begins at a multiple of the alignment, directly behind its header."""
    layout = image.lay_out(pickle, storages, 10)
    for entry in layout.entries:
        assert entry.data_offset % image.ALIGNMENT_BYTES == 0
        assert entry.header_offset + len(image.local_header(entry)) == entry.data_offset


@given(sizes, st.lists(sizes, max_size=4), sizes)
def test_layout_before_the_manifest_does_not_depend_on_its_size(
    pickle: int, storages: list[int], manifest: int
) -> None:
    """Staging can begin before the manifest is known."""
    early, late = image.lay_out(pickle, storages), image.lay_out(pickle, storages, manifest)
    assert early.body_bytes == late.body_bytes
    assert early.entries[:-1] == late.entries[:-1]


def test_layout_orders_the_records_as_torch_does() -> None:
    """The pickle first, then what torch reads before the storages, then those, the version, and the manifest last."""
    assert [entry.name for entry in image.lay_out(10, [4, 0], 5).entries] == [
        "archive/data.pkl",
        "archive/.format_version",
        "archive/.storage_alignment",
        "archive/byteorder",
        "archive/data/0",
        "archive/data/1",
        "archive/version",
        "archive/safepoint/manifest.json",
    ]


def test_layout_says_its_alignment() -> None:
    """The record that torch reads the alignment from holds the true one."""
    constants = {entry.name: content for entry, content in image.lay_out(1, []).constants}
    assert constants["archive/.storage_alignment"] == b"4096"


@pytest.mark.parametrize("storages", [[5 * GIB, 16], [0xFFFFFFFE, 16], [0xFFFFFFFF, 16], [GIB] * 5])
def test_layout_beyond_four_gibibytes_is_a_zip_archive(storages: list[int], tmp_path: Path) -> None:
    """Sizes and offsets that do not fit 32 bits are found by a plain zip reader (the file is sparse)."""
    layout = image.lay_out(10, storages, 5)
    path = tmp_path / "big.ckpt"
    with path.open("wb") as file:
        crcs = dict.fromkeys((entry.name for entry in layout.entries), 0)
        last = layout.storages[-1]
        crcs[last.name] = zlib.crc32(bytes(last.size_bytes)) if last.size_bytes < GIB else 0
        for offset, data in image.frame(layout, crcs):
            file.seek(offset)
            file.write(data)
    with zipfile.ZipFile(path) as archive:
        found = {info.filename: (info.header_offset, info.file_size, info.compress_size) for info in archive.infolist()}
        assert found == {e.name: (e.header_offset, e.size_bytes, e.size_bytes) for e in layout.entries}
        if last.size_bytes < GIB:
            assert archive.read(last.name) == bytes(last.size_bytes)


@pytest.mark.parametrize(("size", "descriptor_bytes"), [(0, 0), (1, 16), (0xFFFFFFFE, 16), (0xFFFFFFFF, 24)])
def test_descriptor_has_long_sizes_only_where_needed(size: int, descriptor_bytes: int) -> None:
    """An empty record has no descriptor, a long one has 64-bit sizes."""
    entry = image.lay_out(10, [size]).storages[0]
    assert len(image.descriptor(entry, 0)) == descriptor_bytes
    assert entry.end == entry.data_offset + size + descriptor_bytes


def test_descriptor_has_long_sizes_beyond_four_gibibytes() -> None:
    """A short record that begins behind the first four GiB has 64-bit sizes too, as torch's own writer gives it."""
    near, far = (image.Entry("archive/data/0", offset, offset + 4096, 4) for offset in (0xFFFFFFFE, 0xFFFFFFFF))
    assert [len(image.descriptor(entry, 0)) for entry in (near, far)] == [16, 24]


def test_directory_counts_more_records_than_sixteen_bits_hold() -> None:
    """With more than 65,535 storages the count stands in the zip64 end record."""
    layout = image.lay_out(1, [0] * 0x10000, 1)
    crcs = dict.fromkeys((entry.name for entry in layout.entries), 0)
    tail = image.directory(layout, crcs)[-98:]
    (count,) = struct.unpack_from("<Q", tail, 32)
    (short,) = struct.unpack_from("<H", tail, 98 - 22 + 10)
    assert (count, short) == (len(layout.entries), 0xFFFF)
