"""Make a report of finished and unfinished runs: a page, Markdown, CSV."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kdscale import __version__
from kdscale.atomic_write import write_durably, write_output
from kdscale.cache.manifest import Manifest
from kdscale.errors import KdscaleError
from kdscale.formatting import number_of
from kdscale.report.collect import gather
from kdscale.report.csv import render_csv
from kdscale.report.markdown import render_markdown
from kdscale.report.model import Study
from kdscale.report.page import render_page
from kdscale.report.sections import Picture

log = logging.getLogger(__name__)

Format = Literal["html", "markdown", "csv"]
_WIDE, _NARROW = 1088, 358
"""Pixels that a sheet of views takes on the page, and on a telephone."""


def report(
    folders: Sequence[Path],
    *,
    files: Mapping[Format, Path | None],
    cache_root: Path,
    data: str | None = None,
) -> dict[Format, str]:
    """Tell what runs have come to; a report is derived from them, so an older one is replaced.

    Args:
        folders: of single runs, of whole recipes, of sweeps.
        files: what to write where; None is for what shall be returned only.
        cache_root: where caches and decoded images lie.
        data: a local copy of the data set, for the sheet of views.

    Returns:
        The texts.

    Raises:
        RunError: a folder holds no run.
        StorageError: a file cannot be written.
    """
    texts = _texts(folders, files, cache_root, data)
    for kind, path in files.items():
        if path is not None:
            write_output(path, texts[kind].encode("utf-8", "backslashreplace"))
    return texts


def _texts(
    folders: Sequence[Path],
    files: Mapping[Format, Path | None],
    cache_root: Path,
    data: str | None,
) -> dict[Format, str]:
    studies = gather(folders, cache_root)
    for problem in dict.fromkeys(
        one for study in studies for run in study.runs for one in run.problems
    ):
        log.warning("%s", problem)  # a table has no place for it
    command = _command(folders, files)
    texts: dict[Format, str] = {}
    for kind in files:
        if kind == "html":
            sheets = [_sheet(study, cache_root, data) for study in studies]
            texts[kind] = render_page(studies, sheets, command, __version__)
        else:
            texts[kind] = (
                render_csv(studies) if kind == "csv" else render_markdown(studies, command)
            )
    return texts


def write_page(folder: Path, source: str, cache_root: Path) -> None:
    """Write `report.html` into a recipe's folder, or a sweep's, from what it holds.

    Args:
        folder: the folder.
        source: of the images, as in a recipe; where it is not at hand nothing is fetched.
        cache_root: where caches and decoded images lie.
    """
    from kdscale.experiment import source_path  # with torch: its callers have it

    local = source_path(source)
    data = local if Path(local).exists() else None
    files: dict[Format, Path | None] = {"html": folder / "report.html"}
    texts = _texts([folder], files, cache_root, data)
    write_durably(folder / "report.html", texts["html"].encode("utf-8", "backslashreplace"))


def _command(folders: Sequence[Path], files: Mapping[Format, Path | None]) -> str:
    """What makes the report anew."""
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path or "-"))]
    return shlex.join(["kdscale", "report", *[str(folder) for folder in folders], *options])


# --------------------------------------------------------------------------- the sheet of views


def _sheet(study: Study, cache_root: Path, data: str | None) -> Picture | None:
    """Views of the study's cache, where the images are at hand; nothing is fetched for it."""
    manifest, place = study.manifest, study.cache_place
    if manifest is None or place is None or not manifest.complete:
        return None
    source = data or str(manifest.dataset["source"])
    if not source.startswith("embedded:") and not Path(source).exists():
        return None
    try:
        return _drawn(place, manifest, cache_root, data)
    except KdscaleError as error:
        log.info("no sheet of views: %s", error)
        return None


def _drawn(place: Path, manifest: Manifest, cache_root: Path, data: str | None) -> Picture:
    from kdscale.commands.preview import ShownCache, encoded
    from kdscale.preview.sheet import draw  # with torch: only here

    cache = ShownCache(place, data=data, cache_root=cache_root)
    changed = bool(manifest.views["operations"])  # so that a clean image stands beside them
    views = min(manifest.num_views, 5 if changed else 6)
    samples = min(manifest.num_samples, 4 if views > 2 else 8)
    wide = draw(cache.sheet(samples, views, seed=0), widest=_WIDE)
    few = min(manifest.num_views, 1 if changed else 2)
    narrow = draw(cache.sheet(min(samples, 4), few, seed=0), widest=_NARROW, narrowest=_NARROW)
    return Picture(
        encoded(wide, ".webp"),
        encoded(narrow, ".webp"),
        f"{number_of(samples, 'image')} in {views} of {number_of(manifest.num_views, 'view')} "
        "each, with the classes that the teacher names for them and how sure it is.",
        (wide.size, narrow.size),
    )
