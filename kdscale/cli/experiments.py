"""The commands that work on a recipe, but for those of caches and sweeps."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kdscale.cli.options import (
    SEED,
    STORED,
    LocationOptions,
    Place,
    RecipeOptions,
    UserPath,
    cache_option,
    cache_root_option,
    cache_root_options,
    caches_option,
    copies_gib_option,
    copies_option,
    device_option,
    further_caches,
    grouped,
    json_option,
    out_option,
    recipe_options,
    run_option,
    runs_folder,
    samples_option,
    seed_option,
    training_recipe_options,
    views_option,
)
from kdscale.cli.output import outline, print_found, print_text
from kdscale.formatting import number_of


@dataclass(frozen=True, slots=True)
class StartOptions:
    """Options of the start of a training."""

    resume: bool = False
    resume_if_begun: bool = False
    wait: bool = False


@click.command()
@device_option
@click.option("--run", type=STORED, default=Path("runs/quickstart"),
              show_default=True, help="Folder of the results.")  # fmt: skip
@cache_root_option
def quickstart(run: Path, cache_root: Path) -> None:
    """Distill a CNN into an MLP on embedded data, in about a minute."""
    from kdscale.commands.quickstart import quickstart as start

    print_text(start(folder=run, cache_root=cache_root))


@click.command()
@click.argument("folder", type=UserPath(path_type=Path, exists=True))
@click.option("--teacher", required=True, metavar="MODEL|FILE",
              help="torchvision/NAME, timm/NAME, transformers/NAME, another model, or a file of "
              "weights.")  # fmt: skip
@click.option("--weights", type=UserPath(path_type=Path, exists=True, dir_okay=False),
              metavar="FILE", help="The teacher's weights, if --teacher is a model.")  # fmt: skip
@click.option("--student", metavar="MODEL",
              help="The student's model.  [default: by the size of the images]")  # fmt: skip
@click.option("-o", "--out", type=UserPath(path_type=Path, dir_okay=False), metavar="FILE",
              help="The recipe to write.  [default: FOLDER's name.toml]")  # fmt: skip
@cache_root_option
def init(
    folder: Path,
    teacher: str,
    weights: Path | None,
    student: str | None,
    out: Path | None,
    cache_root: Path,
) -> None:
    """Write a recipe for images of your own, after looking at images and teacher.

    FOLDER holds train and test, with one folder of images for each class in each; several sizes
    are welcome. Weights of kdscale and torchvision are recognised; those of other classes than the
    images' are fine-tuned. A teacher without a classifier needs no labels. The recipe is commented,
    and checked before it is written.
    """
    from kdscale.commands.init import write_recipe

    path, text = write_recipe(
        folder, teacher=teacher, weights=weights, student=student, out=out, cache_root=cache_root
    )
    file = shlex.quote(str(path))
    print_text(f"{text}\nwritten: {path}\nnext:    kdscale cache plan {file}; kdscale run {file}")


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
@device_option
@training_recipe_options
@grouped("where", LocationOptions, run_option, cache_option, copies_option, copies_gib_option,
         cache_root_option)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True,
              help="Number of students of each kind: seeds 0, 1, ...")  # fmt: skip
@click.option("--online", is_flag=True, help="Also train students with the teacher at every step.")
def run(chosen: RecipeOptions, where: LocationOptions, seeds: int, online: bool) -> None:
    """Train teacher and students from one cache, and compare them.

    Students are trained without and with distillation, and evaluated. Finished parts in the
    run's folder are reused: after a stop, the same command resumes.
    """
    recipe = chosen.load()
    from kdscale.commands.run import run_recipe
    from kdscale.experiment import Experiment
    from kdscale.tables.results_table import ResultsRow, results_table

    locations = where.locations(run=runs_folder(recipe.name))
    result = run_recipe(Experiment(recipe, locations), seeds=range(seeds), online=online)
    print_text(results_table([ResultsRow(**row) for row in result["rows"]]))
    folder = locations.run
    print_text(f"\nruns: {folder}   cache: {result['cache_path']}")
    print_text(f"table: {folder / 'report.md'}   report: {folder / 'report.html'}")


@click.command()
@device_option
@training_recipe_options
@click.option("--model", type=click.Choice(["student", "teacher"]), default="student",
              show_default=True, help="A teacher is trained on labels.")  # fmt: skip
@click.option("--targets", type=click.Choice(["none", "cache", "teacher"]), default="none",
              show_default=True, help="Labels alone, a cache, or a live teacher.")  # fmt: skip
@caches_option
@grouped("where", LocationOptions, run_option, copies_option, copies_gib_option, cache_root_option)
@click.option("--seed", type=SEED, default=0, show_default=True)
@grouped(
    "start", StartOptions,
    click.option("--resume", is_flag=True, help="Resume from the run's newest checkpoint."),
    click.option("--resume-if-begun", is_flag=True, help="Resume if there is a checkpoint, start "
                 "otherwise; leave a finished run unchanged. For jobs that a scheduler restarts."),
    click.option("--wait", is_flag=True, help="With --targets cache: train during its build, on "
                 "the finished views, and wait for the next one."),
)  # fmt: skip
def train(
    chosen: RecipeOptions,
    model: Any,
    targets: Any,
    caches: tuple[Place, ...],
    where: LocationOptions,
    seed: int,
    start: StartOptions,
) -> None:
    """Train one model.

    With `--targets cache` and no --cache, a cache with the required content is searched in
    CACHE_ROOT, and built first if there is none; with --wait, another command builds it.
    """
    if model == "teacher" and targets != "none":
        raise click.UsageError("a teacher is trained on labels: leave out --targets")
    for name, given in (("--cache", caches), ("--wait", start.wait)):
        if given and targets != "cache":
            raise click.UsageError(
                f"{name} goes with --targets cache, not with --targets {targets}"
            )
    recipe = chosen.load(*further_caches(caches))
    from kdscale.commands.start_training import start_training
    from kdscale.experiment import Experiment
    from kdscale.experiment.saved_runs import default_run
    from kdscale.runs.run_spec import RunSpec

    spec = RunSpec(model, targets, seed)
    cache = caches[0] if caches else None
    locations = where.locations(run=default_run(recipe, spec), cache=cache)
    result = start_training(
        Experiment(recipe, locations), spec, resume=start.resume,
        resume_if_begun=start.resume_if_begun, wait=start.wait,
    )  # fmt: skip
    print_text(_trained(result, locations.run))


def _trained(result: dict[str, Any], folder: Path) -> str:
    by = f"{result['classifier']} " if "classifier" in result else ""
    top1 = result.get("top1_accuracy")
    reached = "not evaluated (no test split)" if top1 is None else f"{by}top-1 {100 * top1:.2f} %"
    return (
        f"{reached} after {number_of(result['epochs'], 'epoch')}, "
        f"{result['train_seconds']:.1f} s of training; see {folder}"
    )


@click.command()
@device_option
@recipe_options
@cache_root_options
@click.option("--seconds", type=click.FloatRange(1), default=120, show_default=True,
              help="Total time to spend on measurements.")  # fmt: skip
@json_option
def bench(chosen: RecipeOptions, where: LocationOptions, seconds: float, as_json: bool) -> None:
    """Measure training steps and the build against bare PyTorch."""
    recipe = chosen.load()
    from kdscale.commands.bench import bench as start
    from kdscale.tables.timing_table import bench_table

    found = start(where.experiment(recipe), seconds=seconds)
    print_found(found, bench_table(found), as_json=as_json)


@click.command(name="views")
@recipe_options
@out_option
@samples_option
@views_option
@cache_root_options
@seed_option
def views_command(
    chosen: RecipeOptions,
    out: Path,
    samples: int | None,
    views: int | None,
    where: LocationOptions,
    seed: int,
) -> None:
    """Draw a recipe's views of some images."""
    recipe = chosen.load()
    from kdscale.commands.preview import preview_views
    from kdscale.experiment import Experiment

    experiment = Experiment(recipe, where.locations())
    picture = preview_views(experiment, out=out, samples=samples, views=views, seed=seed)
    print_text(str(picture), everywhere=True)


@click.command()
@cache_root_option
@json_option
def env(cache_root: Path, as_json: bool) -> None:
    """Print versions, devices, launch and free disk space."""
    from kdscale.commands.env import environment

    found = environment(cache_root)
    print_found(found, outline(found), as_json=as_json, everywhere=True)
