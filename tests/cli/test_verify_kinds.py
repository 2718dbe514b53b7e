"""``safepoint verify`` on other programs' checkpoints: what each format allows to find, and what it does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import COMMAND, environment, safepoint
from loop import Training
from models import FRAMEWORKS, OLD_TREESPEC, fit
from safetensors.torch import save_file
from torch.serialization import set_crc32_options

from safepoint import Checkpointer, formats, keep, soundness, when
from safepoint.cli.documents import Verify
from safepoint.formats import distributed

SOUND = "sound: all match their CRC-32"
STATE = {"model": {"weight": torch.arange(4096.0), "bias": torch.arange(5.0)}, "step": 3}


def flip(path: Path, offset: int) -> None:
    """Flip a bit of the byte at ``offset``."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def place(path: Path, record: str) -> int:
    """Return where in a zip archive the middle of a record's data is."""
    with zipfile.ZipFile(path) as archive:
        (info,) = (info for info in archive.infolist() if info.filename.endswith(f"/{record}"))
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<2H", file.read(4))
    return info.header_offset + 30 + int(name_bytes) + int(extra_bytes) + info.file_size // 2


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a file of ``torch.save``."""
    torch.save(STATE, tmp_path / "state.pt")
    return tmp_path / "state.pt"


@OLD_TREESPEC
def test_verify_finds_a_flipped_bit_in_lightnings_file(tmp_path: Path) -> None:
    """Lightning's own file is compared record by record; the damaged tensor is named."""
    fit(FRAMEWORKS[0], FRAMEWORKS[0].original(tmp_path, filename="{epoch}"), epochs=1)
    (path,) = tmp_path.glob("*.ckpt")
    assert safepoint("verify", path).stdout == f"{path}: {SOUND}\nOK\n"
    (weight,) = (t for t in formats.contents(path).tensors if t.path == "state_dict.layer.weight")
    flip(path, weight.parts[0].storage.offset + 5)
    result = safepoint("verify", path)
    assert result.stdout.splitlines()[0] == f"{path}: tensor 'state_dict.layer.weight' does not match its CRC-32"
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("data/0", "tensor 'model.weight' does not match its CRC-32"),
        ("data/1", "tensor 'model.bias' does not match its CRC-32"),
        ("data.pkl", "the structure of the state (data.pkl) does not match its CRC-32"),
        ("version", "its record 'version' does not match its CRC-32"),
    ],
)
def test_verify_names_what_is_damaged_in_a_file_of_torchs(saved: Path, record: str, told: str) -> None:
    """A flipped bit in any record is found, and told by what the record is."""
    flip(saved, place(saved, record))
    result = safepoint("verify", saved)
    assert (result.returncode, result.stdout.splitlines()) == (1, [f"{saved}: {told}", "1 of 1 not sound"])


def test_verify_names_every_damaged_tensor(saved: Path) -> None:
    """One does not hide the other, and tensors on one storage are told together."""
    one = torch.arange(100.0)
    torch.save({"a": one[:50], "b": one[50:], "c": torch.ones(7)}, saved)
    for record in ("data/0", "data/1"):
        flip(saved, place(saved, record))
    assert safepoint("verify", saved).stdout.splitlines()[:2] == [
        f"{saved}: tensor 'a' (and 1 more on its storage) does not match its CRC-32",
        f"{saved}: tensor 'c' does not match its CRC-32",
    ]


def test_verify_tells_records_where_the_pickle_is_damaged_too(saved: Path) -> None:
    """Without the structure of the state nobody knows which tensor a record is."""
    for record in ("data/0", "data.pkl"):
        flip(saved, place(saved, record))
    assert f"{saved}: its record 'data/0' does not match its CRC-32" in safepoint("verify", saved).stdout


def _moved(data: bytes) -> bytes:
    at = data.index(b"PK\x01\x02")  # the directory's first entry: its record begins elsewhere
    offset = struct.unpack_from("<I", data, at + 42)[0]
    return data[: at + 42] + struct.pack("<I", offset + 64) + data[at + 46 :]


def _other_header(data: bytes) -> bytes:
    at = data.index(b"PK\x07\x08")  # the first record's descriptor: another CRC-32 than the directory has
    return data[: at + 4] + b"\0\0\0\0" + data[at + 8 :]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: data[:-1], "no whole zip archive"),
        (lambda data: data[: len(data) // 2], "no whole zip archive"),
        (lambda data: data[:100], "no whole zip archive"),
        (lambda data: b"", "it is empty"),
        (lambda data: bytes(len(data)), "no checkpoint of any kind"),
        (lambda data: data + b"\0", "it has 1 bytes too many behind its end"),
        (_moved, "its record 'data.pkl' is not where its directory says"),
        (_other_header, "the header of its record 'data.pkl' does not agree with its directory"),
    ],
    ids=["short of a byte", "half", "a beginning", "empty", "zeros", "a byte more", "moved", "another header"],
)
def test_verify_finds_what_is_wrong_with_the_archive(saved: Path, spoil: Callable[[bytes], bytes], told: str) -> None:
    """What is cut off, empty, extended or inconsistent is a damaged checkpoint: 1."""
    saved.write_bytes(spoil(saved.read_bytes()))
    result = safepoint("verify", saved)
    assert result.returncode == 1
    assert result.stdout.startswith(f"{saved}: ")
    assert told in result.stdout
    assert result.stderr == ""


def test_verify_says_that_a_file_has_no_checksums(saved: Path) -> None:
    """Of a file that torch wrote without CRC-32s only the structure can be checked, and it says so."""
    set_crc32_options(compute_crc32=False)
    try:
        torch.save(STATE, saved)
    finally:
        set_crc32_options(compute_crc32=True)
    assert safepoint("verify", saved).stdout.startswith(f"{saved}: structure sound; it was written without checksums\n")
    flip(saved, place(saved, "data/0"))
    assert safepoint("verify", saved).returncode == 0
    flip(saved, saved.read_bytes().index(b"PK\x03\x04", 4000))
    assert safepoint("verify", saved).returncode == 1


def test_verify_takes_archives_of_other_tools(saved: Path, tmp_path: Path) -> None:
    """A checkpoint that was unpacked and packed again has its checksums elsewhere."""
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert safepoint("verify", packed).stdout.startswith(f"{packed}: {SOUND}\n")
    flip(packed, place(packed, "data/0"))
    assert "tensor 'model.weight' does not match" in safepoint("verify", packed).stdout


def test_verify_of_safetensors_says_what_it_is_worth(tmp_path: Path) -> None:
    """The structure is checked; a flipped bit in a tensor cannot be found, a cut-off file can."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(100.0)}, path)
    assert safepoint("verify", path).stdout.startswith(f"{path}: structure sound; the format has no checksums\n")
    data = path.read_bytes()
    for spoiled in (data[:-1], data[:20], data + b"\0", b"", b"\xff" * 8 + data[8:]):
        path.write_bytes(spoiled)
        result = safepoint("verify", path)
        assert (result.returncode, result.stderr) == (1, "")


def test_verify_of_what_is_no_checkpoint_fails_in_one_line(tmp_path: Path) -> None:
    """Another kind of file, a pickle, torch's older format, a directory without checkpoints: 2, and why."""
    torch.save(STATE, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "table.pt").write_bytes(b"\x80\x02}q\0.")
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("a/b.txt", "c")
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("older.pt", "format from before 1.6"),
        ("notes.txt", "no checkpoint"),
        ("table.pt", "pickle"),
        ("code.zip", "data.pkl"),
        ("empty", "holds no checkpoint"),
        ("missing.pt", "no such file"),
    ):
        result = safepoint("verify", tmp_path / name)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert result.stderr.startswith(f"safepoint: {tmp_path / name}")
        assert told in result.stderr


def test_verify_goes_on_past_what_cannot_be_checked(saved: Path, tmp_path: Path) -> None:
    """What is sound is told; the exit code is 2, and 1 once something is damaged."""
    (tmp_path / "notes.txt").write_text("nothing")
    result = safepoint("verify", tmp_path / "notes.txt", saved)
    assert result.returncode == 2
    assert result.stdout == f"{saved}: {SOUND}\n1 of 2 cannot be checked\n"
    flip(saved, place(saved, "data/0"))
    result = safepoint("verify", tmp_path / "notes.txt", saved)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "1 of 2 not sound, 1 of 2 cannot be checked"


def test_verify_finds_all_kinds_in_a_directory(saved: Path, tmp_path: Path) -> None:
    """Safepoint's, torch's and safetensors' files, in the order of their names, whoever is done first."""
    training = Training()
    with Checkpointer(
        tmp_path / "run", state=training.state, save=when.every(steps=1), keep=keep.all()
    ) as checkpointer:
        for _ in range(3):
            checkpointer.step()
    save_file({"weight": torch.zeros(3)}, tmp_path / "run" / "weights.safetensors")
    result = safepoint("verify", "--jobs", 3, tmp_path)
    names = [re.sub(r": .*", "", line).removeprefix(f"{tmp_path}/") for line in result.stdout.splitlines()]
    steps = [f"run/epoch=0-step={step}.ckpt" for step in (1, 2, 3)]
    assert names == [*steps, "run/weights.safetensors", "state.pt", "all 5 sound"]
    assert result.returncode == 0


def test_verify_json_tells_what_was_compared(saved: Path, tmp_path: Path) -> None:
    """The document names each checkpoint with its verdict, and decodes into its class."""
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    (tmp_path / "half.ckpt").write_bytes(saved.read_bytes()[:1000])
    (tmp_path / "notes.txt").write_text("nothing")
    result = safepoint("verify", "--json", tmp_path, tmp_path / "notes.txt")
    assert result.returncode == 1
    assert json.loads(result.stdout)["schema"] == "safepoint.verify/1"
    document = msgspec.json.decode(result.stdout, type=Verify)
    told = {Path(found.path).name: (found.verdict, found.check) for found in document.checkpoints}
    assert told == {
        "half.ckpt": ("damaged", None),
        "state.pt": ("sound", "crc-32"),
        "weights.safetensors": ("sound", "structure"),
        "notes.txt": ("not checkable", None),
    }
    assert document.all_sound is False
    assert all(bool(found.problems) == (found.verdict != "sound") for found in document.checkpoints)


def test_verify_writes_out_what_a_terminal_would_obey(tmp_path: Path) -> None:
    """The name of a damaged tensor comes from the file, and may be anything."""
    path = tmp_path / "\x1b[2J.pt"
    torch.save({"\x1b[31mred\n": torch.arange(10.0)}, path)
    flip(path, place(path, "data/0"))
    result = safepoint("verify", path)
    assert result.returncode == 1
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 2


def test_verify_finds_all_in_the_directory_of_an_archive_that_torch_stumbles_over(tmp_path: Path) -> None:
    """Whatever bit is flipped there: torch refuses the file, loads other elements, or verify calls it sound rightly."""
    tensor = torch.arange(40.0)
    torch.save(tensor, tmp_path / "state.pt")
    data = (tmp_path / "state.pt").read_bytes()
    spoiled = tmp_path / "spoiled.pt"
    for at in range(8 * data.index(b"PK\x01\x02"), 8 * len(data)):
        copy = bytearray(data)
        copy[at // 8] ^= 1 << at % 8
        spoiled.write_bytes(copy)
        if soundness.checked(spoiled).verdict != "sound":
            continue
        assert torch.equal(torch.load(spoiled, weights_only=True), tensor), at


@pytest.mark.parametrize("size", [1, 4096], ids=["a byte", "a block"])
def test_verify_finds_zeros_where_a_file_of_torchs_begins(saved: Path, tmp_path: Path, size: int) -> None:
    """By its ending, or as what a crash leaves: a directory with such a file in it is not sound."""
    whole = saved.read_bytes()
    (tmp_path / "sound.pt").write_bytes(whole)
    saved.write_bytes(bytes(size) + whole[size:])
    for path in (saved, tmp_path):
        result = safepoint("verify", path)
        assert (result.returncode, f"{saved}: no checkpoint" in result.stdout) == (1, True)
    saved.write_bytes(bytes(len(whole)))
    assert safepoint("verify", tmp_path).returncode == 1


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_verify_finds_what_is_no_archive_among_shards(tmp_path: Path) -> None:
    """A byte of its signature, and all of it: it is not taken for something that was stored in another way."""
    dcp.save(STATE, checkpoint_id=tmp_path, no_dist=True)
    shard = tmp_path / "__0_0.distcp"
    whole = shard.read_bytes()
    first_bytes = next(iter(distributed.archives(tmp_path)[0][shard.name]))[1]
    for size in (1, first_bytes):
        shard.write_bytes(bytes(size) + whole[size:])
        result = safepoint("verify", tmp_path)
        assert (result.returncode, f"{tmp_path}: __0_0.distcp: " in result.stdout) == (1, True)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="takes root's right to read everything away")
@pytest.mark.parametrize(("command", "status"), [("verify", 2), ("ls", 0)])
def test_file_that_may_not_be_read_is_told_of(saved: Path, command: str, status: int) -> None:
    """Among others in a directory, it is not passed over."""
    saved.with_name("other.pt").write_bytes(saved.read_bytes())
    saved.chmod(0)
    without = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*without, *COMMAND, command, saved.parent], capture_output=True, text=True, check=False, env=environment({})
    )
    assert (done.returncode, "Permission denied" in done.stdout + done.stderr) == (status, True)
