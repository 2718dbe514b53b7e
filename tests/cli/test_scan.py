"""``safepoint scan``: what files would import when they are loaded, honest ones and hostile ones."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from kinds import OBJECTS, TENSORS, Settings, made
from nets import save
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals

from safepoint import scanning
from safepoint.errors import NotACheckpointError
from safepoint.formats import imports
from safepoint.formats.dtypes import BITS

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Runs:
    """Would run a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Have it run."""
        return os.system, ("touch it-ran",)


def packed(path: Path, *pickles: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive as torch does, of these pickles: ``data.pkl``, and more."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in zip(("data.pkl", "more.pkl", "other"), pickles, strict=False):
            archive.writestr(f"a/{name}", data)
        archive.writestr("a/version", b"3\n")
    return path


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint scan``."""
    code = "from safepoint.cli import main; main()"
    run = [sys.executable, "-c", code, "scan", *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, check=False)


def test_list_of_allowed_names_is_torchs_own() -> None:
    """What we take for allowed is what this torch allows, and no more; a dtype that it does not have is no danger."""
    theirs = set(_get_allowed_globals())
    assert theirs <= imports.ALLOWED
    assert {name.removeprefix("torch.") for name in imports.ALLOWED - theirs} <= set(BITS)
    assert not any(map(imports.is_dangerous, theirs))


@pytest.mark.parametrize("name", [*TENSORS, *OBJECTS])
@pytest.mark.filterwarnings(
    "ignore:ComplexHalf support is experimental:UserWarning", "ignore:TypedStorage is:UserWarning"
)
def test_scan_agrees_with_torch_on_every_kind(tmp_path: Path, name: str) -> None:
    """What is said to load with ``weights_only=True`` does, and what torch refuses by name is named."""
    path = tmp_path / "a.pt"
    torch.save({"x": made(name)}, path)
    found = scanning.scan(path)
    assert found.what == "torch"
    assert set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) <= {*found.beyond, *found.dangerous}
    if found.is_safe:
        torch.load(path, weights_only=True)
    elif name != "nested, jagged":  # whose classes this process has allowed by importing them
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)


@pytest.mark.parametrize(("value", "beyond"), [(1, ()), (Settings(torch.ones(1)), ("kinds.Settings",))])
def test_scan_of_the_older_format_agrees_with_torch(tmp_path: Path, value: Any, beyond: tuple[str, ...]) -> None:
    """All pickles of torch's older files are looked at, and the storages behind them are none."""
    path = tmp_path / "a.pt"
    state = {"model": nn.Linear(30, 30).state_dict(), "value": value}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    found = scanning.scan(path)
    assert (found.what, found.beyond, found.problems) == ("torch", beyond, ())
    assert found.is_safe == (not beyond)
    with pytest.raises(pickle.UnpicklingError) if beyond else contextlib.nullcontext():
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scan_finds_what_runs_code_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    """In a plain pickle, in torch's format and in its older one; nothing of it runs."""
    state = {"weights": torch.ones(2), "notes": Runs()}
    paths = [tmp_path / "plain.pkl", tmp_path / "new.pt", tmp_path / "legacy.pt"]
    paths[0].write_bytes(pickle.dumps(Runs(), protocol))
    torch.save(state, paths[1], pickle_protocol=max(protocol, 2))
    torch.save(state, paths[2], pickle_protocol=max(protocol, 2), _use_new_zipfile_serialization=False)
    for path in paths:
        found = scanning.scan(path)
        assert (found.verdict, found.dangerous) == ("runs", ("posix.system",))
        assert found.names["posix.system"]
    assert not Path("it-ran").exists()


def stacked(module: str, name: str) -> bytes:
    """Push a name that is put together on the stack, its parts from the memo."""
    parts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (name, module)]
    return parts[0] + b"\x940" + parts[1] + b"\x940" + b"h\x01h\x00\x93"


HOSTILE = {
    "a name from the memo": (b"\x80\x04" + stacked("os", "system") + b".", "os.system"),
    "a module within a module": (b"\x80\x04" + stacked("torch.serialization", "os.system") + b".", "torch.serialization.os.system"),
    "an old name": (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
    "an instance": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "an object": (b"(cos\nsystem\nS'true'\no.", "os.system"),
    "an attribute": (b"cbuiltins\ngetattr\n(cbuiltins\n__import__\nS'x'\ntR.", "builtins.__import__"),
    "a function of a module": (b"csubprocess\nPopen\n(]tR.", "subprocess.Popen"),
    "another unpickler": (b"c_pickle\nloads\n(S''\ntR.", "_pickle.loads"),
    "a hub": (b"ctorch.hub\nload\n(S''\ntR.", "torch.hub.load"),
    "code of a graph": (b"ctorch.fx.graph_module\nreduce_graph_module\n(}tR.", "torch.fx.graph_module.reduce_graph_module"),
    "a class of a class": (b"cbuiltins\nobject.__subclasses__\n)R.", "builtins.object.__subclasses__"),
    "a web browser": (b"cwebbrowser\nopen\n(S''\ntR.", "webbrowser.open"),
    "what runs before it breaks off": (b"cos\nsystem\n(S'true'\ntR\xff\xff", "os.system"),
    "what runs before it is cut off": (b"\x80\x04cos\nsystem\n(S'true'\ntR", "os.system"),
    "what only the unpickler takes for a number": (b"I0x10\n0cos\nsystem\n(S'true'\ntR.", "os.system"),
    "what only the unpickler takes for text": (b"S'\xc3\xa9'\n0cos\nsystem\n(S'true'\ntR.", "os.system"),
    "what only the unpickler takes for a list": (b"\x96" + struct.pack("<Q", 1) + b"aK\1a0cos\nsystem\n(S'true'\ntR.", "os.system"),
    "what hides behind an odd key": (b"}]Ns" + stacked("posix", "system") + b"(S'true'\ntR.", "posix.system"),
    "a registered number": (b"\x80\x02\x82\x01)R.", "copyreg.extension 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_scan_names_what_a_forged_pickle_would_run(tmp_path: Path, name: str) -> None:
    """However a name is written, and whatever comes behind it."""
    data, expected = HOSTILE[name]
    (tmp_path / "plain.pkl").write_bytes(data)
    for path in (
        tmp_path / "plain.pkl",
        packed(tmp_path / "a.pt", data),
        packed(tmp_path / "b.pt", b"\x80\x02N.", data),
    ):
        found = scanning.scan(path)
        assert found.verdict == "runs"
        assert expected in found.dangerous


def test_scan_looks_at_every_pickle_in_a_row(tmp_path: Path) -> None:
    """What stands behind harmless ones is found; what is no pickle behind them is data."""
    path = tmp_path / "many.pkl"
    path.write_bytes(pickle.dumps({"a": 1}) * 3 + pickle.dumps(Runs()))
    assert scanning.scan(path).dangerous == ("posix.system",)
    path.write_bytes(pickle.dumps({"a": 1}) * 3 + b"c\xff\xfe data\n and data\n" + bytes(range(256)))
    assert scanning.scan(path).verdict == "safe"
    path.write_bytes(pickle.dumps({"a": 1}) + b"cos\nsystem\n(S'true'\ntR\xff")
    assert scanning.scan(path).dangerous == ("os.system",)


def test_scan_looks_behind_long_strings(tmp_path: Path) -> None:
    """A pickle that is longer than what is read at first is looked at to its end."""
    path = tmp_path / "long.pkl"
    for size in (1 << 16, 9 << 20):
        path.write_bytes(pickle.dumps([b"x" * size, Runs()]))
        assert scanning.scan(path).dangerous == ("posix.system",)


def test_scan_is_not_deceived_by_what_looks_like_safetensors(tmp_path: Path) -> None:
    """A file that begins as safetensors do, and goes on as a pickle; and safetensors that begin as pickles do."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"T\x04\0\0\0\0\0\0{cposix\nsystem\n(S'true'\ntR.")
    assert scanning.scan(path).dangerous == ("posix.system",)
    for size in range(1, 200):
        safetensors.torch.save_file({"a" * size: torch.ones(2)}, path)
        assert scanning.scan(path).verdict == "nothing"


def test_scan_looks_at_records_by_what_they_begin_with(tmp_path: Path) -> None:
    """A pickle in an archive under another name."""
    path = packed(tmp_path / "a.pt", b"\x80\x02N.", b"\x80\x02N.", pickle.dumps(Runs(), 2))
    assert scanning.scan(path).dangerous == ("posix.system",)


def _old_tar() -> bytes:
    """Return the header of a tar archive from before there was a magic word."""
    header = bytearray(tarfile.TarInfo("pickle").tobuf(tarfile.USTAR_FORMAT))
    header[257:345] = bytes(88)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


REFUSED = {
    "compressed": lambda path: packed(path, b"\x80\x02N.", compression=zipfile.ZIP_DEFLATED),
    "damaged": lambda path: path.write_bytes(packed(path, b"\x80\x02X\1\0\0\0a.").read_bytes().replace(b"a.", b"b.")),
    "cut off": lambda path: path.write_bytes(packed(path, b"\x80\x02N.").read_bytes()[:-9]),
    "no end": lambda path: packed(path, b"\x80\x02]]]"),
    "an unknown opcode": lambda path: packed(path, b"\x80\x02\xff."),
    "another protocol": lambda path: packed(path, pickle.dumps({"a": "b"}, 4)),
    "a size without data": lambda path: packed(path, b"\x80\x02cbuiltins\nbytearray\n(\x8a\x06" + bytes(5) + b"\x01tR."),
    "no pickle": lambda path: path.write_bytes(packed(path, b"\x80\x02N.").read_bytes().replace(b"data.pkl", b"date.pkl")),
    "a tar archive": lambda path: path.write_bytes(tarfile.TarInfo("pickle").tobuf(tarfile.PAX_FORMAT) + bytes(1024)),
    "an older tar archive": lambda path: path.write_bytes(_old_tar()),
    "a plain pickle that breaks off": lambda path: path.write_bytes(pickle.dumps(["a"] * 99)[:-5]),
    "a legacy file that breaks off": lambda path: path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
    "many pickles": lambda path: path.write_bytes(b"\x80\x02N." * 5000),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_scan_takes_nothing_for_safe_that_it_cannot_look_at(tmp_path: Path, name: str) -> None:
    """What is malformed, packed, or would exhaust the unpickler is not safe, though it names nothing."""
    path = tmp_path / "a.pt"
    REFUSED[name](path)
    began = time.process_time()
    found = scanning.scan(path)
    assert time.process_time() - began < 5
    assert (found.verdict, found.is_safe) == ("refused", False)
    assert found.problems


def test_scan_of_programs_refuses_them(tmp_path: Path) -> None:
    """TorchScript and exported programs are no checkpoints."""
    model = nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(tmp_path / "script.pt"))
        torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), tmp_path / "program.pt2")
    for path, told in ((tmp_path / "script.pt", "TorchScript"), (tmp_path / "program.pt2", "exported program")):
        found = scanning.scan(path)
        assert found.verdict == "refused"
        assert told in found.problems[0]


def test_scan_of_a_directory_looks_at_the_parts_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    """What torch would unpickle of it is looked at: an honest one is safe, one with an object that runs code is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"a": torch.ones(3), "b": {1, 2}}, checkpoint_id=tmp_path / "good")
        dcp.save({"a": torch.ones(3), "b": Runs()}, checkpoint_id=tmp_path / "bad")
    good, bad = (list(scanning.scan_below(tmp_path / name, pytest.fail)) for name in ("good", "bad"))
    assert [(found.path.name, found.verdict) for found in good] == [("good", "safe"), (".metadata", "safe")]
    assert [found.dangerous for found in bad] == [("posix.system",), ()]
    with pytest.raises(NotACheckpointError, match="give the directory"):
        scanning.scan(tmp_path / "bad" / "__0_0.distcp")
    (tmp_path / "good" / "__0_0.distcp").unlink()
    (tmp_path / "good" / "__0_1.distcp").touch()
    assert [found.verdict for found in scanning.scan_below(tmp_path / "good", pytest.fail)] == ["refused", "safe"]


def test_scan_command_tells_of_each_file(tmp_path: Path) -> None:
    """A line for each; the exit status is 0 only if all are safe."""
    good = save(tmp_path / "run", {"model": nn.Linear(2, 2)})
    other, bad, tensors = tmp_path / "other.pt", tmp_path / "bad.pt", tmp_path / "a.safetensors"
    torch.save({"a": Path("a")}, other)
    torch.save({"a": Runs()}, bad)
    safetensors.torch.save_file({"a": torch.ones(2)}, tensors)
    found = command(good, tensors)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == [
        f"{good}: loads with weights_only=True",
        f"{tensors}: nothing in it can run: safetensors",
        "all 2 safe",
    ]
    found = command(good, other, bad)
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.splitlines() == [
        f"{good}: loads with weights_only=True",
        f"{other}: needs classes beyond weights_only=True: pathlib.PosixPath",
        f"{bad}: would run code: posix.system: do not load it",
        "2 of 3 not safe",
    ]
    found = command(tmp_path)
    assert found.returncode == 1
    assert len(found.stdout.splitlines()) == 5


def test_scan_command_as_json_has_every_name(tmp_path: Path) -> None:
    """One document, with what is named and whether it would be called."""
    path = tmp_path / "bad.pt"
    torch.save({"a": Runs(), "b": Path, "c": torch.ones(2)}, path)
    found = command(path, "--json")
    assert found.returncode == 1
    told = json.loads(found.stdout)
    assert (told["schema"], told["all_safe"]) == ("safepoint.scan/1", False)
    (file,) = told["files"]
    assert (file["path"], file["what"], file["verdict"], file["problems"]) == (str(path), "torch", "runs", [])
    names = {name["name"]: (name["kind"], name["called"]) for name in file["names"]}
    assert names["posix.system"] == ("runs", True)
    assert names["pathlib.Path"] == ("needs", False)
    assert names["torch._utils._rebuild_tensor_v2"] == ("safe", True)


def test_scan_command_says_what_it_cannot_look_at(tmp_path: Path) -> None:
    """One line on standard error, and the exit status 2; what else was asked for is told all the same."""
    (tmp_path / "notes.txt").write_text("a letter")
    (tmp_path / "empty").mkdir()
    torch.save({}, tmp_path / "a.pt")
    for path, told in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "notes.txt", "no checkpoint of any kind"),
        (tmp_path / "empty", "holds no file with a pickle"),
        (Path(os.devnull), "not a regular file"),
    ):
        found = command(path)
        assert (found.returncode, found.stdout) == (2, "")
        assert told in found.stderr
        assert len(found.stderr.splitlines()) == 1
    found = command(tmp_path / "notes.txt", tmp_path / "a.pt")
    assert (found.returncode, found.stdout) == (2, f"{tmp_path / 'a.pt'}: loads with weights_only=True\n")


def test_scan_command_writes_out_what_a_terminal_would_obey(tmp_path: Path) -> None:
    """Names are printed as they are spelled, control codes written out."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04" + stacked("os", "\x1b[31msystem") + b".")
    found = command(path)
    assert found.returncode == 1
    assert "\x1b" not in found.stdout
    assert "os.\\x1b[31msystem" in found.stdout


def test_scan_of_any_bytes_ends(tmp_path: Path) -> None:
    """Whatever a file begins with, there is a verdict or one error of ours."""
    path = tmp_path / "a.pkl"
    with path.open("wb", buffering=0) as file:
        for first in range(256):
            for rest in (b"", b"\0" * 20, b"\xff" * 20, b"a\nb\nc\n.", struct.pack("<Q", 1 << 62)):
                os.pwrite(file.fileno(), (bytes([first]) + rest).ljust(40, b"."), 0)
                try:
                    scanning.scan(path)
                except NotACheckpointError as error:
                    assert str(error).startswith(f"{path}: ")  # noqa: PT017 - of those that are none


def test_scan_of_a_directory_passes_over_what_is_removed_meanwhile(tmp_path: Path) -> None:
    """As a run that goes on removes what is superseded, after the directory was read."""
    for name in ("a.pt", "b.pt", "c.pt"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    found = []
    for scanned in scanning.scan_below(tmp_path, pytest.fail):
        found.append(scanned.path.name)
        (tmp_path / "b.pt").unlink(missing_ok=True)
    assert found == ["a.pt", "c.pt"]


def test_scan_of_a_directory_goes_on_past_what_cannot_be_read(tmp_path: Path) -> None:
    """It is told, and what comes behind it is looked at."""
    (tmp_path / "a.pt").symlink_to("a.pt")
    torch.save({"x": torch.nn.Linear(1, 1)}, tmp_path / "b.pt")
    found = command(tmp_path)
    assert (found.returncode, found.stdout.count("\n")) == (1, 1)
    assert found.stdout.startswith(f"{tmp_path / 'b.pt'}: needs classes")
    assert found.stderr == f"safepoint: {tmp_path / 'a.pt'}: Too many levels of symbolic links\n"
