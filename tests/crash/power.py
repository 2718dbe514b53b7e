"""What a disk may hold after a power cut, built from a log of everything that was done to it.

In the spirit of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014) and of CrashMonkey (Mohan et
al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing", OSDI 2018): the program runs once, on a real
file system; what a cut at any moment may leave is computed. The disk is the worst that POSIX allows, worse than any in
use. Of what was not fsynced each page may be there or not or be torn, and so may the file's size. A name that was
given, changed or taken away since its directory was fsynced may be so or not, each by itself; only a rename is one. A
directory is there only if the one above was fsynced. After an fsync that failed, what it was to bring is gone for ever,
and the next one says nothing of it (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from disks import SteppedDisk

PAGE_BYTES = 4096
SECTOR_BYTES = 512
File = int
DIRECTORY = "a directory"
Node = File | str
"""What a name means: a file by its number, a symbolic link by its target, or ``DIRECTORY``."""
Change = dict[str, Node | None]
"""What one step makes of some names of one directory, ``None`` for those it takes away."""
Tree = dict[Path, bytes | str]
"""Every name on a disk: the bytes of a file, the target of a symbolic link, or ``DIRECTORY``."""


@dataclass
class Disk:
    """What is certain to be on a disk, and what may have come to it since: built step by step."""

    bytes: dict[File, bytes] = field(default_factory=dict)
    writes: dict[File, list[tuple[int, bytes]]] = field(default_factory=dict)
    names: dict[Path, dict[str, Node]] = field(default_factory=dict)
    changes: dict[Path, list[Change]] = field(default_factory=dict)
    acknowledged: dict[str, float] = field(default_factory=dict)

    def written(self, file: File, offset: int, data: bytes) -> None:
        """Take in that ``data`` was written, or space reserved: zeros."""
        self.writes.setdefault(file, []).append((offset, data))

    def synced(self, file: File) -> None:
        """Take in that the bytes of ``file`` are on the disk."""
        content = bytearray(self.bytes.get(file, b""))
        for offset, data in self.writes.pop(file, []):
            content[len(content) :] = bytes(max(0, offset + len(data) - len(content)))
            content[offset : offset + len(data)] = data
        self.bytes[file] = bytes(content)

    def sync_failed(self, file: File) -> None:
        """Take in that what was written to ``file`` will never be on the disk."""
        self.writes.pop(file, None)

    def named(self, directory: Path, change: Change) -> None:
        """Take in that names in ``directory`` have changed."""
        self.changes.setdefault(directory, []).append(change)

    def synced_directory(self, directory: Path) -> None:
        """Take in that the names in ``directory`` are as they were meant to be."""
        self.names[directory] = _changed(self.names.get(directory, {}), self.changes.pop(directory, []))

    def told(self, acknowledged: dict[str, float]) -> None:
        """Take in that these were said to be durable."""
        self.acknowledged = acknowledged


def _changed(names: dict[str, Node], changes: list[Change]) -> dict[str, Node]:
    merged = dict[str, Node | None](names)
    for change in changes:
        merged |= change
    return {name: node for name, node in merged.items() if node is not None}


Event = Callable[[Disk], None]


class RecordingDisk(SteppedDisk):
    """Log what is done below ``base``; ``events``, done to a ``Disk`` one after another, tell what that has then.

    ``failing_sync``: which of the syncs of files, counted from 0, fails as a disk does that has lost the bytes.
    """

    def __init__(self, base: Path, medium: str = "unnamed", failing_sync: int = -1) -> None:
        super().__init__(medium)
        self.events: list[Event] = []
        self._base = base
        self._failing_sync = failing_sync
        self._syncs = 0
        self._files = 0
        self._inodes: dict[int, File] = {}
        self._lengths: dict[File, int] = {}
        self._nodes: dict[Path, Node] = {}

    def told(self, acknowledged: dict[str, float]) -> None:
        """Log that these were said to be durable: names, with times of capture."""
        held = dict(acknowledged)
        self.events.append(lambda disk: disk.told(held))

    def before(self, step: str, *arguments: Any) -> None:
        """Log a chunk that is about to be written, or let a sync fail."""
        if step == "chunk":
            descriptor, chunk = arguments
            data = bytes(getattr(chunk, "data", chunk))
            file = self._file(descriptor)
            offset = self._lengths[file]
            self._lengths[file] += len(data)
            self.events.append(lambda disk: disk.written(file, offset, data))
        elif step == "sync":
            self._syncs += 1
            if self._syncs - 1 == self._failing_sync:
                file = self._file(arguments[0])
                self.events.append(lambda disk: disk.sync_failed(file))
                raise OSError(5, os.strerror(5))

    def after(self, step: str, result: Any, *arguments: Any) -> None:
        """Log what was done."""
        log = getattr(self, f"_log_{step}", None)
        if log is not None:
            log(result, *arguments)

    def _log_make_directory(self, _: None, path: Path) -> None:
        if self._nodes.get(path) != DIRECTORY:
            self._name(path.parent, {path: DIRECTORY})

    def _log_create(self, descriptor: int, path: Path) -> None:
        self._log_create_unnamed(descriptor, path.parent)
        self._name(path.parent, {path: self._file(descriptor)})

    def _log_create_unnamed(self, descriptor: int, _: Path) -> None:
        self._files += 1
        self._inodes[os.fstat(descriptor).st_ino] = self._files
        self._lengths[self._files] = 0

    def _log_reserve(self, _: None, descriptor: int, size_bytes: int) -> None:
        file, data = self._file(descriptor), bytes(size_bytes)
        self.events.append(lambda disk: disk.written(file, 0, data))

    def _log_sync(self, _: None, descriptor: int) -> None:
        file = self._file(descriptor)
        self.events.append(lambda disk: disk.synced(file))

    def _log_link(self, _: None, source: Path | int, name: Path) -> None:
        self._name(name.parent, {name: self._file(source) if isinstance(source, int) else self._nodes[source]})

    def _log_symlink(self, _: None, target: str, name: Path) -> None:
        self._name(name.parent, {name: target})

    def _log_rename(self, _: None, source: Path, name: Path) -> None:
        if self._nodes[source] != self._nodes.get(name):  # between two names of one file, rename does nothing
            self._name(name.parent, {source: None, name: self._nodes[source]})

    def _log_unlink(self, _: None, path: Path) -> None:
        if path in self._nodes:
            self._name(path.parent, {path: None})

    def _log_sync_directory(self, _: None, directory: Path) -> None:
        if directory.is_relative_to(self._base):
            self.events.append(lambda disk: disk.synced_directory(directory.relative_to(self._base)))

    def _file(self, descriptor: int) -> File:
        return self._inodes[os.fstat(descriptor).st_ino]

    def _name(self, directory: Path, change: dict[Path, Node | None]) -> None:
        self._nodes |= {path: node for path, node in change.items() if node is not None}
        for path in [path for path, node in change.items() if node is None]:
            self._nodes.pop(path, None)
        below, names = directory.relative_to(self._base), {path.name: node for path, node in change.items()}
        self.events.append(lambda disk: disk.named(below, names))


@dataclass(frozen=True)
class Fate:
    """What becomes, in a power cut, of what is not certain.

    ``changes``: which of so many changes of a directory's names are there. ``size``: the size of a file between what it
    is for certain and what it was to be. ``has``: whether a page, by its number, is there; ``None``: its first sector.
    """

    changes: Callable[[int], list[bool]]
    size: Callable[[int, int], int] = lambda _, new: new
    has: Callable[[int], bool | None] = lambda _: True


NOTHING = Fate(lambda count: [False] * count, lambda old, _: old, lambda _: False)
EVERYTHING = Fate(lambda count: [True] * count)
CONTENTS = (
    NOTHING,
    EVERYTHING,
    Fate(EVERYTHING.changes, EVERYTHING.size, NOTHING.has),  # zeros
    Fate(EVERYTHING.changes, EVERYTHING.size, lambda page: page % 2 == 0),
)
"""The extremes of what a file may be that was not fsynced."""


def every(disk: Disk) -> Iterator[Fate]:
    """Yield every choice of the names on ``disk`` that are not certain, each with all that files may be."""
    count = sum(map(len, disk.changes.values()))
    for there in itertools.product((False, True), repeat=count):
        for content in CONTENTS:
            bits = iter(there)
            yield replace(content, changes=lambda count, bits=bits: list(itertools.islice(bits, count)))


def by_chance(seed: int) -> Fate:
    """Return a fate that ``seed`` decides."""
    chance = random.Random(seed)
    names, pages = chance.choice((0.2, 0.5, 0.8)), chance.choice((0.1, 0.5, 0.9))
    return Fate(
        lambda count: [chance.random() < names for _ in range(count)],
        lambda old, new: chance.choice((old, new, chance.randint(old, max(old, new)))),
        lambda _: None if chance.random() < 0.1 else chance.random() < pages,
    )


def after_cut(disk: Disk, fate: Fate) -> Tree:
    """Return what is found on ``disk`` after a power cut."""
    contents: dict[File, bytes] = {}

    def found(below: Path) -> Iterator[tuple[Path, bytes | str]]:
        changes = disk.changes.get(below, [])
        there = [change for change, is_there in zip(changes, fate.changes(len(changes)), strict=True) if is_there]
        for name, node in sorted(_changed(disk.names.get(below, {}), there).items()):
            if isinstance(node, File) and node not in contents:
                contents[node] = _content(disk, node, fate)
            yield below / name, contents[node] if isinstance(node, File) else node
            if node == DIRECTORY:
                yield from found(below / name)

    return dict(found(Path()))


def _content(disk: Disk, file: File, fate: Fate) -> bytes:
    old = disk.bytes.get(file, b"")
    writes = disk.writes.get(file, [])
    if not writes:
        return old
    full = Disk({file: old}, {file: list(writes)})
    full.synced(file)
    new = full.bytes[file]
    size_bytes = fate.size(len(old), len(new))
    pages = (_page(old, new, start, fate.has(start // PAGE_BYTES)) for start in range(0, size_bytes, PAGE_BYTES))
    return b"".join(pages)[:size_bytes]


def _page(old: bytes, new: bytes, start: int, has: bool | None) -> bytes:  # noqa: FBT001 - see Fate
    before, after = (data[start : start + PAGE_BYTES].ljust(PAGE_BYTES, b"\0") for data in (old, new))
    if has is None:
        return after[:SECTOR_BYTES] + before[SECTOR_BYTES:]
    return after if has else before


def materialised(tree: Tree, base: Path) -> None:
    """Make ``base`` hold what ``tree`` says."""
    base.mkdir()
    for path, held in tree.items():
        if held == DIRECTORY:
            (base / path).mkdir()
        elif isinstance(held, str):
            (base / path).symlink_to(held)
        else:
            (base / path).write_bytes(held)
