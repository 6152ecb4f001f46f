"""Commands that write a report draw each form of a chart once."""

import pytest


@pytest.fixture(autouse=True)
def charts_of_a_form_are_drawn_once(reuse_charts):
    """Draws a chart only where its title, height or number of values is new.

    `tests/report/`, `test_report.py` and `test_quickstart.py` draw all charts from their values.
    """

    def form(chart):
        table = chart.table
        return chart.title, chart.height, table and (len(table.header), len(table.rows))

    reuse_charts(form)
