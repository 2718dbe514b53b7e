"""What the page of ``safepoint report`` tells, before it is a page: drift, trees, extremes, charts, and its colours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import files
import msgspec
import plotly.graph_objects as go
import pytest
import torch
from files import told
from safetensors.torch import save_file

from safepoint import Checkpointer, keep, when
from safepoint.anatomy import folded, grown
from safepoint.contents import Tensor
from safepoint.manifest import HISTORY_LIMIT
from safepoint.page import bars, charts, drift, heat, html
from safepoint.page.data import Checkpoint, costs, extremes, metrics_of
from safepoint.page.drift import layers_of
from safepoint.page.gather import Page, page_of
from safepoint.page.tree import MOST_ROWS, Row, rows_of
from safepoint.records import SaveStats

CSS = (Path(html.__file__).parent / "assets" / "page.css").read_text()
ROUND = 1e-12


class Net(torch.nn.Module):
    """Three layers, of which one is frozen, and one begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Linear(8, 8)
        self.frozen.requires_grad_(requires_grad=False)
        self.low = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
        self.zero = torch.nn.Linear(8, 8)
        torch.nn.init.zeros_(self.zero.weight)
        torch.nn.init.zeros_(self.zero.bias)


def saved(directory: Path, count: int = 4, *, spoilt: int = -1) -> list[Net]:
    """Save ``count`` states of a net into ``directory``; return copies of it. One of them may hold a NaN."""
    torch.manual_seed(0)
    net, copies = Net(), []
    optimizer = torch.optim.Adam([parameter for parameter in net.parameters() if parameter.requires_grad])
    with Checkpointer(
        directory, state={"model": net, "optimizer": optimizer}, save=when.every(steps=1), keep=keep.all()
    ) as run:
        for number in range(count):
            if number:
                (net.low.weight.float().square().sum() + (net.zero.bias - 1).square().sum()).backward()
                optimizer.step()
            if number == spoilt:
                with torch.no_grad():
                    net.zero.weight[0, 0] = math.nan
            run.step()
            copy = Net()
            copy.load_state_dict(net.state_dict())
            copies.append(copy)
    return copies


def page(directory: Path) -> Page:
    """Return what the page of ``directory`` tells."""
    return page_of(directory, lambda _done, _count: None)


def moved(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the norm of the change of a parameter, relative to what it was, as torch has it."""
    was, now = before.detach().double(), after.detach().double()
    return float((now - was).norm() / was.norm())


def test_drift_is_what_torch_computes(tmp_path: Path) -> None:
    """The share of a layer is the L2 norm of its change, relative to that of those of its weights that changed."""
    nets = saved(tmp_path)
    found = page(tmp_path).drift
    assert found is not None
    assert (found.layers, found.pairs) == (("model.frozen", "model.low", "model.zero"), ((0, 1), (1, 2), (2, 3)))
    frozen, low, zero = found.shares
    assert frozen == (0.0, 0.0, 0.0)
    assert low == pytest.approx([moved(a.low.weight, b.low.weight) for a, b in pairwise(nets)], rel=ROUND)
    assert zero[0] == math.inf
    assert zero[2] == pytest.approx(moved(nets[2].zero.bias, nets[3].zero.bias), rel=ROUND)


def test_drift_reads_what_has_changed_only(tmp_path: Path) -> None:
    """What has the same digest in both is not read, and neither is what belongs to the optimizer."""
    saved(tmp_path, 2)
    found = page(tmp_path).drift
    assert found is not None
    changed_bytes = 8 * 8 * 2 + 8 * 4  # the weight that is trained in half precision, and the bias
    assert found.read_bytes == 2 * changed_bytes


def test_drift_tells_of_nan(tmp_path: Path) -> None:
    """A layer into which a NaN came has no share, and says so."""
    saved(tmp_path, 4, spoilt=2)
    found = page(tmp_path).drift
    assert found is not None
    assert [math.isnan(share or 0) for share in found.shares[2]] == [False, True, False]
    (chart,) = [heat.heat_map("drift", found, page(tmp_path).checkpoints)]
    assert "holds NaN or infinity" in str(chart.traces[0]["hovertext"])
    assert [key.means for key in chart.legend] == ["unchanged", "was zero before", "holds NaN or infinity"]


def test_drift_is_read_newest_first_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more pairs, or more bytes, than are read, the newest are there, and the page says what is not."""
    saved(tmp_path)
    monkeypatch.setattr(drift, "MOST_PAIRS", 2)
    found = page(tmp_path).drift
    assert found is not None
    assert (found.pairs, found.notes) == (((1, 2), (2, 3)), ("The newest 2 of 3 pairs are shown.",))
    monkeypatch.setattr(drift, "MOST_BYTES", 400)
    found = page(tmp_path).drift
    assert found is not None
    assert found.pairs == ((2, 3),)
    assert found.notes[0].startswith(
        "2 of 3 pairs are left out: at most 400 bytes are read, and the next has 320 bytes."
    )


def test_drift_goes_past_what_cannot_be_read(tmp_path: Path) -> None:
    """A checkpoint whose data is cut off is named, and the pairs without it are there."""
    saved(tmp_path)
    first = min(tmp_path.glob("*.ckpt"))
    data = bytearray(first.read_bytes())
    first.write_bytes(data[:-100])
    found = page(tmp_path)
    assert found.unreadable.keys() == {first.name}
    assert found.drift is not None
    assert len(found.drift.pairs) == 2


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (6, {"m.0.a": 2, "m.0.b": 1, "m.1.a": 1, "n": 1}),
        (3, {"m.0": 3, "m.1": 1, "n": 1}),
        (2, {"m": 4, "n": 1}),
        (1, {"m": 4}),
    ],
)
def test_layers_are_joined_until_they_fit(most: int, expected: dict[str, int]) -> None:
    """Layers are containers of tensors; of too many, those with the same beginning are one."""
    layers = layers_of(["m.0.a.weight", "m.0.a.bias", "m.0.b.weight", "m.1.a.weight", "n"], most)
    assert {name: len(paths) for name, paths in layers.items()} == expected


def rows(row: Row) -> Iterator[Row]:
    """Yield all rows in ``row``."""
    for inner in row.rows:
        yield inner
        yield from rows(inner)


def test_tree_of_20000_tensors_is_bounded(tmp_path: Path) -> None:
    """Of a state that is too large to be shown, the upper levels are, with their sums, and the rest is counted."""
    names = (f"model.layers.{n % 40}.expert{n % 7}x.{chr(97 + n % 23)}{n}.w{n}" for n in range(20_000))
    save_file({name: torch.zeros(n % 90 + 1) for n, name in enumerate(names)}, tmp_path / "a.safetensors")
    found = page(tmp_path)
    assert found.newest is not None
    assert found.newest.rows is not None
    shown = list(rows(found.newest.rows))
    assert len(shown) <= MOST_ROWS
    assert found.newest.rows.node.tensors == 20_000
    assert sum(row.left_out for row in shown) > 0
    text = html.rendered(found)
    assert text.count("<li") < 2 * MOST_ROWS
    assert "not shown" in text


def test_tree_of_deep_names_ends(tmp_path: Path) -> None:
    """However deep a name is nested, the page is not."""
    tree = {".".join("a" * 900): Tensor(".".join("a" * 900), "float32", (1,), ())}
    deepest, row = 0, rows_of(folded(grown(tree)))
    while row.rows:
        deepest, row = deepest + 1, row.rows[0]
    assert (deepest, row.left_out) == (12, 1)


def checkpoints() -> list[Checkpoint]:
    """Return checkpoints of two runs with everything that a chart has to cope with."""
    stats = SaveStats(Path("a"), 1, 10, 4, 0.002, 0.01, 0.01, 0.02, 0.03)
    values = (0.5, math.nan, 1e-9, math.inf, -math.inf, 1e308)
    found = [
        Checkpoint(
            f"{n}.ckpt", "a" if n % 2 else "b", 1.5e9 + n, kept=bool(n % 3), why="x", step=n, metrics={"m": value}
        )
        for n, value in enumerate(values)
    ]
    odd = Checkpoint("odd.ckpt", "a", 1e300, kept=True, why="", metrics={"m": 1.0, "n": 2})
    emergency = Checkpoint(
        "e.ckpt", "a", 1.5e9, kept=True, why="", step=9, metrics={"m": 0.1}, emergency="E", stats=stats
    )
    full = Checkpoint("f.ckpt", "b", 1.5e9, kept=True, why="", step=10, size_bytes=10, metrics={"m": 3.0}, stats=stats)
    late = Checkpoint("l.ckpt", "b", 1.5e9, kept=True, why="", step=11, metrics={"m": 9.0}, measured_at={"m": 3})
    return [*found, odd, emergency, full, late]


def themed(value: Any) -> Any:
    """Return what plotly would be given, with a colour in place of the page's own names."""
    if isinstance(value, dict):
        return {key: themed(inner) for key, inner in value.items() if key != "said"}
    if isinstance(value, list | tuple):
        return [themed(inner) for inner in value]
    return "#000000" if isinstance(value, str) and value.startswith("--") else value


def test_charts_are_what_plotly_takes(tmp_path: Path) -> None:
    """Plotly's own validation knows every property of every chart, and every colour is one of the page's."""
    saved(tmp_path)
    gathered = page(tmp_path)
    assert gathered.drift is not None
    made = [
        charts.metric("m", "m", checkpoints()),
        charts.timeline("t", checkpoints()),
        *(draw("b", checkpoints()) for draw in (bars.sizes, bars.stalls, bars.times)),
        heat.heat_map("d", gathered.drift, gathered.checkpoints),
    ]
    for chart in made:
        go.Figure(themed(chart.traces), themed(chart.layout))
        names = set(re.findall(r"'(--[\w-]+)'", str((chart.traces, chart.layout, chart.legend))))
        assert names
        assert [name for name in names if f"{name}:" not in CSS] == []


def test_metric_chart_has_each_value_once() -> None:
    """Every checkpoint with a step and the metric is one mark: as what it is, or beyond what can be drawn."""
    chart = charts.metric("m", "m", checkpoints())
    counts = {trace["name"]: len(trace["y"]) for trace in chart.traces if "name" in trace}
    assert counts == {"removed": 1, "kept": 3, "emergency": 1, "beyond": 4}
    assert sum("name" not in trace for trace in chart.traces) == 2  # a line for each run


def test_extremes_are_among_what_a_policy_would_rank() -> None:
    """What was removed, what an exception left, what was measured elsewhere and NaN is no extreme; infinity is one."""
    found = extremes(checkpoints(), "m")
    assert found is not None
    assert (found.lowest.name, found.highest.name) == ("4.ckpt", "5.ckpt")
    assert extremes(checkpoints()[:1], "m") is None
    assert metrics_of(checkpoints()) == ["m", "n"]


def removed_by(directory: Path, count: int) -> None:
    """Have a run tell of ``count`` that it removed, and of one with a further name."""
    history = [msgspec.structs.replace(told(f"{step}.ckpt", step), kept=False) for step in range(count)]
    history += [
        told("new.ckpt", count),
        msgspec.structs.replace(told("last.ckpt", count), reason="another name of new.ckpt"),
    ]
    files.write(directory / "new.ckpt", files.manifest(step=count, time=1.5e9 + count, history=tuple(history)))
    (directory / "last.ckpt").hardlink_to(directory / "new.ckpt")


@pytest.mark.parametrize(("count", "forgets"), [(HISTORY_LIMIT - 1, False), (HISTORY_LIMIT, True)])
def test_page_says_where_more_were_removed(tmp_path: Path, count: int, *, forgets: bool) -> None:
    """A history has an end: its number is not that of all."""
    removed_by(tmp_path, count)
    found = page(tmp_path)
    assert (found.removed, found.forgets) == (count, forgets)
    assert ("<small>or more</small>" in html.rendered(found)) == forgets


def test_further_name_is_no_checkpoint_of_its_own(tmp_path: Path) -> None:
    """It moved nowhere, is not the newest, and is not missed when it is gone."""
    removed_by(tmp_path, 1)
    found = page(tmp_path)
    assert found.newest is not None
    assert (found.newest.checkpoint.name, found.drift) == ("new.ckpt", None)
    (tmp_path / "last.ckpt").unlink()
    assert page(tmp_path).removed == 1


def test_costs_are_medians_and_sums() -> None:
    """What the saves cost is told for those that are known."""
    found = costs(checkpoints())
    assert found is not None
    assert (found.saves, found.stalled_s, found.committed_s, found.written_bytes) == (2, 0.01, 0.03, 8)
    assert costs(checkpoints()[:3]) is None


def colours(theme: str) -> dict[str, tuple[float, float, float]]:
    """Return the colours of the page by name, as red, green and blue from 0 to 1."""
    block = re.search(r":root" + (r":not\(\.paper\)" if theme == "dark" else "") + r" \{(.*?)\}", CSS, re.DOTALL)
    assert block is not None
    found = re.findall(r"(--[\w-]+): #(\w\w)(\w\w)(\w\w);", block[1])
    return {name: (int(red, 16) / 255, int(green, 16) / 255, int(blue, 16) / 255) for name, red, green, blue in found}


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """Return the contrast of two colours, by WCAG 2.2."""

    def luminance(colour: tuple[float, float, float]) -> float:
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_from_the_ground(theme: str) -> None:
    """Text has a contrast of 4.5 with what is behind it, and marks and lines of 3, as WCAG 2.2 asks."""
    found = colours(theme)
    ground = found["--ground"]
    assert [name for name in ("--text", "--muted", "--accent", "--warn") if contrast(found[name], ground) < 4.5] == []
    marks = [name for name in found if name.startswith(("--run-", "--removed", "--phase-1"))]
    assert [name for name in marks if contrast(found[name], ground) < 3] == []


def test_colours_are_those_of_both_themes() -> None:
    """What has a colour by day has one by night."""
    assert colours("light").keys() == colours("dark").keys()
