"""Forge checkpoints: whatever they say, every digest, size and CRC-32 in them is the right one, so that they verify."""

from __future__ import annotations

import itertools
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import files

from safepoint import image
from safepoint.capture import capture
from safepoint.checksums import checksums
from safepoint.manifest import Blob, Manifest, Position, encode
from safepoint.randomness import rng_state


def sealed(pickled: bytes, storages: Sequence[bytes] = (), manifest: bytes | None = None, **changes: Any) -> bytes:
    """Return a checkpoint that verifies, of this pickle and these storages; ``changes`` are those of its manifest."""
    data = manifest if manifest is not None else encode(told(pickled, storages, **changes))
    layout = image.lay_out(len(pickled), [len(storage) for storage in storages], len(data))
    known = {layout.pickle: pickled, layout.manifest: data} | dict(layout.constants)
    known |= dict(zip(layout.storages, storages, strict=True))
    crcs = {entry.name: checksums(content).crc for entry, content in known.items()}
    pieces = [*image.frame(layout, crcs), *((entry.data_offset, content) for entry, content in known.items())]
    made = bytearray(max(offset + len(piece) for offset, piece in pieces))
    for offset, piece in pieces:
        made[offset : offset + len(piece)] = piece
    return bytes(made)


def told(pickled: bytes, storages: Sequence[bytes] = (), **changes: Any) -> Manifest:
    """Return the manifest of a checkpoint of this content."""
    fields = {
        "pickle": Blob(len(pickled), checksums(pickled).digest),
        "storages": tuple(Blob(len(storage), checksums(storage).digest) for storage in storages),
        "position": Position(1, 0, 1),
        "run": "a" * 32,
    }
    return files.manifest(**(fields | changes))


def write(path: Path, pickled: bytes, storages: Sequence[bytes] = (), **changes: Any) -> Path:
    """Write what ``sealed`` returns, and return the path."""
    path.write_bytes(sealed(pickled, storages, **changes))
    return path


def parts(state: dict[str, Any], *, own: bool = True) -> tuple[bytes, list[bytes]]:
    """Return the pickle and the storages of an honest state; ``own``: with random state, as a plain loop has it."""
    captured = capture({**state, "safepoint": {"rng": rng_state()}} if own else state)
    return captured.pickle, [bytes(storage.tolist()) for storage in captured.storages]


# Pickles, written opcode by opcode.


def named(name: str) -> bytes:
    """Push a class or function by its full name."""
    module, _, last = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + last.encode() + b"\n"


def text(value: str) -> bytes:
    """Push a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Push an integer."""
    return pickle.dumps(value, 2)[2:-1]


def tupled(*values: bytes) -> bytes:
    """Push a tuple of what ``values`` push."""
    return b"(" + b"".join(values) + b"t"


def listed(*values: bytes) -> bytes:
    """Push a list of what ``values`` push."""
    return b"](" + b"".join(values) + b"e"


def mapped(*pairs: tuple[bytes, bytes]) -> bytes:
    """Push a dictionary of the pairs."""
    return b"}(" + b"".join(itertools.chain.from_iterable(pairs)) + b"u"


def called(name: str, *arguments: bytes) -> bytes:
    """Push what the function called ``name`` makes of the arguments."""
    return named(name) + tupled(*arguments) + b"R"


def storage(key: int | str, length: int, kind: str = "torch.FloatStorage", location: str = "cpu") -> bytes:
    """Push a reference to a storage of the file."""
    return tupled(text("storage"), named(kind), text(str(key)), text(location), number(length)) + b"Q"


def shape(*sizes: int) -> bytes:
    """Push a shape."""
    return tupled(*map(number, sizes))


HOOKS = called("collections.OrderedDict")


def tensor(
    on: bytes, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, *more: bytes, hooks: bytes = HOOKS
) -> bytes:
    """Push a tensor that lies on the storage that ``on`` pushes."""
    place = (number(offset), shape(*sizes), shape(*strides), b"\x89", hooks)
    return called("torch._utils._rebuild_tensor_v2", on, *place, *more)


def state(value: bytes) -> bytes:
    """Return the pickle of a state with one entry, ``"notes"``, which ``value`` pushes."""
    return b"\x80\x02" + mapped((text("notes"), value)) + b"."
