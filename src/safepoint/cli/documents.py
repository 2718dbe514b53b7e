"""What the commands print with ``--json``: one document each, named and versioned.

``schema`` is the name and version of a document, such as ``safepoint.ls/1``. Fields may be added under one version;
what is renamed, removed or means something else gets the next. Metrics that JSON cannot hold are ``"nan"``, ``"inf"``
and ``"-inf"``; times are Unix seconds, sizes are bytes, and paths are as the command line was given them.
``docs/cli.md`` is made from these classes.
"""

from __future__ import annotations

import msgspec


class Document(msgspec.Struct, frozen=True, tag_field="schema"):
    """What every document is."""
