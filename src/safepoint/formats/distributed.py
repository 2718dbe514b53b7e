"""Directories of ``torch.distributed.checkpoint``: a pickle of what is where, and files of shards.

``.metadata`` names every entry of the state, and of each part of it the file, the offset and the length; it is written
last. What lies there is a small file of ``torch.save``'s, in which the elements are found. The pickles are walked
through and never executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from safepoint.archive import Source
from safepoint.contents import Contents, Format, Opaque, Outline, Part, Tensor
from safepoint.errors import NotACheckpointError, shortened
from safepoint.formats import foreign, torch_file, walk
from safepoint.formats.files import is_file_name, named, opened, read_whole, size_bytes
from safepoint.formats.inert import Array, Global, Object, attributes
from safepoint.formats.zips import Archive
from safepoint.keys import RefusedError

METADATA = ".metadata"
SHARD = ".distcp"
_KIND = "torch.distributed.checkpoint.metadata.Metadata"
_TENSOR = "torch.distributed.checkpoint.metadata.TensorStorageMetadata"
_MOST_OPCODES = 50_000_000
"""A state that many processes have sharded has many parts."""
_MOST_DIMENSIONS = 64
_DEEPEST = 64
_END, _END_BYTES = b"PK\x05\x06", 22
"""What the last record of an archive begins with, and how long it is."""
_ELSEWISE = "stored in another way than by torch.save"

_Key = tuple[str, tuple[int, ...] | None]
"""The name of an entry, and where in its tensor a part of it begins."""


class _Place(NamedTuple):
    """Where a part lies: in which file, where in it, and whether it was compressed or the like."""

    file: str
    offset: int
    size_bytes: int
    is_transformed: bool


@dataclass(frozen=True, slots=True)
class _Described:
    """A tensor as the metadata tells of it; the parts are where each begins, and its shape."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class _Metadata(NamedTuple):
    """What ``.metadata`` tells: the entries of the state, ``None`` for one that is no tensor; where each part is.

    ``keys`` are those that the name of an entry was made of.
    """

    entries: dict[str, _Described | None]
    places: dict[_Key, _Place]
    keys: Mapping[Any, Any]

    def keys_of(self, name: str) -> tuple[Any, ...]:
        """Return the keys that the name of an entry was made of, or what it was parted at if they are not told."""
        keys = self.keys.get(name)
        if type(keys) is tuple and 0 < len(keys) <= _DEEPEST and all(type(key) in (str, int) for key in keys):
            return keys
        return tuple(name.split(".", _DEEPEST))


def is_one(names: set[str]) -> bool:
    """Tell whether a directory with ``names`` in it is such a one, whole or not."""
    return METADATA in names or any(name.endswith(SHARD) for name in names)


def outline(path: Path) -> Outline:
    """Return what a list shows of the checkpoint at ``path``: of its entries, those at the top of the state are read.

    Raises:
        NotACheckpointError: it is half-written; says what is missing.
        CheckpointError: it is damaged, or built to exhaust whoever reads it.
        OSError: it cannot be read.

    """
    metadata = _read_metadata(path)
    names = set(_at_top(metadata))
    made = _read_all(path, metadata.places, {key: place for key, place in metadata.places.items() if key[0] in names})
    return _outline(path, metadata, _told(metadata, made, names)[0])


def contents(path: Path) -> Contents:
    """Return all that the checkpoint at ``path`` tells; raises what ``outline`` raises."""
    metadata = _read_metadata(path)
    made = _read_all(path, metadata.places, metadata.places)
    told, tensors = _told(metadata, made, set(metadata.entries))
    state = _nested(told, metadata)
    return Contents(_outline(path, metadata, told), tensors, state, torch_file.hyperparameters(state))


def places_of(path: Path) -> dict[Path, list[tuple[int, int]]]:
    """Return where the parts of the checkpoint at ``path`` lie: by file, each offset and size, whatever they hold.

    Raises:
        NotACheckpointError: it is half-written, or its metadata malformed.
        OSError: it cannot be read.

    """
    places = _read_metadata(path).places
    _check_all_whole(path, places)
    found: dict[Path, list[tuple[int, int]]] = {}
    for place in sorted(places.values()):
        found.setdefault(path / place.file, []).append((place.offset, place.size_bytes))
    return found


def archives(path: Path) -> tuple[dict[str, dict[tuple[int, int], str]], list[str]]:
    """Return where in each file of the checkpoint at ``path`` an archive lies, (offset, size), and of which entry.

    With the files in which something else lies: what was compressed or the like. Of the rest, all are archives if one
    is: ``torch.save`` has stored them all, or none of them. Raises what ``outline`` raises.
    """
    found: dict[str, dict[tuple[int, int], str]] = {}
    others: set[str] = set()
    is_torchs = False
    for (name, _), place in _read_metadata(path).places.items():
        if place.is_transformed:
            others.add(place.file)
            continue
        found.setdefault(place.file, {})[place.offset, place.size_bytes] = name
        with opened(path / place.file) as descriptor:
            is_torchs = is_torchs or _is_archive(descriptor, place)
    return (found, sorted(others)) if is_torchs else ({}, sorted(others | found.keys()))


def _at_top(metadata: _Metadata) -> Iterator[str]:
    """Yield the names of the entries that may be counts and metrics: values and scalars at the top of the state."""
    for name, described in metadata.entries.items():
        first, *more = metadata.keys_of(name)
        is_top = not more or (first == torch_file.METRICS and len(more) == 1)
        if is_top and (described is None or not described.shape):
            yield name


def _outline(path: Path, metadata: _Metadata, told: Mapping[str, Any]) -> Outline:
    names = set(_at_top(metadata))
    top = _nested({name: value for name, value in told.items() if name in names}, metadata)
    return Outline(
        path,
        Format.DCP,
        size_bytes(path),
        os.stat(path / METADATA).st_mtime,
        torch_file.count(top, torch_file.STEPS),
        torch_file.count(top, torch_file.EPOCHS),
        torch_file.metrics(top),
    )


def _nested(told: Mapping[str, Any], metadata: _Metadata) -> dict[Any, Any]:
    """Return the state in which the entries lie below the keys that their names were made of."""
    state = _Node()
    for name, value in told.items():
        *above, last = metadata.keys_of(name)
        place = state
        for key in above:
            place = place.setdefault(key, _Node()) if type(place) is _Node else place
        if type(place) is not _Node or last in place:
            raise NotACheckpointError(f"{METADATA}: damaged, or forged: {shortened(name)!r} lies within another entry")
        place[last] = value
    return {key: _with_lists(value) for key, value in state.items()}


class _Node(dict[Any, Any]):
    """A dictionary or a list that was taken apart."""


def _with_lists(value: Any) -> Any:
    """Return what was taken apart as what it was: what has the numbers of a list for keys as one."""
    if type(value) is not _Node:
        return value
    inner = {key: _with_lists(found) for key, found in value.items()}
    is_list = all(type(key) is int for key in inner) and sorted(inner) == list(range(len(inner)))
    return [inner[index] for index in range(len(inner))] if is_list else inner


# The metadata.


def _read_metadata(path: Path) -> _Metadata:
    if not os.path.lexists(path / METADATA):
        raise NotACheckpointError(
            f"half-written: {METADATA}, which is written last, is not there. Take another checkpoint"
        )
    with named(METADATA):
        data = read_whole(path / METADATA, walk.LIMIT_BYTES)
        steps = walk.Walk(data, {}, most_opcodes=_MOST_OPCODES)
        problem = steps.run()
        if problem:
            raise NotACheckpointError(f"damaged, or cut off: at byte {steps.at}, {problem}. Take another checkpoint")
        if type(steps.made) is not Object or steps.made.name != _KIND:
            raise NotACheckpointError("none that torch.distributed.checkpoint writes")
        try:
            return _metadata(attributes(steps.made))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, RefusedError):
            raise NotACheckpointError("malformed: damaged, or of a version that is not known here") from None


def _metadata(told: Mapping[str, Any]) -> _Metadata:
    """Return what the attributes of the metadata tell; a KeyError, TypeError or ValueError if they do not."""
    entries = {name: _described(entry) for name, entry in _mapping(told["state_dict_metadata"]).items()}
    if not all(type(name) is str for name in entries):
        raise TypeError
    places = dict(_place(key, info) for key, info in _mapping(told["storage_data"]).items())
    keys = told.get("planner_data")
    return _Metadata(entries, places, keys if type(keys) is dict else {})


def _mapping(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise TypeError
    return value


def _described(entry: Any) -> _Described | None:
    if type(entry) is not Object or entry.name != _TENSOR:
        return None
    told = attributes(entry)
    (dtype, *_) = told["properties"].state
    chunks = [attributes(chunk) for chunk in told["chunks"]]
    parts = tuple((_shape(chunk["offsets"]), _shape(chunk["sizes"])) for chunk in chunks)
    shape = _shape(told["size"])
    for start, sizes in parts:
        if any(at + size > whole for at, size, whole in zip(start, sizes, shape, strict=True)):
            raise ValueError
    if type(dtype) is not Global:
        raise TypeError
    return _Described(str(dtype).removeprefix("torch."), shape, parts)


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > _MOST_DIMENSIONS:
        raise TypeError
    if any(type(size) is not int or not 0 <= size < 1 << 62 for size in value):
        raise ValueError
    return value


def _place(key: Any, info: Any) -> tuple[_Key, _Place]:
    index, told = attributes(key), attributes(info)
    name, start = index["fqn"], index.get("offset")
    place = _Place(told["relative_path"], told["offset"], told["length"], bool(told.get("transform_descriptors")))
    if type(name) is not str or not is_file_name(place.file) or type(place.offset) is not int:
        raise TypeError
    if type(place.size_bytes) is not int or min(place.offset, place.size_bytes) < 0:
        raise ValueError
    return (name, None if start is None else _shape(start)), place


def _is_at_top(metadata: _Metadata, key: _Key) -> bool:
    keys = metadata.keys.get(key[0])
    return metadata.entries.get(key[0]) is None and (len(keys) == 1 if type(keys) is tuple else "." not in key[0])


# The parts.


def _read_all(path: Path, places: Mapping[_Key, _Place], wanted: Mapping[_Key, _Place]) -> dict[_Key, Any]:
    """Return what a walk through each part that is ``wanted`` makes of it.

    Every file must be there, and as long as it is said to be, also those of which nothing is wanted.
    """
    _check_all_whole(path, places)
    by_file: dict[str, list[_Key]] = {}
    for key, place in wanted.items():
        by_file.setdefault(place.file, []).append(key)
    made: dict[_Key, Any] = {}
    for file, keys in by_file.items():
        with named(file), opened(path / file) as descriptor:
            made |= {key: _part(path / file, descriptor, wanted[key]) for key in keys}
    return made


def _check_all_whole(path: Path, places: Mapping[_Key, _Place]) -> None:
    ends: dict[str, int] = {}
    for place in places.values():
        ends[place.file] = max(ends.get(place.file, 0), place.offset + place.size_bytes)
    for file, end in sorted(ends.items()):
        _check_whole(path / file, end)


def _check_whole(path: Path, end: int) -> None:
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        raise NotACheckpointError(
            f"half-written, or a copy that broke off: {shortened(path.name)!r} is not there. Take another checkpoint"
        ) from None
    if size < end:
        raise NotACheckpointError(
            f"half-written, or a copy that broke off: {shortened(path.name)!r} has {size} bytes where {end} are spoken "
            "of. Take another checkpoint"
        )


def _part(path: Path, descriptor: int, place: _Place) -> Any:
    """Return what a walk through the file of ``torch.save`` that lies at a place makes of it, if it is one."""
    if not _is_archive(descriptor, place):
        return Object(_ELSEWISE)
    archive = Archive(Source(descriptor, place.offset, place.size_bytes))
    storages = torch_file.storages_of(archive, path)
    return torch_file.walked(archive.read(torch_file.PICKLE, walk.LIMIT_BYTES), storages)


def _is_archive(descriptor: int, place: _Place) -> bool:
    """Tell whether an archive lies at a place: by how it begins or, where that is damaged, by how it ends."""
    if place.is_transformed or place.size_bytes < _END_BYTES:
        return False
    head = os.pread(descriptor, len(foreign.ZIP), place.offset)
    end = os.pread(descriptor, len(_END), place.offset + place.size_bytes - _END_BYTES)
    return head == foreign.ZIP or end == _END


# What they are.


def _told(metadata: _Metadata, made: Mapping[_Key, Any], names: set[str]) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """Return those of the entries that are called ``names``, and the tensors in them."""
    told: dict[str, Any] = {}
    tensors: list[Tensor] = []
    for name, described in metadata.entries.items():
        if name in names and described is None:
            told[name], inner = _value(name, made)
            tensors += inner
        elif name in names and described is not None:
            told[name] = _tensor(name, described, made)
            tensors.append(told[name])
    return told, tuple(tensors)


def _value(name: str, made: Mapping[_Key, Any]) -> tuple[Any, tuple[Tensor, ...]]:
    """Return an entry that is no tensor, and the tensors in it."""
    if (name, None) not in made:
        raise NotACheckpointError(f"{METADATA}: damaged, or forged: it does not say where {shortened(name)!r} lies")
    found = made[name, None]
    if type(found) is Object and found.name == _ELSEWISE:
        return Opaque(_ELSEWISE), ()
    return torch_file.tree_of(found, name)


def _tensor(name: str, described: _Described, made: Mapping[_Key, Any]) -> Tensor:
    parts: list[Part] = []
    for start, shape in described.parts:
        found = made.get((name, start))
        if found is None:
            raise NotACheckpointError(f"{METADATA}: damaged, or forged: it does not say where {shortened(name)!r} lies")
        if type(found) is not Array or found.part is None:
            return Tensor(name, described.dtype, described.shape, (), _ELSEWISE)
        if (found.dtype, found.shape) != (described.dtype, shape):
            raise NotACheckpointError(f"{shortened(name)!r} is not what {METADATA} says: damaged, or forged")
        parts.append(replace(found.part, start=start))
    return Tensor(name, described.dtype, described.shape, tuple(parts))
