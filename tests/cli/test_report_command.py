"""``safepoint report`` as a command: what it writes, where, what it leaves alone, and what it says of bad input."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from commands import COMMAND, environment, on_terminal, safepoint
from loop import Training
from models import FRAMEWORKS, OLD_TREESPEC, fit
from safetensors.torch import save_file

from safepoint import Checkpointer, keep, when
from safepoint.cli.documents import Report
from safepoint.page.file import SIGN

WRITERS = {
    "torch": lambda path: torch.save({"a": torch.ones(3), "<b>": 1}, path / "a.pt"),
    "safetensors": lambda path: save_file({"layer.weight": torch.ones(3)}, path / "a.safetensors"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a directory in which a run kept its best and its latest of four checkpoints."""
    training, directory = Training(), tmp_path / "run"
    policy = keep.best("val_loss") | keep.latest()
    with Checkpointer(directory, state=training.state, save=when.every(epochs=1), keep=policy) as checkpointer:
        for loss in (0.5, 0.25, 0.75, 1.0):
            checkpointer.step(train_loss=training.advance())
            checkpointer.epoch_end(val_loss=loss)
    return directory


def told(*arguments: object) -> Report:
    """Run the command with ``--json``, and return its document."""
    done = safepoint("report", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return msgspec.json.decode(done.stdout, type=Report)


def refused(*arguments: object) -> str:
    """Run the command on bad input; return the one line that it says."""
    done = safepoint("report", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_report_is_written_and_told(run: Path, tmp_path: Path) -> None:
    """The page is a file of its own, named in one line; nothing is added to the run's directory."""
    before = sorted(os.listdir(run))
    done = safepoint("report", run, "-o", tmp_path / "page.html")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{tmp_path / 'page.html'}: 2 on disk, 2 removed; ")
    page = (tmp_path / "page.html").read_text()
    assert "not the best by val_loss (0.5) and not the latest" in page
    assert "best by val_loss (0.25)" in page
    assert sorted(os.listdir(run)) == before


def test_report_is_called_so_where_nothing_else_is_said(run: Path, tmp_path: Path) -> None:
    """Without a name, the page is ``report.html`` in the current directory."""
    done = subprocess.run([*COMMAND, "report", "run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("report.html: ")
    assert SIGN in (tmp_path / "report.html").read_text()


def test_report_tells_as_json_what_it_wrote(run: Path, tmp_path: Path) -> None:
    """The document has the path, the size of the file, and the counts; the weights of the one pair were read."""
    page = tmp_path / "page.html"
    document = told(run, "-o", page)
    assert (document.path, document.directory, document.size_bytes) == (str(page), str(run), page.stat().st_size)
    assert (document.kept, document.removed, document.runs, document.left_out) == (2, 2, 1, 0)
    assert (document.layers, document.pairs) == (2, 1)
    elements = sum(parameter.numel() for parameter in Training().model.parameters())
    assert document.read_bytes == 2 * 4 * elements


def test_report_without_drift_reads_no_weights(run: Path, tmp_path: Path) -> None:
    """With ``--no-drift`` nothing is read but what tells of the checkpoints, and the page has no such part."""
    document = told(run, "-o", tmp_path / "page.html", "--no-drift")
    assert (document.layers, document.pairs, document.read_bytes) == (0, 0, 0)
    assert 'id="drift' not in (tmp_path / "page.html").read_text()


def test_report_shows_on_a_terminal_how_far_it_is(run: Path, tmp_path: Path) -> None:
    """While weights are read, a terminal shows which pair it is at, and no more of it once the page is there."""
    code, text = on_terminal("report", run, "-o", tmp_path / "page.html")
    assert code == 0
    assert "comparing pair 1 of 1" in text
    assert text.rindex("\x1b[K") > text.rindex("comparing")


@OLD_TREESPEC
def test_report_of_the_drop_in(tmp_path: Path) -> None:
    """A run of Lightning's trainer has its metrics, what was removed, and its weights, without its optimizer."""
    callback = FRAMEWORKS[0].ModelCheckpoint(dirpath=tmp_path / "run", monitor="val_loss", save_top_k=2, save_last=True)
    fit(FRAMEWORKS[0], callback)
    document = told(tmp_path / "run", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert document.kept == len(list((tmp_path / "run").glob("*.ckpt")))
    assert document.removed > 0
    assert document.layers == 1
    assert ">val_loss</h3>" in page


@OLD_TREESPEC
def test_report_of_several_runs(run: Path, tmp_path: Path) -> None:
    """Of a directory with runs in it, each has its own line; checkpoints of other programs stand beside them."""
    save_file({"layer.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    training = Training(seed=1)
    with Checkpointer(tmp_path / "second", state=training.state, save=when.train_end(), keep=keep.all()) as second:
        second.step(train_loss=training.advance())
    document = told(tmp_path, "-o", tmp_path / "page.html")
    assert (document.kept, document.removed, document.runs) == (4, 2, 3)


@OLD_TREESPEC
def test_report_of_lightnings_own_files(tmp_path: Path) -> None:
    """A run that Lightning's own callback saved has steps, the metric that it ranks by, and drift."""
    callback = FRAMEWORKS[0].original(dirpath=tmp_path / "run", monitor="val_loss", save_top_k=3)
    fit(FRAMEWORKS[0], callback)
    document = told(tmp_path / "run", "-o", tmp_path / "page.html")
    assert (document.kept, document.runs, document.layers, document.pairs) == (3, 1, 1, 2)
    assert "written by Lightning" in (tmp_path / "page.html").read_text()


@pytest.mark.filterwarnings("ignore")
def test_report_of_hugging_faces_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of a ``Trainer`` are on the curves of what it logged, one for each directory."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8, max_position_embeddings=8))
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=3, save_steps=1, eval_steps=1, eval_strategy="steps", logging_steps=1,
        per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.125,
    )  # fmt: skip
    data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(label)} for label in (0, 1, 0, 1)]
    Trainer(model, arguments, train_dataset=data, eval_dataset=data).train()
    document = told(tmp_path / "run", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (document.kept, document.runs, document.pairs) == (3, 1, 2)
    assert "3 values over the steps" in page.partition(">eval_loss</h3>")[2]
    document = told(tmp_path / "run" / "checkpoint-3", "-o", tmp_path / "page.html")
    assert (document.kept, document.pairs) == (1, 0)
    assert "float32 [10 \u00d7 8]" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_report_of_other_programs_files(writer: Callable[[Path], object], tmp_path: Path) -> None:
    """What other programs wrote has a page, too, with the tree of its tensors."""
    (tmp_path / "run").mkdir()
    writer(tmp_path / "run")
    document = told(tmp_path / "run", "-o", tmp_path / "page.html")
    assert (document.kept, document.unreadable) == (1, 0)
    assert "float32 [3]" in (tmp_path / "page.html").read_text()


def test_report_replaces_an_earlier_one(run: Path, tmp_path: Path) -> None:
    """A page of an earlier time is replaced without a question, with the mode that it has."""
    page = tmp_path / "page.html"
    safepoint("report", run, "-o", page)
    first = page.stat()
    page.chmod(0o640)
    assert safepoint("report", run, "-o", page).returncode == 0
    assert page.stat().st_ino != first.st_ino
    assert page.stat().st_mode & 0o777 == 0o640


def test_report_follows_a_link_to_its_page(run: Path, tmp_path: Path) -> None:
    """Where the name is a link, the page is written where it leads, and the link stays."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "page.html").symlink_to(tmp_path / "shared" / "real.html")
    assert safepoint("report", run, "-o", tmp_path / "page.html").returncode == 0
    assert (tmp_path / "page.html").is_symlink()
    assert SIGN in (tmp_path / "shared" / "real.html").read_text()


def test_report_replaces_nothing_else(run: Path, tmp_path: Path) -> None:
    """A file that is no report stays, unless one insists; what is not called a page stays in any case."""
    page, checkpoint = tmp_path / "page.html", run / "epoch=1-step=2.ckpt"
    page.write_text("mine")
    assert "is there already, and is no report" in refused(run, "-o", page)
    assert page.read_text() == "mine"
    before = checkpoint.read_bytes()
    for out in (checkpoint, tmp_path / "link.html"):
        if out != checkpoint:
            out.symlink_to(checkpoint)
        assert "no name for a page" in refused(run, "-o", out, "--force")
    assert checkpoint.read_bytes() == before
    assert safepoint("report", run, "-o", page, "--force").returncode == 0
    assert SIGN in page.read_text()


def test_report_is_whole_or_not_there(run: Path, tmp_path: Path) -> None:
    """Where the page cannot be written to its end, the earlier one stays, and nothing of the new one."""
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    page.write_text(f"{SIGN} an earlier one")
    done = subprocess.run(
        [*COMMAND, "report", str(run), "-o", str(page)],
        capture_output=True,
        text=True,
        check=False,
        env=environment({}),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"{page} cannot be written: File too large" in done.stderr
    assert page.read_text() == f"{SIGN} an earlier one"
    assert os.listdir(page.parent) == ["page.html"]


@pytest.mark.parametrize(
    ("out", "said"),
    [("nowhere/page.html", "is no directory"), ("page.txt", "no name for a page"), ("some.html", "is a directory")],
)
def test_report_says_where_it_cannot_be_written(run: Path, tmp_path: Path, out: str, said: str) -> None:
    """A name under which no page can be is told in one line, with exit code 2."""
    (tmp_path / "some.html").mkdir()
    assert said in refused(run, "-o", tmp_path / out)


def test_report_says_what_it_cannot_look_at(run: Path, tmp_path: Path) -> None:
    """What is not there, a file, and a directory without checkpoints are told in one line; no page is written."""
    (tmp_path / "empty").mkdir()
    page = tmp_path / "page.html"
    assert "no such file or directory" in refused(tmp_path / "nowhere", "-o", page)
    assert "is a file; give the directory of a run" in refused(run / "epoch=1-step=2.ckpt", "-o", page)
    assert "holds no checkpoint" in refused(tmp_path / "empty", "-o", page)
    assert not page.exists()


@pytest.mark.parametrize("missing", ["plotly", "jinja2", "numpy"])
def test_report_says_what_to_install(run: Path, tmp_path: Path, missing: str) -> None:
    """Without a library that only it needs, the command says in one line what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from safepoint.cli import main; main()"
    command = [sys.executable, "-c", code, "report", str(run), "-o", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"safepoint: the report needs {missing}: pip install 'safepoint[report]'\n"


def test_report_imports_no_torch(run: Path, tmp_path: Path) -> None:
    """Neither does writing a page load torch, nor does anything else that the command line does load plotly."""
    code = (
        "import sys, atexit; from safepoint.cli import main; "
        "atexit.register(lambda: print(sorted({'torch', 'plotly'} & set(sys.modules)))); main()"
    )
    for arguments, loaded in ((("report", run, "-o", tmp_path / "page.html"), ["plotly"]), (("ls", run), [])):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == str(loaded)
