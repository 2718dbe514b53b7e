"""Killed anywhere and started again, a plain loop ends as if nothing had happened: bit for bit, in every case."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from invariants import temporaries, whole_checkpoints
from lives import Forker, curve, differences

KILLED = -9

Kill = int | str
"""At which moment of a life it is killed: its number, or a name."""


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    """Start trainings without waiting for torch."""
    forker = Forker()
    yield forker
    forker.end()


class Matrix:
    """The lives of one case, beside the life that nothing disturbs."""

    def __init__(self, forker: Forker, case: str, ground: Path) -> None:
        self._forker = forker
        self._case = case
        self._ground = ground
        assert self._life(ground / "whole") == 0
        self._whole = _outcome(ground / "whole")
        self.moments = int((ground / "whole" / "moments").read_text())

    def differences(self, *kills: Kill, mutation: str = "") -> list[str]:
        """Kill one life after another; return in what the outcome differs from that of the whole life."""
        directory = self._ground / "killed"
        shutil.rmtree(directory, ignore_errors=True)
        ends = [self._life(directory, kill) for kill in kills]
        assert ends[0] == KILLED
        assert set(ends) <= {KILLED, 0}, ends
        whole_checkpoints(directory / "run")
        assert self._life(directory, mutation=mutation) == 0
        assert temporaries(directory / "run") == []
        (here, end), (there, expected) = _outcome(directory), self._whole
        return differences({"curve": here, **end}, {"curve": there, **expected})

    def _life(self, directory: Path, kill: Kill | None = None, mutation: str = "") -> int:
        """Live in ``directory`` until ``kill``, or to the end."""
        directory.mkdir(exist_ok=True)
        return self._forker.run("exact:live", case=self._case, directory=directory, kill=kill, mutation=mutation)


def _outcome(directory: Path) -> tuple[dict[str, list[str]], Any]:
    """Return the curve and the final state."""
    return curve(directory / "log"), torch.load(directory / "final", weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random(case: str, forker: Forker, tmp_path: Path) -> None:
    """Killed at a random moment, at the end of the next epoch, and at a random moment again."""
    matrix = Matrix(forker, case, tmp_path)
    first, last = (random.randint(1, matrix.moments) for _ in range(2))
    assert matrix.differences(first, "epoch end", last) == [], f"killed at {first} and {last} of {matrix.moments}"


@pytest.mark.torture
@pytest.mark.parametrize("case", CASES)
def test_killed_everywhere(case: str, forker: Forker, tmp_path: Path) -> None:
    """Killed at every moment, once and twice."""
    matrix = Matrix(forker, case, tmp_path)
    for moment in range(1, matrix.moments + 1):
        assert matrix.differences(moment) == [], moment
        assert matrix.differences(moment, moment) == [], f"{moment}, twice"


@pytest.mark.parametrize("mutation", ["rng", "loader", "optimizer"])
def test_without_a_part_it_shows(mutation: str, forker: Forker, tmp_path: Path) -> None:
    """What these tests compare is not the same by itself: each part that is not put back makes a difference."""
    matrix = Matrix(forker, "plain", tmp_path)
    moment = matrix.moments // 2
    assert matrix.differences(moment) == []
    assert matrix.differences(moment, mutation=mutation)
