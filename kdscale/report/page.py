"""One self-contained page of HTML: no script, no request, its own style."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdscale.formatting import NOTHING
from kdscale.report.headlines import Tile, headlines, kept_together, tiles
from kdscale.report.model import Study
from kdscale.report.sections import Picture, Section, sections_of
from kdscale.report.suggestions import Note, missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A study as the page shows it."""

    name: str
    headlines: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    missing: Sequence[Note]


def render_page(
    studies: Sequence[Study], sheets: Sequence[Picture | None], command: str, version: str
) -> str:
    """The page.

    Args:
        studies: what it is about.
        sheets: of each study's views.
        command: what makes it anew.
        version: of kdscale.
    """
    parts = [
        _part(study, sheet, f"s{number}-" if len(studies) > 1 else "")
        for number, (study, sheet) in enumerate(zip(studies, sheets, strict=True), 1)
    ]
    environment = Environment(
        loader=PackageLoader("kdscale.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    title = ", ".join(dict.fromkeys(part.name for part in parts))
    return environment.get_template("page.html").render(
        title=title, parts=parts, command=command, version=version, nothing=NOTHING
    )


def _data_uri(picture: bytes) -> str:
    return f"data:image/webp;base64,{b64encode(picture).decode()}"


def _part(study: Study, sheet: Picture | None, prefix: str) -> Part:
    return Part(
        name=study.name,
        headlines=[kept_together(words) for words in headlines(study)],
        tiles=tiles(study),
        sections=sections_of(study, sheet, prefix),
        missing=missing(study, has_sheet=sheet is not None),
    )
