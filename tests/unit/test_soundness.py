"""What checking a checkpoint finds, in memory: every bit of every record of torch's archives, and forged ones."""

from __future__ import annotations

import errno
import os
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import spoil
import torch
import torch.distributed.checkpoint as dcp
from nets import Net, save

from safepoint import soundness
from safepoint.checks import check_all, total_bytes
from safepoint.formats import files
from safepoint.soundness import checked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a small file of ``torch.save``."""
    torch.save({"a": torch.arange(30.0), "b": {"c": torch.ones(3, dtype=torch.int16)}}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def spans(path: Path) -> list[tuple[int, int]]:
    """Return where the data of each record of an archive lies, with its descriptor."""
    found: list[tuple[int, int]] = []
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name_bytes, extra_bytes = struct.unpack_from("<2H", data, info.header_offset + 26)
            start = info.header_offset + 30 + name_bytes + extra_bytes
            found.append((start, start + info.file_size + 16))
    return found


def test_check_finds_every_flipped_bit_in_a_record(path: Path) -> None:
    """Whatever byte of a record's data, or of what stands behind it, is changed: it is found."""
    data = path.read_bytes()
    missed = []
    for start, end in spans(path):
        for offset in range(start, end):
            path.write_bytes(spoil.flipped(data, offset, offset % 8))
            missed += [] if checked(path).verdict == "damaged" else [offset]
    assert missed == []
    path.write_bytes(data)
    assert checked(path).verdict == "sound"


def test_check_finds_headers_that_contradict_the_directory(path: Path) -> None:
    """What stands in front of a record says the same as the directory: its name, and how it is stored."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        headers = [info.header_offset for info in archive.infolist()]
    for start in headers:
        for offset in (*range(start, start + 4), start + 6, start + 8, start + 26, start + 31):
            path.write_bytes(spoil.flipped(data, offset, 3))
            assert checked(path).verdict == "damaged", offset - start


def test_check_finds_every_cut(path: Path) -> None:
    """However much of a file is missing at its end, it is damaged."""
    data = path.read_bytes()
    for size_bytes in range(0, len(data), 7):
        path.write_bytes(data[:size_bytes])
        assert checked(path).verdict == "damaged", size_bytes


def test_check_of_any_damage_ends_with_a_verdict(path: Path) -> None:
    """A flipped bit anywhere, blocks lost, doubled or swapped: an answer, and no exception."""
    data = path.read_bytes()
    damages = [spoil.flipped(data, offset, offset % 8) for offset in range(0, len(data), 3)]
    damages += [changed for _, changed in spoil.blocks(data)]
    for changed in damages:
        path.write_bytes(changed)
        assert checked(path).verdict in {"sound", "damaged", "not checkable"}


def test_check_refuses_records_that_lie_on_each_other(path: Path) -> None:
    """Two entries of a directory for the same bytes would be read twice, or over and over."""
    data = bytearray(path.read_bytes())
    names = [b"a/data/0", b"a/data/1"]
    first, second = (data.index(b"PK\x01\x02", data.index(name, data.index(b"PK\x01\x02") - 64) - 46) for name in names)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)
    found = checked(path)
    assert found.verdict == "damaged"


def test_check_counts_the_bytes_that_it_has_looked_at(path: Path, tmp_path: Path) -> None:
    """What it tells while it works comes to about the size of the file, of each format that is read as a whole."""
    torch.save({"a": torch.zeros(1 << 20)}, path)
    for each in (path, save(tmp_path / "run", {"net": Net(a=torch.zeros(1 << 20))})):
        counted: list[int] = []
        checked(each, counted.append)
        assert 4 << 20 <= sum(counted) <= each.stat().st_size


def test_check_tells_of_what_may_not_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read cannot be checked; one that the disk does not give back is damaged."""
    for number, verdict in ((errno.EACCES, "not checkable"), (errno.EIO, "damaged")):

        def refuse(_: Path, number: int = number) -> int:
            raise OSError(number, "refused")

        monkeypatch.setattr(files, "open_regular", refuse)
        assert (checked(path).verdict, checked(path).problems) == (verdict, ("cannot be read: refused",))


def test_checks_are_in_order_and_miss_what_is_gone(path: Path, tmp_path: Path) -> None:
    """One finding for each path, in the order of the paths; nothing for one that is not there any more."""
    other = tmp_path / "b.pt"
    other.write_bytes(path.read_bytes()[:-1])
    paths = [other, tmp_path / "gone.pt", path, other] * 5
    found = list(check_all(paths, 4, lambda _: None))
    assert [finding and (finding.path, finding.verdict) for finding in found] == [
        (other, "damaged"),
        None,
        (path, "sound"),
        (other, "damaged"),
    ] * 5


def test_check_knows_a_file_that_is_missing_from_one_that_is_gone(tmp_path: Path) -> None:
    """A directory without a file that it must have is damaged; what is not there itself is for the caller to know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": torch.zeros(3)}, checkpoint_id=tmp_path / "shards")
    (shard,) = (tmp_path / "shards").glob("*.distcp")
    shard.unlink()
    found = checked(tmp_path / "shards")
    assert (found.verdict, found.problems[0].startswith("half-written")) == ("damaged", True)
    with pytest.raises(FileNotFoundError):
        checked(tmp_path / "gone.pt")


def test_checks_that_nobody_waits_for_end(tmp_path: Path) -> None:
    """Whoever has seen enough closes the iterator, and nothing goes on behind it."""
    paths = [tmp_path / f"{index}.pt" for index in range(2000)]
    torch.save({"a": torch.zeros(1 << 22)}, paths[0])
    for each in paths[1:]:
        each.touch()
    checks = check_all(paths, 2, lambda _: None)
    assert next(checks) is not None
    checks.close()


def test_checks_tell_how_far_they_have_come(path: Path, tmp_path: Path) -> None:
    """All that was told comes to what the files have, also where not all of one is looked at."""
    torch.save({"a": torch.zeros(1 << 22)}, tmp_path / "b.pt")
    (tmp_path / "half.pt").write_bytes(path.read_bytes()[:500])
    counted: list[int] = []
    paths = [path, tmp_path / "b.pt", tmp_path / "half.pt"]
    list(check_all(paths, 2, counted.append))
    assert sum(counted) == sum(map(soundness.size_of, paths))


def test_checks_read_once_what_has_several_names(path: Path, tmp_path: Path) -> None:
    """A further name, or a link, gets the same answer, and adds no bytes."""
    path.write_bytes(path.read_bytes()[:-3])
    (tmp_path / "b.pt").hardlink_to(path)
    (tmp_path / "c.pt").symlink_to(path)
    paths = [tmp_path / "c.pt", path, tmp_path / "b.pt"]
    counted: list[int] = []
    found = list(check_all(paths, 2, counted.append))
    assert [finding and (finding.path, finding.verdict) for finding in found] == [(each, "damaged") for each in paths]
    assert sum(counted) == total_bytes(paths) == path.stat().st_size


def test_check_never_opens_what_is_no_file(tmp_path: Path) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe.pt")
    assert checked(tmp_path / "pipe.pt").verdict == "not checkable"
