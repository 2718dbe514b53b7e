"""Which process of a group this is, if training runs in several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def rank() -> int:
    """Return the rank of this process, 0 if there is no group."""
    return torch.distributed.get_rank() if _has_group() else 0


def world_size() -> int:
    """Return how many processes the group has, 1 if there is none."""
    return torch.distributed.get_world_size() if _has_group() else 1


def told_of_ranks(own: Mapping[str, Any]) -> str:
    """Say why random state in the entry ``own`` does not suffice here: the first rank's alone is in a checkpoint.

    ``""`` if this is the only process, as at the save.
    """
    saved, here = own.get("world_size", 1), world_size()
    if type(saved) is not int or saved < 1:  # a file says what it likes
        saved = 1
    if saved == here == 1:
        return ""
    return (
        f"{here} ranks go on with what {saved} saved, and the checkpoint holds the random state of rank 0 alone: that "
        "goes back to rank 0, and every other rank keeps its own"
    )


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
