"""Where checkpoints lie: the seam between the pipeline and a medium.

``local`` is a directory on a POSIX file system; ``memory`` is a double for tests, with failpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A chunk whose bytes lie at ``offset`` of the durable checkpoint ``source`` already, as far as is known.

    A store may take them from there instead of writing ``data``, if it makes sure that they are the same.
    """

    data: memoryview
    source: str
    offset: int

    def __len__(self) -> int:
        """Return the number of bytes."""
        return len(self.data)


Chunk = bytes | memoryview | Unchanged
Check = Callable[[int], None]
"""Looks at an open file, by its descriptor, and raises an OSError if it is not what it should be."""
IsOwn = Callable[[int], bool]
"""Looks at an open file, by its descriptor, and tells whether it is the caller's to remove or to replace."""
Replace = bool | IsOwn
"""Whether a name may be taken from what has it: never, whatever that is, or if a look at it says so."""
NOTE_LIMIT_BYTES = 4096


class Store(Protocol):
    """What the pipeline asks of a medium; names are relative, with ``/`` between parts.

    A protocol, so that the writer's order (write, name, remove) is written once and tested without a disk.
    """

    def write(
        self, name: str, chunks: Iterable[Chunk], size_bytes: int, *, replace: Replace, check: Check | None = None
    ) -> int:
        """Make ``chunks`` (``size_bytes`` in all) durable under ``name``, all or nothing.

        ``check`` is asked when the bytes are on the medium, before they get their name. What has been written is held,
        as by ``claim``, in the place of what was held before.

        Returns how many bytes were written; the others are shared with an older checkpoint.

        Raises FileExistsError if the name is taken and ``replace`` says no; any other OSError leaves nothing behind.
        """

    def link(self, target: str, name: str, *, replace: Replace = True) -> None:
        """Give the durable checkpoint ``target`` a second name, durably; it replaces what had it, in one step.

        Raises:
            FileExistsError: something has the name, and ``replace`` says no.

        """

    def symlink(self, target: str, name: str, *, replace: Replace = True) -> None:
        """Let ``name`` point to ``target``, durably; replaces and raises as ``link`` does."""

    def remove(self, name: str, *, is_own: IsOwn | None = None) -> bool:
        """Remove ``name``, unless ``is_own`` says no to what has it; return whether it is gone, as it may be before."""

    def sync(self, name: str) -> None:
        """Make durable whether ``name`` is there: what was removed may be back after a power cut until then."""

    def note(self, name: str, data: bytes) -> None:
        """Make a few bytes durable under ``name``, all or nothing, in the place of what has it; nothing is held."""

    def noted(self, name: str) -> bytes | None:
        """Return what ``note`` has put under ``name``, ``NOTE_LIMIT_BYTES`` of it at most; ``None`` if nothing is.

        Raises:
            OSError: something is there that cannot be read, or is no file.

        """

    def claim(self, name: str) -> bool:
        """Hold the checkpoint ``name`` for as long as this process lives, unless another holds it; return whether."""

    def let_go(self) -> None:
        """Hold no checkpoint any more."""

    def free_bytes(self) -> int | None:
        """Return how much room there is for further checkpoints, ``None`` where nobody can tell."""
