"""A table of text, for the terminal, Markdown, HTML and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdscale.formatting import NOTHING


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first column names a row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True
    """Whether all columns but the first hold numbers, which line up on the right."""

    def text(self) -> str:
        """Return the table for a terminal: Markdown whose columns line up, names as they are."""
        return _aligned(self.header, self.rows, self.numbers)

    def markdown(self) -> str:
        """Return the table as Markdown that shows any name as it is."""
        rows = [[_cell(cell) for cell in row] for row in self.rows]
        return _aligned([_cell(title) for title in self.header], rows, self.numbers)

    def html(self, kind: str) -> Markup:
        """Return the table as HTML of a class of the style sheet.

        Roles are explicit, since the style sheet stacks cells on telephones, which drops them.
        """
        titles = Markup("").join(
            Markup('<th scope="col" role="columnheader">{}</th>').format(one) for one in self.header
        )
        rows = Markup("\n").join(self._row_html(row) for row in self.rows)
        return Markup(
            '<table class="{}" role="table">\n<thead role="rowgroup"><tr role="row">{}</tr></thead>'
            '\n<tbody role="rowgroup">\n{}\n</tbody>\n</table>'
        ).format(kind, titles, rows)

    def _row_html(self, row: Sequence[str]) -> Markup:
        cells = Markup("").join(
            Markup('<td role="cell"{} data-title="{}">{}</td>').format(
                Markup(' class="none"') if cell == NOTHING else "", title, cell
            )
            for title, cell in zip(self.header[1:], row[1:], strict=True)
        )
        return Markup('<tr role="row"><th scope="row" role="rowheader">{}</th>{}</tr>').format(
            row[0], cells
        )

    def csv(self) -> str:
        """Return the table as CSV in which no text is a formula of a spreadsheet."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([_csv_cell(cell) for cell in row] for row in (self.header, *self.rows))
        return text.getvalue()


# --------------------------------------------------------------------------- Markdown


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool) -> str:
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    right = [numbers and column > 0 for column in range(len(header))]
    rule = ["-" * (w - r) + ":" * r for w, r in zip(widths, right, strict=True)]
    lines.insert(1, rule)
    return "\n".join(_line(line, widths, right) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    aligned = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return f"| {' | '.join(aligned)} |"


def escaped(text: str) -> str:
    """Return a text on one line that Markdown shows as it is, whatever letters it has."""
    text = " ".join(text.split())
    for letter in "\\`*[]<>#":
        text = text.replace(letter, f"\\{letter}")
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is but a letter
    return text.replace("&", "&amp;")


def _cell(text: str) -> str:
    """Return a text for a cell, which a bar would end."""
    return escaped(text).replace("|", "\\|")


# --------------------------------------------------------------------------- CSV

_FORMULA = ("=", "+", "-", "@")
"""First letters of a cell that a spreadsheet calculates."""
_ONE_LINE = str.maketrans("\t\r\n", "   ")


def _csv_cell(value: str) -> str:
    """Return a cell on one line; a text that would run as a formula begins with '."""
    text = value.translate(_ONE_LINE)
    is_formula = text.lstrip().startswith(_FORMULA) and not _is_number(text)
    return f"'{text}" if is_formula else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
