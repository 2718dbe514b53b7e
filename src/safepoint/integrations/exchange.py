"""One write for all: what the callbacks of one trainer decide to save at one moment is dumped and written once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safepoint.deferral import Live
from safepoint.excluded import Excluder
from safepoint.ledger import Ledger
from safepoint.pipeline import NOTHING_LIVE, Options, Pipeline, Proposed, Snapshot
from safepoint.run import Run
from safepoint.writer import Names

if TYPE_CHECKING:
    from safepoint.integrations.exactness import Exactness
    from safepoint.integrations.framework import Framework

WEIGHT_ENTRIES = ("state_dict", "current_model_state")
"""Where the weights are in the trainer's checkpoint; where they are averaged, the live ones are in the second."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What one callback has decided to save.

    ``undo`` takes back what the callback shows already; ``settle`` lets it take notice of what is done; ``finish`` does
    what is left, given the names still to be written, where a plugin of the user's has written the file.
    """

    run: Run
    snapshot: Snapshot
    names: Names
    proposed: Proposed | None
    weights_only: bool
    undo: Callable[[], None]
    settle: Callable[[], None]
    finish: Callable[[tuple[str, ...]], None]


class Exchange:
    """What the callbacks of one trainer share: who they are in each directory, and what is asked for at this moment.

    Those that save into one directory are one run there, with a pipeline for each set of options: each can then be seen
    to have saved what it holds, whichever callback's checkpoint the run is resumed from.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.claims: list[Callable[[Path], None]] = []  # of those that are about to resume
        self.exactness: Exactness | None = None
        self._excluder = Excluder()
        self._pipelines: dict[tuple[Path, Options], Pipeline] = {}

    def pipeline(self, directory: Path, options: Options) -> Pipeline:
        """Return the pipeline of all who save into ``directory`` with these ``options``."""
        if (directory, options) not in self._pipelines:
            pipeline = Pipeline(directory, options)
            for other in self._pipelines_in(directory):
                pipeline.identity = other.identity
            self._pipelines[directory, options] = pipeline
        return self._pipelines[directory, options]

    def adopt(self, run: Run, identity: str, ledger: Ledger) -> None:
        """Let ``run``, and all who save into its directory, go on as ``identity``; ``ledger`` is its own alone."""
        run.adopt(identity, ledger)
        for pipeline in self._pipelines_in(run.directory):
            pipeline.identity = identity

    def leave(self, run: Run) -> None:
        """Let go of a run that has ended, and of its pipeline's memory and the trainer's loaders with the last one."""
        run.leave()
        self._pipelines = {key: pipeline for key, pipeline in self._pipelines.items() if pipeline.books}
        if not self._pipelines and self.exactness is not None:
            self.exactness.leave()
            self.exactness = None

    def _pipelines_in(self, directory: Path) -> list[Pipeline]:
        return [pipeline for (there, _), pipeline in self._pipelines.items() if there == directory]

    def claim(self, path: Path) -> None:
        """Let every callback that is about to resume from ``path`` make sure that its run is nobody else's."""
        while self.claims:
            self.claims.pop()(path)

    def taken(self, path: Path) -> bool:
        """Tell whether a file is there, on its way, or asked for."""
        asked = (request.run.directory / name for request in self.requests for name in request.names.all)
        on_its_way = (
            pipeline.directory / name for pipeline in self._pipelines.values() for name in pipeline.names_under_way()
        )
        return path in asked or path in on_its_way or os.path.lexists(path)

    def write(self, trainer: Any, framework: Framework, *, trains_on: bool = False) -> None:
        """Have the trainer dump its state once for all who asked for the same, and queue it under all their names.

        ``trains_on``: a training batch comes next, and no hook at which the weights may be exchanged; deferred staging
        is for such saves only.
        """
        live = Live((trainer.lightning_module,), tuple(trainer.optimizers)) if trains_on else NOTHING_LIVE
        requests, self.requests = self.requests, []
        for group in _groups(requests):
            try:
                self._hand_over(trainer, framework, group, live)
            except BaseException:
                for request in reversed(requests[requests.index(group[0]) :]):
                    request.undo()
                raise
        for request in requests:
            request.settle()

    def _taken_out(self, checkpoint: dict[str, Any], module: Any, options: Options) -> dict[str, str]:
        """Take out what ``exclude_frozen`` leaves out, and return it by path with its digests."""
        excluded: dict[str, str] = {}
        for entry in WEIGHT_ENTRIES:
            if options.exclude_frozen and entry in checkpoint:
                left_out = self._excluder.take_out(checkpoint[entry], module)
                excluded |= {f"{entry}.{name}": found for name, found in left_out.items()}
        return excluded

    def _hand_over(self, trainer: Any, framework: Framework, group: list[Request], live: Live) -> None:
        """Take the checkpoint of the trainer instead of letting it be written; on the other ranks, follow."""
        first, taken = group[0], False

        def sink(checkpoint: dict[str, Any]) -> None:
            nonlocal taken
            taken = True
            excluded = self._taken_out(checkpoint, trainer.lightning_module, first.run.pipeline.options)
            reasons = tuple(dict.fromkeys(reason for request in group for reason in request.snapshot.reasons))
            parts = [request.run.part(request.names, request.proposed) for request in group]
            snapshot = replace(first.snapshot, reasons=reasons, excluded=excluded)
            first.run.pipeline.save(checkpoint, snapshot, parts, live)

        path = str(first.run.directory / first.names.name)
        with framework.handed_to(trainer.strategy, path, sink):
            trainer.save_checkpoint(path, first.weights_only)
        if not trainer.strategy.broadcast(taken):
            for request in group:
                request.finish(request.names.all[request is first :])
        if not taken:
            for request in group:
                if request.proposed is not None:
                    request.run.ledger = request.proposed[0].committed(request.proposed[1], 0)


def save_alone(checkpoint: dict[str, Any], path: Path) -> None:
    """Save a trainer's checkpoint as ``path``, in the place of what is there; return once it is durable.

    Raises:
        SaveError: it could not be written; what was there is still there.

    """
    run = Run(Pipeline(path.parent, Options(blocking=True, max_images=1)))
    step, epoch = int(checkpoint.get("global_step", 0)), int(checkpoint.get("epoch", 0))
    snapshot = Snapshot(step, epoch, None, {}, ("trainer.save_checkpoint",))
    run.save(checkpoint, snapshot, Names(path.name, overwrite=True), None)
    run.report(run.close())


def _groups(requests: list[Request]) -> Iterator[list[Request]]:
    """Yield those that one file serves, in the order in which the first of each asked."""
    groups: dict[tuple[int, bool], list[Request]] = {}
    for request in requests:
        groups.setdefault((id(request.run.pipeline), request.weights_only), []).append(request)
    yield from groups.values()
