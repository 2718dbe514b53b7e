"""The reference of the command line is what the commands say themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = ("cli.md", "cli.schema.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the reference anew, aside."""
    directory = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, ROOT / "docs" / "generate_cli.py", directory], check=True)
    return directory


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_is_made_of_the_commands(name: str, made: Path) -> None:
    """What is in the repository is what ``make docs`` makes now; if this fails, run it."""
    assert (ROOT / "docs" / name).read_text() == (made / name).read_text()


def test_reference_tells_exit_codes(made: Path) -> None:
    """Every command says what its exit codes mean."""
    commands = (made / "cli.md").read_text().split("\n## `safepoint ")[1:]
    assert commands
    assert [command.partition("`")[0] for command in commands if "EXIT STATUS: 0" not in command] == []
