"""All that is known of one checkpoint: what it holds, and of Safepoint's own what it and its run say of it.

Knows no command; what a state looks like is ``anatomy``'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safepoint import anatomy, formats, reader
from safepoint.anatomy import Node
from safepoint.contents import Contents, Format, Tensor
from safepoint.errors import CheckpointError
from safepoint.manifest import Manifest
from safepoint.search import is_checkpoint
from safepoint.survey import Entry, Survey

_UPDATED = "param_groups"
"""What tells an optimizer's state from all others."""
_OWN = "safepoint"
"""The entry of a loop's state that holds the random generators."""


@dataclass(frozen=True, slots=True)
class Overview:
    """One checkpoint.

    ``entry`` is what a survey tells of it, ``state`` the tree of its state, and ``manifest`` what a checkpoint of
    Safepoint's says of itself. ``names``: how many names its file has.
    """

    entry: Entry
    contents: Contents
    state: Node
    manifest: Manifest | None
    names: int

    @classmethod
    def of(cls, path: Path) -> Overview:
        """Return the overview of the checkpoint at ``path``, a file or a directory that is one.

        Raises:
            CheckpointError: it is none, or cannot be read; says what it is, and what to do.
            OSError: it is not there, or cannot be read.

        """
        if path.is_dir() and not is_checkpoint(path, os.listdir(path)):
            raise CheckpointError(
                f"{path} is a directory, and no checkpoint itself: list it with 'safepoint ls {path}'."
            )
        (entry,) = Survey.of(path).entries
        contents = formats.contents(path)
        is_ours = contents.outline.format is Format.SAFEPOINT
        manifest = reader.read_manifest(path) if is_ours else None
        names = 1 if path.is_dir() else path.stat().st_nlink
        return cls(entry, contents, anatomy.grown(contents.tree), manifest, names)

    def parts(self) -> list[Part]:
        """Return what the state is made of: each of its entries in which there are tensors, or the state as a whole."""
        tree = self.contents.tree
        if not isinstance(tree, Mapping) or any(isinstance(entry, Tensor) for entry in tree.values()):
            return [Part("weights", self.state, is_model=True)] if self.state.tensors else []
        entries = [child for child in self.state.children.values() if child.tensors]
        return [Part(entry.name, entry, is_model=not _is_optimizer(entry) and entry.name != _OWN) for entry in entries]


@dataclass(frozen=True, slots=True)
class Part:
    """An entry of the state: its name, its tree, and whether its tensors are a model's, for all that can be told."""

    name: str
    node: Node
    is_model: bool


def _is_optimizer(node: Node) -> bool:
    """Tell whether it is the state of an optimizer, or several of them."""
    return _UPDATED in node.children or any(_UPDATED in child.children for child in node.children.values())
