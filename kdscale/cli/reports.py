"""The commands that evaluate and compare finished runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kdscale.cli.options import (
    EXISTING,
    STORED,
    UserPath,
    cache_root_option,
    device_option,
    grouped,
    json_option,
    trust_code_option,
    weights_option,
)
from kdscale.cli.output import print_found, print_text


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """Options of `kdscale evaluate`."""

    weights: Any
    teacher: str | None
    seconds: float
    data: str | None
    trust_code: bool
    embeddings: bool


@click.command()
@device_option
@click.argument("runs", metavar="RUN...", nargs=-1, required=True,
                type=STORED)  # fmt: skip
@grouped(
    "options", EvaluationOptions, weights_option,
    click.option("--embeddings", is_flag=True,
                 help="Also k-NN and a linear probe on embeddings; always for models without a "
                 "classifier."),
    click.option("--teacher", type=UserPath(exists=True, dir_okay=False), metavar="FILE",
              help="The teacher's weights, for `agreement`.  [default: those that the recipe "
              "names, or that were trained for it]"),
    click.option("--seconds", type=click.FloatRange(0), default=2, show_default=True,
                 help="Seconds of timing for each batch size; at least five passes."),
    click.option("--data", type=EXISTING,
                 help="A local copy of the data set; of a run without labelled images, any "
                 "data set that has some."),
    trust_code_option,
)  # fmt: skip
@cache_root_option
@json_option
def evaluate(
    runs: tuple[Path, ...], options: EvaluationOptions, cache_root: Path, as_json: bool
) -> None:
    """Evaluate finished runs on the test split.

    Measures accuracy, calibration, agreement with the teacher, FLOPs, latency and memory. A model
    without a classifier is evaluated as a weighted k-NN classifier on its embeddings. RUN
    is a run's folder, or that of a whole recipe or sweep: then all finished runs in it. Results
    are written to evaluation.json in each run's folder.
    """
    from kdscale.commands.evaluate import Evaluation
    from kdscale.experiment.trained_models import Trust
    from kdscale.tables.evaluation_table import evaluation_tables

    evaluation = Evaluation(
        cache_root, teacher=options.teacher, seconds=options.seconds,
        trust=Trust(code=options.trust_code), embeddings=options.embeddings,
    )  # fmt: skip
    found = evaluation.folders(runs, data=options.data, weights=options.weights)
    print_found({"runs": found}, evaluation_tables(found), as_json=as_json)


_REPORT_FILE = UserPath(path_type=Path, dir_okay=False, allow_dash=True)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=STORED)
@click.option("--html", type=_REPORT_FILE, metavar="FILE", help="One self-contained page.")
@click.option("--markdown", type=_REPORT_FILE, metavar="FILE", help="Text and tables.")
@click.option("--csv", type=_REPORT_FILE, metavar="FILE", help="A row for each run.")
@click.option("--figures", type=UserPath(path_type=Path, file_okay=False), metavar="DIR",
              help="Every chart as PNG and PDF, for papers.")  # fmt: skip
@click.option(
    "--data", type=EXISTING, help="A local copy of the data set, for the preview of views."
)
@cache_root_option
def report(
    runs: tuple[Path, ...],
    html: Path | None,
    markdown: Path | None,
    csv: Path | None,
    figures: Path | None,
    data: str | None,
    cache_root: Path,
) -> None:
    """Report on runs: a page, Markdown, CSV, or figures for papers.

    RUN is the folder of a single run, of a whole recipe (`kdscale run`) or of a sweep. FILE may
    be - for standard output; existing files are replaced. Missing results are listed, each with
    the command that measures it.
    """
    named = {"html": html, "markdown": markdown, "csv": csv}
    files: dict[Any, Path] = {kind: path for kind, path in named.items() if path is not None}
    if not files and figures is None:
        raise click.UsageError(
            "name a file with --html, --markdown or --csv (- for the terminal), or a folder with "
            "--figures"
        )
    if len({path.absolute() for path in files.values()}) < len(files):
        raise click.UsageError("--html, --markdown and --csv must name different files")
    from kdscale.commands.report import report as make

    printed = [kind for kind, path in files.items() if str(path) == "-"]
    places = {kind: None if kind in printed else path for kind, path in files.items()}
    texts = make(runs, files=places, cache_root=cache_root, data=data, figures=figures)
    for kind in printed:
        print_text(texts[kind].rstrip("\n"), everywhere=True)
    if not printed:
        written = [f"report: {path}" for path in files.values()]
        written += [f"figures: {figures}"] if figures is not None else []
        print_text("\n".join(written), everywhere=True)
