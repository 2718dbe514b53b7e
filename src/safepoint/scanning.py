"""Whether files are safe to load: what their pickles would import, found out without loading them.

Looks at every pickle that a loader could come to: those in torch's archives, several in a row as in torch's older
files, plain ones, and those in the parts of ``torch.distributed.checkpoint``'s directories. What cannot be looked at to
its end is not safe. Knows files; what a name means is for ``formats.imports`` to say.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safepoint import pickles
from safepoint.archive import Source
from safepoint.calls import Known
from safepoint.errors import CheckpointError, NotACheckpointError
from safepoint.formats import distributed, foreign, imports, safetensors, torch_file
from safepoint.formats.dtypes import BITS, STORAGES
from safepoint.formats.files import opened
from safepoint.formats.opcodes import glance
from safepoint.formats.walk import LIMIT_BYTES, MOST_OPCODES, Walk
from safepoint.formats.zips import Archive

_WINDOWS = (1 << 16, 1 << 23, LIMIT_BYTES)
"""How much of a file is looked at for pickles in a row: more only where they do not end within it."""
_MOST_PICKLES = 1000
_OF_LEGACY = 5
_STORAGE = "data/"
_PICKLE = b"\x80"
_SUFFIX = ".pkl"
_KNOWN = Known(
    {
        **{f"torch.{dtype}": bits for dtype, bits in BITS.items()},
        **{kind: BITS[dtype] for kind, dtype in STORAGES.items()},
    },
    lambda _: False,
)


class Verdict(enum.StrEnum):
    """Say whether a file is safe to load, the worst last.

    Nothing in it is ever unpickled; ``weights_only=True`` allows all that it names; it refuses it for another reason,
    or nobody can tell; it needs classes or functions of somebody's; it names what would run code.
    """

    NOTHING = "nothing"
    SAFE = "safe"
    REFUSED = "refused"
    NEEDS = "needs"
    RUNS = "runs"


What = Literal["torch", "pickle", "safetensors"]
"""What a file is: a file of torch's, a plain pickle or several, or one of safetensors."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What came of looking at one file.

    ``names`` are all that its pickles import, and whether each would be called; among them, ``dangerous`` are those
    known to run code, and ``beyond`` the others that ``weights_only=True`` does not load. ``problems`` are what it
    refuses a pickle for otherwise, or why one cannot be looked at to its end.
    """

    path: Path
    what: What
    verdict: Verdict
    names: Mapping[str, bool] = field(default_factory=dict)
    dangerous: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_safe(self) -> bool:
        """Whether nothing but what torch itself allows would be imported."""
        return self.verdict in (Verdict.NOTHING, Verdict.SAFE)


def scan(path: Path) -> Scanned:
    """Look at the file at ``path``.

    Raises:
        NotACheckpointError: there is no pickle in it, nor anything else that could be a checkpoint.
        OSError: it cannot be read.

    """
    with opened(path) as descriptor:
        head = os.pread(descriptor, foreign.HEAD_BYTES, 0)
        is_archive, is_legacy = head.startswith(foreign.ZIP), foreign.is_legacy(head)
        found = _Found(path, "torch" if is_archive or is_legacy else "pickle")
        if is_archive and path.name.endswith(distributed.SHARD):
            raise NotACheckpointError(f"{path}: a part of a checkpoint that is a directory: give the directory.")
        if is_archive:
            found.archive(Source(descriptor))
        elif not head.startswith(_PICKLE) and foreign.is_tar(head):
            found.problems.append(foreign.TAR)
        elif not found.pickles_in_a_row(descriptor, head, is_legacy=is_legacy):
            if safetensors.may_be_one(head):
                return Scanned(path, "safetensors", Verdict.NOTHING)
            raise NotACheckpointError(f"{path}: {foreign.told(head)}.")
        return found.scanned()


def scan_below(directory: Path, on_error: Callable[[OSError], object]) -> Iterator[Scanned]:
    """Look at every file in ``directory`` and below, in order; what holds no pickle, or is gone, is passed over.

    ``on_error`` is told of what cannot be read: files, and directories; the others are looked at.
    """
    for place, folders, names in os.walk(directory, onerror=on_error):
        folders.sort()
        parts = set(map(Path(place).joinpath, filter(lambda name: name.endswith(distributed.SHARD), names)))
        if distributed.METADATA in names and parts:
            yield _scan_parts(Path(place))
        for path in sorted(set(map(Path(place).joinpath, names)) - parts):
            try:
                yield scan(path)
            except (NotACheckpointError, FileNotFoundError):  # a run that goes on removes what is superseded
                continue
            except OSError as error:
                on_error(error)


def _scan_parts(directory: Path) -> Scanned:
    """Look at the parts that the metadata of a directory names: they are unpickled one by one."""
    found = _Found(directory, "torch")
    try:
        for path, places in distributed.places_of(directory).items():
            with opened(path) as descriptor:
                for offset, size_bytes in places:
                    found.part(descriptor, offset, size_bytes)
    except CheckpointError as error:
        found.problems.append(str(error))
    return found.scanned()


class _Found:
    """What has been found in a file so far."""

    def __init__(self, path: Path, what: What) -> None:
        self.path = path
        self.what = what
        self.names: dict[str, bool] = {}
        self.problems: list[str] = []

    def scanned(self) -> Scanned:
        """Return it, with the verdict."""
        allowed = imports.ALLOWED | (imports.OF_METADATA if self.path.name == distributed.METADATA else frozenset())
        dangerous = sorted(filter(imports.is_dangerous, self.names))
        beyond = sorted(set(self.names) - allowed - set(dangerous))
        verdict = Verdict.REFUSED if self.problems else Verdict.SAFE
        verdict = Verdict.NEEDS if beyond else verdict
        verdict = Verdict.RUNS if dangerous else verdict
        problems = tuple(dict.fromkeys(self.problems))
        return Scanned(self.path, self.what, verdict, self.names, tuple(dangerous), tuple(beyond), problems)

    def take(self, walk: Walk, problem: str, name: str = "") -> None:
        """Take in what a walk has met, and what was wrong with it: then also the names behind that."""
        for found, is_called in walk.names.items():
            self.names[str(found)] = self.names.get(found, False) or is_called
        where = f"{name}: " if name else ""
        if problem:
            self.problems.append(f"{where}at byte {walk.at}, {problem}")
            for found in glance(walk.data, walk.start, walk.most_opcodes)[0]:
                self.names.setdefault(found, False)
        elif self.what == "torch" and (unknown := sorted(walk.opcodes - imports.OPCODES)):
            self.problems.append(f"{where}pickled in a way that weights_only=True does not read ({', '.join(unknown)})")

    def pickle(self, data: bytes, name: str = "") -> None:
        """Look at one pickle."""
        walk = Walk(data)
        self.take(walk, walk.run(), name)

    def archive(self, source: Source) -> None:
        """Look at the pickles in an archive: not in a program's, which torch takes for no pickles of Python's."""
        try:
            archive = Archive(source)
            torch_file.check_kind(archive)
            for name in archive.records:
                if name.endswith(_SUFFIX) or self._may_be_pickle(archive, source, name):
                    self.pickle(archive.read(name, LIMIT_BYTES), name)
            self._check(archive)
        except CheckpointError as error:
            self.problems.append(str(error))

    def _may_be_pickle(self, archive: Archive, source: Source, name: str) -> bool:
        if name.startswith(_STORAGE) or not archive.records[name].is_plain:
            return False
        start, size_bytes = archive.place(name)
        return source.read(start - source.start, min(size_bytes, 1)) == _PICKLE

    def _check(self, archive: Archive) -> None:
        """Have the pickle looked at as before a load, for what exhausts the unpickler though it names nothing."""
        if self.problems or not imports.ALLOWED.issuperset(self.names):
            return
        sizes: list[int] = []
        while record := archive.records.get(f"{_STORAGE}{len(sizes)}"):
            sizes.append(record.size_bytes)
        pickles.check(archive.read(torch_file.PICKLE, LIMIT_BYTES), sizes, _KNOWN)

    def part(self, descriptor: int, offset: int, size_bytes: int) -> None:
        """Look at what lies at a place in a file of parts: an archive, a pickle, or plain data."""
        head = os.pread(descriptor, len(foreign.ZIP), offset)
        if head == foreign.ZIP:
            self.archive(Source(descriptor, offset, size_bytes))
        elif head.startswith(_PICKLE):
            self.pickle(os.pread(descriptor, min(size_bytes, LIMIT_BYTES), offset))

    def pickles_in_a_row(self, descriptor: int, head: bytes, *, is_legacy: bool) -> bool:
        """Look at the pickles with which a file begins; tell whether it does begin with one.

        What is behind the last is data, unless it would call something before it turns out to be no pickle.
        """
        size_bytes = os.fstat(descriptor).st_size
        most = _OF_LEGACY if is_legacy else _MOST_PICKLES
        for window in _WINDOWS:
            data = os.pread(descriptor, window, 0)
            walks = _walks(data, most)
            if len(data) == size_bytes or not walks or not _goes_on(walks[-1][0]):
                break
        marked = is_legacy or not safetensors.may_be_one(head)
        meant = [(walk, problem) for walk, problem in walks if not problem or _is_meant(walk, is_marked=marked)]
        for walk, problem in meant:
            self.take(walk, problem)
        if is_legacy and len(walks) < _OF_LEGACY:
            self.problems.append("it breaks off behind its first pickles")
        if len(walks) == _MOST_PICKLES:
            self.problems.append("absurdly many pickles in a row")
        return bool(meant)


def _goes_on(walk: Walk) -> bool:
    """Tell whether what the last of several walks has come to may go on where its bytes end."""
    return walk.is_cut_off or walk.end == len(walk.data)


def _is_meant(walk: Walk, *, is_marked: bool) -> bool:
    """Tell whether what a walk could not walk through is a pickle, or calls something on the way to where it is none.

    ``is_marked``: the byte with which most begin tells something; files of safetensors begin with any.
    """
    if is_marked and walk.data.startswith(_PICKLE, walk.start):
        return True
    return glance(walk.data, walk.start, walk.most_opcodes)[1]


def _walks(data: bytes, most: int) -> list[tuple[Walk, str]]:
    """Walk through the pickles in a row in ``data``, up to the first that is none."""
    walks: list[tuple[Walk, str]] = []
    end, steps = 0, 0
    while end < len(data) and len(walks) < most and (not walks or not walks[-1][1]):
        walk = Walk(data, start=end, most_opcodes=MOST_OPCODES - steps)
        walks.append((walk, walk.run()))
        end, steps = walk.end, steps + walk.count
    return walks
