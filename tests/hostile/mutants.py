"""Mutants of real checkpoints: damaged as a disk would, or forged so that every digest is right again."""

from __future__ import annotations

import copy
import functools
import json
import pickletools
from collections.abc import Callable
from typing import Any

import forge
from hypothesis import strategies as st

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *EXTREMES, -1, -(2**63), 10**40, 1.5, 1e308, -1e308, True, None, "", "a", "../../x", "/etc/passwd", "\0", "nan", "-inf",
    "\x1b[31m", "\u202e", "0" * 32, [], {}, [[]], {"": {}}, [0] * 100, [2**62] * 3, [0, -1], {"a": 1e999},
)  # fmt: skip
NUMBERS = tuple(forge.number(value) for value in (*EXTREMES, -1, -(2**63), 10**40))
FRAGMENTS = (
    *NUMBERS, b"N", b"\x88", b"]", b"}", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"R", b"b",
    b"\x81", b"Q", b".", b"0", b"2", b"h\0", b"q\0", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\xff", b"\x85" * 3000,
    b"X\xff\xff\xff\xff", b"U\xff", b"\x8a\xff", b"G\x7f\xf0\0\0\0\0\0\0", b"G\x7f\xf8\0\0\0\0\0\0",
    b"h\0h\0\x86q\0" * 60, forge.HOOKS, forge.text("torch.sparse_coo"), forge.text("../data.pkl"), forge.text("cuda:0"),
    *(forge.named(name) for name in (
        "builtins.bytearray", "builtins.set", "builtins.complex", "builtins.eval", "os.system", "collections.Counter",
        "collections.OrderedDict", "torch.Tensor", "torch.FloatTensor", "torch.FloatStorage", "torch.LongStorage",
        "torch.BFloat16Storage", "torch.Size", "torch.device", "torch.float32", "torch.uint16", "torch.qint8",
        "torch.per_tensor_affine", "torch.nn.parameter.Parameter", "torch.storage.UntypedStorage",
        "torch.serialization._get_layout", "_codecs.encode", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_wrapper_subclass",
        "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    )),
    *(forge.called(name, forge.number(2**40)) for name in ("builtins.bytearray", "torch.Tensor")),
)  # fmt: skip
Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def damaged(draw: Draw, samples: tuple[bytes, ...]) -> bytes:
    """Change some bytes of a file, and no digest."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        _damage(draw, data, samples)
    return bytes(data)


def _damage(draw: Draw, data: bytearray, samples: tuple[bytes, ...]) -> None:
    at = draw(st.integers(0, max(0, len(data) - 1)))
    match draw(
        st.sampled_from(("flip", "set", "cut", "splice", "swap", "zero", "grow", "header", "header", "end", "end"))
    ):
        case "flip" if data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        case "set":
            data[at : at + 8] = draw(st.binary(max_size=8))
        case "cut":
            del data[at : at + draw(st.integers(1, len(data) or 1))]
        case "splice":
            other = draw(st.sampled_from(samples))
            data[at:] = other[draw(st.integers(0, len(other))) :]
        case "swap":
            a, b = at & ~4095, draw(st.integers(0, len(data))) & ~4095
            data[a : a + 4096], data[b : b + 4096] = data[b : b + 4096], data[a : a + 4096]
        case "zero":
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        case "grow":
            data[at:at] = data[: draw(st.integers(0, 5000))]
        case "header":
            marks = [found for found in range(len(data)) if data[found : found + 2] == b"PK"][-12:]
            _set_number(draw, data, draw(st.sampled_from(marks)) if marks else 0)
        case "end":
            _set_number(draw, data, max(0, len(data) - draw(st.integers(1, 400))))


def _set_number(draw: Draw, data: bytearray, near: int) -> None:
    """Let a number be an extreme one, somewhere in the header at ``near``."""
    size = draw(st.sampled_from((2, 4, 8)))
    value = draw(st.sampled_from(EXTREMES)) & ((1 << 8 * size) - 1)
    at = near + draw(st.integers(0, 56))
    data[at : at + size] = value.to_bytes(size, "little")


@st.composite
def retold(draw: Draw, pickled: bytes, storages: list[bytes], manifest: bytes) -> bytes:
    """Change the manifest, under the right CRC-32."""
    told = json.loads(manifest)
    for _ in range(draw(st.integers(1, 2))):
        _retell(draw, told)
    text = json.dumps(told).encode()
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + draw(st.sampled_from((b"", b"[" * 5000, b"9" * 5000, b'"', b"NaN", b"\xff", b"\\ud800", b"{")))
            + text[at:]
        )
    return forge.sealed(pickled, storages, manifest=text)


def _retell(draw: Draw, told: Any) -> None:
    """Put an extreme value somewhere into a tree, or take something out of it."""
    while told:
        key = draw(st.sampled_from(sorted(told) if isinstance(told, dict) else range(len(told))))
        if isinstance(told[key], dict | list) and told[key] and draw(st.integers(0, 3)):
            told = told[key]
            continue
        match draw(st.sampled_from(("set", "set", "set", "remove", "double"))):
            case "set":
                told[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            case "remove":
                del told[key]
            case "double" if isinstance(told, list):
                told.append(told[key])
            case "double":
                told[f"{key} too"] = told[key]
        return


@st.composite
def rewritten(draw: Draw, pickled: bytes, storages: list[bytes]) -> bytes:
    """Change the pickle, under the right digests."""
    changed = pickled
    for _ in range(draw(st.integers(1, 3))):
        changed = _rewritten(draw, changed)
    return forge.sealed(changed, storages)


def _rewritten(draw: Draw, pickled: bytes) -> bytes:
    starts = _starts(pickled)
    at = draw(st.sampled_from(starts))
    end = next((start for start in starts if start > at), len(pickled))
    match draw(st.sampled_from(("replace", "replace", "insert", "insert", "remove", "repeat", "move", "bytes"))):
        case "replace":
            return pickled[:at] + draw(st.sampled_from(FRAGMENTS)) + pickled[end:]
        case "insert":
            return pickled[:at] + draw(st.sampled_from(FRAGMENTS)) + pickled[at:]
        case "remove":
            return pickled[:at] + pickled[end:]
        case "repeat":
            most = 1 + 20_000 // len(pickled[at:end] or b" ")
            return pickled[:end] + pickled[at:end] * min(most, draw(st.sampled_from((1, 2, 1000)))) + pickled[end:]
        case "move":
            first = draw(st.sampled_from(starts))
            return pickled[:at] + pickled[first : first + draw(st.integers(1, 80))] + pickled[at:]
    return pickled[:at] + draw(st.binary(min_size=1, max_size=4)) + pickled[at + 1 :]


@functools.lru_cache(maxsize=8)
def _starts(pickled: bytes) -> list[int]:
    """Return where the opcodes begin, as far as they are read."""
    starts = [0]
    try:
        starts += [position for _, _, position in pickletools.genops(pickled) if position]
    except Exception:  # noqa: BLE001 - it is a mutant
        starts.append(len(pickled) // 2)
    return starts
