"""Numbers, sizes and times, as people read them."""

import re
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

NOTHING = "\N{EN DASH}"
"""Where there is no value."""


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation over more than one value: `71.89 ± 0.21`."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def percent_text(share: float | None, nothing: str = "") -> str:
    """`71.89`, without a sign; `nothing` where there is no share."""
    return nothing if share is None else f"{100 * share:.2f}"


def printable(text: str, *, keep: str = "") -> str:
    """Return a text whose control characters are escaped, so that it cannot steer a terminal.

    Args:
        text: such as a file's or a class's name, which anybody may have chosen.
        keep: control characters that stay, such as newlines of a message.
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text
    )


def first_few(names: Iterable[str], number: int = 3) -> str:
    """`a, b, c and 4 more`: the first names, control characters escaped; `nothing` for none."""
    listed = [printable(name) for name in names]
    more = len(listed) - number
    first = ", ".join(listed[:number]) or "nothing"
    return f"{first} and {more:,} more" if more > 0 else first


def reason_of(error: BaseException, limit: int = 300) -> str:
    """Return an exception's message in one line, shortened to `limit`, or its type without one."""
    return shortened(" ".join(str(error).split()), limit) or type(error).__name__


def number_of(count: float, thing: str, things: str = "") -> str:
    """`1 view`, `50 views`, `1.5 epochs`.

    Args:
        count: how many.
        thing: in the singular.
        things: in the plural, where that is not `thing` and an s.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:.3g}"
    return f"{number} {thing if number == '1' else things or thing + 's'}"


def in_counting_order(name: str) -> list[tuple[str, int]]:
    """A key to sort names by: `seed2` comes before `seed10`."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def bytes_text(count: int) -> str:
    """`4.8 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def duration_text(seconds: float) -> str:
    """`38.7 s`, `12 min`, `3 h 05 min`, `2.1 days`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{seconds / 86400:.1f} days"


def shortened(text: str, limit: int = 200) -> str:
    """The text, its middle left out where it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}… ({len(text):,} characters) …{text[-limit // 4 :]}"
