"""Who else saves into a run's directory, said once before the run's first save: other runs, and other ranks."""

from __future__ import annotations

from safepoint.catalog import Catalog
from safepoint.claim import told_of_the_living
from safepoint.errors import warn
from safepoint.ranks import rank, world_size
from safepoint.run import Run


class Neighbours:
    """Warn of those beside ``run``; ``are_known``: it goes on with what lies in its directory."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._is_told_of_ranks = False
        self.are_known = False

    def warn_of_runs(self) -> None:
        """Say once that others' checkpoints are there."""
        if self.are_known:
            return
        directory = self._run.directory
        try:
            catalog = Catalog.of(directory, below=False)
        except OSError:  # the save itself will say what the directory has
            return
        self.are_known = True
        if others := catalog.records:
            warn(
                f"{directory} holds {len(others)} checkpoints of another run; they stay, and do not count for "
                f"keep=. {told_of_the_living(catalog) or 'Call restore() first to go on with that run.'}",
                stacklevel=6,
            )

    def warn_of_ranks(self) -> None:
        """Say once that this process is not the one of its group that should save."""
        if self._run.pipeline.leads or self._is_told_of_ranks:
            return
        self._is_told_of_ranks = True
        warn(
            f"rank {rank()} of {world_size()} saves into "
            f"{self._run.directory}, too: every rank that does writes a run of its own. Call restore() on all ranks; "
            "step(), epoch_end() and save() on rank 0 only.",
            stacklevel=6,
        )
