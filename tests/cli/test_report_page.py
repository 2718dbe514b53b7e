"""The page of ``safepoint report`` as a browser shows it: drawn, quiet, readable anywhere, and inert."""

from __future__ import annotations

import math
from pathlib import Path

import browser
import files
import pytest
import torch
from browser import PHONE_PX, Seen, View
from commands import safepoint
from loop import Training

from safepoint import Checkpointer, keep, when
from safepoint.catalog import Catalog
from safepoint.manifest import Blob, HistoryEntry, Stats, Tensor
from safepoint.records import Metrics

EVIL = "</script><img src=x onerror=\"window.pwned='yes'\"><b>%{x}</b>&amp;<a href='https://example.com'>"
BOLD = "<b>x</b>"
LONG = "w" * 200
LOSSES = (0.9, 0.7, math.nan, 0.6, 0.65, math.inf, 0.4, 0.5, 0.45, 0.47)

POINTS = """() => Object.fromEntries([...document.querySelectorAll(".chart")].map((chart) => [
  chart.previousElementSibling?.previousElementSibling?.textContent || chart.id,
  Object.fromEntries(chart.data.filter((trace) => trace.name).map((trace) => [trace.name, trace.y.length])),
]))"""
DRAWN = """() => Object.fromEntries([...document.querySelectorAll(".chart")].map((chart) => [
  chart.id,
  chart.querySelectorAll(".scatterlayer .point, .barlayer .point, .heatmaplayer image").length,
]))"""
COLOURS = """() => [
  getComputedStyle(document.querySelector("#metric-0 .yaxislayer-above text, #metric-0 .ytick text")).fill,
  document.querySelector("#metric-0 .scatterlayer .trace:last-child .point").style.fill,
  getComputedStyle(document.documentElement).backgroundColor,
]"""
ON_PAPER = f"() => {{ window.dispatchEvent(new Event('beforeprint')); return ({COLOURS})(); }}"
INERT = """() => {
  for (const chart of document.querySelectorAll(".chart")) {
    chart.data.forEach((trace, curve) => {
      if (trace.hoverinfo === "skip" || trace.type !== "scatter") return;
      Plotly.Fx.hover(chart, [{ curveNumber: curve, pointNumber: 0 }]);
    });
  }
  const script = document.createElement("script");
  return {
    pwned: window.pwned ?? null,
    elements: document.querySelectorAll("img, b b, .chart a, .chart image[href^=http]").length,
    labels: [...document.querySelectorAll("#drift .ytick text")].map((each) => each.textContent),
    hovered: document.querySelector("#metric-0 .hoverlayer").textContent,
  };
}"""
INJECTED = """() => {
  const script = document.createElement("script");
  script.textContent = "window.injected = true";
  document.body.append(script);
  return window.injected ?? null;
}"""
HIDDEN = """() =>
  [...document.querySelectorAll("#metrics .scroll")].map((each) => each.scrollWidth - each.clientWidth)"""
OUTLINE = """() => ({
  language: document.documentElement.lang,
  title: document.title,
  headings: [...document.querySelectorAll("h1, h2, h3")].map((each) => [each.tagName, each.textContent]),
  unlabelled: [...document.querySelectorAll(".chart")].filter((each) => !each.getAttribute("aria-label")).length,
  unscoped: document.querySelectorAll("th:not([scope])").length,
})"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that kept some, removed some, pinned one, and ended in an exception."""
    training, directory = Training(), tmp_path_factory.mktemp("runs") / "run"
    policy = keep.best("val_loss", n=2) | keep.latest()
    save = when.every(epochs=1) | when.exception()
    with (
        pytest.raises(RuntimeError, match="worn out"),
        Checkpointer(directory, state=training.state, save=save, keep=policy) as checkpointer,
    ):
        for epoch, loss in enumerate(LOSSES):
            checkpointer.step(train_loss=training.advance())
            checkpointer.epoch_end(val_loss=loss)
            if epoch == 3:
                checkpointer.save(pinned=True)
        checkpointer.step(train_loss=training.advance())
        raise RuntimeError("worn out")
    return directory


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory whose every name and number wants to harm whoever looks at it."""
    directory = tmp_path_factory.mktemp("hostile")
    _save_hostile(directory / "<img src=x>")
    _forge(directory)
    (directory / f"{EVIL.replace('/', '')}.ckpt").write_bytes(b"PK\x03\x04")
    return directory


def _save_hostile(directory: Path) -> None:
    """Save twice, for real, a state with hostile names."""
    inner = {EVIL: torch.ones(3), LONG: torch.ones(3), f"{EVIL}.{EVIL}": torch.ones(3), EVIL * 2: EVIL}
    state = {"model": {BOLD: {"w": torch.ones(3)}, **inner}}
    with Checkpointer(directory, state=state, save=when.every(steps=1), keep=keep.all()) as checkpointer:
        for _ in range(2):
            inner[EVIL] += 1
            checkpointer.step(**{EVIL: 0.5, "tiny": 1e-308, LONG: 1.0})


def _forge(directory: Path) -> None:
    """Write files that say what nobody has saved, of themselves and of others that are gone."""
    stats = Stats(2**61, 2**60, -1e308, 1e308, -1e308, 1e308, 1e308)
    history = tuple(
        HistoryEntry(f"{n}.ckpt", n, 0, {EVIL: float(n), "vast": 1e308}, time, kept=False, reason=EVIL, stats=stats)
        for n, time in ((1, 1.5e9), (2, 1e300), (2**61, -1e300))
    )
    tensors = (Tensor("a." * 200 + "w", EVIL, (2**61, 2**61), 0),)
    for step in (3, 4):
        name = f"{step}<img src=x>{LONG}.ckpt"
        told = files.manifest(
            run=EVIL,
            step=step,
            time=1.5e9 + step,
            metrics={EVIL: 0.5},
            reasons=(EVIL, LONG),
            history=(*history, files.told(name, step)),
            storages=(Blob(16, f"{step}" * 32),),
            tensors=tensors,
        )
        files.write(directory / name, told, (16,))


def written(directory: Path, place: Path) -> str:
    """Write the page of ``directory`` into ``place``; return its URL."""
    page = place / "report.html"
    done = safepoint("report", directory, "-o", page)
    assert (done.returncode, done.stderr) == (0, "")
    return page.as_uri()


@pytest.fixture(scope="module")
def seen(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Return what is seen of the page of ``run``, on a desk and on a phone, by day and by night."""
    place = tmp_path_factory.mktemp("seen")
    page = written(run, place)
    views = {
        "points": View(page, ask=POINTS, picture=str(place / "desktop-light.png")),
        "drawn": View(page, scheme="dark", ask=DRAWN, picture=str(place / "desktop-dark.png")),
        "phone": View(page, PHONE_PX, ask=OUTLINE, picture=str(place / "phone-light.png")),
        "dusk": View(page, PHONE_PX, ask=COLOURS, turns_dark=True, picture=str(place / "phone-dark.png")),
        "paper": View(page, scheme="dark", ask=ON_PAPER),
    }
    found = dict(zip(views, browser.look(list(views.values()), place), strict=True))
    assert all(path.stat().st_size for path in place.glob("*.png"))
    return found


@pytest.fixture(scope="module")
def seen_hostile(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Return what is seen of the page of ``hostile``."""
    place = tmp_path_factory.mktemp("seen")
    page = written(hostile, place)
    views = {
        "inert": View(page, ask=INERT, turns_dark=True),
        "phone": View(page, PHONE_PX, ask=DRAWN),
        "narrow": View(page, PHONE_PX, ask=HIDDEN),
        "injected": View(page, ask=INJECTED),
    }
    return dict(zip(views, browser.look(list(views.values()), place), strict=True))


def kind(metrics: Metrics, *, is_kept: bool, emergency: str = "") -> str:
    """Return as what a checkpoint is to be drawn on the curve of the loss."""
    if not math.isfinite(metrics["val_loss"]):
        return "beyond"
    return ("emergency" if emergency else "kept") if is_kept else "removed"


def test_report_draws_every_checkpoint(run: Path, seen: dict[str, Seen]) -> None:
    """On the curve of a metric are as many marks of each kind as there are checkpoints of it that have the metric."""
    catalog = Catalog.of(run)
    there = {(record.path, record.time) for record in catalog.records}
    gone = [
        fate.record for fate in catalog.history(catalog.runs()[0]) if (fate.record.path, fate.record.time) not in there
    ]
    kinds = [kind(r.metrics, is_kept=True, emergency=r.emergency) for r in catalog.records if "val_loss" in r.metrics]
    kinds += [kind(record.metrics, is_kept=False) for record in gone if "val_loss" in record.metrics]
    expected = {each: kinds.count(each) for each in set(kinds)}
    assert seen["points"].answer["val_loss"] == expected
    assert {"kept", "removed", "beyond"} <= expected.keys()
    timeline = seen["points"].answer["When they were saved"]
    assert timeline["kept"] + timeline["emergency"] == len(catalog.records)
    assert (timeline["removed"], timeline["emergency"]) == (len(gone), 1)


def test_report_charts_have_something_to_see(seen: dict[str, Seen]) -> None:
    """In every chart there are marks, bars or cells on the screen."""
    drawn = seen["drawn"].answer
    assert drawn.keys() == {"metric-0", "metric-1", "timeline", "sizes", "stalls", "times", "drift"}
    assert all(drawn.values())


@pytest.mark.parametrize("view", ["points", "drawn", "phone", "dusk", "paper"])
def test_report_is_quiet(seen: dict[str, Seen], view: str) -> None:
    """The page asks for nothing but itself, and neither warns nor fails."""
    found = seen[view]
    assert (found.console, found.errors) == ([], [])
    assert [url.partition(":")[0] for url in found.requests] == ["file"]
    assert found.requests[0].endswith("/report.html")


@pytest.mark.parametrize("view", ["points", "phone", "dusk"])
def test_report_fits_into_the_window(seen: dict[str, Seen], view: str) -> None:
    """Neither on a desk nor on a phone of 360 pixels is the page wider than the window."""
    assert seen[view].overflow <= 0


def test_report_charts_follow_the_system(seen: dict[str, Seen]) -> None:
    """When the system comes to prefer dark pages, the charts change their colours with the page."""
    by_day, by_night = seen["dusk"].answer
    assert all(before != after for before, after in zip(by_day, by_night, strict=True))


def test_report_is_printed_on_white(seen: dict[str, Seen]) -> None:
    """On paper the colours are those of the day, also for someone who prefers dark pages."""
    assert seen["paper"].answer == seen["dusk"].answer[0]


def test_report_has_an_outline(seen: dict[str, Seen]) -> None:
    """The page has a language, a title, one main heading and others below it, and its charts say what they show."""
    outline = seen["phone"].answer
    tags = [tag for tag, _ in outline["headings"]]
    assert (outline["language"], outline["title"]) == ("en", "run: checkpoints")
    assert tags.count("H1") == 1
    assert tags.index("H1") < tags.index("H2") < tags.index("H3")
    assert (outline["unlabelled"], outline["unscoped"]) == (0, 0)


def test_report_shows_hostile_names_as_they_are(seen_hostile: dict[str, Seen]) -> None:
    """Names from files make no element and run nothing, also where one points at a mark: they are text."""
    for answer in seen_hostile["inert"].answer:
        assert (answer["pwned"], answer["elements"]) == (None, 0)
        assert EVIL in answer["hovered"]
        assert f"model.{BOLD}" in answer["labels"]


@pytest.mark.parametrize("view", ["inert", "phone"])
def test_report_of_hostile_files_is_quiet(seen_hostile: dict[str, Seen], view: str) -> None:
    """What is in hostile files leads to no request, no warning and no failure, and everything is drawn."""
    found = seen_hostile[view]
    assert (found.console, found.errors, len(found.requests), found.overflow) == ([], [], 1, 0)


def test_report_shows_numbers_beside_long_names(seen_hostile: dict[str, Seen]) -> None:
    """On a phone too, the lowest and the highest of each metric are there without scrolling."""
    (hidden,) = seen_hostile["narrow"].answer
    assert hidden <= 0


def test_report_runs_no_script_but_its_own(seen_hostile: dict[str, Seen]) -> None:
    """A script that comes into the page in some way does not run: the page's policy names those that may."""
    found = seen_hostile["injected"]
    assert found.answer is None
    assert any("Content Security Policy" in message for message in found.console)
