"""Whether there is room for the checkpoints to come: sentences from numbers, without a disk.

A save needs its whole room before anything older goes, so that old and new are there at once for a while.
"""

from __future__ import annotations

from pathlib import Path


def shortage_at_start(
    directory: Path, free_bytes: int, size_bytes: int, *, at_most: int | None, held_bytes: int
) -> str | None:
    """Return what to say if a run will run out of room, ``None`` if it will not as far as can be told.

    ``at_most`` is how many checkpoints of ``size_bytes`` the run keeps, if that is bounded; ``held_bytes`` is what
    those take that it has now, which are among them.
    """
    if at_most is None:  # nothing that is there is sure to go
        count, wanted, held_bytes = 1, "one", 0
    else:
        count, wanted = at_most + 1, f"{at_most} that are kept and one while it is written"
    needed_bytes = count * size_bytes
    if needed_bytes <= free_bytes + held_bytes:
        return None
    missing_bytes = needed_bytes - free_bytes - held_bytes
    return (
        f"{directory} has {_gb(free_bytes)} free, and checkpoints take {_gb(size_bytes)} each: not enough for {wanted} "
        f"({_gb(needed_bytes)}). Saves will fail, with nothing lost; free {_gb(missing_bytes)} or keep fewer."
    )


def shortage_ahead(path: Path, free_bytes: int, size_bytes: int) -> str | None:
    """Return what to say after the save of ``path`` if the next one will not fit, ``None`` if it will."""
    if size_bytes <= free_bytes:
        return None
    return (
        f"{path} is saved, and the next will not fit: it takes about {_gb(size_bytes)}, and {_gb(free_bytes)} are "
        "free. Free some in time, or keep fewer: nothing is removed before what replaces it is safe."
    )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.3g} GB"
