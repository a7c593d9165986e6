"""Chromium, and a page in it that has to keep quiet."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1280, scheme: Any = "light") -> Iterator[Tab]:
    """Yield the tab in which a file is open; at the end, nothing else was asked for and nothing went wrong."""
    addresses: list[str] = []
    told: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.set_default_timeout(120_000)  # of a machine that has other work
    tab.on("request", lambda request: addresses.append(request.url))
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    try:
        tab.goto(file.as_uri())
        tab.get_by_role("status").first.filter(has_text="row").wait_for()
        yield tab
        assert told == []
        assert {*addresses} <= {file.as_uri(), "data:,"} and addresses
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        tab.close()


def drawn(tab: Tab, section: str) -> Any:
    """Return the charts of a section once they are drawn."""
    charts = tab.locator(f"#{section} figure .chart")
    for chart in charts.all():
        chart.scroll_into_view_if_needed()
    tab.locator(f"#{section} figure:not(:has([data-drawn=true]))").first.wait_for(state="detached")
    return charts
