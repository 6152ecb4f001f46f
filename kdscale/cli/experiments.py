"""Experiments: the main job and its parts, from a recipe."""

from pathlib import Path
from typing import Any

import click

from kdscale.cli.options import (
    EXISTING,
    SEED,
    STORED,
    Place,
    UserPath,
    cache_option,
    cache_root_option,
    caches_option,
    copies_options,
    json_option,
    load,
    local_copies,
    out_option,
    recipe_options,
    run_option,
    runs_folder,
    samples_option,
    seed_option,
    trust_code_option,
    views_option,
    weights_option,
    with_further_caches,
)
from kdscale.cli.output import print_found, print_text
from kdscale.formatting import number_of


@click.command()
@click.option("--run", type=STORED, default=Path("runs/quickstart"),
              show_default=True, help="Where the results lie.")  # fmt: skip
@cache_root_option
def quickstart(run: Path, cache_root: Path) -> None:
    """The whole idea on embedded data, on a CPU, in about a minute."""
    from kdscale.commands.quickstart import quickstart as start

    print_text(start(folder=run, cache_root=cache_root))


@click.command()
@click.argument("name", required=False)
@click.option("--reference", is_flag=True, help="Print every field of a recipe and its meaning.")
def recipes(name: str | None, reference: bool) -> None:
    """List the recipes that come with kdscale, or print one."""
    from kdscale.config import load_recipe, recipe_names, recipe_text

    if reference:
        from kdscale.tables.recipe_reference import recipe_reference

        print_text(recipe_reference().rstrip(), everywhere=True)
        return
    if name is not None:
        print_text(recipe_text(name).rstrip(), everywhere=True)
        return
    for known in recipe_names():
        print_text(f"{known:24} {load_recipe(known).description}", everywhere=True)


@click.command()
@recipe_options
@run_option
@cache_option
@copies_options
@cache_root_option
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True,
              help="Number of students of each kind: seeds 0, 1, ...")  # fmt: skip
@click.option("--online", is_flag=True, help="Also train students with the teacher at every step.")
def run(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    run: Path | None,
    cache: Place | None,
    copies: Path | None,
    copies_gib: float,
    cache_root: Path,
    seeds: int,
    online: bool,
) -> None:
    """Teacher, cache, student without and with distillation, table.

    What is finished in the run's folder is reused: the same command goes on where it stopped.
    """
    loaded = load(recipe, overrides, data)
    from kdscale.commands.run import run_recipe
    from kdscale.tables.results_table import Row, results_table

    folder = run or runs_folder(loaded.name)
    result = run_recipe(
        loaded, folder=folder, cache_root=cache_root, cache=cache, seeds=range(seeds),
        online=online, copies=local_copies(copies, copies_gib, cache_root),
    )  # fmt: skip
    print_text(results_table([Row(**row) for row in result["rows"]]))
    print_text(f"\nruns: {folder}   cache: {result['cache_path']}")
    print_text(f"table: {folder / 'report.md'}   report: {folder / 'report.html'}")


@click.command()
@recipe_options
@click.option("--model", type=click.Choice(["student", "teacher"]), default="student",
              show_default=True, help="A teacher learns from labels.")  # fmt: skip
@click.option("--targets", type=click.Choice(["none", "cache", "teacher"]), default="none",
              show_default=True, help="Labels alone, a cache, or a live teacher.")  # fmt: skip
@run_option
@caches_option
@copies_options
@cache_root_option
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint.")
@click.option("--resume-if-begun", is_flag=True, help="Where there is one; else begin. A finished "
              "run is left as it is. For jobs that a scheduler starts again.")  # fmt: skip
@click.option("--wait", is_flag=True, help="With --targets cache: train while it is being built, "
              "on the views that are finished, and wait for the next one.")  # fmt: skip
def train(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    model: Any,
    targets: Any,
    run: Path | None,
    caches: tuple[Place, ...],
    copies: Path | None,
    copies_gib: float,
    cache_root: Path,
    seed: int,
    resume: bool,
    resume_if_begun: bool,
    wait: bool,
) -> None:
    """Train one model.

    With `--targets cache` and no --cache, a fitting cache is found, or built first; with --wait,
    somebody else's build of it is waited for.
    """
    if model == "teacher" and targets != "none":
        raise click.UsageError("a teacher learns from labels: leave out --targets")
    for name, given in (("--cache", caches), ("--wait", wait)):
        if given and targets != "cache":
            raise click.UsageError(
                f"{name} goes with --targets cache, not with --targets {targets}"
            )
    loaded = load(recipe, with_further_caches(overrides, caches), data)
    from kdscale.commands.build import build
    from kdscale.commands.run import trained_teacher
    from kdscale.commands.train import train as start
    from kdscale.experiment import check_recipe
    from kdscale.experiment.checks import mention_ineffective
    from kdscale.experiment.saved_runs import finished_as, is_begun, open_run, teacher_folder
    from kdscale.experiment.target_source import cache_being_built
    from kdscale.runs.folder import RunSpec

    folder = run or (
        teacher_folder(runs_folder(loaded.name)) if model == "teacher" else runs_folder(loaded.name)
    )
    job = RunSpec(model, targets, seed)
    job.section(loaded)
    mention_ineffective(loaded, model)
    if resume_if_begun:
        if (done := finished_as(folder, loaded, job)) is not None:
            print_text(_trained(done, folder))
            return
        resume = is_begun(folder)
    cache = caches[0] if caches else None
    weights = None
    if targets != "none":
        usual = runs_folder(loaded.name)
        weights = trained_teacher(loaded, usual, required=targets == "teacher" or cache is None)
    if targets == "cache" and cache is None:  # what is wrong is found before hours of building
        check_recipe(loaded, cache_root)
        open_run(folder, loaded, job, resume=resume, main=False)
        begin = cache_being_built if wait else build
        cache = begin(loaded, cache_root=cache_root, teacher_weights=weights)
    result = start(
        loaded, job, run=folder, cache_root=cache_root, cache=cache, teacher_weights=weights,
        resume=resume, wait=wait, copies=local_copies(copies, copies_gib, cache_root),
    )  # fmt: skip
    print_text(_trained(result, folder))


def _trained(result: dict[str, Any], folder: Path) -> str:
    return (
        f"top-1 {100 * result['top1_accuracy']:.2f} % after "
        f"{number_of(result['epochs'], 'epoch')}, {result['train_seconds']:.1f} s of training; see "
        f"{folder}"
    )


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True,
                type=STORED)  # fmt: skip
@weights_option
@click.option("--teacher", type=UserPath(exists=True, dir_okay=False), metavar="FILE",
              help="The teacher's weights, to agree with.  [default: those that the recipe names, "
              "or that were trained for it]")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0), default=2, show_default=True,
              help="To spend on timing each batch size; five passes at least.")  # fmt: skip
@click.option("--data", type=EXISTING, help="A local copy of the data set.")
@cache_root_option
@trust_code_option
@json_option
def evaluate(
    runs: tuple[Path, ...],
    weights: Any,
    teacher: str | None,
    seconds: float,
    data: str | None,
    cache_root: Path,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Evaluate finished runs on the test split, and measure what their models cost.

    RUN is a run's folder, or that of a whole recipe: then its teacher and every run in it. What is
    found is kept as evaluation.json in each run's folder.
    """
    from kdscale.commands.evaluate import Evaluation
    from kdscale.experiment.trained_models import Trust
    from kdscale.tables.evaluation_table import evaluation_tables

    evaluation = Evaluation(
        cache_root, teacher=teacher, seconds=seconds, trust=Trust(code=trust_code)
    )
    found = evaluation.folders(runs, data=data, weights=weights)
    print_found({"runs": found}, evaluation_tables(found), as_json=as_json)


@click.command()
@click.argument("run", type=STORED)
@click.option("--format", "format_name", required=True,
              type=click.Choice(["safetensors", "onnx", "pt2"]),
              help="For kdscale, for ONNX runtimes, or for PyTorch alone.")  # fmt: skip
@click.option("--out", type=UserPath(path_type=Path, dir_okay=False), metavar="FILE",
              help="The file.  [default: RUN/student.FORMAT, RUN/student-best.FORMAT]")  # fmt: skip
@weights_option
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.option("--data", type=EXISTING, help="A local copy of the data set.")
@cache_root_option
@trust_code_option
@json_option
def export(
    run: Path,
    format_name: str,
    out: Path | None,
    weights: Any,
    overwrite: bool,
    data: str | None,
    cache_root: Path,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Export a finished run's model: uint8 pixels in, logits out, preprocessing inside.

    The file is asked about test images first: one that answers otherwise than the run's weights is
    not kept. It carries the names of the classes.
    """
    from kdscale.commands.export import export as start

    done = start(
        run, format_name, cache_root=cache_root, out=out, weights=weights, data=data,
        overwrite=overwrite, trust_code=trust_code,
    )  # fmt: skip
    text = (
        f"{done['file']}: {done['bytes']:,} bytes; on "
        f"{number_of(done['num_images'], 'test image')} logits differ by at most "
        f"{done['max_logit_difference']:.1e}, {100 * done['top1_agreement']:.2f} % of top-1 "
        f"agree\n\n{done['example']}"
    )
    print_found(done, text, as_json=as_json)


_REPORT_FILE = UserPath(path_type=Path, dir_okay=False, allow_dash=True)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=STORED)
@click.option("--html", type=_REPORT_FILE, metavar="FILE", help="One self-contained page.")
@click.option("--markdown", type=_REPORT_FILE, metavar="FILE", help="Text and tables.")
@click.option("--csv", type=_REPORT_FILE, metavar="FILE", help="A row for each run.")
@click.option("--figures", type=UserPath(path_type=Path, file_okay=False), metavar="DIR",
              help="Every chart as PNG and PDF, for papers.")  # fmt: skip
@click.option("--data", type=EXISTING, help="A local copy of the data set, to draw views of.")
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

    RUN is the folder of a single run, of a whole recipe (`kdscale run`) or of a sweep. FILE may be
    - for standard output; existing files are replaced. Missing results are listed, each with the
    command that measures it.
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


@click.command()
@recipe_options
@cache_root_option
@click.option("--seconds", type=click.FloatRange(1), default=120, show_default=True,
              help="Time to spend measuring, in all.")  # fmt: skip
@json_option
def bench(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    cache_root: Path,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure training steps and the build, interleaved, against bare PyTorch loops."""
    loaded = load(recipe, overrides, data)
    from kdscale.commands.bench import bench as start
    from kdscale.commands.run import trained_teacher
    from kdscale.tables.timing_table import bench_table

    weights = trained_teacher(loaded, runs_folder(loaded.name))
    found = start(loaded, cache_root=cache_root, seconds=seconds, teacher_weights=weights)
    print_found(found, bench_table(found), as_json=as_json)


@click.command(name="views")
@recipe_options
@out_option
@samples_option
@views_option
@cache_root_option
@seed_option
def views_command(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    out: Path,
    samples: int | None,
    views: int | None,
    cache_root: Path,
    seed: int,
) -> None:
    """Draw views of some images, to look at before anything is built."""
    loaded = load(recipe, overrides, data)
    from kdscale.commands.preview import show_views

    shown = show_views(
        loaded, out=out, samples=samples, views=views, cache_root=cache_root, seed=seed
    )
    print_text(str(shown), everywhere=True)
