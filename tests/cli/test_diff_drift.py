"""How far tensors went, beside what torch says of the same: norms, counts, and what is not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from safepoint import drift
from safepoint.contents import Part, Storage, Tensor
from safepoint.drift import Drift, joined, layer, of
from safepoint.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")

FLOATING = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex128", "complex64")
WHOLE = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint64", "bool")


def stored(path: Path, tensor: torch.Tensor) -> Tensor:
    """Write ``tensor`` into a file and return where it lies."""
    path.write_bytes(bytes(tensor.untyped_storage()))
    shape, storage = tuple(tensor.shape), Storage(path, 0, path.stat().st_size)
    part = Part((0,) * len(shape), shape, storage, tensor.storage_offset(), tensor.stride())
    return Tensor("weight", str(tensor.dtype).removeprefix("torch."), shape, (part,))


def between(directory: Path, a: torch.Tensor, b: torch.Tensor) -> Drift:
    """Return the drift from one tensor to the other."""
    return of(stored(directory / "a", a), stored(directory / "b", b))


def two(dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors of ``dtype`` of which some elements are the same."""
    generator = torch.Generator().manual_seed(3)
    kind = getattr(torch, dtype)
    wide = torch.complex128 if kind.is_complex else torch.float64
    a = torch.randn(301, 7, dtype=wide, generator=generator)
    b = torch.where(torch.rand(301, 7, generator=generator) < 0.5, a, a + 0.3)
    return a.to(kind), b.to(kind)


@pytest.mark.parametrize(("block_bytes", "at_once"), [(64, 3), (1 << 20, 1 << 16)])
@pytest.mark.parametrize("dtype", FLOATING)
def test_drift_is_what_torch_computes(
    tmp_path: Path, dtype: str, block_bytes: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norm, relative norm, largest change and number of changed elements, in blocks of any size; views too."""
    monkeypatch.setattr(drift, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(drift, "_AT_ONCE", at_once)
    a, b = two(dtype)
    found = between(tmp_path, a, b.T.contiguous().T)
    wide = torch.complex128 if a.is_complex() else torch.float64
    step = b.to(wide) - a.to(wide)
    assert found.norm == pytest.approx(step.norm().item())
    assert found.base_norm == pytest.approx(a.to(wide).norm().item())
    assert found.relative == pytest.approx((step.norm() / a.to(wide).norm()).item())
    assert found.most == pytest.approx(step.abs().max().item())
    assert found.changed == int((step != 0).sum())
    assert (found.elements, found.measured, found.not_finite) == (2107, 2107, 0)


@pytest.mark.parametrize("dtype", WHOLE)
def test_drift_of_whole_numbers_is_counted(tmp_path: Path, dtype: str) -> None:
    """They have no norm: a state of a random generator is none that one is far from."""
    a = torch.arange(100).remainder(2)
    b = a.clone()
    b[10:13] = 1 - b[10:13]
    a, b = (side.to(getattr(torch, dtype)) for side in (a, b))
    found = between(tmp_path, a, b)
    assert (found.elements, found.changed, found.norm, found.relative) == (100, 3, None, None)


def test_drift_of_packed_elements_is_counted(tmp_path: Path) -> None:
    """What is no number is another if its bytes are."""
    a, b = stored(tmp_path / "a", torch.zeros(8, dtype=torch.uint8)), torch.zeros(8, dtype=torch.uint8)
    b[3] = 7
    packed = [Tensor("q", "quint8", (8,), told.parts) for told in (a, stored(tmp_path / "b", b))]
    assert of(*packed) == Drift(8, 1)


def test_drift_leaves_out_what_is_not_finite(tmp_path: Path) -> None:
    """NaN and infinities of the second are counted; norms are of what is finite on both sides."""
    nan, inf = math.nan, math.inf
    found = between(
        tmp_path, torch.tensor([1.0, nan, inf, 2.0, 3.0, inf]), torch.tensor([1.0, nan, inf, nan, 7.0, 1.0])
    )
    assert (found.elements, found.changed, found.measured, found.not_finite) == (6, 3, 2, 3)
    assert (found.norm, found.most) == (4.0, 4.0)
    assert found.base_norm == pytest.approx(math.sqrt(10))
    found = between(tmp_path, torch.tensor([1 + 2j, 3j]), torch.tensor([complex(1, inf), 3 + 3j]))
    assert (found.measured, found.not_finite, found.norm, found.most) == (1, 1, 3.0, 3.0)
    found = between(tmp_path, torch.tensor([1.0]), torch.tensor([nan]))
    assert (found.measured, found.norm, found.relative, found.most) == (0, None, None, 0.0)


def test_drift_between_dtypes_is_of_their_numbers(tmp_path: Path) -> None:
    """Elements that were rounded are changed, those that were not are the same, NaN is NaN."""
    a = torch.tensor([1.0, 1.001, math.nan, 0.5])
    found = between(tmp_path, a, a.to(torch.bfloat16))
    assert (found.changed, found.not_finite) == (1, 1)
    assert found.most == pytest.approx(0.001, rel=1e-3)
    assert between(tmp_path, torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 5.0])).norm == 2.0
    assert between(tmp_path, torch.tensor([1.0, 2.0]), torch.tensor([1 + 1j, 2])).norm == 1.0
    assert between(tmp_path, torch.tensor([1, 2]), torch.tensor([1, 3], dtype=torch.int8)) == Drift(2, 1)


def test_drift_tells_zeros_apart(tmp_path: Path) -> None:
    """A zero that changed its sign has other bytes, and has not moved; from nothing to something, infinitely far."""
    found = between(tmp_path, torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
    assert (found.changed, found.norm) == (1, 0.0)
    assert between(tmp_path, torch.zeros(2), torch.ones(2)).relative == math.inf
    assert between(tmp_path, torch.zeros(2), torch.zeros(2)).relative == 0.0
    assert between(tmp_path, torch.zeros(0), torch.zeros(0)) == Drift()


def test_drifts_add_up(tmp_path: Path) -> None:
    """That of several tensors is that of all their elements."""
    a, b = two("float32")
    whole = between(tmp_path, a, b)
    parts = [between(tmp_path, a[:100], b[:100]), between(tmp_path, a[100:], b[100:])]
    assert joined(parts).norm == pytest.approx(whole.norm)
    assert (parts[0] + parts[1]).most == whole.most
    assert joined(parts).changed == whole.changed
    assert joined([]) == Drift()


def test_drift_of_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    """The error names the file and the tensor."""
    a = stored(tmp_path / "a", torch.zeros(100))
    b = stored(tmp_path / "b", torch.zeros(100))
    (tmp_path / "b").write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"b: tensor 'weight' cannot be read: the file ends before it does"):
        of(a, b)


def test_layers_are_modules_and_what_an_optimizer_keeps() -> None:
    """The parameters of one module are of one layer; an optimizer's numbers for its parameters tell nobody anything."""
    assert layer("model.layers.0.attn.weight") == "model.layers.0.attn"
    assert layer("weight") == "weight"
    assert layer("optimizer.state.7.exp_avg") == "optimizer.state.*.exp_avg"
    assert layer("optimizer_states.0.state.12.exp_avg") == "optimizer_states.0.state.*.exp_avg"
    assert layer("state.12.exp_avg") == "state.*.exp_avg"
    assert layer("model.my_state.0.weight") == "model.my_state.0"
    assert layer("model.state.0.conv.weight") == "model.state.0.conv"
