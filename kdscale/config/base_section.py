"""Base of all tables of a recipe (frozen, strict, no unknown keys), and types of their fields."""

import math
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kdscale.formatting import shortened

Positive = Annotated[int, Field(ge=1, lt=1 << 31)]


Fraction = Annotated[float, Field(ge=0, lt=1)]


Weight = Annotated[float, Field(ge=0, le=1e6)]


Temperature = Annotated[float, Field(ge=0.01, le=1000)]
"""Below 0.01 a distribution is its largest entry, above 1000 it is even, in float32."""


Side = Annotated[int, Field(ge=1, le=1 << 14)]
"""Pixels a side."""


Precision = Literal["float32", "bfloat16", "float16"]


MemoryFormat = Literal["contiguous", "channels_last"]


_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: int | str) -> int:
    """Return a number of bytes, from a number or text like "512 MiB" or "2 GB".

    Raises:
        ValueError: the text is neither.
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


def _user_path(text: str) -> str:
    """Expand `~`, and refuse names that no file system accepts."""
    if "\0" in text:
        raise ValueError("a path has no zero byte: remove it")
    try:
        sizes = [len(part.encode()) for part in text.split("/")]
    except UnicodeEncodeError:
        raise ValueError("a recipe is UTF-8, and this name is not: rename it") from None
    if max(sizes) > _LONGEST_NAME:
        raise ValueError(f"a name in a path has at most {_LONGEST_NAME} bytes: shorten it")
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _plain(value: Any) -> Any:
    """Refuse values that JSON lacks, in which weights files and manifests describe a model."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("infinity and NaN are not equal in every file: wanted a finite number")
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"a {type(value).__name__} cannot be written to every file: wanted text, a number, true or "
        "false, or a list or table of these"
    )


_LONGEST_NAME = 255
"""Most bytes of a file's name on all usual file systems."""
UserPath = Annotated[str, AfterValidator(_user_path)]
"""A path or address in a recipe."""
Plain = Annotated[dict[str, Any], AfterValidator(_plain)]
"""A table of values that JSON has."""
Operations = Annotated[list[str | dict[str, Any]], AfterValidator(_plain)]
"""Operations of views: names, or tables of a name and arguments."""


class ConfigSection(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def unknown(message: str, name: str, known: Sequence[str]) -> str:
    """Return a message about an unknown name, with the nearest known one."""
    nearest = get_close_matches(name[:_LONGEST_NAME], known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known) or 'none'}"
    return f"{shortened(message)}: {hint}"
