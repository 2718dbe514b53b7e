"""Open mutants through every door, with little memory and little time for each: ``fuzz.py COUNT SEED``.

Ends with 0 if every one of them behaved or was refused with a SafepointError. In a process of its own, as the limits
and a crash would take the tests along.
"""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import forge
import mutants
import torch
from hypothesis import HealthCheck, given, seed, settings

import safepoint
from safepoint import keep, reader, when
from safepoint.catalog import Catalog
from safepoint.manifest import encode
from safepoint.transfer import tensors_in

torch.set_num_threads(1)
MORE_MEMORY_BYTES = 1 << 30
LONGEST_S = 10


def _state() -> dict[str, Any]:
    """Return live objects, small ones; two of their storages are shared or seen in several ways."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "notes": {}}


def _notes() -> dict[str, Any]:
    data = torch.arange(12.0)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "n"  # type: ignore[attr-defined]
    warnings.simplefilter("ignore")
    return {
        "views": [data[2:], data.view(3, 4).t(), data.view(3, 4)[:, :1].expand(3, 5)],
        "raw": [
            torch.arange(4, dtype=torch.int32).view(torch.uint16),
            data.to(torch.complex64).conj(),
            torch.ones(3, device="meta"),
        ],
        "sparse": [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()],
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),
        "parameter": parameter,
        "plain": {
            (1, "a"): {1, 2},
            3: b"bytes",
            "set": bytearray(b"x"),
            "n": complex(1, 2),
            "t": (1.5, None, True, 2**70),
        },
    }


def _samples() -> tuple[tuple[bytes, list[bytes]], ...]:
    live = _state()
    trained = {name: live[name].state_dict() for name in ("model", "optimizer")}
    small = forge.parts({"notes": _notes()}, own=False)
    return forge.parts({**trained, "notes": {}}), small, forge.parts({**trained, "notes": _notes()})


LIVE = _state()
SAMPLES = _samples()
FILES = tuple(forge.sealed(*sample) for sample in SAMPLES)
MANIFEST = encode(
    forge.told(
        *SAMPLES[0],
        metrics={"loss": 0.5},
        tensors=({"path": "model.0.weight", "dtype": "float32", "shape": [2, 3], "storage": 0, "strides": [3, 1]},),
        history=(forge.files.told("a.ckpt", 1, loss=0.5),),
        excluded={"model.0.weight": "0" * 32},
        measured_at={"loss": 1},
    )
)
MUTANTS = {
    "damaged": mutants.damaged(FILES[:2]),
    "retold": mutants.retold(*SAMPLES[0], MANIFEST),
    "rewritten": mutants.rewritten(*SAMPLES[1]),
    "rewritten with random state": mutants.rewritten(*SAMPLES[0]),
}
seen: Counter[str] = Counter()


def _touch(value: Any) -> None:
    for tensor in tensors_in(value):
        if tensor.numel() < 1 << 20:
            tensor.clone()


def _restore(directory: Path) -> None:
    live = LIVE
    checkpointer = safepoint.Checkpointer(directory, state=live, save=when.train_end(), keep=keep.latest())
    try:
        checkpointer.restore()
        sum(parameter.sum() for parameter in live["model"].parameters())
    finally:
        checkpointer._run.close()


def _behaves(directory: Path, kind: str) -> None:
    """Open the checkpoint in ``directory`` in every way."""
    path, seen_now = directory / "a.ckpt", set()
    doors = {
        "verify": lambda: reader.verify(path),
        "manifest": lambda: reader.read_manifest(path),
        "catalog": lambda: [repr(record) for record in Catalog.of(directory).records],
        "load": lambda: _touch(safepoint.load(path)),
        "mapped": lambda: _touch(safepoint.load(path, mmap=True)),
        "restore": lambda: _restore(directory),
    }
    for name, door in doors.items():
        if name == "mapped" and not seen_now & {"load ended"}:
            continue
        try:
            signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
            found = door()
            seen[f"{kind}: {name} {'sound' if name == 'verify' and not found else 'ended'}"] += 1
            seen_now.add(f"{name} ended")
        except safepoint.SafepointError as error:
            if not str(error).replace("\n", "").isprintable():
                raise RuntimeError(f"{error!r} would command a terminal") from error
            seen[f"{kind}: {name} refused"] += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _hangs(*_: Any) -> None:
    raise RuntimeError(f"took more than {LONGEST_S} s")


def _fuzz(kind: str, directory: Path, count: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(MUTANTS[kind])
    def behaves(data: bytes) -> None:
        path = directory / "a.ckpt"
        path.unlink(missing_ok=True)  # another file: what has been loaded may still lie in the old one
        path.write_bytes(data)
        _behaves(directory, kind)

    behaves()


def main(count: int, number: int) -> None:
    """Try ``count`` mutants, a third of each kind."""
    began_s = time.monotonic()
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "a.ckpt").write_bytes(FILES[2])
        _behaves(directory, "honest")  # everything is loaded and warm from here on
        assert all(line.startswith("honest") and "refused" not in line for line in seen), seen
        size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MORE_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
        for kind in MUTANTS:
            _fuzz(kind, directory, count // len(MUTANTS), number)
    for line, times in sorted(seen.items()):
        print(f"{times:7} {line}")
    count = sum(times for line, times in seen.items() if "verify" in line)
    count = sum(times for line, times in seen.items() if "verify" in line)
    print(f"{count} mutants in {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
