"""Pages in Debian's Chromium, wide and narrow: nothing is cut off, hidden or too small to read."""

import re
from pathlib import Path

import pytest
from synthetic_runs import CIFAR, recipe, write_run, write_sweep, write_whole_recipe

WIDTHS = (1280, 390)
OTHER_WIDTHS = (1101, 1099, 961, 621, 619, 360)
MEASURE = (Path(__file__).parents[1] / "assets" / "measure_page.js").read_text()
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
LONG = [f"<n{number:08}> & a long name of a class, 第{number}" for number in range(200)]


def whole(folder):
    return [write_whole_recipe(folder / "whole", names=CIFAR)]


def many_classes(folder):
    return [write_whole_recipe(folder / "many", names=LONG, accuracy=0.6, seeds=1)]


def sweep(folder):
    return [write_sweep(folder / "sweep")]


def single(folder):
    return [write_run(folder / "single", names=CIFAR)]


def nearly_nothing(folder):
    return [write_run(folder / "begun", finished=False, evaluated=False, epochs=1)]


def several(folder):
    long = recipe(f"a-recipe-{'with-a-name-that-goes-on-' * 4}", student__model="another")
    runs = [
        write_run(folder / f"t{t}", names=CIFAR, table=recipe(loss__temperature=float(t)))
        for t in (1, 2, 3, 4, 5, 6, 7, 8)
    ]
    return [*runs, write_whole_recipe(folder / "long", names=CIFAR, table=long, seeds=2)]


def twenty(folder):
    return [write_run(folder / "twenty", names=[f"a class called {n}" for n in range(20)])]


@pytest.mark.parametrize(
    "make", [whole, many_classes, sweep, single, nearly_nothing, several, twenty]
)
def test_page_fits_and_can_be_read_at_any_width(make, show, browser, tmp_path):
    folders = make(tmp_path)
    for width in WIDTHS:
        requests, complaints = show(*folders, width=width)
        assert complaints == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        for opened in (False, True):
            if opened:
                browser.run(OPEN_ALL)
            found = browser.run(MEASURE)
            problems = {key: found[key][:5] for key in ("wider", "small", "cut", "overlap")}
            assert problems == {key: [] for key in problems}, f"at {width}, opened {opened}"
            assert browser.run("document.documentElement.scrollWidth") <= width
            if make is not nearly_nothing:
                assert found["texts"] > 8 * found["drawings"] > 8


@pytest.mark.parametrize("width", OTHER_WIDTHS)
def test_page_fits_where_its_layout_changes(width, show, browser, tmp_path):
    show(*whole(tmp_path), *sweep(tmp_path), width=width)
    found = browser.run(MEASURE)
    assert {key: found[key][:5] for key in ("wider", "small", "cut", "overlap")} == {
        "wider": [], "small": [], "cut": [], "overlap": []
    }  # fmt: skip


def test_measuring_finds_what_is_wrong(show, browser, page, tmp_path):
    text = page(*single(tmp_path))
    bad = text.replace("</main>", "<p style='width:2000px;font-size:9px'>wide</p></main>")
    bad = re.sub(r'<text ([^>]*) x="[^"]*"', r'<text \1 x="-90"', bad)
    show(width=390, text=bad)
    found = browser.run(MEASURE)
    assert found["wider"]
    assert found["small"]
    assert found["cut"]


def test_dark_page_is_dark_and_light_page_is_light(show, browser, tmp_path):
    folders = single(tmp_path)
    light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    line = "getComputedStyle(document.querySelector('figure svg path[style*=stroke]')).stroke"
    strokes = []
    for dark, expected in ((False, range(240, 256)), (True, range(40))):
        show(*folders, width=1280, dark=dark)
        assert browser.run(light) in expected
        strokes.append(browser.run(line))
    assert len(set(strokes)) == 2


def test_printed_page_is_light_and_has_tables_and_drawings_that_fit(show, browser, tmp_path):
    show(*whole(tmp_path), width=718, dark=True, media="print")  # A4 within its margins
    style = "getComputedStyle(document.querySelector('{}')).{}"
    assert browser.run(style.format("body", "backgroundColor")) == "rgb(255, 255, 255)"
    assert browser.run(style.format(".compared", "display")) == "table"
    found = browser.run(MEASURE)
    assert (found["wider"], found["cut"], found["overlap"]) == ([], [], [])
    assert found["drawings"] > 5
