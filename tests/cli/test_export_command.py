"""``safepoint export`` as a user runs it: what it prints, what it refuses before it writes anything, how it ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import Training
from nets import Net, save, tied

COMMAND = [sys.executable, "-c", "from safepoint.cli import main; main()"]


def safepoint(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``safepoint`` with its output piped."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd)


def listing(directory: Path) -> dict[str, bytes]:
    """Return every file in ``directory``, hidden ones too, with its content."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of a small training."""
    training = Training()
    training.advance()
    return save(tmp_path / "run", training.state).rename(tmp_path / "a.ckpt")


def test_export_calls_the_file_after_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """Without -o it is made here, with the name of what it came from, and one line says what it is."""
    for kind, name in (("safetensors", "a.safetensors"), ("torch", "a.pt"), ("weights", "a.weights.pt")):
        result = safepoint("export", checkpoint, "--to", kind, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines()[0].startswith(f"{name}: ")
        assert (tmp_path / name).stat().st_size > 0
    assert result.stdout == f"a.weights.pt: 4 tensors, {(tmp_path / name).stat().st_size / 1000:.1f} kB\n"


def test_export_says_in_one_line_what_it_left_out(checkpoint: Path, tmp_path: Path) -> None:
    """Values that are no tensors have no place among safetensors: the shortest paths to them are told."""
    result = safepoint("export", checkpoint, "--to", "safetensors", cwd=tmp_path)
    assert result.stdout.splitlines()[1].startswith(
        "left out, as they are no tensors: optimizer.param_groups, safepoint.rng.python"
    )
    assert len(result.stdout.splitlines()) == 2
    result = safepoint("export", checkpoint, "--to", "safetensors", "--keys", "model", "--force", cwd=tmp_path)
    assert len(result.stdout.splitlines()) == 1


def test_export_tells_of_tied_tensors(tmp_path: Path) -> None:
    """Names without a tensor of their own are told with the one that has it."""
    path = save(tmp_path, {"model": tied()})
    result = safepoint("export", path, "--to", "safetensors", "--keys", "model", "-o", "o", cwd=tmp_path)
    assert "tied, and there once: model.b is model.a" in result.stdout.splitlines()


def test_export_warns_of_what_became_infinite(tmp_path: Path) -> None:
    """A tensor that does not fit its new dtype is named on standard error; the file is there all the same."""
    path = save(tmp_path, {"model": Net(large=torch.tensor([1e30]), small=torch.tensor([1.0]))})
    result = safepoint("export", path, "--to", "weights", "--dtype", "float16", "-o", "o", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr.startswith("safepoint: model.large: numbers beyond the range of float16 are infinite in o")
    assert len(result.stderr.splitlines()) == 1
    assert torch.load(tmp_path / "o")["large"].isinf().all()


def test_export_prints_a_document(checkpoint: Path, tmp_path: Path) -> None:
    """``--json`` tells what was written: the tensors with their new names and dtypes, and what is not there."""
    arguments = ("--keys", "model", "--strip", "model.", "--dtype", "bfloat16", "--json")
    result = safepoint("export", "a.ckpt", "--to", "safetensors", *arguments, cwd=tmp_path)
    assert json.loads(result.stdout) == {
        "schema": "safepoint.export/1",
        "path": "a.safetensors",
        "source": "a.ckpt",
        "to": "safetensors",
        "size_bytes": (tmp_path / "a.safetensors").stat().st_size,
        "tensors": [
            {"name": f"{n}.{kind}", "path": f"model.{n}.{kind}", "dtype": "bfloat16", "shape": shape}
            for n, kind, shape in ((0, "weight", [4, 4]), (0, "bias", [4]), (2, "weight", [1, 4]), (2, "bias", [1]))
        ],
        "tied": {},
        "left_out": [],
        "overflowed": [],
    }


REFUSED = {
    "a name that nothing has": (["--keys", "modle.*"], "--keys 'modle.*' matches nothing in it. Did you mean 'model'?"),
    "a name like no other": (
        ["--except", "zzz"],
        "--except 'zzz' matches nothing in it. There are: 'model', 'optimizer', 'safepoint'.",
    ),
    "nothing left": (["--keys", "model", "--except", "*"], "nothing is left of it"),
    "no tensor": (["--keys", "optimizer.param_groups"], "holds no tensor: choose more with --keys"),
    "a prefix of nothing": (["--strip", "modle."], "--strip 'modle.': no name that is chosen begins with it. Did you"),
    "a directory that is not there": (["-o", "nowhere/o"], "nowhere is no directory: make it"),
    "a directory": (["-o", "run"], "run is a directory: give the name of a file with -o"),
    "itself": (["-o", "a.ckpt", "--force"], "a.ckpt belongs to the checkpoint itself"),
    "itself by another name": (["-o", "link.ckpt", "--force"], "link.ckpt belongs to the checkpoint itself"),
    "what is there": (["-o", "there"], "there is there already: give another name with -o, or --force"),
    "a link to nothing": (["-o", "dangling"], "dangling is there already"),
    "an unknown dtype": (["--dtype", "float12"], "float12"),
    "an unknown kind": (["--to", "onnx"], "onnx"),
}


@pytest.mark.parametrize("case", [case for case, (_, told) in REFUSED.items() if told])
def test_export_refuses_before_it_writes(checkpoint: Path, tmp_path: Path, case: str) -> None:
    """What cannot be done is told in a line that says what to do, with exit code 2, and nothing has changed."""
    arguments, told = REFUSED[case]
    (tmp_path / "there").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to("nothing")
    os.link(checkpoint, tmp_path / "link.ckpt")
    before = listing(tmp_path)
    result = safepoint("export", checkpoint.name, "--to", "safetensors", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert told is not None
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    if "Usage" not in result.stderr:
        assert len(result.stderr.splitlines()) == 1
    assert listing(tmp_path) == before


def test_export_refuses_two_tensors_of_one_name(tmp_path: Path) -> None:
    """Two tensors that a stripped prefix leaves with one name are both told, for every kind of file."""
    path = save(tmp_path, {"model": Net(a=torch.ones(1)), "a": torch.ones(2)})
    for kind in ("safetensors", "torch"):
        result = safepoint("export", path, "--to", kind, "--strip", "model", "-o", "o", cwd=tmp_path)
        assert result.returncode == 2
        assert "'a'" in result.stderr
        assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", "cut"])
def test_export_refuses_what_is_no_checkpoint(checkpoint: Path, tmp_path: Path, content: bytes | str | None) -> None:
    """A path that is not there, a foreign file and a half-written one are told in a line, with exit code 2."""
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(checkpoint.read_bytes()[:-100] if isinstance(content, str) else content)
    result = safepoint("export", path, "--to", "torch", "-o", "o", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert str(path) in result.stderr
    assert not (tmp_path / "o").exists()


def test_export_replaces_only_if_told_to(checkpoint: Path, tmp_path: Path) -> None:
    """With --force a file, or a link to another, gives its name to the new one; what the link led to stays."""
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("precious")
    result = safepoint("export", checkpoint, "--to", "weights", "-o", "link", "--force", cwd=tmp_path)
    assert result.returncode == 0
    assert not (tmp_path / "link").is_symlink()
    assert len(torch.load(tmp_path / "link")) == 4
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_export_shows_a_bar_on_a_terminal_only(checkpoint: Path, tmp_path: Path) -> None:
    """Where standard error is a terminal, it shows how far it is and takes that away; standard output stays clean."""
    main, terminal = pty.openpty()
    arguments = [*COMMAND, "export", str(checkpoint), "--to", "torch", "-o", "o"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=terminal, cwd=tmp_path, env=environment) as process:
        os.close(terminal)
        shown = b"".join(_read(main))
        told, _ = process.communicate()
    assert b"writing o" in shown
    assert (process.returncode, told[:3]) == (0, b"o: ")


def _read(descriptor: int) -> Iterator[bytes]:
    try:
        while data := os.read(descriptor, 1 << 16):
            yield data
    except OSError:
        pass
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_export_imports_no_torch(checkpoint: Path, tmp_path: Path, to: str) -> None:
    """Nothing of torch is loaded, whatever is made."""
    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, 'safetensors' in sys.modules)); "
        "from safepoint.cli import main; main()"
    )
    arguments: list[Any] = [sys.executable, "-c", code, "export", checkpoint, "--to", to, "--dtype", "bfloat16"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "False False"
