"""The public surface, frozen: a change here is a change for every user."""

from __future__ import annotations

import inspect

import pytest

import safepoint
from safepoint import keep, when


def test_exports_are_frozen() -> None:
    """The public names of the package."""
    assert safepoint.__all__ == [
        "CaptureError",
        "CheckpointError",
        "Checkpointer",
        "ConfigurationError",
        "DamagedCheckpointError",
        "MissingMetricError",
        "NotACheckpointError",
        "Preempted",
        "Progress",
        "Record",
        "RestoreError",
        "RestoreReport",
        "RunAliveError",
        "SafepointError",
        "SaveError",
        "SaveStats",
        "StateMismatchError",
        "data",
        "keep",
        "load",
        "verify",
        "when",
    ]


@pytest.mark.parametrize("name", safepoint.__all__)
def test_exports_are_there(name: str) -> None:
    """Every public name can be had, those that need torch too, and ``dir`` lists it."""
    assert getattr(safepoint, name) is not None
    assert name in dir(safepoint)


def test_package_refuses_other_names() -> None:
    """A misspelt name is an AttributeError that repeats it."""
    with pytest.raises(AttributeError, match="'Chekpointer'"):
        safepoint.Chekpointer  # noqa: B018


def _signature(function: object) -> list[str]:
    assert callable(function)
    kinds = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [f"{kinds.get(p.kind, '')}{name}" for name, p in inspect.signature(function).parameters.items()]


def test_checkpointer_arguments_are_frozen() -> None:
    """What the Checkpointer takes: the directory by position, everything else by name."""
    assert _signature(safepoint.Checkpointer) == [
        "directory",
        "*state",
        "*save",
        "*keep",
        "*filename",
        "*staging",
        "*blocking",
        "*max_images",
        "*max_host_bytes",
        "*exclude_frozen",
        "*on_error",
        "*verify_after_write",
        "*resume_from",
    ]


def test_checkpointer_defaults_are_frozen() -> None:
    """What the Checkpointer does if it is told nothing else."""
    parameters = inspect.signature(safepoint.Checkpointer).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty} == {
        "filename": "{epoch}-{step}",
        "staging": "copy",
        "blocking": False,
        "max_images": 2,
        "max_host_bytes": None,
        "exclude_frozen": False,
        "on_error": "raise",
        "verify_after_write": False,
        "resume_from": None,
    }


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (safepoint.load, ["path", "*map_location", "*mmap", "*weights_only", "*trust"]),
        (safepoint.Checkpointer.restore, ["self", "*only", "*except_", "*strict", "*rename", "*trust"]),
        (safepoint.verify, ["path"]),
        (when.every, ["*steps", "*epochs", "*minutes", "*seconds"]),
        (when.at, ["*steps"]),
        (when.first_step, []),
        (when.overhead, ["share"]),
        (when.at_risk, ["*minutes", "*seconds"]),
        (when.train_end, []),
        (when.exception, []),
        (when.signal, ["names"]),
        (when.preempted, ["grace_s", "signals"]),
        (keep.best, ["metric", "n", "mode", "*after_step"]),
        (keep.within, ["*days", "*hours", "*minutes", "*seconds", "*gigabytes"]),
        (keep.pinned, []),
        (keep.latest, ["n"]),
        (keep.every, ["*epochs", "*steps"]),
        (keep.all, []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_function_arguments_are_frozen(function: object, arguments: list[str]) -> None:
    """What the public functions take."""
    assert _signature(function) == arguments


def test_checkpointer_methods_are_frozen() -> None:
    """What one can ask of a Checkpointer."""
    public = {name for name in vars(safepoint.Checkpointer) if not name.startswith("_")}
    assert public == {
        "restore",
        "step",
        "epoch_end",
        "save",
        "attach",
        "explain",
        "wait",
        "close",
        "records",
        "latest",
        "best",
        "stats",
    }
