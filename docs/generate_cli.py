"""Make ``docs/cli.md`` and ``docs/cli.schema.json`` of the commands themselves: ``make docs``.

The commands' part is what typer makes of their help; the part on ``--json`` is made of the documents' classes. A test
makes both again and compares.

Run: ``python docs/generate_cli.py [DIRECTORY]``
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from safepoint.cli import documents

HEAD = """\
<!-- Made by `make docs` from the commands themselves: change their help, not this file. -->

"""
JSON = """\
## What `--json` prints

One JSON document in one line. Its `schema` names it and its version: fields may be added under one version; what is
renamed, removed or means something else gets the next. Metrics that JSON cannot hold are `"nan"`, `"inf"` and `"-inf"`;
times are seconds since 1970, sizes are bytes. [cli.schema.json](cli.schema.json) has all of them as a JSON Schema.
"""


def commands() -> str:
    """Return the reference of the commands, as Markdown."""
    arguments = [sys.executable, "-m", "typer", "safepoint.cli.app", "utils", "docs", "--name", "safepoint"]
    made = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return made.stdout.replace("&#x27;", "'").rstrip() + "\n"


def kinds() -> list[type[documents.Document]]:
    """Return the documents' classes, by name."""
    return sorted(documents.Document.__subclasses__(), key=_name)


def parts() -> list[type[msgspec.Struct]]:
    """Return the classes of what documents are made of, by name."""
    found = (kind for kind in vars(documents).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct))
    return sorted((kind for kind in found if not issubclass(kind, documents.Document)), key=lambda kind: kind.__name__)


def described() -> str:
    """Return what the documents are, and what they are made of, as Markdown."""
    told = [(f"### `{_name(kind)}`", kind) for kind in kinds()] + [(f"### {kind.__name__}", kind) for kind in parts()]
    return "\n".join([JSON, *(f"{heading}\n\n{_told(kind)}\n\n{_fields(kind)}\n" for heading, kind in told)])


def schema() -> dict[str, Any]:
    """Return the JSON Schema of all documents."""
    made, definitions = msgspec.json.schema_components(kinds(), ref_template="#/$defs/{name}")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "What safepoint prints with --json"}
    return {**head, "oneOf": list(made), "$defs": definitions}


def write(directory: Path) -> None:
    """Write both files into ``directory``."""
    (directory / "cli.md").write_text(f"{HEAD}{commands()}\n{described()}")
    formatted = msgspec.json.format(msgspec.json.encode(schema()), indent=2)
    (directory / "cli.schema.json").write_bytes(formatted + b"\n")


def _name(kind: type[documents.Document]) -> str:
    return str(kind.__struct_config__.tag)


def _told(kind: type[msgspec.Struct]) -> str:
    return (inspect.getdoc(kind) or "").replace("``", "`")


def _fields(kind: type[msgspec.Struct]) -> str:
    rows = [f"| `{field.name}` | {_type(field.type)} |" for field in msgspec.structs.fields(kind)]
    return "\n".join(["| field | type |", "| --- | --- |", *rows])


def _type(kind: Any) -> str:
    """Return a type as JSON calls it."""
    ((made,), _) = msgspec.json.schema_components([kind], ref_template="{name}")
    return _words(made)


def _words(made: dict[str, Any]) -> str:
    if "$ref" in made:
        return f"`{made['$ref']}`"
    if "anyOf" in made:
        return " or ".join(_words(one) for one in made["anyOf"])
    if "enum" in made:
        return " or ".join(f'`"{value}"`' for value in made["enum"])
    if made.get("type") == "array":
        return f"array of {_words(made['items'])}" if made.get("items") else "array"
    if made.get("type") == "object" and isinstance(inner := made.get("additionalProperties"), dict) and inner:
        return f"object of {_words(inner)}"
    return str(made.get("type", "anything"))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
