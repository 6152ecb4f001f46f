"""One table, four forms."""

import csv
import io

from html5lib import HTMLParser

from kdscale.formatting import NOTHING
from kdscale.report.table import Table

EVIL = '<b> | "x"\n=1'
TABLE = Table(["model", "top-1 %"], [["small", "9.1"], [EVIL, NOTHING]])


def test_text_lines_up_with_numbers_on_the_right():
    assert Table(["model", "top-1 %"], [["small", "9.1"], ["a", "71.89"]]).text() == (
        "| model | top-1 % |\n| ----- | ------: |\n| small |     9.1 |\n| a     |   71.89 |"
    )
    words = Table(["field", "meaning"], [["a", "b"]], numbers=False)
    assert words.text().splitlines()[1] == "| ----- | ------- |"


def test_markdown_shows_names_as_they_are_in_one_cell():
    assert TABLE.markdown().splitlines()[-1].startswith('| \\<b\\> \\| "x" =1 |')


def test_html_escapes_names_and_marks_empty_cells():
    html = str(TABLE.html("values"))
    HTMLParser(strict=True).parseFragment(html)
    assert "<b>" not in html
    assert f'class="none" data-title="top-1 %">{NOTHING}</td>' in html


def test_csv_has_one_line_a_row_and_no_formula():
    rows = list(csv.reader(io.StringIO(Table(["a"], [["=1"], ["-2"], ["x\ny"]]).csv())))
    assert rows == [["a"], ["'=1"], ["-2"], ["x y"]]
