"""Restoring into the live tensors: the same values as by ``load_state_dict``, in one pass, without a second copy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import Training, equal
from nets import (
    Net,
    add,
    alone,
    flat,
    flip,
    head,
    let_torch_clone,
    make,
    mixed,
    part_first,
    save,
    tied,
    turned,
    two,
    untied,
    whole_and_other_part,
    whole_and_part,
    whole_numbers,
    with_cache,
)

import safepoint
from safepoint import image, reader
from safepoint.in_place import live_storages


def addresses(training: Training) -> list[int]:
    """Return where the parameters and the optimizer's state lie."""
    moments = [value for state in training.optimizer.state.values() for value in state.values()]
    return [tensor.data_ptr() for tensor in (*training.model.parameters(), *moments)]


SAME: list[Callable[[], Net]] = [untied, tied, whole_and_part, mixed, turned]
PAIRS: list[tuple[Callable[[], Net], Callable[[], Net]]] = [
    *zip(SAME, SAME, strict=True),
    (tied, untied),
    (untied, tied),
    (untied, flat),
    (flat, untied),
    (flat, flat),
    (whole_and_part, whole_and_other_part),
    (head, alone),
    (alone, head),
    (alone, turned),
    (turned, alone),
    (whole_numbers, alone),
    (alone, whole_numbers),
    (whole_and_part, two),
    (two, whole_and_part),
    (two, part_first),
    (part_first, two),
    (untied, with_cache),
    (with_cache, with_cache),
]


@pytest.mark.filterwarnings("ignore:(?s).*of another dtype here:RuntimeWarning")
@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda build: build.__name__)
def test_restore_does_what_load_state_dict_does(
    tmp_path: Path, before: Callable[[], Net], after: Callable[[], Net]
) -> None:
    """However tensors share storages, here and when saved: the module ends as ``load_state_dict`` would leave it."""
    torch.manual_seed(0)
    path = save(tmp_path, {"model": before()})
    torch.manual_seed(1)
    live = after()
    torch.manual_seed(1)
    expected = after()
    expected.load_state_dict(torch.load(path, weights_only=True)["model"])
    with make(tmp_path, {"model": live}) as checkpointer:
        checkpointer.restore()
    there = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
    here = {**dict(live.named_parameters()), **dict(live.named_buffers())}
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        assert torch.equal(tensor, there[name]), name
        assert (tensor.dtype, tensor.stride()) == (there[name].dtype, there[name].stride())


def _addresses_in_place(before: Net, live: Net) -> set[int]:
    saved = {"model": before.state_dict()}
    storages = [tensor.untyped_storage() for tensor in saved["model"].values()]
    keys = {storage.data_ptr(): key for key, storage in enumerate(storages)}
    sizes = [storage.nbytes() for storage in storages]
    found = live_storages({"model": live}, saved, lambda storage: keys.get(storage.data_ptr()), sizes)
    return {storage.data_ptr() for storage in found.values()}


@pytest.mark.parametrize("build", SAME, ids=lambda build: build.__name__)
def test_tensors_that_lie_as_they_were_saved_are_read_in_place(build: Callable[[], Net]) -> None:
    """Tied, transposed, a part of another, of whatever kind: what lies here as there needs no other memory."""
    live = build()
    expected = {t.untyped_storage().data_ptr() for t in (*live.parameters(), *live.buffers()) if t.numel()}
    assert _addresses_in_place(build(), live) == expected


@pytest.mark.parametrize("before", [turned, head, whole_numbers], ids=lambda build: build.__name__)
def test_tensor_that_lies_in_another_way_is_not_read_in_place(before: Callable[[], Net]) -> None:
    """Other strides, a longer storage, another dtype of the same width: these are left to ``load_state_dict``."""
    assert _addresses_in_place(before(), alone()) == set()


def test_expanded_tensor_is_not_filled_in_place(tmp_path: Path) -> None:
    """A tensor that shows one element several times, which torch refuses to copy into, is refused as ever."""
    base = torch.zeros(4, dtype=torch.int64)
    state = {"model": Net(count=base.as_strided((4,), (0,)))}
    save(tmp_path, state)
    base += torch.arange(4)
    with pytest.raises(safepoint.StateMismatchError, match="refuses what was saved"):
        make(tmp_path, state).restore()
    assert base.tolist() == [0, 1, 2, 3]


def test_restore_leaves_alone_what_shares_memory_and_is_not_in_the_state(tmp_path: Path) -> None:
    """Where a parameter is a part of a buffer, the rest of the buffer stays what it is."""
    path = save(tmp_path, {"model": flat()})
    buffer = torch.zeros(40)
    live = Net(a=buffer[:12].view(3, 4), b=buffer[12:24].view(3, 4))
    with make(tmp_path, {"model": live}) as checkpointer:
        checkpointer.restore()
    saved = torch.load(path, weights_only=True)["model"]
    assert torch.equal(buffer[:24].view(2, 3, 4), torch.stack([saved["a"], saved["b"]]))
    assert torch.count_nonzero(buffer[24:]) == 0


def test_restore_converts_to_the_live_dtype(tmp_path: Path) -> None:
    """A model that is narrower now gets the saved values, converted."""
    path = save(tmp_path, {"model": untied()})
    live = untied().bfloat16()
    with (
        make(tmp_path, {"model": live}) as checkpointer,
        pytest.warns(RuntimeWarning, match="2 tensors are of another dtype"),
    ):
        checkpointer.restore()
    assert torch.equal(live.a, torch.load(path, weights_only=True)["model"]["a"].bfloat16())


def test_restore_reads_into_the_live_tensors(tmp_path: Path) -> None:
    """Parameters and the optimizer's state stay where they are in memory, and hold what was saved."""
    training = Training(width=64)
    training.advance()
    expected = training.weights()
    save(tmp_path, training.state)
    training.advance()
    before = addresses(training)
    with make(tmp_path, training.state) as checkpointer:
        checkpointer.restore()
    assert addresses(training) == before
    assert equal(training.weights(), expected)


def test_restore_gives_a_new_optimizer_its_state(tmp_path: Path) -> None:
    """An optimizer that has made no step yet gets tensors of its own, which training changes without harm."""
    training = Training()
    training.advance()
    expected = training.weights()
    save(tmp_path, training.state)
    other = Training(seed=1)
    with make(tmp_path, other.state) as checkpointer:
        checkpointer.restore()
    assert equal(other.weights(), expected)
    assert len(set(addresses(other))) == len(addresses(training))


def test_restore_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """After a rollback within a process training does again what it did before."""
    training = Training()
    training.advance()
    save(tmp_path, training.state)
    torch.manual_seed(1)
    training.advance()
    expected = training.weights()
    with make(tmp_path, training.state) as checkpointer:
        checkpointer.restore()
    torch.manual_seed(1)
    training.advance()
    assert equal(training.weights(), expected)


def _peak_bytes() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) << 10


def test_restore_needs_no_second_copy_in_memory(tmp_path: Path) -> None:
    """The memory that is used at most grows by the slabs, not by the state."""
    model = torch.nn.Linear(4096, 8192)
    state = {"model": model}
    save(tmp_path, state)
    expected = model.weight[-1].detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): begin the peak anew
    before = _peak_bytes()
    with make(tmp_path, state) as checkpointer:
        checkpointer.restore()
    assert _peak_bytes() - before < 48 << 20
    assert torch.equal(model.weight[-1], expected)


def test_restore_runs_the_hooks_of_load_state_dict(tmp_path: Path) -> None:
    """What others have hooked into ``load_state_dict``, of a module or an optimizer, sees the saved values."""
    training = Training()
    training.advance()
    expected = training.model[0].weight.detach().clone()
    save(tmp_path, training.state)
    training.advance()
    seen: list[Any] = []
    training.model.register_load_state_dict_pre_hook(lambda module, state, *_: seen.append(state["0.weight"].clone()))
    training.model.register_load_state_dict_post_hook(lambda module, keys: seen.append(keys))
    training.optimizer.register_load_state_dict_pre_hook(lambda optimizer, state: seen.append(len(state["state"])))
    training.optimizer.register_load_state_dict_post_hook(lambda optimizer: seen.append("loaded"))
    with make(tmp_path, training.state) as checkpointer:
        checkpointer.restore()
    assert torch.equal(seen[0], expected)
    assert seen[2:] == [4, "loaded"]


class Forgetful(torch.nn.Linear):
    """A layer that begins to load by forgetting what it knows."""

    def load_state_dict(self, state: Any, *rest: Any, **options: Any) -> Any:
        """Reset, then load."""
        torch.nn.init.zeros_(self.weight)
        return super().load_state_dict(state, *rest, **options)


class Average:
    """A running mean that adopts what it is given to load."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the mean itself, not a copy."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Adopt the tensor."""
        self.mean = state["mean"]


def test_restore_of_an_own_load_state_dict_hands_over_tensors_of_its_own(tmp_path: Path) -> None:
    """Objects that load in a way of their own get tensors that are nobody else's."""
    layer, average = Forgetful(3, 3), Average()
    average.mean += 2
    weight = layer.weight.detach().clone()
    state = {"layer": layer, "average": average}
    save(tmp_path, state)
    average.mean = old = torch.zeros(3)
    with make(tmp_path, state) as checkpointer:
        checkpointer.restore()
    assert torch.equal(layer.weight, weight)
    assert average.mean.tolist() == [2, 2, 2]
    assert old.tolist() == [0, 0, 0]


def test_restore_does_not_tie_what_is_apart(tmp_path: Path) -> None:
    """What was one tensor when it was saved, in a module and beside it, and is two now, stays two."""
    layer, average = torch.nn.Linear(3, 1), Average()
    average.mean = layer.weight.detach()
    save(tmp_path, {"layer": layer, "average": average})
    average = Average()
    with make(tmp_path, {"layer": layer, "average": average}) as checkpointer:
        checkpointer.restore()
    assert torch.equal(average.mean, layer.weight)
    assert average.mean.data_ptr() != layer.weight.data_ptr()


def test_restore_of_tensors_of_other_kinds(tmp_path: Path) -> None:
    """Sparse and quantised tensors, which are more than their bytes, go the ordinary way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on quantised tensors
        saved = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8)
        live = torch.quantize_per_tensor(torch.zeros(4), 0.25, 3, torch.qint8)
    net, other = torch.nn.Module(), torch.nn.Module()
    net.register_buffer("q", saved)
    net.register_buffer("s", torch.eye(3).to_sparse())
    other.register_buffer("q", live)
    other.register_buffer("s", torch.zeros(3, 3).to_sparse())
    save(tmp_path, {"model": net})
    with make(tmp_path, {"model": other}) as checkpointer:
        checkpointer.restore()
    assert torch.equal(other.q.dequantize(), torch.arange(4.0))
    assert torch.equal(other.s.to_dense(), torch.eye(3))


def test_damage_found_on_the_way_is_made_good_by_the_older(tmp_path: Path) -> None:
    """A bit flipped in the last tensor of the newest is found when the others have been read in; the older rules."""
    training = Training(width=700)
    states = []
    with make(tmp_path, training.state) as checkpointer:
        for _ in range(2):
            training.advance()
            checkpointer.step()
            states.append(training.weights())
    flip(tmp_path / "epoch=0-step=2.ckpt", "optimizer.state.3.exp_avg_sq", at=0.9)
    training.advance()
    with make(tmp_path, training.state) as checkpointer:
        with pytest.warns(RuntimeWarning, match=r"step=2.ckpt was skipped.*'optimizer.state.3.exp_avg_sq'.*digest"):
            progress = checkpointer.restore()
        assert progress.step == 1
    assert equal(training.weights(), states[0])


def test_restore_says_that_live_tensors_are_torn(tmp_path: Path) -> None:
    """If all are damaged in their tensors, the error says that the live objects must not be used."""
    training = Training()
    flip(save(tmp_path, training.state), "model.2.weight")
    with pytest.raises(safepoint.RestoreError, match=r"(?s)tensor 'model.2.weight'.*may hold parts of a damaged"):
        make(tmp_path, training.state).restore()


def test_restore_that_has_changed_nothing_says_nothing_of_it(tmp_path: Path) -> None:
    """A damaged structure is found before it is unpickled: no live tensor is changed, and none is said to be."""
    training = Training()
    flip(save(tmp_path, training.state), "pickle")
    training.advance()
    before = training.weights()
    with pytest.raises(safepoint.RestoreError, match=r"the structure of the state \(data.pkl\)") as caught:
        make(tmp_path, training.state).restore()
    assert "parts of a damaged" not in str(caught.value)
    assert equal(training.weights(), before)


def test_damage_that_touches_no_live_tensor_is_not_said_to(tmp_path: Path) -> None:
    """Where all is read into new tensors, the live objects are as they were, and the error says nothing of parts."""
    average = Average()
    flip(save(tmp_path, {"average": average}), "average.mean")
    with pytest.raises(safepoint.RestoreError, match=r"tensor 'average\.mean'") as caught:
        make(tmp_path, {"average": average}).restore()
    assert "parts of a damaged" not in str(caught.value)


def test_damage_that_torch_trips_over_is_damage(tmp_path: Path) -> None:
    """Where torch itself refuses what a damaged tensor holds, the checkpoint is skipped as any damaged one is."""
    net = torch.nn.Module()
    net.register_buffer("s", torch.eye(3).to_sparse())
    path = save(tmp_path, {"model": net})
    manifest = reader.read_manifest(path)
    layout = image.lay_out(manifest.pickle.size_bytes, [blob.size_bytes for blob in manifest.storages])
    with path.open("r+b") as file:
        file.seek(layout.storages[0].data_offset + 7)  # the first index
        file.write(b"\x7f")
    with torch.sparse.check_sparse_tensor_invariants(), pytest.raises(safepoint.RestoreError, match="storage 0"):
        make(tmp_path, {"model": net}).restore()


def test_damaged_checkpoint_of_another_model_is_skipped(tmp_path: Path) -> None:
    """What is damaged is skipped, whether it would have fitted or not."""
    training = Training()
    save(tmp_path, training.state)
    flip(add(tmp_path, {"model": torch.nn.Linear(2, 2)}), "model.weight")
    with make(tmp_path, training.state) as checkpointer, pytest.warns(RuntimeWarning, match="skipped.*'model.weight'"):
        assert checkpointer.restore().path is not None


def test_mismatch_behind_a_damaged_one_says_that_tensors_are_torn(tmp_path: Path) -> None:
    """If the newest is damaged and the one before it of another model, the error tells of both."""
    training = Training()
    save(tmp_path, {"model": torch.nn.Linear(2, 2)})
    flip(add(tmp_path, training.state), "model.2.weight")
    with (
        pytest.warns(RuntimeWarning, match="was skipped"),
        pytest.raises(safepoint.StateMismatchError, match=r"(?s)does not fit.*may hold parts of a damaged"),
    ):
        make(tmp_path, training.state).restore()


@pytest.mark.filterwarnings("ignore:the state needs:RuntimeWarning")  # as said when it is saved
def test_refusal_behind_a_damaged_one_says_that_tensors_are_torn(tmp_path: Path) -> None:
    """If the newest is damaged and the one before it cannot be loaded safely, the error tells of both."""
    training = Training()
    save(tmp_path, {**training.state, "notes": {"path": Path()}})
    flip(add(tmp_path, {**training.state, "notes": {}}), "model.2.weight")
    with (
        pytest.warns(RuntimeWarning, match="was skipped"),
        pytest.raises(safepoint.CheckpointError, match=r"cannot be loaded safely.*may hold parts of a damaged"),
    ):
        make(tmp_path, {**training.state, "notes": {}}).restore()


def test_state_that_cannot_be_built_is_told(tmp_path: Path) -> None:
    """Where what a sound checkpoint holds refuses to be built, the error says so."""
    net = torch.nn.Module()
    net.register_buffer("s", torch.sparse_coo_tensor([[5]], [1.0], (3,), check_invariants=False))
    state = {"model": net, "layer": torch.nn.Linear(2, 2)}
    save(tmp_path, state)
    with (
        torch.sparse.check_sparse_tensor_invariants(),
        pytest.raises(safepoint.CheckpointError, match=r"is sound, and its state cannot be built: size is"),
    ):
        make(tmp_path, state).restore()


@pytest.mark.filterwarnings("ignore:the state needs:RuntimeWarning")  # as said when it is saved
def test_restore_of_an_unsafe_class_changes_nothing(tmp_path: Path) -> None:
    """A class that may not be loaded is named, before anything is changed."""
    training = Training()
    save(tmp_path, {**training.state, "notes": {"path": Path()}})
    training.advance()
    before = training.weights()
    with pytest.raises(safepoint.CheckpointError, match=r"cannot be loaded safely.*pathlib"):
        make(tmp_path, {**training.state, "notes": {}}).restore()
    assert equal(training.weights(), before)


def test_restore_goes_another_way_where_torch_maps_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch hands over storages that cannot be told apart, the state is restored all the same."""
    training = Training()
    training.advance()
    expected = training.weights()
    save(tmp_path, training.state)
    training.advance()
    let_torch_clone(monkeypatch)
    with make(tmp_path, training.state) as checkpointer:
        checkpointer.restore()
    assert equal(training.weights(), expected)
