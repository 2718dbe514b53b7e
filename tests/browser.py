"""Pages as a browser shows them: a headless Chromium, offline, in a process that ends when it has been asked.

Without one, tests are skipped and say so; in CI they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

SCRIPT = Path(__file__).parent / "cli" / "scripts" / "look_at_pages.py"
PHONE_PX = 360
DESKTOP_PX = 1440
_LIMIT_S = 120


@dataclass(frozen=True)
class View:
    """A page (its URL) in a window of ``width`` pixels; ``ask`` is JavaScript that is evaluated once it is drawn.

    ``turns_dark``: it is evaluated twice, and in between the system comes to prefer dark pages. ``picture`` is the path
    of a screenshot of the whole page, if one is wanted.
    """

    page: str
    width: int = DESKTOP_PX
    scheme: Literal["light", "dark"] = "light"
    ask: str = ""
    picture: str = ""
    turns_dark: bool = False


@dataclass(frozen=True)
class Seen:
    """What was seen of a view: all ``requests``, and what was said to the ``console`` or went wrong.

    ``overflow`` is by how many pixels the page is wider than the window.
    """

    answer: Any
    requests: list[str]
    console: list[str]
    errors: list[str]
    overflow: int


def chromium() -> str:
    """Return the path of the browser; skip, or in CI fail, if there is none."""
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("there is no chromium to look at pages with: install it")
        pytest.skip("there is no chromium to look at pages with")
    return found


def look(views: Sequence[View], place: Path) -> list[Seen]:
    """Return what is seen of each of ``views``; the browser keeps its things in ``place``, and has ended then."""
    command = [sys.executable, str(SCRIPT), chromium(), json.dumps([asdict(view) for view in views])]
    environment = {**os.environ, "TMPDIR": str(place), "HOME": str(place)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S, env=environment)
    assert done.returncode == 0, done.stderr
    _check_gone(place)
    return [Seen(**seen) for seen in json.loads(done.stdout)]


def _check_gone(place: Path) -> None:
    """Fail if a process that speaks of ``place`` is still there after some seconds."""
    ends_s = time.monotonic() + 5
    while (left := _speaking_of(place)) and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert left == []


def _speaking_of(place: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(place) in line:
            found.append(line)
    return found
