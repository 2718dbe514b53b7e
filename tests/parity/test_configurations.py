"""Parity: the same training scripts with Lightning's class and with ours leave the same, but for what is documented."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from models import FRAMEWORKS, OLD_TREESPEC, Framework, loader
from training import Case, Session, disagreements

pytestmark = [OLD_TREESPEC, pytest.mark.filterwarnings("ignore::UserWarning")]

NAN = float("nan")
BEST: dict[str, Any] = {"monitor": "val_loss"}
MAX: dict[str, Any] = {"monitor": "val/acc", "mode": "max"}
ALL: dict[str, Any] = {"save_top_k": -1}
NAMED = "{epoch}-{val_loss:.2f}"
HALF: dict[str, Any] = {"val_check_interval": 0.5}


def resume(name: str, **options: Any) -> Any:
    """Return what goes on for some epochs in a new trainer with new callbacks."""

    def then(session: Session) -> None:
        path = name if name in ("last", "best") else session.directory / name
        session.fit(ckpt_path=path, epochs=6, **options)

    return then


def resume_best(session: Session) -> None:
    """Go on from the best by its path, with new callbacks."""
    session.fit(ckpt_path=session.made[0].best_model_path, epochs=6)


def fit_twice(session: Session) -> None:
    """Fit again with the same callbacks and another trainer, from the start."""
    session.fit(callbacks=session.made)


def raise_epochs(session: Session) -> None:
    """Fit once more with one trainer whose limit is raised."""
    session.directory.mkdir(exist_ok=True)
    callbacks = session.callbacks()
    fitted = session.fit(callbacks=callbacks, epochs=1)
    fitted.fit_loop.max_epochs = 3
    session.go_on(fitted, fitted.lightning_module)


def save_by_hand(session: Session) -> None:
    """Call ``trainer.save_checkpoint`` after a fit."""
    session.fit(callbacks=session.made).save_checkpoint(session.directory / "mine.ckpt")


def validate_alone(session: Session) -> None:
    """Validate and test with the callbacks in place."""
    fitted = session.fit(callbacks=session.made)
    fitted.validate(session.module(), loader(), verbose=False)


CASES: dict[str, Case] = {
    "defaults": Case([{}]),
    "best": Case([{**BEST, "filename": NAMED}]),
    "best of 2": Case([{**BEST, "save_top_k": 2, "filename": NAMED}], {"epochs": 6}),
    "best of 3 by the largest": Case([{**MAX, "save_top_k": 3}], {"epochs": 6}),
    "best of all": Case([{**BEST, **ALL, "filename": NAMED}], {"epochs": 6}),
    "no top k": Case([{**BEST, "save_top_k": 0}]),
    "no top k but last": Case([{"save_top_k": 0, "save_last": True}]),
    "no epochs but last": Case([{"every_n_epochs": 0, "save_last": True}]),
    "every second epoch": Case([{"every_n_epochs": 2, **ALL, "filename": "epoch-{epoch}"}], {"epochs": 6}),
    "every second epoch, best": Case([{"every_n_epochs": 2, **BEST}], {"epochs": 6}),
    "last": Case([{"filename": "last-model", "save_last": True}]),
    "last of a best that does not improve": Case([{**BEST, "save_last": True}], metrics={"val_loss": (0.1, 0.2, 0.3)}),
    "last, linked": Case([{**BEST, "save_last": "link", "filename": NAMED}]),
    "last, linked, all kept": Case([{"save_last": "link", **ALL}]),
    "last, linked, no top k": Case([{"save_last": "link", "save_top_k": 0}]),
    "last, linked, no top k, by steps": Case(
        [{"save_last": "link", "save_top_k": 0, "every_n_train_steps": 2}], batches=3
    ),
    "last, linked, no top k, by steps, at validation": Case(
        [{"save_last": "link", "save_top_k": 0, "every_n_train_steps": 2, "save_on_train_epoch_end": False}], batches=3
    ),
    "weights only": Case([{**BEST, "save_weights_only": True}]),
    "weights only, last": Case([{"save_weights_only": True, "save_last": True}]),
    "every 2 steps": Case([{"every_n_train_steps": 2, **ALL}], batches=3),
    "every 2 steps, newest": Case([{"every_n_train_steps": 2}], batches=3),
    "every 2 steps, last": Case([{"every_n_train_steps": 2, "save_last": True}], batches=3),
    "every 2 steps, best by a training metric": Case(
        [{"every_n_train_steps": 2, "monitor": "m", "save_top_k": 2, "filename": "{step}-{m:.1f}"}],
        batches=5,
        train_metrics={"m": (5.0, 4.0, 3.0, 4.5, 2.0, 2.5)},
    ),
    "every step, validation every second epoch": Case(
        [{"every_n_train_steps": 1, "monitor": "train_loss", **ALL}], {"check_val_every_n_epoch": 2, "epochs": 4}
    ),
    "every step, accumulated": Case([{"every_n_train_steps": 1, **ALL}], {"accumulate_grad_batches": 2}, batches=4),
    "never by steps": Case([{"every_n_train_steps": 0, "save_last": True}]),
    "every moment": Case([{"train_time_interval": timedelta(0), **ALL}]),
    "once an hour": Case([{"train_time_interval": timedelta(hours=1), "save_last": True}]),
    "at train epoch end": Case([{**BEST, "save_on_train_epoch_end": True}]),
    "at validation end": Case([{**BEST, "save_on_train_epoch_end": False, "save_last": True}]),
    "validation twice an epoch": Case([{**BEST, "save_top_k": 2, "filename": "{step}-{val_loss:.2f}"}], HALF),
    "validation twice an epoch, last": Case([{"save_last": True, **ALL}], HALF),
    "validation twice an epoch, saved at epoch end": Case([{**BEST, "save_on_train_epoch_end": True}], HALF),
    "validation every second epoch": Case([{**BEST}], {"check_val_every_n_epoch": 2, "epochs": 4}),
    "validation by steps": Case(
        [{**BEST, "save_top_k": 2}], {"val_check_interval": 3, "check_val_every_n_epoch": None, "epochs": 4}
    ),
    "no validation": Case([{"monitor": "train_loss", "save_last": True}], validates=False),
    "validation switched off": Case([{"save_last": True}], {"limit_val_batches": 0}),
    "dry run": Case([{**BEST}], {"fast_dev_run": 1}),
    "sanity check": Case([{**BEST, **ALL}], {"num_sanity_val_steps": 1}),
    "max steps in the middle": Case([{"save_last": True}], {"max_steps": 4, "epochs": -1}, batches=3),
    "max steps in the middle, every 2 steps": Case(
        [{"every_n_train_steps": 2, **ALL, "save_last": True}], {"max_steps": 4, "epochs": -1}, batches=3
    ),
    "manual optimisation": Case([{**BEST}], manual=True),
    "manual optimisation, every 2 steps": Case([{"every_n_train_steps": 2, **ALL}], manual=True, batches=3),
    "two callbacks": Case([{**BEST, "filename": NAMED}, {**MAX, "filename": "acc-{epoch}"}], {"epochs": 6}),
    "two callbacks, one name": Case([{**BEST, **ALL}, {**MAX, **ALL}]),
    "two callbacks, one last": Case([{**BEST, "save_last": True}, {"every_n_train_steps": 3, **ALL}]),
    "two callbacks, each with a last": Case(
        [{**BEST, "save_last": True, "filename": NAMED}, {**MAX, "save_last": True, "filename": "acc-{epoch}"}]
    ),
    "metric with a slash": Case([{**MAX, "filename": "{epoch}-{val/acc:.2f}"}]),
    "metric with a slash, no names": Case(
        [{**MAX, "filename": "e{epoch:02d}-a{val/acc:.1f}", "auto_insert_metric_name": False}]
    ),
    "constant name": Case([{**BEST, "filename": "model"}], {"epochs": 6}),
    "constant name, all kept": Case([{**BEST, **ALL, "filename": "model"}]),
    "constant name, no monitor": Case([{**ALL, "filename": "model"}]),
    "constant name, no versions": Case([{**BEST, "filename": "model", "enable_version_counter": False}]),
    "name below the directory": Case([{**BEST, "filename": "sub/{epoch}"}]),
    "no format": Case([{**BEST, "filename": "{epoch}-{step}-{val_loss}"}]),
    "nan at first": Case([{**BEST, "filename": NAMED}], metrics={"val_loss": (NAN, 1.0, 2.0)}),
    "nan between": Case([{**BEST, "save_top_k": 2}], metrics={"val_loss": (1.0, NAN, 0.5)}),
    "nan for the largest": Case([{**BEST, "mode": "max"}], metrics={"val_loss": (1.0, NAN, 0.5)}),
    "infinite": Case([{**BEST, "save_top_k": 2}], metrics={"val_loss": (float("inf"), float("inf"), 0.5)}),
    "ties": Case([{**BEST, "save_top_k": 2}], {"epochs": 6}, metrics={"val_loss": (1.0, 1.0, 1.0, 0.5, 0.5, 0.5)}),
    "monitor the step": Case([{"monitor": "step", "mode": "max", "save_top_k": 2}]),
    "monitor the epoch": Case([{"monitor": "epoch", "mode": "max", "save_top_k": 2}]),
    "monitor the step, every 2 steps": Case(
        [{"monitor": "step", "mode": "max", "every_n_train_steps": 2, "save_top_k": 2, "save_last": True}], batches=5
    ),
    "exception": Case([{**BEST, "save_on_exception": True, "save_last": True}], quits_at=5, batches=3),
    "exception, not asked for": Case([{**BEST}], quits_at=5, batches=3),
    "exception at once": Case([{"save_on_exception": True}], quits_at=0),
    "resumed from last": Case([{**BEST, "save_last": True, "filename": NAMED}], then=resume("last")),
    "resumed from best": Case([{**BEST, "save_top_k": 2, "filename": NAMED}], then=resume_best),
    "resumed from the newest, all kept": Case([{**ALL}], then=resume("epoch=2-step=6.ckpt")),
    "resumed in the middle": Case([{**ALL, "every_n_train_steps": 1}], then=resume("epoch=1-step=3.ckpt"), exact=True),
    "fit twice": Case([{**BEST, "filename": NAMED}], then=fit_twice),
    "limit raised": Case([{**BEST, "save_top_k": 2}], then=raise_epochs),
    "saved by hand": Case([{**BEST}], then=save_by_hand),
    "validated afterwards": Case([{**BEST}], then=validate_alone),
    "monitor missing": Case([{"monitor": "val_los"}], {"num_sanity_val_steps": 0}),
    "monitor never logged in validation": Case([{"monitor": "x", "save_on_train_epoch_end": False}]),
}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
@pytest.mark.parametrize("name", CASES)
def test_training_leaves_what_it_leaves_with_the_original(framework: Framework, tmp_path: Path, name: str) -> None:
    """Files, names, attributes, content and error are those of Lightning's own class."""
    assert not disagreements(CASES[name], framework, tmp_path)
