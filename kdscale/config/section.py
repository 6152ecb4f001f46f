"""What all tables of a recipe share: frozen, strict, without unknown keys."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


Fraction = Annotated[float, Field(ge=0, lt=1)]


Weight = Annotated[float, Field(ge=0)]


Precision = Literal["float32", "bfloat16", "float16"]


MemoryFormat = Literal["contiguous", "channels_last"]


_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: int | str) -> int:
    """A number of bytes, or text like "512 MiB" or "2 GB".

    Raises:
        ValueError: it is neither.
    """
    if isinstance(text, int):
        text = str(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", text.strip().lower())
    number = 0
    if match and not (match[3] and not match[2]):
        number = int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2]])
    if number < 1:
        raise ValueError('wanted bytes, 1 or more, as a whole number or as text like "2 GiB"')
    return number


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def unknown(message: str, name: str, known: Sequence[str]) -> str:
    """A message about a name that is not known, with the nearest one that is."""
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known) or 'none'}"
    return f"{message}: {hint}"
