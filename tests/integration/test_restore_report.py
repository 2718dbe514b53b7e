"""What a restore says of how the checkpoint fits: what matched, what did not, and what cannot be put back exactly."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import Training, equal
from nets import add, flip, make, save

import safepoint
from safepoint import Progress, loading, reader
from safepoint.ledger import Ledger
from safepoint.pipeline import Options, Pipeline, Snapshot
from safepoint.randomness import rng_state
from safepoint.run import Run
from safepoint.writer import Names

SCRIPTS = Path(__file__).parent / "scripts"


def saved_inexact(directory: Path, state: dict[str, Any], inexact: dict[str, str]) -> Path:
    """Save ``state`` as at step 7 of a loop whose checkpoint says that it is ``inexact``."""
    run = Run(Pipeline(directory, Options(blocking=True)))
    snapshot = Snapshot(7, 1, (7, 1, 3), {}, ("requested",), inexact=inexact)
    run.ledger = Ledger()
    run.save({**state, "safepoint": {"rng": rng_state()}}, snapshot, Names("a.ckpt"), None)
    run.report(run.close())
    return directory / "a.ckpt"


def restored(directory: Path, state: dict[str, Any], **options: Any) -> Progress:
    """Restore ``state`` from ``directory``."""
    with make(directory, state) as checkpointer:
        return checkpointer.restore(**options)


def tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return copies of all that is in the modules of ``state``."""
    modules = {name: target for name, target in state.items() if isinstance(target, torch.nn.Module)}
    return {
        f"{name}.{key}": tensor.clone()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def same(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor]) -> bool:
    """Tell whether they are the same bit for bit."""
    return here.keys() == there.keys() and equal(list(here.values()), [there[key] for key in here])


def net(*, classes: int = 3, **more: torch.nn.Module) -> torch.nn.ModuleDict:
    """Return a body and a head, and more."""
    return torch.nn.ModuleDict(
        {"body": torch.nn.Linear(4, 4), "norm": torch.nn.BatchNorm1d(4), "head": torch.nn.Linear(4, classes), **more}
    )


def adam(module: torch.nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that has made a step."""
    optimizer = torch.optim.Adam(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_entry_that_was_left_out_stays_as_it_is(tmp_path: Path) -> None:
    """What a save had no time for is no mismatch: the live object stays, and a warning tells why."""
    before, live = Training(seed=1), Training(seed=2)
    live.advance()
    kept = live.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    why = "left out: the grace period was too short"
    path = saved_inexact(tmp_path, {"model": before.model.state_dict()}, {"optimizer": why})
    assert reader.read_manifest(path).inexact == {"optimizer": why}
    with pytest.warns(RuntimeWarning, match="(?s)not go on exactly.*optimizer: left out: the grace period"):
        progress = restored(tmp_path, live.state)
    assert (progress.step, progress.epoch, progress.batch) == (7, 1, 3)
    assert progress.report.inexact == {"optimizer": why}
    assert (progress.report.restored, progress.report.left) == (("model",), ("optimizer",))
    assert equal(list(live.model.parameters()), list(before.model.parameters()))
    assert equal([kept], [live.optimizer.state_dict()["state"][0]["exp_avg"]])


def test_strict_restore_refuses_what_is_not_exact(tmp_path: Path) -> None:
    """With ``strict=True`` it is an error, and nothing is changed; what is exact is restored as ever."""
    before, live = Training(seed=1), Training(seed=2)
    state = {"model": before.model.state_dict(), "optimizer": before.optimizer.state_dict()}
    saved_inexact(tmp_path / "inexact", state, {"loader": "has no state"})
    weights = live.weights()
    drawn = torch.get_rng_state()
    with pytest.raises(
        safepoint.StateMismatchError, match=r"(?s)strict=True; nothing was restored.*loader: has no state"
    ):
        restored(tmp_path / "inexact", live.state, strict=True)
    assert equal(weights, live.weights())
    assert torch.equal(torch.get_rng_state(), drawn)
    saved_inexact(tmp_path / "exact", state, {})
    assert restored(tmp_path / "exact", live.state, strict=True).report.is_exact
    with pytest.raises(safepoint.StateMismatchError, match=r"(?s)strict=True.*optimizer +\(all\) +- +dict"):
        restored(tmp_path / "exact", {"model": live.model}, strict=True)


def test_strict_start_afresh_refuses_what_no_checkpoint_could_hold(tmp_path: Path) -> None:
    """Hours before it is needed."""
    state = {**Training().state, "batches": iter([1, 2, 3])}
    with pytest.raises(safepoint.StateMismatchError, match=r"(?s)strict=True.*batches: "):
        restored(tmp_path, state, strict=True)
    assert restored(tmp_path, Training().state, strict=True).path is None


def test_what_no_checkpoint_could_hold_is_not_missing(tmp_path: Path) -> None:
    """An iterator that was added to ``state=`` since is not exact, as ever; a loader that was is missing."""
    save(tmp_path, {"notes": {}})
    with pytest.warns(RuntimeWarning, match="(?s)not go on exactly.*batches: a list_iterator has no state"):
        report = restored(tmp_path, {"notes": {}, "batches": iter([1])}).report
    assert (report.restored, report.left) == (("notes",), ("batches",))
    with pytest.raises(safepoint.StateMismatchError, match=r"loader +\(all\) +DataLoader +-"):
        restored(tmp_path, {"notes": {}, "loader": torch.utils.data.DataLoader([1, 2])})  # type: ignore[arg-type]


def test_report_tells_what_was_restored(tmp_path: Path) -> None:
    """Everything matched: each tensor of the model, and the optimizer as one."""
    path = save(tmp_path, Training(seed=1).state)
    progress = restored(tmp_path, Training(seed=2).state)
    report = progress.report
    assert (report.restored, report.left, report.matched) == (("model", "optimizer"), (), 5)
    assert report.is_exact
    assert report.directory == tmp_path
    assert str(progress) == f"restored model, optimizer from {path}: starting at step 0"


def test_strict_false_takes_what_fits(tmp_path: Path) -> None:
    """A model with another head: its body is restored, its head stays, and a table says so."""
    before = net(classes=3, old=torch.nn.Linear(2, 2))
    save(tmp_path, {"model": before})
    live = net(classes=5, new=torch.nn.Linear(2, 2))
    first = tensors({"model": live})
    with pytest.warns(RuntimeWarning, match=r"(?s)restored in part: 7 matched, 2 missing, 2 unexpected, 2 of") as told:
        report = restored(tmp_path, {"model": live}, strict=False).report
    assert len(told) == 1
    for row in ("model new.weight (2, 2) -", "model old.bias - (2,)", "model head.weight (5, 4) (3, 4)"):
        assert row in " ".join(str(told[0].message).split())
    assert (report.matched, len(report.missing), len(report.unexpected), len(report.reshaped)) == (7, 2, 2, 2)
    after, there = tensors({"model": live}), tensors({"model": before})
    for key, tensor in after.items():
        stays = key.startswith(("model.head", "model.new"))
        assert torch.equal(tensor, (first if stays else there)[key]), key


def test_strict_false_leaves_optimizers_alone_that_do_not_fit(tmp_path: Path) -> None:
    """An optimizer of other groups, and one of parameters with other shapes, are left alone as a whole."""
    before = net(classes=3)
    save(tmp_path, {"model": before, "body": adam(before["body"]), "all": adam(before), "head": adam(before["head"])})
    live = net(classes=5)
    state = {"model": live, "body": adam(live["body"]), "all": adam(live), "head": adam(live["norm"])}
    first = copy.deepcopy({name: state[name].state_dict() for name in ("all", "head")})
    state["head"].add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    with pytest.warns(RuntimeWarning, match=r"(?s)all +state\.4\.exp_avg +\(5, 4\) +\(3, 4\).*head +param_groups"):
        report = restored(tmp_path, state, strict=False).report
    assert report.restored == ("model", "body")
    assert report.left == ("all", "head")
    assert str(state["all"].state_dict()) == str(first["all"])
    assert torch.equal(state["body"].state_dict()["state"][0]["exp_avg"], torch.full((4, 4), 0.1))


def test_strict_false_leaves_alone_what_is_missing(tmp_path: Path) -> None:
    """An entry that the checkpoint does not have stays, and so does an optimizer of its."""
    save(tmp_path, {"model": Training(seed=1).model, "loss": torch.optim.SGD([torch.nn.Parameter(torch.ones(4))])})
    live, extra = Training(seed=2), torch.nn.Linear(2, 2)
    state = {"model": live.model, "extra": extra, "notes": {"a": 1}, "loss": torch.optim.SGD([extra.bias])}
    first = tensors({"extra": extra})
    with pytest.warns(RuntimeWarning, match=r"(?s)extra +\(all\) +Linear +-.*notes +\(all\) +dict +-.*loss +state"):
        report = restored(tmp_path, state, strict=False).report
    assert report.restored == ("model",)
    assert same(tensors({"extra": extra}), first)
    assert state["notes"] == {"a": 1}


@pytest.mark.parametrize("name", ["model", "net"])
def test_strict_false_refuses_a_module_of_which_nothing_fits(tmp_path: Path, name: str) -> None:
    """Weights are never left as chance made them because of a name: neither of a key nor of an entry."""
    save(tmp_path, {"model": torch.nn.ModuleDict({"backbone": Training(seed=1).model})})
    live = torch.nn.ModuleDict({"encoder": Training(seed=2).model}) if name == "model" else Training(seed=2).model
    first = tensors({"live": live})
    with pytest.raises(safepoint.StateMismatchError, match=f"nothing that fits {name}, whose weights") as caught:
        restored(tmp_path, {name: live}, strict=False)
    assert same(tensors({"live": live}), first)
    hint = "with rename={'backbone.': 'encoder.'}, 4 more keys of model match"
    assert (hint in str(caught.value)) == (name == "model")


def test_renamed_prefixes_are_restored(tmp_path: Path) -> None:
    """``rename`` says what keys are called now, and can stay in the script when the run goes on."""
    before = torch.nn.ModuleDict({"backbone": Training(seed=1).model})
    path = save(tmp_path, {"model": before})
    live = torch.nn.ModuleDict({"encoder": Training(seed=2).model})
    with pytest.raises(safepoint.StateMismatchError, match=r"rename=\{'backbone\.': 'encoder\.'\}, 4 more keys"):
        restored(tmp_path, {"model": live})
    for _ in range(2):
        with make(tmp_path, {"model": live}) as checkpointer:
            report = checkpointer.restore(rename={"backbone.": "encoder."}).report
            assert report.is_exact
            assert report.matched == 4
            checkpointer.step()
    there = [tensor for _, tensor in sorted(before.state_dict().items())]
    assert equal([tensor for _, tensor in sorted(live.state_dict().items())], there)
    assert not path.exists() or path.stat().st_size


class Versioned(torch.nn.Linear):
    """Converts what an older version of it has saved."""

    _version = 2
    loaded: int | None = None

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        Versioned.loaded = metadata.get("version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def plain_net() -> torch.nn.Module:
    """Return a module with a buffer, and one that has its own way to load."""
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), Versioned(3, 3))


def compiled_inside(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module with one of its parts compiled."""
    module[0] = torch.compile(module[0])  # type: ignore[index,operator]
    return module


WRAPPERS = {
    "plain": lambda module: module,
    "compiled": torch.compile,
    "compiled inside": compiled_inside,
    "parallel": torch.nn.DataParallel,
    "both": lambda module: torch.compile(torch.nn.DataParallel(module)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # which importing the compiler uses
@pytest.mark.parametrize("there", WRAPPERS)
@pytest.mark.parametrize("here", WRAPPERS)
def test_wrappers_of_modules_make_no_difference(tmp_path: Path, here: str, there: str) -> None:
    """A model that is compiled, or parallel, or both, on either side or in parts, is the same model."""
    save(tmp_path, {"model": WRAPPERS[there](plain_net())})
    live = WRAPPERS[here](plain_net())
    Versioned.loaded = None
    report = restored(tmp_path, {"model": live}).report
    assert report.is_exact
    assert Versioned.loaded == 2
    (path,) = tmp_path.iterdir()
    saved = safepoint.load(path)["model"].values()
    assert equal(list(live.state_dict().values()), list(saved))


def test_wrappers_that_were_passed_over_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, where somebody looks for what was taken for what."""
    save(tmp_path, {"model": torch.nn.DataParallel(plain_net())})
    with caplog.at_level("INFO", "safepoint"):
        restored(tmp_path, {"model": plain_net()})
    assert "names of wrappers only are taken for the same" in caplog.text


def test_frozen_parameters_that_were_left_out_are_found_below_wrappers(tmp_path: Path) -> None:
    """They are the live ones', whatever they are called."""
    model = plain_net()
    model[0].requires_grad_(requires_grad=False)  # type: ignore[index,operator]
    with make(tmp_path, {"model": model}, exclude_frozen=True) as checkpointer:
        checkpointer.save()
    live = torch.nn.DataParallel(copy.deepcopy(model))
    report = restored(tmp_path, {"model": live}).report
    assert report.is_exact
    assert report.matched == 7


def test_only_takes_the_entries_named(tmp_path: Path) -> None:
    """A warm start: the weights are the checkpoint's; the run is a new one, at step 0, with its own random state."""
    before = Training(seed=1)
    with make(tmp_path, before.state) as checkpointer:
        before.advance()
        checkpointer.step(loss=1.0)
    live = Training(seed=2)
    random.seed(5)
    drawn = (torch.get_rng_state(), random.getstate())
    with make(tmp_path, live.state) as checkpointer:
        progress = checkpointer.restore(only=["model"])
        assert progress == Progress(path=tmp_path / "epoch=0-step=1.ckpt")
        assert (progress.report.restored, progress.report.left) == (("model",), ("optimizer",))
        assert str(progress).endswith("step=1.ckpt: starting at step 0")
        assert torch.equal(drawn[0], torch.get_rng_state())
        assert drawn[1] == random.getstate()
        with pytest.warns(RuntimeWarning, match="holds 1 checkpoints of another run"):
            checkpointer.step()
        checkpointer.wait()
        records = checkpointer.records()
    assert equal(list(live.model.parameters()), list(before.model.parameters()))
    assert not live.optimizer.state_dict()["state"]
    assert [record.step for record in records] == [1, 1]
    assert records[0].run != records[1].run
    assert records[0].path == progress.path


def test_warm_start_in_the_same_directory_is_newer_whatever_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the new run saves is the newest, although the clock was set back since the other saved."""
    clock = iter(range(10**6, 0, -1000))
    monkeypatch.setattr("safepoint.pipeline.time.time", lambda: float(next(clock)))
    save(tmp_path, Training().state)
    with make(tmp_path, Training().state) as checkpointer:
        checkpointer.restore(only=["model"])
        with pytest.warns(RuntimeWarning, match="of another run"):
            checkpointer.step()
    with make(tmp_path, Training().state) as checkpointer:
        assert checkpointer.restore().step == 1


def test_except_leaves_the_entries_named(tmp_path: Path) -> None:
    """The run goes on, with its step and random state; what is named stays as it is."""
    before = Training(seed=1)
    with make(tmp_path, before.state) as checkpointer:
        before.advance()
        checkpointer.step()
        checkpointer.wait()
        (there,) = checkpointer.records()
    drawn = torch.rand(1)
    live = Training(seed=2)
    with make(tmp_path, live.state) as checkpointer:
        progress = checkpointer.restore(except_=["optimizer"])
        assert torch.equal(torch.rand(1), drawn)
        assert progress.step == 1
        assert progress.report.left == ("optimizer",)
        assert progress.report.is_exact
        checkpointer.step()
        checkpointer.wait()
        assert [record.run for record in checkpointer.records()] == [there.run] * 2
    assert equal(list(live.model.parameters()), list(before.model.parameters()))
    assert not live.optimizer.state_dict()["state"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["modle"]}, "'modle', and state= has: 'model', 'optimizer'"),
        ({"only": ["model"], "except_": ["optimizer"]}, "give one of the two"),
        ({"strict": "yes"}, "strict='yes'"),
        ({"rename": "a"}, "rename='a'"),
        ({"trust": "a"}, "trust='a'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_looked_at(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """Also where there is nothing to restore yet: at the first start, and not at the first restart."""
    with (
        make(tmp_path / "none", Training().state) as checkpointer,
        pytest.raises(safepoint.ConfigurationError, match=message),
    ):
        checkpointer.restore(**options)
    assert not (tmp_path / "none").exists()


def test_only_takes_no_memory_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not wanted is verified, and never held."""
    model, other = torch.nn.Linear(4, 4), torch.nn.Linear(64, 64)
    save(tmp_path, {"model": model, "other": other})
    sizes: list[int] = []
    fresh = loading.fresh
    monkeypatch.setattr(loading, "fresh", lambda size: sizes.append(size) or fresh(size))  # type: ignore[func-returns-value]
    restored(tmp_path, {"model": torch.nn.Linear(4, 4), "other": torch.nn.Linear(64, 64)}, only=["model"])
    assert sum(sizes) < 4 * 64


def test_only_finds_damage_in_the_rest(tmp_path: Path) -> None:
    """A file that is not sound is none to start from, wherever the damage is."""
    state = {"model": torch.nn.Linear(4, 4), "other": torch.nn.Linear(4, 4)}
    save(tmp_path, state)
    newest = add(tmp_path, state)
    flip(newest, "other.weight")
    live = {"model": torch.nn.Linear(4, 4), "other": torch.nn.Linear(4, 4)}
    with pytest.warns(RuntimeWarning, match="newer.ckpt was skipped"):
        progress = restored(tmp_path, live, only=["model"])
    assert progress.path != newest
    assert same(tensors({"model": live["model"]}), tensors({"model": state["model"]}))


def told_by(directory: Path, *lines: str) -> str:
    """Restore in a process of its own that says ``lines`` first, and return what it says on standard error."""
    code = "import logging, sys; sys.path.insert(0, sys.argv[1]); from loop import Training; from nets import make\n"
    code += "\n".join(lines) + "\nmake(sys.argv[2], Training().state).restore()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr


def test_start_is_told_without_any_logging(tmp_path: Path) -> None:
    """In one line on standard error: that nothing was there, and what was restored."""
    assert told_by(tmp_path) == f"safepoint: no checkpoint in {tmp_path}: starting at step 0\n"
    path = save(tmp_path, Training().state)
    told = f"restored model, optimizer from {path}: starting at step 0"
    assert told_by(tmp_path) == f"safepoint: {told}\n"
    assert told_by(tmp_path, "logging.basicConfig(level='INFO')") == f"INFO:safepoint:{told}\n"
    assert told_by(tmp_path, "logging.basicConfig()") == ""
    assert told_by(tmp_path, "logging.getLogger('safepoint').setLevel('ERROR')") == ""


def test_start_afresh_is_a_warning_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So that it is seen by whoever has set logging up, and sees warnings only."""
    restored(tmp_path, Training().state)
    ((_, level, message),) = caplog.record_tuples
    assert (level, message) == (30, f"no checkpoint in {tmp_path}: starting at step 0")


@pytest.mark.parametrize(
    ("there", "here", "is_told"),
    [
        ("runs/resnet50/a", "runs/resnet_50/a", False),
        ("runs/resnet-a", "runs/resnet-b", True),
        ("runs/exp-1", "runs/exp-2", False),
        ("runs", "runs/checkpoints", True),
        ("runs/resnet", "runs/vit", False),
    ],
)
def test_directory_that_may_be_meant_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str, here: str, *, is_told: bool
) -> None:
    """One beside it with a name much like it, or the one that it is in; another run's number is no slip."""
    save(tmp_path / there, {"notes": {}})
    caplog.clear()
    restored(tmp_path / here, {"notes": {}})
    assert (f"; {tmp_path / there} holds some: was that meant?" in caplog.text) == is_told


def test_ranks_do_not_get_the_random_state_of_the_first(tmp_path: Path) -> None:
    """Each rank but the first keeps its own, and all say so; with ``strict=True`` none goes on."""
    save(tmp_path / "run", {"notes": {}})
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPTS / "restoring_ranks.py", tmp_path / "run", tmp_path / "meeting point", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, (out, err) in enumerate([process.communicate(timeout=120) for process in ranks]):
        assert ranks[rank].returncode == 0, err
        assert out.splitlines() == [
            "refused",
            f"restored 2 ranks go on with what 1 saved, random state {'of the file' if rank == 0 else 'its own'}",
            *(["saved by 2"] if rank == 0 else []),
        ]
        assert ("safepoint: restored" in err) == (rank == 0)
        assert ("RuntimeWarning" in err) == (rank == 0)
