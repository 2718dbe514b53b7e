"""What it costs to list many checkpoints: Safepoint beside two things that know less of the same files.

Makes runs of small checkpoints whose manifests carry the history that they would have in real life, and lists them:
``safepoint ls`` as a process of its own, ``Survey.of`` (whose they are, and why each is kept) and ``Catalog.of``
alone, the names and sizes by ``os.scandir``, and the records of every archive by ``zipfile``. In turn, several rounds,
with the page cache warm and, where this process may drop it (root on Linux), cold. Below that, what a bare interpreter,
the imports and ``--help`` take.

Run: ``python benchmarks/listing.py [--count 10000] [--runs 10] [--rounds 5]``
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safepoint import image
from safepoint.catalog import Catalog
from safepoint.checksums import checksums
from safepoint.manifest import Blob, HistoryEntry, Manifest, Tensor, encode
from safepoint.survey import Survey

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
TENSORS = 16
TENSOR = bytes(64)
PICKLE = bytes(100)
PROCESSES = {
    "python -c pass": ("pass",),
    "import typer": ("import typer",),
    "import safepoint": ("import safepoint",),
    "import safepoint.cli.app": ("import safepoint.cli.app",),
    "safepoint --help": ("from safepoint.cli import main; main()", "--help"),
    "safepoint ls, empty": ("from safepoint.cli import main; main()", "ls"),
}


def history(count: int) -> tuple[HistoryEntry, ...]:
    """Return what became of the first ``count`` checkpoints of a run that keeps one of each epoch."""
    return tuple(
        HistoryEntry(
            name=f"epoch={index}-step={index * 100}.ckpt",
            step=index * 100,
            epoch=index,
            metrics={"train_loss": 1 / (index + 1.5), "val_loss": 1 / (index + 1.7)},
            time=1.7e9 + index * 61.803,
            kept=True,
            reason=f"the last of epoch {index}",
        )
        for index in range(count)
    )


def manifest(run: str, told: tuple[HistoryEntry, ...]) -> bytes:
    """Return the manifest of the last checkpoint in ``told``."""
    own, blob = told[-1], Blob(len(TENSOR), checksums(TENSOR).digest)
    return encode(
        Manifest(
            format_version=1,
            run=run,
            step=own.step,
            epoch=own.epoch,
            metrics=own.metrics,
            time=own.time,
            reasons=("every epoch",),
            pinned=False,
            position=None,
            producer={"safepoint": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
            pickle=Blob(len(PICKLE), checksums(PICKLE).digest),
            storages=(blob,) * TENSORS,
            tensors=tuple(Tensor(f"state_dict.layers.{key}.weight", "float32", (4, 4), key) for key in range(TENSORS)),
            history=told,
        )
    )


def write(path: Path, manifest_bytes: bytes) -> None:
    """Write a checkpoint as Safepoint lays it out; not fsynced, as nothing here depends on it."""
    layout = image.lay_out(len(PICKLE), [len(TENSOR)] * TENSORS, len(manifest_bytes))
    data = {layout.pickle: PICKLE, **dict.fromkeys(layout.storages, TENSOR), layout.manifest: manifest_bytes}
    data |= dict(layout.constants)
    crcs = {entry.name: checksums(content).crc for entry, content in data.items()}
    pieces = [*image.frame(layout, crcs), *((entry.data_offset, content) for entry, content in data.items())]
    path.write_bytes(b"".join(content for _, content in sorted(dict(pieces).items())))


def populate(directory: Path, count: int, runs: int) -> None:
    """Write ``count`` checkpoints of ``runs`` runs; the k-th of a run tells of k."""
    for run in range(runs):
        own = directory / f"run={run}"
        own.mkdir(parents=True)
        whole = history(count // runs)
        for index, entry in enumerate(whole):
            write(own / entry.name, manifest(f"{run:032x}", whole[: index + 1]))
    os.sync()


def files(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files of every run."""
    for run in os.scandir(directory):
        yield from os.scandir(run)


def actions(directory: Path) -> dict[str, Callable[[], object]]:
    """Return what is compared, by its label."""
    return {
        "os.scandir: names and sizes": lambda: [(entry.name, entry.stat().st_size) for entry in files(directory)],
        "zipfile: names of the records": lambda: [zipfile.ZipFile(entry.path).namelist() for entry in files(directory)],
        "Catalog.of": lambda: Catalog.of(directory),
        "Survey.of": lambda: Survey.of(directory),
        "safepoint ls": lambda: python("from safepoint.cli import main; main()", "ls", str(directory)),
    }


def python(code: str, *arguments: str) -> None:
    """Run ``code`` in an interpreter of its own, its output piped to nowhere."""
    subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, check=True)


def drop_caches() -> bool:
    """Empty the page cache and the caches of names; return whether that is allowed."""
    try:
        DROP_CACHES.write_text("3")
    except OSError:
        return False
    return True


def medians_s(
    compared: dict[str, Callable[[], object]], rounds: int, before: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Return the median seconds of each; every round does each of them once, after ``before``."""
    rows: dict[str, list[float]] = {label: [] for label in compared}
    for _ in range(rounds):
        for label, action in compared.items():
            before()
            began = time.perf_counter()
            action()
            rows[label].append(time.perf_counter() - began)
    return {label: statistics.median(row) for label, row in rows.items()}


def print_listing(directory: Path, rounds: int) -> None:
    """Measure and print what listing costs, warm and cold."""
    compared = actions(directory)
    warm = medians_s(compared, rounds)
    cold = medians_s(compared, rounds, drop_caches) if drop_caches() else {}
    print(f"{'':34}{'warm':>12}{'cold':>12}")
    for label, warm_s in warm.items():
        told = f"{cold[label]:10.2f} s" if cold else f"{'needs root':>12}"
        print(f"{label:34}{warm_s:10.2f} s{told}")


def print_startup(directory: Path, rounds: int) -> None:
    """Measure and print what starting costs, and how much of it is above a bare interpreter."""
    arguments = {"safepoint ls, empty": [str(directory)]}
    compared: dict[str, Callable[[], object]] = {
        label: lambda command=command, label=label: python(*command, *arguments.get(label, []))
        for label, command in PROCESSES.items()
    }
    times_s = medians_s(compared, rounds)
    bare_s = times_s["python -c pass"]
    print(f"\n{'':34}{'whole':>12}{'above bare':>12}")
    for label, time_s in times_s.items():
        print(f"{label:34}{time_s * 1e3:9.1f} ms{(time_s - bare_s) * 1e3:9.1f} ms")


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="checkpoints in all")
    parser.add_argument("--runs", type=int, default=10, help="runs that they are shared out to")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        full, empty = Path(name) / "full", Path(name) / "empty"
        empty.mkdir()
        populate(full, options.count, options.runs)
        size_bytes = sum(entry.stat().st_size for entry in files(full))
        print(f"{options.count} checkpoints of {options.runs} runs, {size_bytes / 1e6:.0f} MB")
        print_listing(full, options.rounds)
        print_startup(empty, 4 * options.rounds)


if __name__ == "__main__":
    main()
