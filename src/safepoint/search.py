"""Where in a tree of files checkpoints may be, told by names and first bytes; what is in them is for others to read.

A directory that is one checkpoint (``torch.distributed.checkpoint``'s, a Hugging Face ``checkpoint-*``) is found as one
and not looked into. Many files are called ``.bin`` or ``.pt``: those are found that begin as torch begins its own, or
end so and begin damaged.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import NamedTuple

from safepoint import archive
from safepoint.errors import CheckpointError
from safepoint.naming import EXTENSION, PIN_SUFFIX, TEMPORARY_PREFIX

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR)
_NOTHING_BELOW = (*_NOTHING_THERE, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
_SAFETENSORS = ".safetensors"
_TORCHS_AND_OTHERS = (".pt", ".pth", ".bin")
_ZIP = b"PK\x03\x04"
_ZIPS_END, _ZIPS_END_BYTES = b"PK\x05\x06", 22
_ZEROS = bytes(4)  # what a crash leaves of a file whose bytes were not yet on disk
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled: before 1.6
_PICKLE = b"\x80"
_SHARD = ".distcp"
_METADATA = ".metadata"
_TRAINERS_DIRECTORY = re.compile(r"checkpoint-\d+")
_TRAINERS_FILES = {"trainer_state.json", "training_args.bin", "config.json", "adapter_config.json"}


class Found(NamedTuple):
    """What is called like a checkpoint of Safepoint's, and what else may be one: files and directories.

    ``pins`` is what is called like a pin.
    """

    named_as_ours: list[Path]
    others: list[Path]
    pins: frozenset[Path] = frozenset()


def found_below(directory: Path) -> Found:
    """Look through ``directory``; return what was found, sorted.

    Temporaries are none. A symbolic link is followed as a file, never as a directory; directories that are hidden, or
    that we may not list, have nothing to show.

    Raises:
        OSError: ``directory`` cannot be read: what is in it must not be taken for nothing.

    """
    ours: list[str] = []
    others: list[str] = []
    pins: set[Path] = set()
    top = str(directory)
    pending = [top]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(place) as entries:
                listed = list(entries)
        except OSError as error:
            if error.errno not in (_NOTHING_THERE if place == top else _NOTHING_BELOW):
                raise
            continue
        if place != top and is_checkpoint(Path(place), [entry.name for entry in listed]):
            others.append(place)
            continue
        if place != top and place.endswith(EXTENSION):
            ours.append(place)  # it is no file, and is to be named
        pins.update(Path(entry.path) for entry in listed if entry.name.endswith(PIN_SUFFIX))
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                pending += () if entry.name.startswith(".") else (entry.path,)
            elif entry.name.endswith(EXTENSION):
                ours += (entry.path,) if _may_be_ours(entry) else ()
            elif _may_be_one(entry):
                others.append(entry.path)
    return Found([*map(Path, sorted(ours))], [*map(Path, sorted(others))], frozenset(pins))


def is_checkpoint(directory: Path, names: list[str]) -> bool:
    """Tell whether ``directory``, with ``names`` in it, is one checkpoint, whole or half-written."""
    if any(name.endswith(_SHARD) for name in names):
        return True
    if _METADATA in names:
        return _begins_with(directory / _METADATA, (_PICKLE,))
    return bool(_TRAINERS_DIRECTORY.fullmatch(directory.name)) and not _TRAINERS_FILES.isdisjoint(names)


def _may_be_ours(entry: os.DirEntry[str]) -> bool:
    """Tell whether what is called ``.ckpt`` and is no directory is to be read, or named as what cannot be."""
    return not entry.name.startswith(TEMPORARY_PREFIX) and not (entry.is_symlink() and os.path.isdir(entry.path))


def _may_be_one(entry: os.DirEntry[str]) -> bool:
    """Tell whether what is not called ``.ckpt`` may be a checkpoint; hidden files are none.

    An empty one may be, which somebody was about to write, and one that we may not read; but not a ``.bin``, which may
    be anything.
    """
    if entry.name.startswith(".") or not entry.name.endswith((_SAFETENSORS, *_TORCHS_AND_OTHERS)):
        return False
    try:
        if not entry.is_file() or entry.name.endswith(_SAFETENSORS):
            return entry.is_file()
        if not entry.stat().st_size:  # a file of the kernel's, which must not be read, or one that was cut off
            return not entry.name.endswith(".bin")
    except OSError:
        return False
    path, is_bin = Path(entry.path), entry.name.endswith(".bin")
    if _begins_with(path, (_ZIP, _LEGACY) if is_bin else (_ZIP, _LEGACY, _ZEROS), _ZIPS_END):
        return True
    return not is_bin and not os.access(path, os.R_OK)


def _begins_with(path: Path, beginnings: tuple[bytes, ...], end: bytes | None = None) -> bool:
    """Tell whether a file begins with one of ``beginnings``, or its last ``_ZIPS_END_BYTES`` with ``end``."""
    try:
        descriptor = archive.open_regular(path)
        try:
            if os.pread(descriptor, max(map(len, beginnings)), 0).startswith(beginnings):
                return True
            last = os.fstat(descriptor).st_size - _ZIPS_END_BYTES
            return end is not None and last > 0 and os.pread(descriptor, len(end), last) == end
        finally:
            os.close(descriptor)
    except (OSError, CheckpointError):
        return False
