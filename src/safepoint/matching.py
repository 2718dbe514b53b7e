"""What of a checkpoint fits the live objects, and what was saved made to fit them.

Looks at names, shapes and kinds only, before any data is read. Knows torch; knows no file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.optim.lr_scheduler import LRScheduler

from safepoint.entries import Stateless, changed, difference, kind_of
from safepoint.errors import in_line, shortened
from safepoint.excluded import below, put_in
from safepoint.in_place import own_ways
from safepoint.manifest import Manifest
from safepoint.optimizers import optimizer_change, optimizer_difference, scheduler_difference
from safepoint.randomness import has_rng_state
from safepoint.ranks import told_of_ranks
from safepoint.renaming import core, likely_prefix, renamed, replaced
from safepoint.report import Difference, RestoreReport, told_of_dtypes
from safepoint.wanted import Wanted

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What is done with what was saved of a module.

    ``names`` are the keys that are called otherwise here; ``live`` the keys whose live tensors take the place of what
    was saved or is missing; ``unused`` are keys, as they are called here, that are left out. ``excluded`` is what the
    save had left out, by its names here. ``prefixes`` are those to be renamed.
    """

    names: Mapping[str, str]
    live: frozenset[str]
    unused: frozenset[str]
    excluded: Mapping[str, str]
    prefixes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a checkpoint fits the live objects: what is restored from it, and how it is made to fit.

    ``problem`` says why nothing may be restored, ``""`` if something may.
    """

    report: RestoreReport
    problem: str
    modules: Mapping[str, _Fitted]

    def make_fit(self, objects: Mapping[str, object], saved: dict[str, Any]) -> None:
        """Give what was saved the live names, and the live tensors where something is to stay as it is."""
        for name, fitted in self.modules.items():
            module = objects[name]
            if name in saved and isinstance(module, torch.nn.Module) and isinstance(saved[name], dict):
                saved[name] = _made_to_fit(saved[name], module.state_dict(), fitted)
        for name in [name for name in saved if name not in self.report.restored]:
            del saved[name]

    @property
    def has_wrappers(self) -> bool:
        """Whether keys are taken for the same that differ by the names of wrappers only."""
        names = (pair for fitted in self.modules.values() for pair in fitted.names.items())
        return any(core(old) == core(new) for old, new in names)

    def excluded(self, name: str) -> Mapping[str, str]:
        """Return what the save had left out of the entry ``name``, by its names here."""
        return self.modules[name].excluded if name in self.modules else {}


def fit(objects: Mapping[str, object], saved: Mapping[str, Any], manifest: Manifest, wanted: Wanted) -> Fit:
    """Compare what was ``saved`` with the ``objects`` that are ``wanted``; nothing is changed."""
    comparison = _Comparison(saved, manifest, wanted)
    for name in wanted.entries:
        comparison.look_at(name, objects[name])
    for name, target in objects.items():
        if wanted.strict is False and name in wanted.entries and isinstance(target, torch.optim.Optimizer):
            comparison.look_at_parameters(name, target)
    report = comparison.report(objects)
    return Fit(report, comparison.problem(report, objects), comparison.modules)


class _Comparison:
    """The comparison while it is made."""

    def __init__(self, saved: Mapping[str, Any], manifest: Manifest, wanted: Wanted) -> None:
        self._saved = saved
        self._manifest = manifest
        self._wanted = wanted
        self.modules: dict[str, _Fitted] = {}
        self._restored: list[str] = []
        self._matched = 0
        self._missing: list[Difference] = []
        self._unexpected: list[Difference] = []
        self._reshaped: list[Difference] = []
        self._inexact: dict[str, str] = {}
        self._unmatched: list[str] = []
        self._altered: dict[int, str] = {}  # live parameters, by their ids, that are not the checkpoint's
        self._hints: list[str] = []

    def look_at(self, name: str, target: object) -> None:
        """Compare one entry of ``state=``."""
        if name not in self._saved:
            self._look_at_missing(name, target)
            return
        saved = self._saved[name]
        if isinstance(target, torch.nn.Module):
            self._look_at_module(name, target, saved)
            return
        found, why = _compared(target, saved)
        self._take(name, found)
        if found is None and why is not None:
            self._inexact[name] = why

    def _look_at_missing(self, name: str, target: object) -> None:
        if name in self._manifest.inexact:  # the save has left it out, and says so
            return
        if isinstance(target, Stateless):
            self._inexact[name] = target.inexact
            return
        self._missing.append(Difference(name, "", kind_of(target), ""))
        if isinstance(target, torch.nn.Module):
            self._note_altered(name, target, dict(target.named_parameters(remove_duplicate=False)))
            self._unmatched.append(name)

    def look_at_parameters(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Leave an optimizer alone if a parameter of its is another one than it was: its state would be another's."""
        if name not in self._restored or not self._altered:
            return
        mine = (parameter for group in optimizer.param_groups for parameter in group["params"])
        if altered := next(
            (self._altered[id(parameter)] for parameter in mine if id(parameter) in self._altered), None
        ):
            self._restored.remove(name)
            self._matched -= 1
            self._reshaped.append(Difference(name, "state", f"of {altered}", "of another shape or name"))

    def report(self, objects: Mapping[str, object]) -> RestoreReport:
        """Return what was found."""
        wanted, restored = self._wanted, set(self._restored)
        not_exact = self._inexact | {
            name: why
            for name, why in self._manifest.inexact.items()
            if name in wanted.entries or (wanted.whole and name not in objects)
        }
        if wanted.whole:
            not_exact |= self._own_inexact()
            self._unexpected += (
                Difference(in_line(shortened(str(name))), "", "", type(value).__name__)
                for name, value in self._saved.items()
                if name not in objects and name != wanted.own
            )
        return RestoreReport(
            directory=wanted.directory,
            restored=tuple(name for name in objects if name in restored),
            left=tuple(name for name in objects if name not in restored),
            matched=self._matched,
            missing=tuple(self._missing),
            unexpected=tuple(self._unexpected),
            reshaped=tuple(self._reshaped),
            inexact=not_exact,
        )

    def problem(self, report: RestoreReport, objects: Mapping[str, object]) -> str:
        """Say why nothing may be restored, ``""`` if something may."""
        strict, told = self._wanted.strict, "".join(f"\n{hint}" for hint in self._hints)
        if self._wanted.whole and not self._has_random_state():
            return f"holds no random state that can be put back:\n{report}"
        here_only = replace(report, unexpected=tuple(found for found in report.unexpected if found.entry in objects))
        if strict is not False and not here_only.is_whole:
            return (
                f"does not fit the objects in state=; nothing was restored:\n{report}{told}\nBuild the model and the "
                "optimizer as they were when it was saved, give another directory, or restore(strict=False) what fits."
            )
        if strict and not report.is_exact:
            return (
                f"cannot be gone on from exactly, and strict=True; nothing was restored:\n{report}\n"
                "Without strict=True this is a warning."
            )
        if strict is False and (lost := self._unmatched_modules(objects)):
            return (
                f"has nothing that fits {', '.join(lost)}, whose weights would stay as they are; nothing was "
                f"restored:\n{report}{told}\nIt holds {_listed(self._saved.keys() - {self._wanted.own}) or 'nothing'}. "
                "If they are to stay, say so: except_=[...]."
            )
        return ""

    def _unmatched_modules(self, objects: Mapping[str, object]) -> list[str]:
        """Return the modules of which nothing matched; one that is not in the checkpoint, only if no module is."""
        whole = {name for name in self._unmatched if name not in self._saved}
        is_any_there = any(isinstance(objects[name], torch.nn.Module) for name in self._restored)
        return [name for name in self._unmatched if not is_any_there or name not in whole]

    def _has_random_state(self) -> bool:
        own = self._saved.get(self._wanted.own)
        return isinstance(own, dict) and has_rng_state(own.get("rng"))

    def _own_inexact(self) -> dict[str, str]:
        own = self._saved.get(self._wanted.own)
        why = told_of_ranks(own) if isinstance(own, dict) else ""
        return {"random state": why} if why else {}

    def _take(self, name: str, difference: tuple[str, str, str] | None) -> None:
        if difference is None:
            self._restored.append(name)
            self._matched += 1
        else:
            self._reshaped.append(Difference(name, *difference))

    def _look_at_module(self, name: str, module: torch.nn.Module, saved: Any) -> None:
        own, left_out = own_ways(module), below(name, self._manifest.excluded)
        if own == ("",):  # somebody's own code loads it, and knows what fits
            self.modules[name] = _Fitted({}, frozenset(), frozenset(), left_out, {})
            self._take(name, None)
            return
        if not isinstance(saved, dict) or not all(isinstance(key, str) for key in saved):
            self._take(name, ("", type(module).__name__, type(saved).__name__))
            self._unmatched.append(name)
            return
        live = module.state_dict()
        names = renamed(live.keys(), saved.keys() | left_out.keys(), self._wanted.rename, own)
        left_out = _called(names, left_out)
        there = _called(names, saved) | {key: live[key] for key in left_out if key in live}
        mine, theirs = _without(own, live), _without(own, there)
        missing = {key: _shape(live[key]) for key in sorted(mine.keys() - theirs.keys())}
        unexpected = {key: _shape(there[key]) for key in sorted(theirs.keys() - mine.keys())}
        same = sorted(mine.keys() & theirs.keys())
        reshaped = {key: (_shape(live[key]), _shape(there[key])) for key in same if _differ(key, live[key], there[key])}
        dtypes = [
            (key, *both) for key in same if key not in reshaped and len(set(both := _dtypes(live[key], there[key]))) > 1
        ]
        if dtypes:
            self._inexact[name] = told_of_dtypes(dtypes)
        self._missing += (Difference(name, key, shape, "") for key, shape in missing.items())
        self._unexpected += (Difference(name, key, "", shape) for key, shape in unexpected.items())
        self._reshaped += (Difference(name, key, *shapes) for key, shapes in reshaped.items())
        others = missing.keys() | reshaped.keys()
        self._note_altered(name, module, others)
        self._hint_at(name, missing, unexpected)
        self.modules[name] = _Fitted(names, frozenset(others), frozenset(unexpected), left_out, self._wanted.rename)
        self._matched += len(same) - len(reshaped)
        if live and len(same) == len(reshaped) and not own:
            self._unmatched.append(name)
        else:
            self._restored.append(name)

    def _note_altered(self, name: str, module: torch.nn.Module, keys: Collection[str]) -> None:
        if keys:
            named = module.named_parameters(remove_duplicate=False)
            self._altered |= {id(parameter): f"{name}.{key}" for key, parameter in named if key in keys}

    def _hint_at(self, name: str, missing: Mapping[str, str], unexpected: Mapping[str, str]) -> None:
        if (found := likely_prefix(missing, unexpected)) is not None:
            old, new, count = found
            pair = in_line(f"{shortened(old)!r}: {shortened(new)!r}")
            self._hints.append(f"Names look changed: with rename={{{pair}}}, {count:,} more keys of {name} match.")


def _compared(target: object, saved: Any) -> tuple[tuple[str, str, str] | None, str | None]:
    """Return what does not fit of an entry that is no module, and why a run does not go on exactly if all does."""
    if isinstance(target, torch.optim.Optimizer):
        found = optimizer_difference(target, saved)
        return found, optimizer_change(target, saved) if found is None else None
    found = scheduler_difference(target, saved) if isinstance(target, LRScheduler) else difference(target, saved)
    return found, changed(target, saved) if found is None else None


def _called(names: Mapping[str, str], state: Mapping[str, T]) -> dict[str, T]:
    return {names.get(key, key): value for key, value in state.items()}


def _without(prefixes: tuple[str, ...], state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith(prefixes)} if prefixes else dict(state)


def _made_to_fit(saved: dict[str, Any], live: Mapping[str, Any], fitted: _Fitted) -> dict[str, Any]:
    found = saved
    if fitted.names:
        found = OrderedDict(_called(fitted.names, saved))
        metadata = getattr(saved, "_metadata", None)
        if isinstance(metadata, Mapping):
            known = getattr(live, "_metadata", {})
            found._metadata = _metadata(metadata, known, fitted.prefixes)  # type: ignore[attr-defined]  # noqa: SLF001 - where torch keeps versions
    for key in fitted.unused:
        del found[key]
    put_in(found, live, fitted.excluded)
    put_in(found, live, dict.fromkeys(fitted.live, ""))
    return found


def _metadata(saved: Mapping[Any, Any], live: Iterable[str], prefixes: Mapping[str, str]) -> dict[Any, Any]:
    """Return the versions of modules by their names here: those of a wrapper and of what it wraps are the latter's."""
    names = sorted((key for key in saved if isinstance(key, str)), key=len)
    by_core = {core(replaced(f"{key}." if key else "", prefixes).removesuffix(".")): saved[key] for key in names}
    return {**saved, **{key: saved.get(key, by_core[core(key)]) for key in live if core(key) in by_core}}


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(in_line(shortened(str(name))) for name in names))


def _differ(key: str, here: Any, there: Any) -> bool:
    return key.rpartition(".")[2] != "_extra_state" and _shape_of(here) != _shape_of(there)  # which may be anything


def _shape_of(value: Any) -> tuple[int, ...] | None:
    """Return the shape of ``value``, if it has one: a nested tensor has none."""
    return getattr(value, "shape", None) if not getattr(value, "is_nested", False) else None


def _shape(value: Any) -> str:
    shape = _shape_of(value)
    return f"{type(value).__name__} without a shape" if shape is None else str(tuple(shape))


def _dtypes(here: Any, there: Any) -> tuple[str, str]:
    are_tensors = isinstance(here, torch.Tensor) and isinstance(there, torch.Tensor)
    return (str(here.dtype), str(there.dtype)) if are_tensors else ("", "")
