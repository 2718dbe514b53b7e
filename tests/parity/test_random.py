"""Parity over random configurations, drawn from all options that do not depend on the clock."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import FRAMEWORKS, OLD_TREESPEC, Framework
from training import Case, disagreements

pytestmark = [OLD_TREESPEC, pytest.mark.filterwarnings("ignore::UserWarning")]

EPOCH_TRIGGERS = ((None, None, None), (None, 1, None), (None, 2, None), (None, 0, None))
STEP_TRIGGERS = ((1, None, None), (3, None, None), (0, 0, None), (None, None, timedelta(0)))
STATE_KEY = ("monitor", "mode", "every_n_train_steps", "every_n_epochs", "train_time_interval")
FILENAMES = (None, "{epoch}", "{step}-{train_loss:.2f}", "model")
VALIDATION_FILENAMES = (*FILENAMES, "{step}-{val_loss:.2f}", "{epoch}-{val/acc}")
SCORES = st.one_of(  # not both: NaN ranks below infinity here, and equals it in the original
    st.lists(st.sampled_from((0.1, 0.5, 0.5, 1.0, 2.5, odd)), min_size=3, max_size=8)
    for odd in (float("inf"), float("-inf"), float("nan"))
)


def _state_key(drawn: dict[str, Any]) -> str:
    return repr([drawn[name] for name in STATE_KEY])


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of one callback that Lightning accepts, and that defect 1 of docs/lightning.md spares."""
    monitor = draw(st.sampled_from((None, "val_loss", "val/acc", "train_loss")))
    measured_at_every_step = monitor in (None, "train_loss")
    every_n_train_steps, every_n_epochs, train_time_interval = draw(
        st.sampled_from(EPOCH_TRIGGERS + STEP_TRIGGERS if measured_at_every_step else EPOCH_TRIGGERS)
    )
    return {
        "monitor": monitor,
        "mode": draw(st.sampled_from(("min", "max"))),
        "filename": draw(st.sampled_from(FILENAMES if measured_at_every_step else VALIDATION_FILENAMES)),
        "save_last": draw(st.sampled_from((None, True, "link"))),
        "save_top_k": draw(st.sampled_from((-1, 0, 1) if monitor is None else (-1, 0, 1, 2, 3))),
        "save_weights_only": draw(st.booleans()),
        "auto_insert_metric_name": draw(st.booleans()),
        "every_n_train_steps": every_n_train_steps,
        "every_n_epochs": every_n_epochs,
        "train_time_interval": train_time_interval,
        "save_on_train_epoch_end": draw(st.sampled_from((None, True, False))),
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a training script with one or two callbacks."""
    callbacks = draw(st.lists(arguments(), min_size=1, max_size=2, unique_by=_state_key))
    trainer = draw(
        st.sampled_from(({}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}, {"num_sanity_val_steps": 1}))
    )
    options = {"epochs": draw(st.integers(1, 4)), "accumulate_grad_batches": draw(st.sampled_from((1, 2)))}
    by_steps = any(
        callback["every_n_train_steps"] or callback["train_time_interval"] is not None for callback in callbacks
    )
    return Case(
        callbacks,
        {**trainer, **options},
        metrics={"val_loss": draw(SCORES), "val/acc": draw(SCORES)},
        batches=draw(st.sampled_from((2, 3, 4))),
        manual=options["accumulate_grad_batches"] == 1 and not by_steps and draw(st.booleans()),
    )


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_drawn_training_leaves_what_it_leaves_with_the_original(framework: Framework, case: Case) -> None:
    """Over a fixed draw of options, the two classes agree."""
    with tempfile.TemporaryDirectory() as directory:
        assert not disagreements(case, framework, Path(directory))


@pytest.mark.torture
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_random_training_leaves_what_it_leaves_with_the_original(case: Case) -> None:
    """Over options drawn anew each time, the two classes agree."""
    with tempfile.TemporaryDirectory() as directory:
        assert not disagreements(case, FRAMEWORKS[0], Path(directory))
