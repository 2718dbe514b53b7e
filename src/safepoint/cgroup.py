"""What the control groups of this process still let it take of memory, in both versions; nested groups each count.

Owns the formats of ``/proc/self/cgroup``, ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)) and of the groups' files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class _Version:
    """How a version names things; ``reclaimable`` is what ``memory.stat`` calls page cache that nobody is using."""

    file_system: str
    limits: tuple[str, ...]
    usage: str
    reclaimable: str


_V1 = _Version("cgroup", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("cgroup2", ("memory.max", "memory.high"), "memory.current", "inactive_file")


def left_bytes(proc: Path) -> Iterator[int]:
    """Yield what each limit on this process leaves, page cache that can be reclaimed included; nothing if unlimited.

    Where the group itself cannot be seen (its hierarchy is mounted from another one), the mounted one speaks for it.
    """
    for version, path in _memberships(proc):
        for root, mounted in _mounts(proc, version):
            group = mounted / path.relative_to(root) if path.is_relative_to(root) else mounted
            yield from _left_from(group, version)


def _memberships(proc: Path) -> Iterator[tuple[_Version, PurePosixPath]]:
    """Yield the group of each hierarchy that limits memory, from lines ``number:controllers:path``."""
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield _V2, PurePosixPath(path)
        elif "memory" in controllers.split(","):
            yield _V1, PurePosixPath(path)


def _mounts(proc: Path, version: _Version) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield (the group that is mounted, where) of the hierarchy."""
    for line in _lines(proc / "self" / "mountinfo"):
        place, _, kind = line.partition(" - ")
        file_system, _, options = kind.split(" ", 2)
        if file_system == version.file_system and (version is _V2 or "memory" in options.split(",")):
            root, mounted = place.split(" ")[3:5]
            yield PurePosixPath(root), Path(mounted)


def _left_from(group: Path, version: _Version) -> Iterator[int]:
    for directory in (group, *group.parents):  # above the root of the hierarchy there are no such files
        limits = [int(found) for name in version.limits for found in _lines(directory / name) if found.isdecimal()]
        used = [int(found) for found in _lines(directory / version.usage)]
        if limits and used:
            yield min(limits) - used[0] + _reclaimable_bytes(directory, version)


def _reclaimable_bytes(directory: Path, version: _Version) -> int:
    pairs = (line.partition(" ") for line in _lines(directory / "memory.stat"))
    return next((int(value) for name, _, value in pairs if name == version.reclaimable), 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no such group, controller or file, or none of our business
        return []
