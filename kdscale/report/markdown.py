"""The report as Markdown: what a page says in words and tables."""

import re
from collections.abc import Iterator, Sequence

from kdscale.formatting import markdown_table
from kdscale.report.charts.chart import Table
from kdscale.report.compared import (
    ACCURACY,
    COST,
    classes_table,
    classes_title,
    comparison,
    confused_pairs,
    other_test_sets,
    trials_table,
)
from kdscale.report.environment import cache_facts, environment
from kdscale.report.headlines import headlines
from kdscale.report.model import Study
from kdscale.report.suggestions import missing


def render_markdown(studies: Sequence[Study], command: str) -> str:
    """The report; headings begin at the second level where there are several studies."""
    blocks = [block for study in studies for block in _study(study)]
    return "\n\n".join([*blocks, f"Made by {_code(command)}."]) + "\n"


def _study(study: Study) -> Iterator[str]:
    yield f"# {_escaped(study.name)}"
    for words in headlines(study):
        yield _escaped(words)
    for columns in (ACCURACY, COST):
        table = comparison(study, columns)
        if len(table.header) > 1 and table.rows:
            yield _table(table)
    for sweep in study.sweeps:
        yield f"## Trials of {_escaped(str(sweep.folder))}"
        yield _table(trials_table(sweep))
    yield from _classes(study)
    elsewhere = other_test_sets(study)
    if elsewhere.rows:
        yield "## On other images"
        yield "Evaluated on images that these runs were not tested on while they trained:"
        yield _table(elsewhere)
    facts = [
        *environment(study),
        *[(f"cache: {name}", words) for name, words in cache_facts(study)],
    ]
    if facts:
        yield "## Machine and cache"
        yield "\n".join(f"* {_escaped(name)}: {_escaped(words)}" for name, words in facts)
    for place, text in study.recipes.items():
        yield f"## Recipe of {_escaped(place)}"
        yield _fenced(text)
    notes = missing(study, has_sheet=True)
    if notes:
        yield "## What is not here"
        yield "\n".join(
            f"* {_escaped(note.text)}" + (f" {_code(note.command)}" if note.command else "")
            for note in notes
        )


def _classes(study: Study) -> Iterator[str]:
    main = study.examined
    if main is None:
        return
    table = classes_table(main)
    yield f"## Classes of {_escaped(main.phrase)}"
    if len(table.rows) < len(main.evaluations[0].class_names):
        yield f"{classes_title(main, table)}:"
    yield _table(table)
    pairs = confused_pairs(main)
    if pairs.rows:
        yield "Most frequent mistakes:"
        yield _table(pairs)


def _table(table: Table) -> str:
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    return markdown_table([_cell(title) for title in table.header], rows)


def _cell(text: str) -> str:
    """A cell ends at a bar, and a line at its end."""
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Names are shown as they are, whatever letters they have, on one line."""
    text = " ".join(text.split())
    for letter in "\\`*[]<>#":
        text = text.replace(letter, f"\\{letter}")
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is but a letter
    return text.replace("&", "&amp;")


def _code(text: str) -> str:
    """A span of code, whatever backticks and line breaks it has."""
    text, fence = " ".join(text.split()), "`"
    while fence in text:
        fence += "`"
    edge = " " if "`" in text else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def _fenced(text: str) -> str:
    """A block of code, however many backticks it has."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}toml\n{text.rstrip()}\n{fence}"
