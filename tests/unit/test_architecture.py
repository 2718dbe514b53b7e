"""What may import what, and what must be documented: read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import files
import pytest

import safepoint

SOURCE = Path(safepoint.__file__).parent
CORE_TESTS = Path(__file__).parents[1] / "core"

LEVELS = (
    ("errors", "records", "report", "zip_records"),
    (
        "contents",
        "manifest",
        "when",
        "keep",
        "keep_words",
        "lasting",
        "naming",
        "renaming",
        "source",
        "wanted",
        "filters",
        "image",
        "archive",
        "room",
        "pickles",
        "calls",
        "keys",
        "checksums",
        "background",
        "memory",
        "cgroup",
    ),
    ("schedule", "ledger", "measured", "grace"),
    ("state",),
    (
        "stores",
        "signals",
        "transfer",
        "capture",
        "randomness",
        "passing",
        "loaders",
        "data",
        "values",
        "ranks",
        "pairing",
        "leaves",
        "subtrees",
        "pins",
        "reader",
        "removal",
        "search",
        "requests",
        "workers",
    ),
    ("frozen", "excluded", "sealing", "flaws", "formats", "drift"),
    (
        "difference",
        "comparison",
        "lighter",
        "deferral",
        "loading",
        "entries",
        "in_place",
        "matching",
        "optimizers",
        "restore",
        "catalog",
        "choice",
        "survey",
        "overview",
        "anatomy",
        "crcs",
        "scanning",
        "soundness",
        "checks",
        "claim",
        "export",
        "nearby",
        "origin",
        "places",
        "pinning",
        "prune",
        "explanation",
    ),
    ("staging", "page"),
    ("writer", "progress", "announce"),
    ("pipeline",),
    ("run",),
    ("training_state", "neighbours", "start"),
    ("checkpointer",),
    ("integrations", "lightning", "pytorch_lightning", "cli"),
)
"""From low to high; a module imports from its own level or from lower ones. The package itself is above all."""

PURE = (
    "errors",
    "records",
    "report",
    "when",
    "keep",
    "keep_words",
    "lasting",
    "schedule",
    "grace",
    "ledger",
    "measured",
    "state",
    "naming",
    "renaming",
    "source",
    "wanted",
    "filters",
    "room",
)
TORCH = {
    "capture",
    "deferral",
    "excluded",
    "flaws",
    "frozen",
    "lighter",
    "staging",
    "transfer",
    "entries",
    "passing",
    "loaders",
    "data",
    "loading",
    "in_place",
    "matching",
    "optimizers",
    "ranks",
    "restore",
    "pipeline",
    "randomness",
    "training_state",
    "integrations.exactness",
    "integrations.model_checkpoint",
    "integrations.resume",
    "integrations.saving",
    "integrations.tally",
    "integrations.top_k",
}
FRAMEWORKS = {"lightning", "pytorch_lightning"}
THREADS = {"background", "writer", "staging", "deferral", "stores.direct", "stores.lease", "stores.memory", "workers"}
"""``background`` starts threads, and loaders the processes of ``workers``; the others hold futures, a condition, a
lock, and the store for tests an event."""
TORCH_FREE = (
    "",
    "when",
    "keep",
    "keep_words",
    "schedule",
    "ledger",
    "state",
    "naming",
    "catalog",
    "survey",
    "choice",
    "anatomy",
    "overview",
    "soundness",
    "reader",
    "manifest",
    "stores.local",
    "pins",
    "formats",
    "values",
    "export",
    "export.job",
    "page.gather",
    "page.html",
    "comparison",
    "drift",
    "cli",
    "cli.app",
    "cli.explain",
    "cli.pin",
    "cli.prune",
    "cli.report",
    "cli.save_now",
    "scanning",
    "cli.show",
    "cli.verify",
    "pinning",
    "prune",
    "explanation",
    "requests",
)


@dataclass(frozen=True)
class Module:
    """One source file: its name below the package, and its syntax."""

    name: str
    tree: ast.Module

    def imports(self, *, for_types: bool) -> Iterator[str]:
        """Yield the full name of everything that is imported, at any depth; ``for_types``: under TYPE_CHECKING too."""
        for node in _nodes(self.tree, for_types=for_types):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def packages(self) -> set[str]:
        """Return the top-level packages that are imported when the program runs."""
        return {name.partition(".")[0] for name in self.imports(for_types=False)}

    def neighbours(self) -> set[str]:
        """Return the modules of this package that are imported, for types too."""
        names = (name.removeprefix("safepoint.") for name in self.imports(for_types=True) if _ours(name))
        return {found for name in names if (found := _module_of(name))}


def _nodes(tree: ast.AST, *, for_types: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            for other in node.orelse:
                yield other
                yield from _nodes(other, for_types=for_types)
            continue
        yield node
        yield from _nodes(node, for_types=for_types)


def _ours(name: str) -> bool:
    return name == "safepoint" or name.startswith("safepoint.")


def _module_of(name: str) -> str | None:
    """Return the longest part of ``name`` that is a module of the package; ``None`` for a name of the package's own."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = SOURCE.joinpath(*parts[:end])
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return ".".join(parts[:end])
    return None


def _modules() -> dict[str, Module]:
    found: dict[str, Module] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, ast.parse(path.read_text(), str(path)))
    return found


MODULES = _modules()
every_module = pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.name or "safepoint")


def _level(name: str) -> int:
    (level,) = (index for index, names in enumerate(LEVELS) if name.partition(".")[0] in names)
    return level


def test_every_module_has_a_level() -> None:
    """A new module gets its place in the order; no place is kept for one that is gone."""
    tops = {name.partition(".")[0] for name in MODULES if name}
    assert tops == {name for level in LEVELS for name in level}


@every_module
def test_module_imports_downwards(module: Module) -> None:
    """A module imports from its own level or from lower ones, and never from the package itself."""
    if not module.name:
        return
    upwards = {name for name in module.neighbours() if _level(name) > _level(module.name)}
    assert upwards == set()
    through_the_top = {n for n in module.imports(for_types=True) if _ours(n) and not _module_of(n[len("safepoint.") :])}
    assert through_the_top == set()


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_the_standard_library_only(name: str) -> None:
    """Policies, values and errors know the standard library and each other."""
    module = MODULES[name]
    assert module.neighbours() <= set(PURE)
    assert module.packages() - {"safepoint"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", PURE)
def test_pure_module_touches_nothing_outside(name: str) -> None:
    """Policies, values and errors import nothing that reads a clock, a disk, chance, or the environment."""
    outside = {"os", "io", "time", "datetime", "random", "secrets", "shutil", "tempfile", "socket", "subprocess"}
    assert MODULES[name].packages() & outside == set()


def test_torch_is_imported_where_it_is_needed_only() -> None:
    """The modules that import torch, at the top or inside a function."""
    assert {module.name for module in MODULES.values() if "torch" in module.packages()} == TORCH


def test_frameworks_are_imported_by_the_adapters_only() -> None:
    """Only ``integrations`` and the two adapter modules import a training framework."""
    importing = {module.name for module in MODULES.values() if module.packages() & FRAMEWORKS}
    assert {name for name in importing if not name.startswith("integrations.")} <= FRAMEWORKS
    for name in FRAMEWORKS:
        assert MODULES[name].packages() & FRAMEWORKS == {name}


def test_threads_are_in_one_place() -> None:
    """Every thread is started in ``background``; others wait for what runs there."""
    concurrent = {"threading", "concurrent", "multiprocessing", "asyncio", "_thread"}
    assert {module.name for module in MODULES.values() if module.packages() & concurrent} == THREADS
    starting = {"threading.Thread", "threading.Timer", "concurrent.futures.ThreadPoolExecutor"}
    used = {module.name for module in MODULES.values() if starting & set(module.imports(for_types=False))}
    assert used == {"background"}


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", TORCH_FREE, ids=lambda name: name or "safepoint")
def test_module_starts_without_torch(name: str) -> None:
    """The command line, the policies and the catalog are there at once: importing them does not load torch."""
    full = f"safepoint.{name}" if name else "safepoint"
    assert _run(f"import sys, {full}; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("safepoint", {"msgspec", "isal", "xxhash", "dataclasses", "safepoint.keep", "safepoint.when"}),
        ("safepoint.cli.app", {"torch", "numpy", "rich", "msgspec", "isal", "xxhash", "safepoint.records"}),
    ],
)
def test_import_leaves_the_rest_for_later(name: str, unwanted: set[str]) -> None:
    """The package loads no part of itself before it is asked for, and the command line what one command needs only."""
    loaded = _run(f"import sys, {name}; print(*sys.modules)").split()
    assert unwanted.intersection(loaded) == set()


def test_list_needs_neither_policies_nor_rich_tables(tmp_path: Path) -> None:
    """Listing loads what reads manifests, and no more."""
    files.write(tmp_path / "a.ckpt", files.manifest())
    code = "import sys; from pathlib import Path; from safepoint.cli.ls import ls"
    loaded = _run(f"{code}; ls([Path({str(tmp_path)!r})], removed=True); print(*sys.modules)").split()
    assert {"torch", "numpy", "safepoint.keep", "safepoint.when", "rich.console"}.intersection(loaded) == set()


def test_verify_needs_no_torch(tmp_path: Path) -> None:
    """Verifying and listing load no torch either."""
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"no checkpoint")
    code = f"import sys, safepoint; print(len(safepoint.verify({str(path)!r})), 'torch' in sys.modules)"
    assert _run(code) == "1 False"


def test_pure_tests_need_no_torch() -> None:
    """The tests of the pure core run without torch, and so does everything that they import."""
    names = ", ".join(sorted(path.stem for path in CORE_TESTS.glob("test_*.py")))
    code = f"import sys; sys.path.insert(0, {str(CORE_TESTS)!r}); import {names}; print('torch' in sys.modules)"
    assert _run(code) == "False"


def _documented(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Module) -> bool:
    assigned = any(
        isinstance(statement, ast.Assign) and any(ast.unparse(target) == "__doc__" for target in statement.targets)
        for statement in node.body
    )
    return assigned or bool(ast.get_docstring(node))


def _public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}{node.name}.")


@every_module
def test_everything_public_has_a_docstring(module: Module) -> None:
    """Every module, and every public class, function and method in it, says what it is."""
    missing = [name for name, node in _public(module.tree.body, "") if not _documented(node)]
    assert missing == []
    assert _documented(module.tree)
