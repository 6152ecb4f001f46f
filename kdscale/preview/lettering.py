"""Words on pictures: the font, text cut or wrapped to a width, and letters that the font lacks."""

from bisect import bisect_right
from functools import cache
from unicodedata import normalize

from PIL import ImageDraw, ImageFont

TITLE, NAME, SMALL = 24, 16, 13
"""Sizes of type, in pixels."""
INK, FAINT = "#1f2328", "#59636e"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_ELLIPSIS = "…"
_UNKNOWN = "?"
_NO_LETTER = "\uffff"  # not a character: every font draws its sign for what it lacks


@cache
def font(size: int) -> Font:
    """Pillow's own font, the same on every machine."""
    return ImageFont.load_default(size)


def write(
    pen: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    ink: str = FAINT,
    size: int = SMALL,
    anchor: str = "lm",
) -> None:
    """One line of text whose left end (or what else `anchor` says) is at (x, y)."""
    pen.text((x, y), text, ink, font(size), anchor=anchor)


def fit(text: str, size: int, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font(size).getlength(text) <= width:
        return text

    def cut(kept: int) -> str:
        return text[:kept].rstrip() + _ELLIPSIS

    too_wide = bisect_right(
        range(len(text)), width, key=lambda kept: font(size).getlength(cut(kept))
    )
    return cut(max(too_wide - 1, 0))


def wrap(text: str, size: int, width: float) -> list[str]:
    """The text in lines of at most `width` pixels; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fit(word, size, width))
    return lines


def drawable(text: str, otherwise: str) -> str:
    """The text in letters that the font has, in one line.

    Accents are dropped where that helps. Of a text that would be mostly question marks, as in
    another script, nothing is left to read: then `otherwise`.
    """
    text = " ".join(text.split())
    plain = text if all(map(_has, text)) else normalize("NFKD", text)
    kept = [letter for letter in plain if _has(letter) or not _is_accent(letter)]
    letters = [letter if _has(letter) else _UNKNOWN for letter in kept]
    known = sum(map(_has, kept))
    return "".join(letters) if letters and 2 * known > len(kept) else otherwise


def _is_accent(letter: str) -> bool:
    return 0x300 <= ord(letter) < 0x370


@cache
def _has(letter: str) -> bool:
    return letter.isprintable() and _picture(letter) != _picture(_NO_LETTER)


def _picture(letter: str) -> tuple[tuple[int, ...], bytes]:
    mask = font(16).getmask(letter)
    return mask.size, bytes(mask)
