"""Report on finished and unfinished runs: a page, Markdown, CSV, figures for papers."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kdscale.atomic_write import write_durably, write_output
from kdscale.cache.manifest import Manifest
from kdscale.errors import KdscaleError
from kdscale.formatting import first_few, number_of
from kdscale.report.collect import collect
from kdscale.report.csv_export import render_csv
from kdscale.report.markdown import render_markdown
from kdscale.report.model import Comparison
from kdscale.report.page import render_page
from kdscale.report.page_sections import ViewsImage, sections_of
from kdscale.report.run_results import test_split_of
from kdscale.runs.folder import RunFolder
from kdscale.version import __version__

log = logging.getLogger(__name__)

Format = Literal["html", "markdown", "csv"]
_WIDE, _NARROW = 1088, 358
"""Pixels across a preview of views on the page, and on a telephone."""


def report(
    folders: Sequence[Path],
    *,
    files: Mapping[Format, Path | None],
    cache_root: Path,
    data: str | None = None,
    figures: Path | None = None,
) -> dict[Format, str]:
    """Write a report of runs; an older one is replaced.

    Args:
        folders: of single runs, of whole recipes, of sweeps.
        files: the file to write in each format; None to return the text only.
        cache_root: folder of caches and decoded images.
        data: a local copy of the data set, for the preview of views.
        figures: folder to write each chart into, as PNG and PDF; None to write none.

    Returns:
        The texts.

    Raises:
        RunError: a folder has no run.
        StorageError: a file cannot be written.
    """
    studies = _studies(folders, cache_root)
    for study in studies:
        models = first_few(dict.fromkeys(run.model_text for run in study.runs))
        runs, split = number_of(len(study.runs), "run"), test_split_of(study.runs[0].recipe)
        log.info("report on %s: %s, tested on %s", runs, models, split)
    texts = _texts(studies, files, _command(folders, files), cache_root, data)
    for kind, path in files.items():
        if path is not None:
            write_output(path, texts[kind].encode("utf-8", "backslashreplace"))
    if figures is not None:
        _write_figures(studies, figures)
    return texts


def _write_figures(studies: Sequence[Comparison], folder: Path) -> None:
    """Write every chart as PNG and PDF; those of several test splits have numbered names."""
    from kdscale.report.figures.chart import image_of

    kinds: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")
    for number, study in enumerate(studies, 1):
        prefix = f"s{number}-" if len(studies) > 1 else ""
        for section in sections_of(study, None, prefix):
            for chart in section.charts:
                for kind in kinds:
                    write_output(folder / f"{chart.name}.{kind}", image_of(chart, kind))


def _studies(folders: Sequence[Path], cache_root: Path) -> list[Comparison]:
    studies = collect(folders, cache_root)
    for problem in dict.fromkeys(
        one for study in studies for run in study.runs for one in run.problems
    ):
        log.warning("%s", problem)  # a table has no place for it
    return studies


def _texts(
    studies: Sequence[Comparison],
    files: Mapping[Format, Path | None],
    command: str,
    cache_root: Path,
    data: str | None,
) -> dict[Format, str]:
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
    """Write `report.html` into the folder of a recipe or of a sweep.

    Args:
        folder: the folder.
        source: source of the images, as in a recipe; images that are elsewhere are not fetched.
        cache_root: folder of caches and decoded images.
    """
    from kdscale.experiment import source_path  # with torch: its callers have it

    local = source_path(source)
    data = local if Path(local).exists() else None
    page = RunFolder(folder).page_file
    files: dict[Format, Path | None] = {"html": page}
    texts = _texts(
        _studies([folder], cache_root), files, _command([folder], files), cache_root, data
    )
    write_durably(page, texts["html"].encode("utf-8", "backslashreplace"))


def _command(folders: Sequence[Path], files: Mapping[Format, Path | None]) -> str:
    """Return the command that writes the report again."""
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path or "-"))]
    return shlex.join(["kdscale", "report", *[str(folder) for folder in folders], *options])


# --------------------------------------------------------------------------- the preview of views


def _sheet(study: Comparison, cache_root: Path, data: str | None) -> ViewsImage | None:
    """Return a preview of the cache's views, where the images are on this machine."""
    manifest, place = study.manifest, study.cache_place
    if manifest is None or place is None or not manifest.complete:
        return None
    source = data or str(manifest.dataset["source"])
    if not source.startswith("embedded:") and not Path(source).exists():
        return None
    try:
        return _drawn(place, manifest, cache_root, data)
    except KdscaleError as error:
        log.info("no preview of views: %s", error)
        return None


def _drawn(place: Path, manifest: Manifest, cache_root: Path, data: str | None) -> ViewsImage:
    from kdscale.commands.preview import PreviewedCache, encoded
    from kdscale.preview.sheet_drawing import draw  # with torch: only here

    cache = PreviewedCache(place, data=data, cache_root=cache_root)
    changed = bool(manifest.views["operations"])  # so that a clean image stands beside them
    views = min(manifest.num_views, 5 if changed else 6)
    samples = min(manifest.num_samples, 4 if views > 2 else 8)
    wide = draw(cache.sheet(samples, views, seed=0), widest=_WIDE)
    few = min(manifest.num_views, 1 if changed else 2)
    narrow = draw(cache.sheet(min(samples, 4), few, seed=0), widest=_NARROW, narrowest=_NARROW)
    return ViewsImage(
        encoded(wide, ".webp"),
        encoded(narrow, ".webp"),
        f"{number_of(samples, 'image')} in {views} of {number_of(manifest.num_views, 'view')} "
        "each, with the teacher's most probable classes.",
        (wide.size, narrow.size),
    )
