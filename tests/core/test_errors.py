"""The error tree, as its docstring tells it."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from safepoint import errors
from safepoint.errors import MissingMetricError, Preempted, SafepointError

EVERY = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", EVERY)
def test_every_error_is_below_one_root(error: type[Exception]) -> None:
    """Whoever catches the root catches them all."""
    assert issubclass(error, SafepointError)


@pytest.mark.parametrize("error", EVERY)
def test_every_error_is_in_the_docstring(error: type[Exception]) -> None:
    """The tree in the module's docstring leaves none out."""
    assert f" {error.__name__} " in f" {' '.join((errors.__doc__ or '').split())} "


def test_error_tree_is_what_the_docstring_says() -> None:
    """Each error is directly below the ones that the tree shows it under."""
    assert {error.__name__: [base.__name__ for base in error.__bases__] for error in EVERY} == {
        "SafepointError": ["Exception"],
        "ConfigurationError": ["SafepointError", "ValueError"],
        "MissingMetricError": ["ConfigurationError"],
        "CaptureError": ["SafepointError"],
        "SaveError": ["SafepointError"],
        "CheckpointError": ["SafepointError"],
        "NotACheckpointError": ["CheckpointError"],
        "DamagedCheckpointError": ["CheckpointError"],
        "RestoreError": ["SafepointError"],
        "RunAliveError": ["SafepointError"],
        "StateMismatchError": ["SafepointError"],
    }


def test_missing_metric_error_names_what_is_there() -> None:
    """The message says who asks, for what, what is there in order, and what to do."""
    error = MissingMetricError("los", "keep.best('los')", ["z", "a"], "Pass it.")
    assert str(error) == "keep.best('los') needs the metric 'los', and the metrics given are: 'a', 'z'. Pass it."
    assert (error.metric, error.present) == ("los", ("a", "z"))


def test_missing_metric_error_says_that_nothing_is_there() -> None:
    """Without any metric the message says so instead of showing an empty list."""
    assert "the metrics given are: none at all." in str(MissingMetricError("a", "x", [], "Pass it."))


@pytest.mark.parametrize(
    "error",
    [
        *(kind("message") for kind in EVERY if kind is not MissingMetricError),
        MissingMetricError("a", "x", ["b"], "Do."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_survives_pickling(error: SafepointError) -> None:
    """An error raised in another process (a rank, a worker) arrives as what it was."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_preempted_ends_with_the_signal_s_status() -> None:
    """No error of the tree, and none that ``except Exception`` takes; another process can be sent it."""
    ended = Preempted("SIGTERM", Path("a.ckpt"))
    assert not isinstance(ended, Exception)
    assert ended.code == 143
    assert str(ended) == "SIGTERM ends this run: a.ckpt is durable; the process ends with the status 143."
    again = pickle.loads(pickle.dumps(ended))
    assert (again.signal, again.path, again.code) == ("SIGTERM", Path("a.ckpt"), 143)
    assert "this step could not be saved" in str(Preempted("SIGUSR1", None))
