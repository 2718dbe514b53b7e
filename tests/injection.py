"""System calls of this very process that fail for a while, with an error of choice: strace attaches to it and lets go.

What runs is the real program against the real kernel; only the answer of the call is another. Knows nothing of
checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


@contextlib.contextmanager
def injected(answers: Mapping[str, str], *, path: Path | None = None, log: Path | None = None) -> Iterator[None]:
    """Let system calls (their names with commas) get answers, as ``strace -e inject`` takes them; skip if refused.

    ``path``: only where they name it, other than as the new name of a rename, or act on a descriptor of it. An answer
    with ``:when=`` counts in each thread; an empty one is the kernel's own. ``log`` gets a line for each of them, with
    the paths of descriptors.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    options = ["-f", "-y", "-o", os.devnull if log is None else str(log), "-p", str(os.getpid())]
    options += [] if path is None else ["-P", str(path)]
    for calls, answer in answers.items():
        names = ",".join(f"?{call}" for call in calls.split(","))  # not every architecture has every call
        options += ["-e", f"inject={names}:{answer}"] if answer else []
    traced = ",".join(f"?{call}" for calls in answers for call in calls.split(","))
    tracer = subprocess.Popen([strace, *options, "-e", f"trace={traced}"], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    try:
        said = ""
        for line in tracer.stderr:
            said += line
            if "attached" in line:
                break
        else:
            pytest.skip(f"strace cannot attach here: {said.strip()}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
