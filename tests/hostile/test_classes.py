"""Classes beyond PyTorch's safe list: saved with one warning that names them, loaded only on the user's word."""

from __future__ import annotations

import enum
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from kinds import OBJECTS, TENSORS, made
from models import FRAMEWORKS, NOT_EMPTY, OLD_TREESPEC, Framework, fit
from test_doors import make

import safepoint
from safepoint.capture import capture, untrusted


class Colour(enum.Enum):
    """A class with a class of its own."""

    RED = 1


def told_of(notes: Any, directory: Path, saves: int = 1) -> list[str]:
    """Return the warnings that a run gives that saves ``notes`` so often."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with make(directory, {"notes": notes}) as checkpointer:
            for _ in range(saves):
                checkpointer.save()
    return [str(warning.message) for warning in told if "the state needs" in str(warning.message)]


def test_save_names_the_classes_that_a_load_will_not_take(tmp_path: Path) -> None:
    """One warning for a run, however many saves, with all of them, and what to do; the checkpoint is there."""
    notes = {"path": PurePosixPath("x"), "number": Fraction(1, 2), "colour": Colour.RED}
    (told,) = told_of(notes, tmp_path, saves=3)
    for name in ("pathlib.PurePosixPath", "fractions.Fraction", f"{__name__}.Colour"):
        assert name in told
    assert "trust=[...]" in told
    (path,) = tmp_path.glob("*.ckpt")
    with pytest.raises(safepoint.CheckpointError, match="cannot be loaded safely"):
        safepoint.load(path)
    assert safepoint.load(path, trust=[PurePosixPath, Fraction, Colour])["notes"] == notes
    assert safepoint.load(path, weights_only=False)["notes"] == notes


def test_class_that_comes_later_is_named_alone(tmp_path: Path) -> None:
    """A second warning names what is new."""
    notes: dict[str, Any] = {"number": Fraction(1, 2)}
    with make(tmp_path, {"notes": notes}) as checkpointer:
        with pytest.warns(RuntimeWarning, match=r"needs fractions\.Fraction, which"):
            checkpointer.save()
        notes["path"] = PurePosixPath("x")
        with pytest.warns(RuntimeWarning, match=r"needs pathlib\.PurePosixPath, which"):
            checkpointer.save()


def test_warning_that_is_an_error_costs_no_checkpoint(tmp_path: Path) -> None:
    """Where warnings are errors, the save has been queued before."""
    with make(tmp_path, {"notes": {"number": Fraction(1, 2)}}) as checkpointer:
        with pytest.raises(RuntimeWarning, match="the state needs"):
            checkpointer.save()
        checkpointer.wait()
        assert len(checkpointer.records()) == 1


@pytest.mark.parametrize("name", TENSORS)
def test_save_of_what_is_safe_says_nothing(name: str) -> None:
    """What ``weights_only=True`` reads is named nowhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert untrusted(capture({"x": made(name)}).named) == ()


@pytest.mark.parametrize("name", sorted(OBJECTS.keys() - {"ordered dictionary with attributes"}))
def test_save_of_what_is_not_safe_says_so(name: str) -> None:
    """What ``weights_only=True`` refuses is named, whichever way it is pickled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = capture({"x": made(name)})
    assert untrusted(captured.named)


def test_what_the_user_allowed_is_not_named() -> None:
    """Torch is asked, and knows of ``add_safe_globals``."""
    captured = capture({"x": Fraction(1, 3)})
    with torch.serialization.safe_globals([Fraction]):
        untrusted.cache_clear()
        assert untrusted(captured.named) == ()
    untrusted.cache_clear()
    assert untrusted(captured.named) == ("fractions.Fraction",)


@OLD_TREESPEC
@NOT_EMPTY
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_trainer_is_told_as_well(tmp_path: Path, framework: Framework) -> None:
    """A callback's state with a class in it: the fit says so once, and saves."""

    class Notes(framework.pl.Callback):  # type: ignore[misc,name-defined]
        def state_dict(self) -> dict[str, Any]:
            return {"number": Fraction(1, 2)}

    with pytest.warns(RuntimeWarning, match=r"fractions\.Fraction.*trainer\.fit"):
        fit(framework, framework.ModelCheckpoint(dirpath=tmp_path, filename="a"), Notes(), epochs=1)
    assert safepoint.verify(tmp_path / "a.ckpt") == []


class Rows(list[Any]):
    """A list of a kind of its own."""


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (deque([1.0]), "collections.deque"),
        (defaultdict(list, a=[1]), "collections.defaultdict"),
        (2**3000, "an integer of more than 255 bytes"),
        (-(2**2039) - 1, "an integer of more than 255 bytes"),
        (..., "Ellipsis"),
        (NotImplemented, "NotImplemented"),
        (Rows([1]), f"{__name__}.Rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_save_says_what_no_trust_will_load(tmp_path: Path, value: Any, name: str) -> None:
    """The unpickler fills no container but its own, and knows neither large numbers nor some constants."""
    with (
        pytest.warns(RuntimeWarning, match=rf"the state holds {name}, which PyTorch loads only with"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "the state needs", RuntimeWarning)
        with make(tmp_path, {"notes": {"value": value}}) as checkpointer:
            for _ in range(2):
                checkpointer.save()
    (path,) = tmp_path.glob("*.ckpt")
    with pytest.raises(safepoint.CheckpointError, match="cannot be loaded safely"):
        safepoint.load(path, trust=[deque, defaultdict, list, Rows])
    assert safepoint.load(path, weights_only=False)["notes"]["value"] == value


@pytest.mark.parametrize(
    ("value", "trust"),
    [
        (Counter("aab"), []), (OrderedDict(a=1), []), (2**2039 - 1, []), (-(2**2039), []),
        (deque(), [deque]), (Rows(), [Rows]), (frozenset([1]), [frozenset]),
    ],
)  # fmt: skip
def test_what_trust_will_load_is_not_called_unsafe(tmp_path: Path, value: Any, trust: list[Any]) -> None:
    """What is empty is not filled, and some are made in one call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the state needs", RuntimeWarning)
        with make(tmp_path, {"notes": {"value": value}}) as checkpointer:
            checkpointer.save()
    (path,) = tmp_path.glob("*.ckpt")
    assert safepoint.load(path, trust=trust)["notes"]["value"] == value


def test_classes_named_for_a_number_of_numpy_are_all(tmp_path: Path) -> None:
    """The class of its dtype too, which no file names; and who leaves one out is told which, without torch's advice."""
    (told,) = told_of({"value": np.float64(1)}, tmp_path)
    for name in ("numpy.dtype,", "numpy.dtypes.Float64DType", "scalar"):
        assert name in told
    (path,) = tmp_path.glob("*.ckpt")
    scalar = np.float64(1).__reduce__()[0]
    with pytest.raises(safepoint.CheckpointError, match="Float64DType") as raised:
        safepoint.load(path, trust=[np.dtype, scalar])
    assert "file an issue" not in str(raised.value)
    assert r"\t" not in str(raised.value)
    trust = [np.dtype, scalar, type(np.dtype("f8"))]
    assert safepoint.load(path, trust=trust)["notes"]["value"] == 1
    make(tmp_path, {"notes": {}}).restore(trust=trust)
