"""A report as Markdown: the text and the tables of the page."""

from collections.abc import Iterator, Sequence

from kdscale.report.environment import subject
from kdscale.report.headlines import headlines
from kdscale.report.model import Comparison
from kdscale.report.page_sections import ReportSection, sections_of
from kdscale.report.suggestions import missing
from kdscale.report.table import Table, escaped


def render_markdown(studies: Sequence[Comparison], command: str) -> str:
    """Return the report, one first heading for each test split."""
    blocks = [block for study in studies for block in _study(study)]
    return "\n\n".join([*blocks, f"Made by {_code(command)}."]) + "\n"


def _study(study: Comparison) -> Iterator[str]:
    yield f"# {escaped(study.name)}"
    yield _facts(subject(study))
    for words in headlines(study):
        yield escaped(words)
    for section in sections_of(study, None, ""):
        yield from _section(section)
    notes = missing(study, has_sheet=True)
    if notes:
        yield "## Missing results"
        yield "\n".join(
            f"* {escaped(note.text)}" + (f" {_code(note.command)}" if note.command else "")
            for note in notes
        )


def _section(section: ReportSection) -> Iterator[str]:
    """A section whose charts alone hold something is left out: their values are in the page."""
    tables: list[tuple[str, Table]] = [("", table) for table in section.tables]
    tables += section.folded.items()
    if not (tables or section.facts or section.texts):
        return
    yield f"## {escaped(section.title)}"
    if section.words:
        yield escaped(section.words)
    for title, table in tables:
        if table.rows:
            yield from [f"{escaped(title)}:"] if title else []
            yield table.markdown()
    if section.facts:
        yield _facts(section.facts)
    for title, text in section.texts.items():
        yield f"## {escaped(title)}"
        yield _fenced(text)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"* {escaped(name)}: {escaped(words)}" for name, words in facts)


def _code(text: str) -> str:
    """Return a span of code, whatever backticks and line breaks it has."""
    text, fence = " ".join(text.split()), "`"
    while fence in text:
        fence += "`"
    edge = " " if "`" in text else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def _fenced(text: str) -> str:
    """Return a block of code, however many backticks it has."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}toml\n{text.rstrip()}\n{fence}"
