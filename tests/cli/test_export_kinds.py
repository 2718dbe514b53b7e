"""What an export makes of tensors of every kind, read back by the programs that such files are made for."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from nets import Net, save, tied
from safetensors import safe_open

from safepoint.errors import CheckpointError, ConfigurationError
from safepoint.export import Dtype, Kind
from safepoint.export.job import Order, prepared

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
FOREIGN_TO_SAFETENSORS = ("complex32", "complex128", "bits8", "bits16")
VIEWS = {
    "whole": lambda t: t,
    "slice": lambda t: t[3:7],
    "column": lambda t: t[:, 2],
    "transposed": lambda t: t.T,
    "channels last": lambda t: t.reshape(2, 5, 4, 3).contiguous(memory_format=torch.channels_last),
    "expanded": lambda t: t[:1].expand(7, 12),
    "scalar": lambda t: t[4, 5],
    "empty": lambda t: t[:0],
    "without dimensions": lambda t: t[4, 5].clone(),
    "nothing at all": lambda t: t[:0].clone(),
}


class Holder:
    """Something with a state dict of one's own."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        """Return it."""
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take another."""
        self.state = state


def random(dtype: str, *shape: int) -> torch.Tensor:
    """Return a tensor of random bits; a bool has one of the two bytes that it may have."""
    kind = getattr(torch, dtype)
    high = 2 if kind == torch.bool else 256
    generator = torch.Generator().manual_seed(5)
    found = torch.randint(0, high, (math.prod(shape) * kind.itemsize,), dtype=torch.uint8, generator=generator)
    return found.view(kind).reshape(shape)


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return the dtype, the shape, and the bytes of the elements in row-major order."""
    carrier = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[tensor.itemsize]
    dense = tensor.view(carrier).contiguous().reshape(-1)
    return tensor.dtype, tensor.shape, dense.view(torch.uint8).numpy().tobytes()


def export(source: Path, kind: Kind, **options: Any) -> Path:
    """Export into the same directory, and return where."""
    out = source.with_name(f"exported{kind.extension}")
    prepared(Order(source, out, kind, replace=True, **options)).run()
    return out


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a checkpoint with tensors of every dtype that safetensors has, seen in every way, and those by name."""
    made = {f"{dtype}.{view}": see(random(dtype, 10, 12)) for dtype in DTYPES for view, see in VIEWS.items()}
    packed = [name for name, tensor in made.items() if name.startswith("float4") and not tensor.dim()]
    made = {name: tensor for name, tensor in made.items() if name not in packed}
    return save(tmp_path_factory.mktemp("every"), {"all": Holder(**made)}), made


def test_safetensors_holds_every_dtype_in_every_view(every: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """Each tensor is what the library's own reader makes of it: dtype, shape and bits; it lies at whole elements."""
    path, made = every
    out = export(path, Kind.SAFETENSORS, keys=("all",), strip="all")
    with safe_open(out, framework="pt") as file:
        assert set(file.keys()) == set(made)
        assert file.metadata() == {"format": "pt"}
        for name, tensor in made.items():
            assert bits(file.get_tensor(name)) == bits(tensor), name


@pytest.mark.parametrize("length", range(1, 9))
def test_safetensors_puts_elements_at_multiples_of_their_size(tmp_path: Path, length: int) -> None:
    """However long the header, and whatever stands in front: readers map the file and look at whole elements."""
    made = {"b": torch.ones(3, dtype=torch.uint8), "h": torch.ones(1).half(), "d": torch.ones(1).double()}
    made |= {"n" * length: torch.ones(1, dtype=torch.complex64), "f": torch.ones(3)}
    torch.save(made, tmp_path / "a.pt")
    data = export(tmp_path / "a.pt", Kind.SAFETENSORS).read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    assert header_bytes % 8 == 0
    header = json.loads(data[8 : 8 + header_bytes])
    for name, tensor in made.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0


def test_export_of_many_slabs_mixes_nothing_up(tmp_path: Path) -> None:
    """What is on its way to the disk stays as it is while the next is made: forty megabytes come back the same."""
    made = {"a": random("float32", 3_000_000), "b": random("int16", 7), "c": random("float32", 7_000_001)}
    torch.save(made, tmp_path / "a.pt")
    for kind in Kind.SAFETENSORS, Kind.TORCH:
        out = export(tmp_path / "a.pt", kind)
        found = safetensors.torch.load_file(out) if kind is Kind.SAFETENSORS else torch.load(out, weights_only=True)
        assert all(bits(found[name]) == bits(tensor) for name, tensor in made.items())


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_holds_every_dtype_as_it_lies(every: tuple[Path, dict[str, torch.Tensor]], *, mmap: bool) -> None:
    """``torch.load`` makes the very same of both files: bits, strides and offsets, on storages as long as before."""
    path, made = every
    out = export(path, Kind.TORCH)
    loaded = torch.load(out, weights_only=True, mmap=mmap)["all"]
    assert list(loaded) == list(made)
    for name, tensor in made.items():
        assert bits(loaded[name]) == bits(tensor), name
        if tensor.numel():
            assert loaded[name].stride() == tensor.stride()
            assert loaded[name].storage_offset() == tensor.storage_offset()
            assert bytes(loaded[name].untyped_storage()) == bytes(tensor.untyped_storage())


@pytest.mark.parametrize("dtype", FOREIGN_TO_SAFETENSORS)
def test_safetensors_refuses_a_dtype_it_does_not_know(tmp_path: Path, dtype: str) -> None:
    """A dtype that the format has no name for is told with its tensor, and nothing is written; torch files hold it."""
    made = random(dtype, 4, 6)
    path = save(tmp_path, {"all": Holder(odd=made, even=torch.zeros(2))})
    with pytest.raises(ConfigurationError, match=f"tensor 'all.odd' is of {dtype}, which safetensors files do not"):
        export(path, Kind.SAFETENSORS)
    assert sorted(tmp_path.iterdir()) == [path]
    assert bits(torch.load(export(path, Kind.TORCH), weights_only=True)["all"]["odd"]) == bits(made)
    assert list(safetensors.torch.load_file(export(path, Kind.SAFETENSORS, except_=("*.odd", "safepoint")))) == [
        "all.even"
    ]


def test_safetensors_refuses_two_numbers_without_a_dimension(tmp_path: Path) -> None:
    """A shape counts numbers, and one of no dimension is one number; packed ones are two."""
    path = save(tmp_path, {"all": Holder(odd=random("float4_e2m1fn_x2", 1)[0])})
    with pytest.raises(ConfigurationError, match=r"tensor 'all\.odd' holds two numbers and has no dimension"):
        export(path, Kind.SAFETENSORS)


def test_torch_file_is_a_whole_zip_archive(every: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """Any reader of archives finds every record's CRC-32 right; no record says that it is a checkpoint of a run."""
    with zipfile.ZipFile(export(every[0], Kind.TORCH)) as archive:
        assert archive.testzip() is None
        assert not [name for name in archive.namelist() if "safepoint" in name]


def test_torch_keeps_what_shares_a_storage_together(tmp_path: Path) -> None:
    """Tied tensors, and views of a part of another, share their storage as before, converted or not."""
    one = torch.randn(6, 4)
    path = save(tmp_path, {"net": Holder(a=one, b=one, part=one[1:3], turned=one.T, other=one.clone())})
    for dtype in (None, Dtype.BFLOAT16):
        loaded = torch.load(export(path, Kind.TORCH, dtype=dtype), weights_only=True)["net"]
        pointers = {name: tensor.untyped_storage().data_ptr() for name, tensor in loaded.items()}
        assert len({pointers.pop("other"), *pointers.values()}) == 2
        for name, like in {"a": one, "b": one, "part": one[1:3], "turned": one.T, "other": one}.items():
            assert torch.equal(loaded[name], like if dtype is None else like.bfloat16())
        loaded["a"][1] = 7
        assert bool((loaded["part"][0] == 7).all())


def test_safetensors_writes_tied_tensors_once(tmp_path: Path) -> None:
    """The first name has the tensor and the header the other's, which ``load_model`` finds; views have their own."""
    net = tied()
    path = save(tmp_path, {"model": net})
    out = export(path, Kind.SAFETENSORS, keys=("model",), strip="model")
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"b": "a", "format": "pt"}
        assert list(file.keys()) == ["a"]
    other = tied()
    assert safetensors.torch.load_model(other, out) == (set(), [])
    assert torch.equal(other.b, net.a)
    assert other.a is other.b


def test_safetensors_takes_nothing_for_tied_that_is_not(tmp_path: Path) -> None:
    """Two views of one storage, one shape on it in two ways, and tensors of no elements are each written."""
    one = torch.randn(4, 4)
    made = {"a": one, "turned": one.T, "part": one[:2], "empty": one[:0], "other": one[:0], "flat": one.reshape(-1)}
    out = export(save(tmp_path, {"net": Holder(**made)}), Kind.SAFETENSORS, keys=("net",), strip="net")
    loaded = safetensors.torch.load_file(out)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {n: bits(t) for n, t in made.items()}


def test_safetensors_loses_no_name(tmp_path: Path) -> None:
    """A tied tensor whose name the header needs for itself is written out; names that nobody could read are refused."""
    one = torch.randn(3)
    path = save(tmp_path, {"net": Holder(a=one, format=one, b=one)})
    out = export(path, Kind.SAFETENSORS, keys=("net",), strip="net")
    assert {name: bits(tensor) for name, tensor in safetensors.torch.load_file(out).items()} == {
        "a": bits(one),
        "format": bits(one),
    }
    for name in ("__metadata__", "\udc80"):
        torch.save({"a": one, name: one}, tmp_path / "o.pt")
        with pytest.raises(ConfigurationError, match="no tensor in a safetensors file can be called"):
            export(tmp_path / "o.pt", Kind.SAFETENSORS)


def test_safetensors_goes_into_a_model_of_transformers(tmp_path: Path) -> None:
    """``from_pretrained`` makes of it the model that was saved, tied output layer included, without a word."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32, n_positions=16))
    path = save(tmp_path / "run", {"model": model})
    home = tmp_path / "model"
    home.mkdir()
    model.config.save_pretrained(home)
    prepared(Order(path, home / "model.safetensors", Kind.SAFETENSORS, keys=("model",), strip="model")).run()
    loaded, told = GPT2LMHeadModel.from_pretrained(home, output_loading_info=True)
    assert {key: list(value) for key, value in told.items() if value} == {}
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("kind", [Kind.SAFETENSORS, Kind.TORCH])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_dtype_converts_as_torch_does(tmp_path: Path, dtype: Dtype, kind: Kind) -> None:
    """Floating-point tensors are rounded as torch rounds them, bit for bit; whole and complex numbers stay."""
    torch.manual_seed(3)
    wide = torch.cat((torch.randn(4000) * 2.0 ** torch.randint(-30, 30, (4000,)), torch.tensor([math.inf, -0.0, 0.0])))
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 2**-150, 65519, 65520])
    made = {
        "wide": wide,
        "halfway": halfway,
        "turned": wide[:4000].reshape(50, 80).T,
        "narrow": wide.bfloat16(),
        "half": wide[:100].half(),
        "tiny": torch.randn(50).to(torch.float8_e5m2),
        "count": torch.arange(5),
        "complex": torch.randn(3, dtype=torch.complex64),
        "scalar": torch.tensor(0.1),
    }
    out = export(save(tmp_path, {"net": Holder(**made)}), kind, keys=("net",), strip="net", dtype=dtype)
    loaded = safetensors.torch.load_file(out) if kind is Kind.SAFETENSORS else torch.load(out, weights_only=True)
    for name, tensor in made.items():
        wanted = tensor
        if tensor.is_floating_point():
            limit = 448 if dtype is Dtype.FLOAT8_E4M3FN else math.inf  # which some releases of torch do not keep to
            wanted = tensor.to(torch.float64).clamp(-limit, limit).to(tensor.dtype).to(getattr(torch, dtype))
        assert bits(loaded[name]) == bits(wanted), name


def test_dtype_tells_what_it_cannot_hold(tmp_path: Path) -> None:
    """Tensors of which a finite number became infinite are named; those that were infinite already are not."""
    made = {"fine": torch.tensor([65504.0]), "large": torch.tensor([1.0, 1e5]), "endless": torch.tensor([math.inf])}
    path = save(tmp_path, {"net": Holder(**made)})
    for kind in Kind.SAFETENSORS, Kind.TORCH:
        job = prepared(Order(path, path.with_suffix(kind.extension), kind, keys=("net",), dtype=Dtype.FLOAT16))
        assert job.run() == ("net.large",)
    job = prepared(Order(path, tmp_path / "o", Kind.TORCH, keys=("net",), dtype=Dtype.FLOAT8_E4M3FN))
    assert set(job.run()) == {"net.fine", "net.large", "net.endless"}
    made = torch.load(tmp_path / "o", weights_only=True)["net"]
    assert [tensor.float().tolist() for tensor in made.values()] == [[448], [1, 448], [448]]


def test_dtype_refuses_what_is_no_number(tmp_path: Path) -> None:
    """Two numbers packed into a byte have none that could be converted: told by name, and nothing is written."""
    path = save(tmp_path, {"net": Holder(packed=random("float4_e2m1fn_x2", 4, 6))})
    with pytest.raises(
        CheckpointError, match=r"tensor 'net\.packed' cannot be read: its elements are float4_e2m1fn_x2"
    ):
        export(path, Kind.TORCH, dtype=Dtype.FLOAT32)
    assert sorted(tmp_path.iterdir()) == [path]


def test_weights_go_into_the_module(tmp_path: Path) -> None:
    """What is exported of a loop's state is what ``load_state_dict`` takes, strictly, converted or not."""
    from loop import Training

    training = Training()
    training.advance()
    path = save(tmp_path, training.state)
    for dtype in (None, Dtype.FLOAT64):
        other = Training(seed=1).model.to(torch.float64 if dtype else torch.float32)
        weights = torch.load(export(path, Kind.WEIGHTS, dtype=dtype), weights_only=True)
        assert str(other.load_state_dict(weights)) == "<All keys matched successfully>"
        assert all(
            map(
                torch.equal,
                other.parameters(),
                (p.to(next(other.parameters()).dtype) for p in training.model.parameters()),
            )
        )


def test_weights_keep_ties(tmp_path: Path) -> None:
    """Tied weights are one storage in the file, and go into a tied module."""
    path = save(tmp_path, {"model": tied(), "count": 3})
    weights = torch.load(export(path, Kind.WEIGHTS), weights_only=True)
    assert weights["a"].untyped_storage().data_ptr() == weights["b"].untyped_storage().data_ptr()
    assert str(tied().load_state_dict(weights)) == "<All keys matched successfully>"


def test_weights_of_several_modules_have_to_be_chosen(tmp_path: Path) -> None:
    """Where it is not clear which model is meant, the candidates are named; a choice by their names is enough."""
    actor, critic = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    path = save(tmp_path, {"actor": actor, "critic": critic, "optimizer": torch.optim.Adam(actor.parameters())})
    with pytest.raises(
        ConfigurationError, match=r"weights of 2 models: 'actor', 'critic'\. Choose one: --keys 'actor'"
    ):
        export(path, Kind.WEIGHTS)
    for keys in (("critic",), ("critic.*",), ("critic.weight", "critic.bias")):
        weights = torch.load(export(path, Kind.WEIGHTS, keys=keys), weights_only=True)
        torch.nn.Linear(3, 1).load_state_dict(weights)
    assert list(torch.load(export(path, Kind.WEIGHTS, except_=("actor",)))) == ["weight", "bias"]
    with pytest.raises(ConfigurationError, match="those that are there: 'actor', 'critic'"):
        export(path, Kind.WEIGHTS, keys=("optimizer",))


def test_weights_of_no_module_are_refused(tmp_path: Path) -> None:
    """A state without a model says how to see what there is."""
    path = save(tmp_path, {"count": 3})
    with pytest.raises(ConfigurationError, match="no entry of it looks like the weights of a model"):
        export(path, Kind.WEIGHTS)


def test_torch_holds_plain_values_as_they_were(tmp_path: Path) -> None:
    """The whole state comes back with its structure: numbers, text, bytes, lists, tuples, sets and what is in them."""
    plain = {"n": -3, "x": math.pi, "s": "é", "b": b"\xff", "l": [1, (2, None), {3}], 5: {"t": True}, "e": [], "d": {}}
    path = save(tmp_path, {"plain": Holder(it=plain), "model": Net(a=torch.randn(2))})
    before, after = torch.load(path, weights_only=True), torch.load(export(path, Kind.TORCH), weights_only=True)
    assert after["plain"] == before["plain"] == {"it": plain}
    assert list(after) == list(before)
    assert after["safepoint"]["rng"]["python"] == before["safepoint"]["rng"]["python"]
    assert torch.equal(after["safepoint"]["rng"]["torch"], before["safepoint"]["rng"]["torch"])


def test_torch_holds_the_chosen_part_of_the_tree(tmp_path: Path) -> None:
    """What is chosen stays where it was, what has nothing left goes, and a prefix that is stripped moves it up."""
    path = save(tmp_path, {"a": Holder(x=torch.ones(1), y=[1, torch.ones(2), 3], z={}), "b": Holder(x=2)})
    for options, wanted in (
        ({"keys": ("a.x", "b")}, {"a": {"x": torch.ones(1)}, "b": {"x": 2}}),
        ({"keys": ("a.y.[12]",)}, {"a": {"y": [torch.ones(2), 3]}}),
        ({"keys": ("a",), "except_": ("a.y", "*.x")}, {"a": {"z": {}}}),
        ({"keys": ("a.*",), "except_": ("a.y",), "strip": "a"}, {"x": torch.ones(1), "z": {}}),
        ({"keys": ("a.y", "b"), "strip": "b."}, {"a": {"y": [1, torch.ones(2), 3]}, "x": 2}),
    ):
        found = torch.load(export(path, Kind.TORCH, **options), weights_only=True)
        assert repr(found) == repr(wanted)
