"""What Lightning does with SIGTERM and with Slurm's requeue signal, and that what it saves then is ours: durable."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from invariants import whole_checkpoints
from other_process import Other

import safepoint
from safepoint import reader
from safepoint.catalog import Catalog

SCRIPT = Path(__file__).parent / "scripts" / "lightning_preempted.py"

Begin = Callable[[str, Path], Other]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a fit in some way; what is left of it in the end is killed."""
    others: list[Other] = []

    def start(way: str, directory: Path) -> Other:
        others.append(Other(str(SCRIPT), way, directory))
        return others[-1]

    yield start
    for other in others:
        other.end()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let processes believe that they are job 77 of a Slurm, and return the file with what its scontrol is told."""
    told = tmp_path / "told"
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    names = ("NTASKS", "NTASKS_PER_NODE", "PROCID", "LOCALID", "NODEID")
    variables = {f"SLURM_{name}": "1" if name.startswith("NTASKS") else "0" for name in names}
    variables |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return told


def said(other: Other, wanted: str) -> str:
    """Return the next line of ``other`` that begins with ``wanted``."""
    while not (line := other.answer()).startswith(wanted):
        pass
    return line


def test_sigterm_saves_what_an_exception_does(tmp_path: Path, begin: Begin) -> None:
    """Lightning raises a SystemExit at the next batch, without a status: here, with the conventional one."""
    other = begin("endless", tmp_path)
    said(other, "ready")
    other.process.terminate()
    other.process.communicate()
    assert other.process.returncode == 128 + signal.SIGTERM
    records = Catalog.of(tmp_path / "run").records
    assert {record.emergency for record in records} == {"SIGTERMException"}
    assert {record.flaw for record in records} == {""}
    assert len(whole_checkpoints(tmp_path / "run")) == 2  # the second is last.ckpt


def test_slurm_s_signal_saves_and_requeues(tmp_path: Path, begin: Begin, slurm: Path) -> None:
    """The checkpoint of the job is durable, and verified when the next job picks it up, at its very step."""
    other = begin("endless", tmp_path)
    assert said(other, "start") == "start 0"
    said(other, "ready")
    other.process.send_signal(signal.SIGUSR1)
    while not slurm.exists():  # which is told after the save
        time.sleep(0.05)
    said(other, "ready")  # it trains on until Slurm ends it
    other.process.kill()
    other.process.communicate()
    assert slurm.read_text() == "requeue 77\n"
    saved = tmp_path / "hpc_ckpt_1.ckpt"
    assert safepoint.verify(saved) == []
    manifest = reader.read_manifest(saved)
    assert manifest.reasons == ("trainer.save_checkpoint",)
    again = begin("few", tmp_path)
    assert said(again, "start") == f"start {manifest.step}"
    again.process.communicate()
    assert again.process.returncode == 0


def test_slurm_s_signal_amidst_a_save_loses_neither(tmp_path: Path, begin: Begin, slurm: Path) -> None:
    """What the signal's handler saves has its own name, and what was being saved has its own."""
    other = begin("amidst", tmp_path)
    said(other, "finished")
    other.process.communicate()
    assert other.process.returncode == 0
    assert safepoint.verify(tmp_path / "hpc_ckpt_1.ckpt") == []
    (record,) = {record.time: record for record in Catalog.of(tmp_path / "run").records}.values()
    assert (record.step, record.reasons) == (5, ("every 5 steps",))
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == ["epoch=0-step=5.ckpt", "last.ckpt"]
