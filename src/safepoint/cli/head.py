"""What ``show`` says of a checkpoint as a whole: labels, and what stands beside each, in words."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from safepoint.cli import output
from safepoint.cli.trees import quantity
from safepoint.contents import Format
from safepoint.manifest import Manifest
from safepoint.overview import Overview, Part
from safepoint.records import Record, SaveStats

FORMATS = {
    Format.SAFEPOINT: "Safepoint",
    Format.LIGHTNING: "Lightning",
    Format.TORCH: "torch.save",
    Format.SAFETENSORS: "safetensors",
    Format.DCP: "torch.distributed.checkpoint",
    Format.HUGGING_FACE: "Hugging Face Trainer",
}
_MOST_NAMED = 5


def told(overview: Overview, now: float) -> Iterator[tuple[str, str]]:
    """Yield labels and texts; ``now`` is the time of the clock, in Unix seconds."""
    outline, record = overview.contents.outline, overview.entry.record
    yield "format", FORMATS[outline.format]
    if outline.step is not None:
        yield "step", str(outline.step)
    if outline.epoch is not None:
        yield "epoch", str(outline.epoch)
    if outline.metrics:
        yield "metrics", _metrics(overview)
    when = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(outline.time))}, {output.age(now - outline.time)} ago"
    yield ("saved", when) if record else ("modified", when)
    if record is not None and overview.manifest is not None:
        yield from _of_the_run(overview, record, overview.manifest)
    names = f", the file has {overview.names} names" if overview.names > 1 else ""
    yield "size", f"{output.size(outline.size_bytes)}{names}"
    for part in overview.parts():
        yield "holds", f"{part.name}: {_counts(part)}"
    if overview.contents.producer:
        yield "written by", ", ".join(f"{name} {version}" for name, version in overview.contents.producer.items())
    if record is not None and record.stats is not None:
        yield "its save", _stats(record.stats)


def _of_the_run(overview: Overview, record: Record, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "why saved", ", ".join(record.reasons)
    kept = overview.entry.why
    yield "kept", kept
    if record.emergency:
        yield "emergency", f"saved at an exception: {record.emergency}"
    if record.flaw and record.flaw not in kept:
        yield "flaw", f"not to be gone on from: {record.flaw}"
    for name, why in manifest.inexact.items():
        yield "inexact", f"{name}: {why}"
    if manifest.excluded:
        yield "left out", f"{len(manifest.excluded)} frozen tensors: {_some(manifest.excluded)}"
    if manifest.position is not None:
        at = manifest.position
        yield "goes on", f"at step {at.step}, epoch {at.epoch}, batch {at.batch}"
    yield "run", record.run


def _metrics(overview: Overview) -> str:
    record = overview.entry.record
    measured_at: Mapping[str, int] = {} if record is None else record.measured_at
    return ", ".join(
        output.metrics({name: value}) + (f" (measured at step {measured_at[name]})" if name in measured_at else "")
        for name, value in sorted(overview.contents.outline.metrics.items())
    )


def _counts(part: Part) -> str:
    node = part.node
    tensors = f"{output.size(node.size_bytes)} in {node.tensors} tensor{'s' if node.tensors > 1 else ''}"
    return f"{quantity(node.parameters)} parameters, {tensors}" if part.is_model and node.parameters else tensors


def _stats(stats: SaveStats) -> str:
    return (
        f"training held up {stats.stalled_s:.3f} s; staged after {stats.staged_s:.3f} s, written after "
        f"{stats.written_s:.3f} s, durable after {stats.committed_s:.3f} s; {output.size(stats.written_bytes)} written"
        f", {stats.megabytes_per_s / 1e3:.2f} GB/s"
    )


def _some(names: Iterable[str]) -> str:
    named = list(names)
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more
