"""What the commands print with ``--json``: one document each, named and versioned.

``schema`` is the name and version of a document, such as ``safepoint.ls/1``. Fields may be added under one version;
what is renamed, removed or means something else gets the next. Metrics that JSON cannot hold are ``"nan"``, ``"inf"``
and ``"-inf"``; times are Unix seconds, sizes are bytes, and paths are as the command line was given them.
``docs/cli.md`` is made from these classes.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Document(msgspec.Struct, frozen=True, tag_field="schema"):
    """What every document is."""


Answer = Literal["asked", "saved", "not-saved"]


class SaveNow(Document, frozen=True, tag="safepoint.save-now/1"):
    """What became of a request: ``path`` is the checkpoint that was made for it, once ``answer`` is ``"saved"``.

    ``"not-saved"``: it was waited for in vain; ``told`` says so in words.
    """

    directory: str
    answer: Answer
    path: str | None
    told: str


class Pin(Document, frozen=True, tag="safepoint.pin/1"):
    """Whether the checkpoint of which ``path`` is a name is ``pinned``, and whether that was ``changed`` just now.

    ``record`` is the name that its run goes by, with its pin beside it; ``null`` for a copy, which no policy touches.
    ``told`` says it in words.
    """

    path: str
    record: str | None
    pinned: bool
    changed: bool
    told: str
