"""One training script, run once with the framework's own ``ModelCheckpoint`` and once with Safepoint's.

A ``Case`` says how to train and which callbacks to make; ``outcome`` trains and returns everything that the two must
have in common: the files, the attributes, the content of each file, the error that came out.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from models import BATCHES_PER_EPOCH, Framework, differences, listing, loader, modulo_directory, shown, trainer

from safepoint.integrations.exactness import KEY

LOSSES = (1.5, 1.2, 1.3, 0.98, 1.1, 1.05)
ACCURACIES = (0.2, 0.5, 0.4, 0.5, 0.7, 0.6)


class Quit(Exception):  # noqa: N818 - it is an event of the script, not an error of ours
    """Raised by a training script in the middle of an epoch."""


@dataclass(frozen=True)
class Case:
    """A way to train.

    ``callbacks``: the arguments of each ``ModelCheckpoint``, ``dirpath`` left out. ``trainer``: arguments of the
    trainer. ``metrics``: what validation logs, a value each time it runs. ``batches``: training batches an epoch.
    ``train_metrics``: what training logs at each step, a value a batch. ``manual``: steps the optimizer itself.
    ``validates``: whether there is a validation loader. ``quits_at``: the step at which ``Quit`` is raised.
    ``then``: what happens after the first fit, given a function that makes the callbacks anew. ``exact``: it goes on
    within an epoch, which the framework's class does not do exactly, so that what the files hold is not compared.
    """

    callbacks: Sequence[Mapping[str, Any]]
    trainer: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[float]] = field(default_factory=lambda: {"val_loss": LOSSES, "val/acc": ACCURACIES})
    train_metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    batches: int = BATCHES_PER_EPOCH
    manual: bool = False
    validates: bool = True
    quits_at: int | None = None
    then: Callable[[Session], None] | None = None
    exact: bool = False


@dataclass
class Session:
    """A case that is being run with one of the classes, in one directory."""

    case: Case
    framework: Framework
    kind: type[Any]
    directory: Path
    made: list[Any] = field(default_factory=list)

    def callbacks(self, **changes: Any) -> list[Any]:
        """Return the callbacks of the case, made anew; ``changes`` are arguments that differ."""
        self.made = [
            self.kind(**{"dirpath": self.directory, **arguments, **changes}) for arguments in self.case.callbacks
        ]
        return self.made

    def fit(self, *, ckpt_path: str | Path | None = None, callbacks: list[Any] | None = None, **options: Any) -> Any:
        """Train a fresh module, and return the trainer."""
        made = self.callbacks() if callbacks is None else callbacks
        fitted = trainer(
            self.framework, *made, **{"epochs": 3, "default_root_dir": self.directory, **self.case.trainer, **options}
        )
        self.go_on(fitted, self.module(), ckpt_path=ckpt_path)
        return fitted

    def go_on(self, fitted: Any, module: Any, ckpt_path: str | Path | None = None) -> None:
        """Fit ``module`` with a trainer that is there."""
        validation = loader() if self.case.validates else None
        with contextlib.suppress(Quit):
            fitted.fit(module, batches(self.case.batches), validation, ckpt_path=ckpt_path)

    def module(self) -> Any:
        """Return a fresh module that follows the script; its weights are the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return module_of(self.framework)(self.case)


def outcome(session: Session) -> dict[str, Any]:
    """Run the case, and return what is to be compared."""
    error: Exception | None = None
    try:
        fitted = session.fit()
        if session.case.then is not None:
            session.case.then(session)
        del fitted
    except Exception as raised:  # noqa: BLE001 - whatever it is, the other class must raise the like
        error = raised
    directory = session.directory
    return {
        "error": error,
        "files": listing(directory),
        "links": {
            name: os.readlink(directory / name) for name in listing(directory) if (directory / name).is_symlink()
        },
        "attributes": [shown(callback) for callback in session.made],
        "contents": {name: content(directory / name) for name in listing(directory) if name.endswith(".ckpt")},
    }


def disagreements(case: Case, framework: Framework, directory: Path) -> list[str]:
    """Run ``case`` with either class, and return where the two differ; an error of ours may be more special."""
    theirs = outcome(Session(case, framework, framework.original, directory / "theirs" / "run"))
    ours = outcome(Session(case, framework, framework.ModelCheckpoint, directory / "ours" / "run"))
    errors = theirs.pop("error"), ours.pop("error")
    if not isinstance(errors[1], type(errors[0])):
        return [f"error: {errors[0]!r} != {errors[1]!r}"]
    if case.exact:
        del theirs["contents"], ours["contents"]
    if theirs["files"] != ours["files"]:
        return [f"files: {theirs['files']} != {ours['files']}"]
    return differences(theirs, ours)


def content(path: Path) -> dict[str, Any]:
    """Return what a file holds, with file names in the place of paths.

    Left out is what Safepoint adds for an exact resume, and ``last_model_path`` in the state of callbacks: where one
    step has two names, the framework's class writes two files of which the first does not know the second's name yet;
    here it is one file. For the same reason, of several callbacks only the state of the one is compared that calls the
    file its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.load(path, weights_only=False)
    loaded.pop(KEY, None)
    states = {key: state for key, state in loaded.get("callbacks", {}).items() if "last_model_path" in state}
    for key, state in states.items() if len(states) > 1 else ():
        own = (*state["best_k_models"], state["best_model_path"], state["last_model_path"])
        if not {path.name, path.resolve().name} & {Path(name).name for name in own}:
            del loaded["callbacks"][key]
    for state in loaded.get("callbacks", {}).values():
        if "last_model_path" in state:
            state["last_model_path"] = state["dirpath"] = ""
            for name, value in state.items():
                state[name] = modulo_directory(value)
    return dict(loaded)


def batches(count: int) -> Any:
    """Return a loader of ``count`` batches, the same each time."""
    data = torch.randn(2 * count, 4, generator=torch.Generator().manual_seed(3))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=2)


_MODULES: dict[str, type[Any]] = {}


def module_of(framework: Framework) -> type[Any]:
    """Return the class of the training script's module, for one of the packages."""
    return _MODULES.setdefault(framework.name, type("Script", (_Script, framework.pl.LightningModule), {}))


class _Script:
    """Train one linear layer; log by the case's script."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.automatic_optimization = not case.manual
        self.layer = torch.nn.Linear(4, 3)
        self.validated = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss that moves the weights, or move them."""
        if self.case.quits_at is not None and self.global_step == self.case.quits_at:  # type: ignore[attr-defined]
            raise Quit
        loss: torch.Tensor = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss)  # type: ignore[attr-defined]
        for name, values in self.case.train_metrics.items():
            self.log(name, values[(self.current_epoch * self.case.batches + batch_idx) % len(values)])  # type: ignore[attr-defined]
        if self.case.manual:
            optimizer = self.optimizers()  # type: ignore[attr-defined]
            optimizer.zero_grad()
            self.manual_backward(loss)  # type: ignore[attr-defined]
            optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log what the script says for this validation."""
        for name, values in self.case.metrics.items():
            self.log(name, torch.tensor(values[self.validated % len(values)]))  # type: ignore[attr-defined]

    def on_validation_epoch_end(self) -> None:
        """Count the validations of training."""
        if not self.trainer.sanity_checking:  # type: ignore[attr-defined]
            self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer that has state."""
        return torch.optim.Adam(self.parameters(), lr=0.01)  # type: ignore[attr-defined]
