"""What ``diff`` prints: what the two are, a line for each part of the state that differs, and a chart of its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from safepoint.cli import output
from safepoint.cli.columns import Column, lines
from safepoint.comparison import Comparison
from safepoint.contents import Outline, Tensor
from safepoint.difference import Difference
from safepoint.errors import in_line, shortened
from safepoint.leaves import MISSING, Leaf
from safepoint.pairing import Pair
from safepoint.subtrees import below, common_change, subtrees

Row = tuple[str, str, str]

_COLOURS = {"added": "green", "removed": "red"}
_MOST_OF_A_PART = 5
_NARROW = 60


def show(found: Comparison, *, every: bool, by_change: bool) -> None:
    """Print how two checkpoints differ; ``every``: each tensor by itself; ``by_change``: most changed layers first."""
    for text in _heads(found.a.outline, found.b.outline):
        output.line(text)
    if found.tensors.prefixes is not None:
        old, new = (in_line(below(prefix.removesuffix("."))) for prefix in found.tensors.prefixes)
        output.line(f"paths: {old} of A is compared with {new} of B")
    _table(_tensors(found, every=every))
    _table(_others(found, every=every))
    if found.drifts is not None and found.apart:
        from safepoint.cli import chart

        chart.show([pair.a.path for pair in found.apart], found.drifts, every=every, by_change=by_change)
    output.line(_counts(found.tensors), bold=True)
    output.line(_values(found), bold=True)


def _table(rows: Iterable[Row]) -> None:
    """Print rows in columns of their own, without a heading."""
    columns = (Column(""), Column("", folds=True), Column("", folds=True))
    for text in lines(columns, list(rows), output.width()):
        if text:
            output.line(text, _COLOURS.get(text.partition(" ")[0]))


def _heads(a: Outline, b: Outline) -> Iterator[str]:
    """Yield what the two are: in a narrow terminal, what tells them apart."""
    width = output.width()
    columns = (
        Column(""),
        Column("checkpoint", folds=True),
        Column("step", right=True),
        Column("epoch", right=True),
        Column("metrics", folds=True),
        *((Column("format"), Column("size", right=True)) if width >= _NARROW else ()),
    )
    return lines(columns, [row[: len(columns)] for row in (_head("A", a), _head("B", b))], width)


def _head(name: str, outline: Outline) -> tuple[str, ...]:
    step, epoch = ("" if number is None else str(number) for number in (outline.step, outline.epoch))
    metrics, size = in_line(output.metrics(outline.metrics)), output.size(outline.size_bytes)
    return name, in_line(str(outline.path)), step, epoch, metrics, outline.format.value, size


def _tensors(found: Comparison, *, every: bool) -> Iterator[Row]:
    tensors = found.tensors
    there = [pair.a.path for pair in (*tensors.same, *tensors.changed, *tensors.reshaped, *tensors.uncompared)]
    in_a = [*there, *(tensor.path for tensor in tensors.removed), *(pair.a.path for pair in tensors.moved)]
    in_b = [*there, *(tensor.path for tensor in tensors.added), *(pair.b.path for pair in tensors.moved)]
    for word, own, whole in (("removed", tensors.removed, in_a), ("added", tensors.added, in_b)):
        yield from _parts(word, own, whole, every=every)
    yield from _moves(tensors.moved, every=every)
    for pair in tensors.reshaped:
        yield "reshaped", in_line(shortened(pair.a.path)), f"{_kind(pair.a)} -> {_kind(pair.b)}"
    yield from _parts("changed", [pair.a for pair in tensors.changed], in_a, every=every)
    for pair in tensors.uncompared:
        yield "not compared", in_line(shortened(pair.a.path)), in_line(shortened(pair.a.note))


def _others(found: Comparison, *, every: bool) -> Iterator[Row]:
    """Yield the other values that differ: of each part of the state, the first few, unless ``every``."""
    for leaf in found.hyperparameters:
        yield _value("hyperparameter", leaf)
    counts: Counter[str] = Counter()
    for leaf in found.values or ():
        part = leaf.path.partition(".")[0]
        counts[part] += 1
        if every or counts[part] <= _MOST_OF_A_PART:
            yield _value("value", leaf)
    for part, count in counts.items():
        if not every and count > _MOST_OF_A_PART:
            more = f"{count - _MOST_OF_A_PART} more of {count} that differ; --all lists them"
            yield "value", in_line(shortened(below(part))), more


def _parts(word: str, tensors: Sequence[Tensor], whole: Iterable[str], *, every: bool) -> Iterator[Row]:
    paths = [tensor.path for tensor in tensors]
    parts = [(path, [at]) for at, path in enumerate(paths)] if every else subtrees(paths, whole).items()
    for part, positions in parts:
        those = [tensors[at] for at in positions]
        yield word, in_line(shortened(part)), _kind(those[0]) if len(those) == 1 else _together(those)


def _moves(pairs: Sequence[Pair], *, every: bool) -> Iterator[Row]:
    parts: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        change = (pair.a.path, pair.b.path) if every else common_change(pair.a.path, pair.b.path)
        parts.setdefault(change, []).append(pair)
    for change, those in parts.items():
        alone = len(those) == 1
        old, new = (those[0].a.path, those[0].b.path) if alone else map(below, change)
        told = _kind(those[0].a) if alone else _together([pair.a for pair in those])
        yield "moved", f"{in_line(shortened(old))} -> {in_line(shortened(new))}", told


def _kind(tensor: Tensor) -> str:
    return in_line(shortened(f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"))


def _together(tensors: Sequence[Tensor]) -> str:
    return f"{len(tensors)} tensors, {sum(tensor.count for tensor in tensors):,} elements"


def _value(word: str, leaf: Leaf) -> Row:
    from safepoint.anatomy import told

    old, new = ("nothing" if value is MISSING else told(value) for value in (leaf.a, leaf.b))
    return word, in_line(shortened(leaf.path)), in_line(f"{old} -> {new}")


def _counts(tensors: Difference) -> str:
    counts = {
        "added": tensors.added,
        "removed": tensors.removed,
        "moved": tensors.moved,
        "reshaped": tensors.reshaped,
        "changed": tensors.changed,
        "the same": tensors.same,
        "not compared": tensors.uncompared,
    }
    return f"tensors: {', '.join(f'{len(those)} {word}' for word, those in counts.items() if those) or 'none'}"


def _values(found: Comparison) -> str:
    others = len(found.values or ()) + len(found.hyperparameters)
    told = f"{others} differ{'s' if others == 1 else ''}" if others else "all the same"
    if found.values is None:
        return f"values: not compared, as one of the two has none{f'; {told}' if others else ''}"
    return f"values: {told}"
