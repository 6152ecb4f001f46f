"""One self-contained page of HTML: no script, no request, its own style."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from kdscale.report.environment import Fact, subject
from kdscale.report.figures.chart import svg_of
from kdscale.report.figures.style import COLOURS
from kdscale.report.headlines import headlines, with_unbroken_units
from kdscale.report.model import Comparison
from kdscale.report.page_sections import ReportSection, ViewsImage, sections_of
from kdscale.report.suggestions import Note, missing


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePart:
    """The text and sections of one test split's results."""

    name: str
    subject: Sequence[Fact]
    """Data set, teacher, student, date and machine."""
    headlines: Sequence[str]
    sections: Sequence[ReportSection]
    missing: Sequence[Note]


def render_page(
    studies: Sequence[Comparison],
    views: Sequence[ViewsImage | None],
    command: str,
    version: str,
) -> str:
    """Return the page.

    Args:
        studies: the results, one for each test split.
        views: the preview of each study's views.
        command: the command that writes the page again.
        version: of kdscale.
    """
    parts = [
        _part(study, one, f"s{number}-" if len(studies) > 1 else "")
        for number, (study, one) in enumerate(zip(studies, views, strict=True), 1)
    ]
    title = ", ".join(dict.fromkeys(part.name for part in parts))
    return _template().render(
        title=title, parts=parts, command=command, version=version, colours=COLOURS
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("kdscale.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["svg"] = svg_of
    return environment.get_template("page.html")


def _data_uri(picture: bytes) -> str:
    return f"data:image/webp;base64,{b64encode(picture).decode()}"


def _part(study: Comparison, views: ViewsImage | None, prefix: str) -> PagePart:
    return PagePart(
        name=study.name,
        subject=subject(study),
        headlines=[with_unbroken_units(words) for words in headlines(study)],
        sections=sections_of(study, views, prefix),
        missing=missing(study, has_sheet=views is not None),
    )
