"""The walk through a pickle that executes nothing: what it makes of honest states, and how hostile ones end."""

from __future__ import annotations

import argparse
import math
import os
import pickle
import pickletools
import struct
import time
import tracemalloc
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
import torch
from kinds import OBJECTS, TENSORS, made

from safepoint.capture import capture
from safepoint.contents import Opaque, Storage, Tensor
from safepoint.formats import opcodes, tree, walk
from safepoint.keys import RefusedError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ON = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
"""Push storage 0, which is of four elements."""
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def told(data: bytes, *sizes: int) -> tuple[Any, tuple[Tensor, ...]]:
    """Return the tree and the tensors of a pickle, on storages of these sizes."""
    storages = {str(key): Storage(Path("file"), 0, size) for key, size in enumerate(sizes)}
    return tree.told(walk.walked(data, storages))


def plain(value: Any, protocol: int) -> Any:
    """Return the tree of a value that was pickled."""
    return told(pickle.dumps(value, protocol))[0]


PLAIN: dict[str, Any] = {
    "numbers": [0, -1, 255, 65536, 2**31, -(2**63), 2**200, 1.5, math.inf, True, False, None, 1j],
    "text": ["", "a", "\N{SNOWMAN}" * 300, "line\nbreak", "\ud800", "x" * 70_000],
    "bytes": [b"", b"\xff" * 300, bytes(range(256)) * 300],
    "containers": [
        {"a": [1, (2, 3)], 5: {"b": ()}},
        (),
        (1,),
        (1, 2, 3, 4),
        [[]],
        set(),
        {1, "a"},
        frozenset((1, (2,))),
    ],
    "keys": {1: 2, (1, "a"): 3, None: 4, 1.5: 5, b"x": 6},
    "many": list(range(5000)),
    "a long dictionary": {f"key {index}": index for index in range(3000)},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", PLAIN)
def test_walk_makes_plain_values_of_every_protocol(name: str, protocol: int) -> None:
    """What the pickle module reads back of plain values and containers, the tree holds."""
    assert plain(PLAIN[name], protocol) == PLAIN[name]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_opcodes_of_honest_pickles_are_those_of_the_standard_library(protocol: int) -> None:
    """Names, arguments and places are what ``pickletools`` says."""
    data = pickle.dumps([PLAIN, kinds.Settings, kinds.Colour.RED, np.arange(3), {"a": 10**30}], protocol)
    theirs = [(opcode.name, argument, at) for opcode, argument, at in pickletools.genops(data)]
    ours = [(name, " ".join(got) if type(got) is tuple else got, at) for name, got, at, _ in opcodes.opcodes(data)]
    assert ours == theirs


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_walk_makes_containers_of_known_classes(protocol: int) -> None:
    """Dictionaries and lists of other classes, namespaces, paths and NumPy's numbers come out as plain values."""
    values = {
        "ordered": OrderedDict(b=1, a=[OrderedDict()]),
        "default": defaultdict(list, a=[1]),
        "deque": deque([1, 2]),
        "namespace": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "path": Path("/a/b"),
        "bytearray": bytearray(b"abc"),
        "numbers": [np.float64(0.5), np.float32(0.25), np.int64(-3), np.bool_(True)],  # noqa: FBT003
    }
    expected = {
        "ordered": {"b": 1, "a": [{}]},
        "default": {"a": [1]},
        "deque": [1, 2],
        "namespace": {"lr": 0.1, "layers": [1, 2]},
        "path": "/a/b",
        "bytearray": b"abc",
        "numbers": [0.5, 0.25, -3, True],
    }
    found = plain(values, protocol)
    assert found == expected
    assert list(found["ordered"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_walk_names_what_it_does_not_make(protocol: int) -> None:
    """Objects and classes are told by their names; keys of one class stay apart."""
    found = plain({"class": kinds.Settings, "object": kinds.Colour.RED, "array": np.arange(3)}, protocol)
    assert found["class"] == Opaque("kinds.Settings")
    assert found["object"] == Opaque("kinds.Colour(1)")
    assert found["array"] == Opaque("numpy.ndarray")
    keyed = plain({kinds.Registered(): 1, kinds.Registered(): 2, torch.float32: 3, (torch.float32,): 4}, protocol)
    assert list(keyed.values()) == [1, 2, 3, 4]
    assert list(keyed)[:3] == [Opaque("kinds.Registered"), Opaque("kinds.Registered #2"), Opaque("torch.float32")]


@pytest.mark.parametrize("name", [*TENSORS, *OBJECTS])
def test_walk_finds_the_tensors_that_a_manifest_names(name: str) -> None:
    """Path, dtype, shape, storage, offset and strides of every tensor that Safepoint's own manifest tells of."""
    captured = capture({"x": made(name), 7: [torch.ones(2)], (1, "a"): {"b.c": (torch.ones(3),)}})
    storages = {str(key): Storage(Path(str(key)), 0, found.nbytes()) for key, found in enumerate(captured.storages)}
    _, tensors = tree.told(walk.walked(captured.pickle, storages))
    found = {
        (tensor.path, tensor.dtype, tensor.shape, str(part.storage.path), part.offset, part.strides)
        for tensor in tensors
        for part in tensor.parts
    }
    expected = [
        (told.path, told.dtype, told.shape, str(told.storage), told.offset, told.strides) for told in captured.tensors
    ]
    for path, dtype, shape, storage, offset, strides in expected:
        whole = strides if strides is not None else torch.empty(shape, device="meta").stride()
        assert (path, dtype, shape, storage, offset, tuple(whole)) in found
    assert [tensor.path for tensor in tensors if tensor.path in {told[0] for told in expected}] == [
        e[0] for e in expected
    ]


def test_walk_cuts_what_contains_itself() -> None:
    """Lists, dictionaries and tuples that contain themselves come out as trees; what is shared stays shared."""
    items: list[Any] = [1]
    items.append(items)
    items.append((items,))
    mapping: dict[str, Any] = {"shared": items, "again": items}
    mapping["self"] = mapping
    found = plain(mapping, 2)
    itself = Opaque("a reference to itself")
    assert found == {"shared": [1, itself, (itself,)], "again": [1, itself, (itself,)], "self": itself}
    assert found["shared"] is found["again"]


def tensor(place: bytes) -> bytes:
    """Push a tensor at this place (offset, shape and strides) on storage 0."""
    return REBUILD + b"(" + ON + place + b"\x89NtR"


SHARED_KEY = b")q\0" + b"h\0h\0\x86q\0" * 60
HOSTILE = {
    "nothing": b"",
    "no end": b"\x80\x02]" * 1000,
    "an unknown opcode": b"\x80\x02\xff.",
    "an empty stack": b"\x80\x02.",
    "nothing to take": b"\x80\x02\x87.",
    "what was never put": b"h\x09.",
    "no mark": b"t.",
    "an odd number of items": b"}(Nu.",
    "a list as a key": b"}]Ns.",
    "a dictionary as an item of a set": b"\x8f(}\x90.",
    "appended to a number": b"K\1Na.",
    "text without end": b"X\xff\xff\xff\xff",
    "bytes without end": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "a name without end": b"cposix",
    "a name of numbers": b"K\1K\2\x93.",
    "a long name": b"c" + b"a" * 5000 + b"\nb\n.",
    "a long number": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b".",
    "a long number in digits": b"I" + b"9" * 100_000 + b"\n.",
    "deep lists": b"]" * 5000 + b"a" * 4999 + b".",
    "deep tuples": b")" + b"\x85" * 20_000 + b".",
    "a deep key": b"})" + b"\x85" * 10_000 + b"Ns.",
    "a deep element of a set": b"cbuiltins\nset\n(]()" + b"\x85" * 600 + b"etR.",
    "a key whose parts are shared": b"}" + SHARED_KEY + b"Ns.",
    "a deep name of a dtype": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n()" + b"\x85" * 200_000 + b"tRC\1atR.",
    "lists that double": b"]q\0" + b"](h\0h\0eq\0" * 40 + b".",
    "tuples that double": SHARED_KEY + b".",
    "keys with one hash": b"}(" + b"".join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] + b"N" for k in range(2, 2000)) + b"u.",
    "one text encoded over and over": b"X\0\0\1\0" + b"x" * 65536 + b"q\0" + b"c_codecs\nencode\n(h\0X\6\0\0\0latin1tR" * 9 + b".",
    "one list made a set over and over": b"](" + b"N" * 70_000 + b"eq\0" + b"cbuiltins\nset\n(h\0tR" * 9 + b".",
    "names that grow": b"cos\nsystem\n" + b")R" * 20_000 + b"K\1K\1a.",
    "a reference of a number": b"K\1Q.",
    "a reference of text": b"Pabc\n.",
    "a storage that is not there": ON.replace(b"\x000X", b"\x009X") + b".",
    "a storage of no kind": ON.replace(b"Float", b"Fleet") + b".",
    "more elements than there are": ON.replace(b"K\x04", b"K\x05") + b".",
    "fewer elements than none": ON.replace(b"K\x04", b"J\xff\xff\xff\xff") + b".",
    "a tensor beyond its storage": tensor(b"K\0K\5\x85K\1\x85") + b".",
    "a tensor in front of it": tensor(b"J\xff\xff\xff\xffK\4\x85K\1\x85") + b".",
    "a tensor of a nameless shape": tensor(b"K\0NK\1\x85") + b".",
    "a tensor that is nearly endless": tensor(b"K\0\x8a\x07\0\0\0\0\0\0\1\x85K\0\x85") + b".",
    "a meta tensor of many dimensions": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n("
    + b"J\xff\xff\xff\x7f" * 5000 + b"t)\x89tR.",
    "a buffer from elsewhere": b"\x97.",
    "one long key over and over": b"](" + tensor(b"K\0K\4\x85K\1\x85") + b"q\1"
    + b"X\0\0\x10\0" + b"k" * (1 << 20) + b"q\0" + b"}h\0h\1s" * 1000 + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_walk_refuses_quickly_what_is_malformed_or_built_to_exhaust(name: str) -> None:
    """One error, after a second at most, in no more memory than a hundred times what the pickle is long."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(RefusedError, match=r"."):
        told(HOSTILE[name], 16)
    assert time.process_time() - began < 5
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100 * len(HOSTILE[name]) + (80 << 20)


def test_walk_ends_after_so_many_opcodes() -> None:
    """A pickle that is absurdly long is refused, however short its opcodes are."""
    assert walk.Walk(b"N0" * 100 + b"N.", most_opcodes=202).run() == ""
    assert walk.Walk(b"N0" * 100 + b"N.", most_opcodes=201).run() == "it is absurdly long"


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        (ON.replace(b"\x000X", b"\x009X"), "storage '9' is not there"),
        (ON.replace(b"K\x04", b"K\x05"), "storage 0 has 16 bytes, and 5 elements are said to be in it"),
        (ON.replace(b"Float", b"Fleet"), "a reference is none to a storage"),
    ],
)
def test_walk_says_what_is_wrong_with_a_reference(forged: bytes, message: str) -> None:
    """The storage, and what the file has of it."""
    with pytest.raises(RefusedError, match=rf"^at byte \d+, {message}$"):
        told(forged + b".", 16)


@pytest.mark.parametrize("name", ["conjugated", "negated", "sparse COO", "quantised per tensor", "meta", "wrapper"])
def test_tensor_whose_elements_are_not_as_they_lie_there_has_no_data(name: str) -> None:
    """It says why; what it is made of has data."""
    captured = capture({"x": made(name)})
    _, (tensor, *inner) = told(captured.pickle, *(found.nbytes() for found in captured.storages))
    assert tensor.path == "x"
    assert tensor.parts == ()
    assert tensor.note
    assert all(found.parts for found in inner)


class Runs:
    """Would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Have a command run."""
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_walk_runs_nothing(protocol: int, tmp_path: Path) -> None:
    """What would run a command is named, and that it would be called; nothing has happened."""
    data = pickle.dumps({"a": Runs(tmp_path / "it ran"), "b": print}, protocol)
    steps = walk.Walk(data)
    assert steps.run() == ""
    assert steps.names == {"posix.system": True, "builtins.print": False}
    assert steps.end == len(data)
    assert not (tmp_path / "it ran").exists()
