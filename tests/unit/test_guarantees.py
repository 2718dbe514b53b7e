"""The page of guarantees names its tests: all of them are there, and each of its promises has some."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "guarantees.md"


def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_backs_a_guarantee_is_there() -> None:
    """A test that is renamed or removed takes its promise with it, or is named anew."""
    named = re.findall(r"`([a-z_/0-9]+\.py)::(\w+)`", PAGE.read_text())
    missing = [(path, name) for path, name in named if name not in _functions(TESTS / path)]
    assert missing == []
    assert len(named) > 60


def test_every_promise_names_its_tests() -> None:
    """Seven promises, each with tests; what is not promised stands behind them."""
    *promises, not_promised = PAGE.read_text().split("\n## ")[1:]
    assert [promise[0] for promise in promises] == list("1234567")
    assert all(".py::test_" in promise for promise in promises)
    assert not_promised.startswith("What is not promised")
