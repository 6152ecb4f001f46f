"""Predictions of images as a table: a row for each image, its classes by probability."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdscale.report.table import Table


def prediction_table(images: Sequence[Mapping[str, Any]], *, percent: bool) -> Table:
    """Return predictions as a table; images without one are left out.

    Args:
        images: as `kdscale predict --json` prints them.
        percent: probabilities as `93.1 %`, for people; False: as numbers 0..1, for programs.
    """
    predicted = [one for one in images if "predictions" in one]
    ranks = max((len(one["predictions"]) for one in predicted), default=0)
    header = ["file"]
    for rank in range(1, ranks + 1):
        suffix = "" if rank == 1 else f"_{rank}"
        header += [f"class{suffix}", f"probability{suffix}"]
    rows = []
    for one in predicted:
        row = [one["file"]]
        for found in one["predictions"]:
            value = found["probability"]
            row += [found["class"], f"{100 * value:.1f} %" if percent else f"{value:.6g}"]
        rows.append(row)
    return Table(header, rows, numbers=False)
