"""What an export leaves behind when something goes wrong, and how much memory it takes when nothing does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import files
import pytest
import torch
from file_systems import mounted
from nets import Net, flip, save

from safepoint import contents, image, verify
from safepoint.checksums import Checksums, checksums, digest
from safepoint.errors import CheckpointError, DamagedCheckpointError
from safepoint.export import Dtype, Kind
from safepoint.export.job import Order, prepared
from safepoint.export.pickled import Place, pickled
from safepoint.manifest import Blob, Tensor, encode

COMMAND = [sys.executable, "-c", "from safepoint.cli import main; main()"]
MEASURED = (
    "import atexit; atexit.register(lambda: print(next(line for line in open('/proc/self/status') if 'VmHWM' in line)))"
)
ROW = 4096


def hollow(path: Path, rows: int, *, shape: Sequence[int] = (), strides: Sequence[int] | None = None) -> Path:
    """Make a checkpoint with one tensor, ``rows`` times 4096 float32, whose storage is a hole in the file."""
    sums, piece = Checksums(), bytes(ROW * 4)
    for _ in range(rows):
        sums.update(piece)
    shape, size_bytes = tuple(shape or (rows, ROW)), rows * ROW * 4
    place = Place(0, rows * ROW, "float32", 0, shape, tuple(strides or (ROW, 1)))
    state = pickled({"net": {"weight": contents.Tensor("net.weight", "float32", shape, ())}}, lambda _: place)
    tensor = Tensor("net.weight", "float32", shape, 0, strides=strides and tuple(strides))
    blobs = {"pickle": Blob(len(state), digest(state)), "storages": (Blob(size_bytes, sums.digest),)}
    told = encode(files.manifest(**blobs, tensors=(tensor,)))
    layout = image.lay_out(len(state), [size_bytes], len(told))
    data = {layout.pickle: state, layout.manifest: told, **dict(layout.constants)}
    crcs = {entry.name: checksums(record).crc for entry, record in data.items()} | {layout.storages[0].name: sums.crc}
    with path.open("wb") as file:
        for offset, record in (*image.frame(layout, crcs), *((e.data_offset, d) for e, d in data.items())):
            file.seek(offset)
            file.write(record)
    return path


def test_a_hollow_checkpoint_is_one(tmp_path: Path) -> None:
    """What the tests here export is sound, and is what ``torch.load`` takes."""
    path = hollow(tmp_path / "a.ckpt", 300, shape=(ROW, 300), strides=(1, ROW))
    assert verify(path) == []
    assert torch.load(path, weights_only=True)["net"]["weight"].stride() == (1, ROW)
    assert path.stat().st_blocks << 9 < 1 << 20


def leaves_nothing(directory: Path, before: Sequence[Path]) -> bool:
    """Tell whether ``directory`` holds what it did, hidden files included."""
    return sorted(directory.iterdir()) == sorted(before)


@pytest.mark.parametrize("kind", list(Kind))
def test_export_of_a_damaged_tensor_is_none(tmp_path: Path, kind: Kind) -> None:
    """One bit that is not what its digest says: exit code 1, the tensor's name, and no file, also in place of one."""
    path = save(tmp_path / "run", {"model": Net(a=torch.randn(64, 64), b=torch.randn(64, 64))})
    flip(path, "model.b")
    (tmp_path / "o").write_bytes(b"precious")
    command = [*COMMAND, "export", str(path), "--to", kind, "-o", "o", "--force"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "tensor 'model.b' does not match its digest" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "o").read_bytes() == b"precious"
    assert leaves_nothing(tmp_path, [tmp_path / "o", tmp_path / "run"])


def test_export_of_a_damaged_structure_is_none(tmp_path: Path) -> None:
    """So it is where the part that tells of the state is damaged."""
    path = save(tmp_path, {"model": Net(a=torch.randn(4))})
    flip(path, "pickle")
    command = [*COMMAND, "export", str(path), "--to", "weights", "-o", "o"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert leaves_nothing(tmp_path, [path])


def test_export_of_a_view_verifies_all_it_lies_on(tmp_path: Path) -> None:
    """A digest speaks of a storage: a bit beside the view that is exported is a reason, too, and no other tensor's."""
    one = torch.randn(64, 64)
    path = save(tmp_path, {"model": Net(part=one[:2], turned=torch.randn(8, 8).T), "other": Net(a=torch.randn(4))})
    flip(path, "model.part", at=0.9)
    flip(path, "other.a")
    for kind in Kind.SAFETENSORS, Kind.TORCH:
        for dtype in None, Dtype.FLOAT16:
            job = prepared(Order(path, tmp_path / "o", kind, keys=("model.part",), dtype=dtype))
            with pytest.raises(DamagedCheckpointError, match=r"tensor 'model\.part' does not match its digest"):
                job.run()
            prepared(Order(path, tmp_path / "p", kind, keys=("model.turned",), dtype=dtype, replace=True)).run()
    assert leaves_nothing(tmp_path, [path, tmp_path / "p"])


@pytest.mark.parametrize("change", ["replaced", "changed", "cut off", "removed"])
def test_export_of_what_changes_meanwhile_is_none(tmp_path: Path, change: str) -> None:
    """A name that leads to another checkpoint by the end is told of, and nothing of either is left behind."""
    path, other = hollow(tmp_path / "last.ckpt", 2048), hollow(tmp_path / "next.ckpt", 2048)

    def meddle(_: int) -> None:
        if change == "replaced" and other.exists():
            other.rename(path)
        elif change == "changed":
            os.utime(path)
        elif change == "cut off":
            os.truncate(path, 1 << 20)
        elif change == "removed":
            path.unlink(missing_ok=True)

    job = prepared(Order(path, tmp_path / "o", Kind.SAFETENSORS))
    with pytest.raises((CheckpointError, FileNotFoundError), match=r"was replaced or changed|file ends before|No such"):
        job.run(meddle)
    assert leaves_nothing(tmp_path, [found for found in (path, other) if found.exists()])


def test_export_says_ahead_that_the_disk_is_full(tmp_path: Path) -> None:
    """Room is asked for before anything is written, and how much is missing is told."""
    path = hollow(tmp_path / "a.ckpt", 1024)
    with mounted("tmpfs", tmp_path / "disk", options="size=8m") as disk:
        command = [*COMMAND, "export", str(path), "--to", "torch", "-o", str(disk / "o")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout) == (2, "")
        assert "takes 0.0168 GB, and " in result.stderr
        assert " has 0.00839 GB free: free some" in result.stderr
        assert leaves_nothing(disk, [])


def test_export_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    """Where room is refused in spite of that, as by a limit on files, one line says so and nothing is left."""
    path = hollow(tmp_path / "a.ckpt", 1024)
    command = ["prlimit", "--fsize=1000000", *COMMAND, "export", str(path), "--to", "torch", "-o", "o"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "File too large" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert leaves_nothing(tmp_path, [path])


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_export_that_is_interrupted_is_none(tmp_path: Path, number: signal.Signals, *, unnamed: bool) -> None:
    """Ctrl-C, a kill, or a lost connection: no file, and nothing hidden, also where files cannot be without a name."""
    path = hollow(tmp_path / "a.ckpt", 16384)
    under = [] if unnamed else _refusing_to_name()
    command = [*under, *COMMAND, "export", str(path), "--to", "torch", "--dtype", "float64", "-o", "o"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        writer = _writer(process.pid, tmp_path)
        os.kill(writer, number)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, told) == (128 + number, "")
    assert leaves_nothing(tmp_path, [path])


def test_export_goes_on_where_signals_are_ignored(tmp_path: Path) -> None:
    """What was started with nohup outlives the connection, as whoever did so expects."""
    path = hollow(tmp_path / "a.ckpt", 16384)
    command = ["nohup", *COMMAND, "export", str(path), "--to", "torch", "--dtype", "float64", "-o", "o"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        os.kill(_writer(process.pid, tmp_path), signal.SIGHUP)
        told, _ = process.communicate(timeout=20)
    assert (process.returncode, told[:2]) == (0, b"o:")


def _refusing_to_name() -> list[str]:
    """Return a command under which a file that was made without a name gets none, as on some file systems."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    return [strace, "-f", "-o", os.devnull, "-e", "trace=linkat", "-e", "inject=linkat:error=EOPNOTSUPP:when=1"]


def _writer(pid: int, directory: Path) -> int:
    """Wait until the process, or its only child, writes a file in ``directory``; return which of the two does."""
    ends_s = time.monotonic() + 20
    while time.monotonic() < ends_s:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for found in map(int, [pid, *children]):
            if any(_size_of(link) > 1 << 20 for link in _opened_in(found, directory)):
                return found
        time.sleep(0.01)
    raise AssertionError("nothing was written")


def _opened_in(pid: int, directory: Path) -> list[Path]:
    """Return the links to the temporary files in ``directory`` that a process has open."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
        return [link for link in links if str(directory) in (name := os.readlink(link)) and not name.endswith(".ckpt")]
    except OSError:
        return []


def _size_of(link: Path) -> int:
    try:
        return link.stat().st_size
    except OSError:
        return 0


def peak_bytes(directory: Path, *arguments: object) -> int:
    """Return the most memory that an export takes in a process of its own."""
    code = f"{MEASURED}; from safepoint.cli import main; main()"
    command: list[Any] = [sys.executable, "-c", code, "export", *arguments, "--force"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=directory)
    return int(result.stdout.split()[-2]) << 10


@pytest.mark.parametrize(
    "options",
    [["--to", "safetensors"], ["--to", "torch"], ["--to", "torch", "--dtype", "float16"]],
    ids=["safetensors", "torch", "converted"],
)
def test_export_takes_little_memory_for_a_large_tensor(tmp_path: Path, options: list[str]) -> None:
    """A tensor of 256 MiB takes hardly more memory than one of 64 KiB does, in a process of its own."""
    small, large = hollow(tmp_path / "small.ckpt", 4), hollow(tmp_path / "large.ckpt", 16384)
    little = peak_bytes(tmp_path, small, *options, "-o", "o")
    much = peak_bytes(tmp_path, large, *options, "-o", "o")
    assert (tmp_path / "o").stat().st_size >= 128 << 20
    assert much - little < 80 << 20


def test_export_takes_little_memory_for_a_turned_tensor(tmp_path: Path) -> None:
    """So does one whose elements lie in another order than they are written in."""
    small = hollow(tmp_path / "small.ckpt", 4)
    large = hollow(tmp_path / "large.ckpt", 8192, shape=(ROW, 8192), strides=(1, ROW))
    little, much = (peak_bytes(tmp_path, path, "--to", "safetensors", "-o", "o") for path in (small, large))
    assert (tmp_path / "o").stat().st_size >= 128 << 20
    assert much - little < 160 << 20


@pytest.mark.torture
@pytest.mark.parametrize("kind", [Kind.SAFETENSORS, Kind.TORCH])
def test_export_of_more_than_memory_holds(tmp_path: Path, kind: Kind) -> None:
    """Six GiB go through a process that is given one, into a file that torch maps and safetensors opens."""
    rows = (6 << 30) // (ROW * 4)
    path = hollow(tmp_path / "a.ckpt", rows)
    command = ["prlimit", f"--as={1 << 30}", *COMMAND, "export", str(path), "--to", kind, "-o", "o"]
    subprocess.run(command, check=True, cwd=tmp_path)
    if kind is Kind.TORCH:
        found = torch.load(tmp_path / "o", weights_only=True, mmap=True)["net.weight"]
    else:
        from safetensors import safe_open

        with safe_open(tmp_path / "o", framework="pt") as file:
            found = file.get_slice("net.weight")
            assert found.get_shape() == [rows, ROW]
            found = found[-2:]
    assert tuple(found[-1].shape) == (ROW,)
    assert not found[-1].any()
    (tmp_path / "o").unlink()
