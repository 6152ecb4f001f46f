"""A browser, and pages to look at in it."""

from pathlib import Path

import browser as chromium
import pytest


@pytest.fixture
def page(tmp_path):
    """Renders the report of folders; returns the text."""
    from kdscale.report.collect import collect
    from kdscale.report.page import render_page

    def render(*folders, sheets=None):
        studies = collect(folders, tmp_path / "cache")
        return render_page(studies, sheets or [None] * len(studies), "kdscale report", "0")

    return render


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window."""
    if chromium.find() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    opened = chromium.Browser()
    yield opened
    opened.close()


@pytest.fixture
def show(browser, page, tmp_path):
    """Opens the report of folders in the browser; returns what it asked for and complained of."""

    def show_page(*folders, width, text=None, **options):
        path = Path(tmp_path / "report.html")
        path.write_text(text or page(*folders), encoding="utf-8")
        return browser.open(path, width=width, **options)

    return show_page
