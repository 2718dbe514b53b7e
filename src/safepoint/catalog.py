"""What exists in a directory, told from the manifests alone.

Reads manifests, never tensor data, and imports no torch. A moved or copied directory loses nothing: records, reasons
and the history of what was removed are all in the files.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safepoint import keep, reader
from safepoint.errors import CheckpointError
from safepoint.keep import Mode
from safepoint.manifest import Manifest, decoded_history
from safepoint.naming import EXTENSION, TEMPORARY_PREFIX
from safepoint.records import Fate, Record


@dataclass(frozen=True, slots=True)
class Catalog:
    """The checkpoints of one directory.

    ``records`` are oldest first; ``manifests`` are theirs; ``unreadable`` are the other ``.ckpt`` files, each with why
    it has no record.
    """

    directory: Path
    records: tuple[Record, ...]
    manifests: Mapping[Path, Manifest]
    unreadable: Mapping[Path, str]

    @classmethod
    def of(cls, directory: Path, extension: str = EXTENSION) -> Catalog:
        """Read the manifests of all that ends in ``extension`` below ``directory``; one that is not there is empty."""
        manifests: dict[Path, Manifest] = {}
        unreadable: dict[Path, str] = {}
        records: list[Record] = []
        for path in sorted(directory.rglob(f"*{glob.escape(extension)}")):
            if path.name.startswith(TEMPORARY_PREFIX):
                continue
            try:
                manifests[path] = manifest = reader.read_manifest(path)
                records.append(manifest.record(path, path.stat().st_size))
            except FileNotFoundError:
                continue  # removed by a running job since the directory was read
            except (CheckpointError, OSError) as error:
                unreadable[path] = str(error)
        catalog = cls(directory, tuple(sorted(records, key=_age)), manifests, unreadable)
        return replace(catalog, records=catalog._with_late_metrics())

    def latest(self) -> Record | None:
        """Return the record saved last."""
        return self.records[-1] if self.records else None

    def best(self, metric: str, mode: Mode = "min") -> Record | None:
        """Return the record with the best ``metric``, the earlier of equals, or ``None``."""
        return best_of(self.records, metric, mode)

    def history(self, run: str) -> tuple[Fate, ...]:
        """Return the history of ``run`` as its newest checkpoint tells it, oldest first."""
        own = [record for record in self.records if record.run == run]
        return decoded_history(self.manifests[own[-1].path], self.directory) if own else ()

    def runs(self) -> tuple[str, ...]:
        """Return the runs that wrote the checkpoints, the one that wrote last at the end."""
        return tuple(dict.fromkeys(record.run for record in reversed(self.records)))[::-1]

    def written_by(self, run: str) -> tuple[Record, ...]:
        """Return the records that ``run`` itself wrote under their present names, oldest first.

        A copy or a second link that somebody made bears a name that is not in the run's history: it is not the run's.
        """
        named = {(fate.record.path, fate.record.step) for fate in self.history(run)}
        return tuple(record for record in self.records if record.run == run and (record.path, record.step) in named)

    def _with_late_metrics(self) -> tuple[Record, ...]:
        """Return the records with what was measured on their weights after they were written, as later ones tell."""
        late = {
            (run, fate.record.path, fate.record.time): fate.record.metrics
            for run in self.runs()
            for fate in self.history(run)
        }
        return tuple(
            replace(record, metrics={**record.metrics, **late.get((record.run, record.path, record.time), {})})
            for record in self.records
        )


def best_of(records: tuple[Record, ...], metric: str, mode: Mode = "min") -> Record | None:
    """Return the best of ``records`` by ``metric``, or ``None`` if none has it as a number."""
    ranked = keep.Best(metric, 1, keep.checked_mode("best", mode)).ranked(records)
    return ranked[0] if ranked else None


def _age(record: Record) -> tuple[float, int]:
    return record.time, record.step
