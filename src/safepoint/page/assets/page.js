"use strict";

// Draws the charts in the colours that the page has at the moment, and again when they change.
(() => {
  const root = document.documentElement;
  const { charts, notes } = JSON.parse(document.getElementById("data").textContent);
  const config = { responsive: true, displayModeBar: false, showTips: false };
  const isCoarse = window.matchMedia("(pointer: coarse)").matches;

  for (const { traces, layout } of charts) {
    for (const trace of traces.filter((each) => each.said)) {
      trace.hovertext = trace.said.map((said, place) => `${said}<br>${notes[trace.customdata[place]]}`);
    }
    layout.dragmode = isCoarse ? false : "zoom"; // where fingers drag, they scroll
  }

  function coloured(value, colourOf, isColour = false) {
    const inner = (each) => coloured(each, colourOf, isColour);
    if (typeof value === "string") return isColour && value.startsWith("--") ? colourOf(value) : value;
    if (Array.isArray(value)) return isColour || typeof value[0] === "object" ? value.map(inner) : value;
    if (value === null || typeof value !== "object") return value;
    const isColourful = (key) => /color/.test(key) && key !== "colorbar";
    return Object.fromEntries(
      Object.entries(value).map(([key, each]) => [key, coloured(each, colourOf, isColourful(key))]),
    );
  }

  function draw() {
    const style = getComputedStyle(root);
    const colourOf = (name) => style.getPropertyValue(name).trim();
    for (const { name, traces, layout } of charts) {
      const place = document.getElementById(name);
      const themed = traces.map((trace) => coloured(trace, colourOf));
      Plotly.react(place, themed, coloured(layout, colourOf), config);
    }
    root.dataset.drawn = style.getPropertyValue("--theme").trim();
  }

  function onPaper(isPrinting) {
    root.classList.toggle("paper", isPrinting);
    draw();
  }

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("beforeprint", () => onPaper(true));
  window.addEventListener("afterprint", () => onPaper(false));
})();
