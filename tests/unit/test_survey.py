"""What is a checkpoint in a tree, and what its run has to say of it."""

from __future__ import annotations

from pathlib import Path

import files
import pytest
from files import told

from safepoint.contents import Format
from safepoint.errors import NotACheckpointError
from safepoint.survey import Survey, size_on_disk


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a directory of two runs, ``flat`` and ``deep``, whose names lead into directories of their own."""
    for run, names in (("flat", ("a.ckpt", "b.ckpt")), ("deep", ("x/a.ckpt", "y/b.ckpt"))):
        history = tuple(told(name, step) for step, name in enumerate(names))
        for step, name in enumerate(names):
            path = tmp_path / "runs" / run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, files.manifest(run=run, step=step, time=1.5e9 + step, history=history[: step + 1]))
    return tmp_path / "runs"


@pytest.mark.parametrize("below", ["", "flat", "deep", "deep/x"])
def test_survey_knows_the_directory_of_each_run(runs: Path, below: str) -> None:
    """Fates are told whatever directory is asked for, above that of a run or below it."""
    survey = Survey.of(runs / below)
    assert survey.entries
    for entry in survey.entries:
        assert entry.fate is not None
        assert entry.record is not None
        assert entry.fate.reason == f"kept for step {entry.record.step}"
        assert entry.directory == runs / entry.record.run


@pytest.mark.parametrize("name", ["flat/a.ckpt", "deep/x/a.ckpt"])
def test_survey_of_a_file_tells_its_fate(runs: Path, name: str) -> None:
    """Of one file too, its run is asked."""
    (entry,) = Survey.of(runs / name).entries
    assert entry.path == runs / name
    assert entry.fate is not None
    assert entry.directory == runs / name.partition("/")[0]


def test_survey_tells_copies_from_what_a_run_wrote(runs: Path) -> None:
    """A link beside its original has no fate, and its bytes are counted once."""
    before = size_on_disk(Survey.of(runs).entries)
    (runs / "flat" / "mine.ckpt").hardlink_to(runs / "flat" / "b.ckpt")
    (runs / "elsewhere").mkdir()
    (runs / "elsewhere" / "last.ckpt").symlink_to(runs / "deep" / "x" / "a.ckpt")
    survey = Survey.of(runs)
    fates = {entry.path.name: entry.fate for entry in survey.entries if entry.fate is None}
    assert set(fates) == {"mine.ckpt", "last.ckpt"}
    assert size_on_disk(survey.entries) == before


def test_survey_knows_a_directory_by_the_newest_in_it(runs: Path) -> None:
    """What its run counts no more, though its own history names it, tells nothing of the others beside it."""
    history = (told("b.ckpt", 1), told("c.ckpt", 2))
    files.write(runs / "flat" / "c.ckpt", files.manifest(run="flat", step=2, time=1.5e9 + 2, history=history))
    for directory in (runs, runs / "flat"):
        fates = {
            entry.path.name: entry.fate for entry in Survey.of(directory).entries if entry.path.parent.name == "flat"
        }
        assert [name for name, fate in fates.items() if fate is None] == ["a.ckpt"]


def test_survey_knows_every_run_of_a_directory(runs: Path) -> None:
    """Runs beside each other, with files that nobody speaks for, with names that lead deeper, and all at once."""
    files.write(runs / "flat" / "other.ckpt", files.manifest(run="other", history=(told("other.ckpt", 1),)))
    files.write(runs / "flat" / "a-copy.ckpt", files.manifest(run="gone", history=(told("else.ckpt", 1),)))
    name = "z/deep.ckpt"
    (runs / "flat" / "z").mkdir()
    files.write(runs / "flat" / name, files.manifest(run="third", step=1, history=(told(name, 1),)))
    for place in (runs, runs / "flat"):
        found = [entry for entry in Survey.of(place).entries if entry.directory == runs / "flat"]
        assert {entry.name for entry in found if entry.fate is None} == {"a-copy.ckpt"}
        assert {entry.name for entry in found if entry.fate} == {"a.ckpt", "b.ckpt", "other.ckpt", name}


def test_survey_names_what_cannot_be_read(runs: Path) -> None:
    """At the end of its directory, with why; as the only thing asked for, it is an error."""
    (runs / "flat" / "a-half.ckpt").write_bytes(b"PK\x03\x04")
    last = Survey.of(runs / "flat").entries[-1]
    assert (last.path.name, last.outline, last.record) == ("a-half.ckpt", None, None)
    assert last.problem.startswith("no whole zip archive")
    with pytest.raises(NotACheckpointError):
        Survey.of(last.path)
    with pytest.raises(FileNotFoundError):
        Survey.of(runs / "nope")


def test_survey_tells_what_was_removed(runs: Path) -> None:
    """By the newest checkpoint of each run, wherever the run is."""
    (runs / "flat" / "a.ckpt").unlink()
    (runs / "deep" / "x" / "a.ckpt").unlink()
    assert set(Survey.of(runs).removed()) == {runs / "flat" / "a.ckpt", runs / "deep" / "x" / "a.ckpt"}


def test_survey_is_in_the_order_of_directories_and_times(runs: Path) -> None:
    """Each run by itself, oldest first."""
    entries = Survey.of(runs).entries
    assert [entry.path.relative_to(runs).as_posix() for entry in entries] == [
        "deep/x/a.ckpt",
        "deep/y/b.ckpt",
        "flat/a.ckpt",
        "flat/b.ckpt",
    ]
    assert {entry.outline.format for entry in entries if entry.outline} == {Format.SAFEPOINT}


def test_survey_leaves_out_of_the_sum_what_was_removed_meanwhile(runs: Path) -> None:
    """A checkpoint that a running job removes while the list is made is no error."""
    survey = Survey.of(runs / "flat")
    (runs / "flat" / "a.ckpt").unlink()
    assert size_on_disk(survey.entries) == (runs / "flat" / "b.ckpt").stat().st_size
