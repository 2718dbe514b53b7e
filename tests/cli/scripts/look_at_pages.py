"""Look at pages in a headless Chromium that is offline, and print as JSON what was seen.

Usage: look_at_pages.py CHROMIUM VIEWS, a JSON list of views as ``browser.View`` has them.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

QUIET = ("background-networking", "component-update", "sync")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{each}" for each in QUIET)]


def main(chromium: str, views: list[dict[str, Any]]) -> None:
    """Look at all ``views``, each in a window of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            print(json.dumps([look(browser, **view) for view in views]))
        finally:
            browser.close()


def look(
    browser: Browser, *, page: str, width: int, scheme: Any, ask: str, picture: str, turns_dark: bool
) -> dict[str, Any]:
    """Open ``page``; return the answer to ``ask``, what it asked of the network, and what it said to the console."""
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800})
    opened = context.new_page()
    seen: dict[str, Any] = {"requests": [], "console": [], "errors": []}
    opened.on("request", lambda request: seen["requests"].append(request.url))
    opened.on("console", lambda message: seen["console"].append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: seen["errors"].append(str(error)))
    opened.on("dialog", lambda dialog: (seen["errors"].append(f"dialog: {dialog.message}"), dialog.dismiss()))
    opened.goto(page)
    opened.wait_for_selector("html[data-drawn]")
    seen["answer"] = opened.evaluate(ask) if ask else None
    if turns_dark:
        opened.emulate_media(color_scheme="dark")
        opened.wait_for_selector("html[data-drawn=dark]")
        seen["answer"] = [seen["answer"], opened.evaluate(ask)]
    seen["overflow"] = overflow(opened)
    if picture:
        opened.screenshot(path=picture, full_page=True)
    context.close()
    return seen


def overflow(opened: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(opened.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
