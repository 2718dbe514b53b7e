"""The page as HTML: templates filled with what was gathered, the charts, and plotly's own script, in one text.

What comes from files is escaped: in HTML by the templates, in the data by JSON's own escapes. The page's policy lets no
request out, and no script run but the two that it brings, known by their digests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from safepoint.manifest import HISTORY_LIMIT
from safepoint.page import bars, charts, words
from safepoint.page.charts import Chart
from safepoint.page.data import MOST_METRICS, Extremes, costs, extremes, metrics_of
from safepoint.page.file import SIGN
from safepoint.page.gather import Page
from safepoint.page.heat import heat_map

_ASSETS = Path(__file__).with_name("assets")
_ROWS_AT_ONCE = 50


def rendered(page: Page) -> str:
    """Return the page as HTML."""
    metrics = metrics_of(page.checkpoints)
    curves = [
        charts.metric(f"metric-{place}", metric, page.checkpoints)
        for place, metric in enumerate(metrics[:MOST_METRICS])
    ]
    saves = list(_saves(page))
    drift = heat_map("drift", page.drift, page.checkpoints) if page.drift and page.drift.pairs else None
    drawn = [*curves, *saves, *([drift] if drift else [])]
    rows = [*enumerate(page.checkpoints)][::-1]
    plotly, script = get_plotlyjs(), _asset("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            title=words.text(page.directory.resolve().name or page.directory),
            path=words.text(page.directory.resolve()),
            sign=SIGN,
            policy=_policy(plotly, script),
            style=_asset("page.css"),
            plotly=plotly,
            script=script,
            data=_data(page, drawn),
            curves=curves,
            saves=saves,
            drift=drift,
            costs=costs(page.checkpoints),
            extremes=list(_extremes(page, metrics)),
            metrics_left_out=max(len(metrics) - MOST_METRICS, 0),
            kept=[row for row in rows if row[1].kept],
            removed=[row for row in rows if not row[1].kept],
            at_once=_ROWS_AT_ONCE,
            history_limit=HISTORY_LIMIT,
        )
    )


def _saves(page: Page) -> Iterator[Chart]:
    shown = page.checkpoints
    if shown:
        yield charts.timeline("timeline", shown)
        yield bars.sizes("sizes", shown)
    if any(checkpoint.stats for checkpoint in shown):
        yield bars.stalls("stalls", shown)
        yield bars.times("times", shown)


def _extremes(page: Page, metrics: Sequence[str]) -> Iterator[tuple[Extremes, int, int]]:
    """Yield where each metric is lowest and highest, with the places of the two on the page."""
    places = {id(checkpoint): place for place, checkpoint in enumerate(page.checkpoints)}
    for metric in metrics[:MOST_METRICS]:
        found = extremes(page.checkpoints, metric)
        if found is not None:
            yield found, places[id(found.lowest)], places[id(found.highest)]


def _data(page: Page, drawn: Sequence[Chart]) -> dict[str, Any]:
    """Return what the page's script draws."""
    return {
        "notes": [charts.note(checkpoint) for checkpoint in page.checkpoints],
        "charts": [{"name": chart.name, "traces": chart.traces, "layout": chart.layout} for chart in drawn],
    }


def _policy(*scripts: str) -> str:
    """Return the page's policy; styles may stand in the page, as plotly puts some there."""
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "text": words.text,
        "number": words.number,
        "size": words.size,
        "seconds": words.seconds,
        "moment": words.moment,
        "count": lambda count: f"{count:,}",
    }
    return environment
