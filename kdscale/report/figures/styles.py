"""How entries look: alike in all drawings of a page."""

from collections.abc import Iterable

from kdscale.report.charts.svg import Style, style_of, style_of_many
from kdscale.report.entry import Entry
from kdscale.report.model import Study

PER_CENT = (0.0, 100.0)
"""Within which a share in per cent lies."""


def styles_of(study: Study) -> list[Style]:
    """How each of the study's entries looks in all drawings."""
    kinds = [entry.kind for entry in study.entries]
    if len(set(kinds)) == len(kinds):
        return [style_of(kind) for kind in kinds]
    return [style_of_many(number) for number in range(len(kinds))]


def with_styles(study: Study, wanted: Iterable[Entry]) -> list[tuple[Style, Entry]]:
    """Those of the study's entries that are wanted, in its order, each with its looks."""
    chosen = {id(entry) for entry in wanted}
    pairs = zip(styles_of(study), study.entries, strict=True)
    return [(style, entry) for style, entry in pairs if id(entry) in chosen]
