"""What one batch costs a GPU, part by part: one file for each part, named in `PARTS`.

A file gives `cases() -> Iterator[Case]`. To add a case, yield it from its part's file; to add a
part, write a file and name it here.
"""

from collections.abc import Iterator

from sync_cases import losses, steps, targets, updates, views
from sync_cases.counting import Case

PARTS = {
    "views": views.cases,
    "steps": steps.cases,
    "targets": targets.cases,
    "losses": losses.cases,
    "updates": updates.cases,
}


def all_cases() -> Iterator[Case]:
    """Every case of every part, in a fixed order."""
    for part in PARTS.values():
        yield from part()
