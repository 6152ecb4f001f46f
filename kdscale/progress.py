"""Progress bars of long work."""

import sys
from typing import Any, TypeAlias

from tqdm import tqdm

Progress: TypeAlias = "tqdm[Any]"
"""A bar; `update(amount)` moves it."""


def progress(
    total: int, unit: str, *, done: int = 0, visible: bool = True, description: str | None = None
) -> Progress:
    """Return a bar of work done, rate and time left; rarely drawn where no terminal shows it.

    Args:
        total: amount of work.
        unit: what is counted, such as "steps".
        done: amount that is done already.
        visible: False draws nothing, as in processes other than the main one.
        description: text before the bar.
    """
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        initial=done,
        unit=f" {unit}",
        unit_scale=total > 100_000,
        desc=description,
        leave=False,
        mininterval=interval,
        delay=interval,
        disable=not visible,
    )
