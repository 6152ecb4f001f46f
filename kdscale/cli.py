"""The command line: click and nothing else. Heavy imports live inside commands.

Exit codes: 0 done, 1 a stated failure, 2 wrong usage, 130 interrupted (the state is saved).
What a script reads goes to standard output, everything else to standard error.
"""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from kdscale import __version__
from kdscale.errors import Interrupted, KdscaleError, MainProcessError

Command = TypeVar("Command", bound=Callable[..., Any])
_EXISTING = click.Path(exists=True)


_DISK = "free space, or choose other folders with --run and --cache-root"
_INTERRUPTED = "interrupted; what is finished is kept: run the same command again"
_MEMORY = "use a smaller global_batch_size (or more accumulation), or precision = 'bfloat16'"


class _Group(click.Group):
    """Turns what a user can put right into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MainProcessError:
            ctx.exit(MainProcessError.exit_code)  # the main process has said why
        except KdscaleError as error:
            self._fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            self._fail(ctx, _INTERRUPTED, Interrupted.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
                raise
            self._fail(ctx, f"{error.strerror}: {error.filename or 'a file'}: {_DISK}", 1)
        except (MemoryError, RuntimeError) as error:
            known = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
            if not known and "can't allocate memory" not in str(error):  # as a CPU says it
                raise
            self._fail(ctx, f"out of memory: {_MEMORY}", 1)

    @staticmethod
    def _fail(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
        where = "" if _is_main_process() else f" in process {os.environ['RANK']}"
        click.echo(f"Error{where}: {message}", err=True)
        ctx.exit(exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kdscale")
def cli() -> None:
    """Distill image classifiers from a verified cache of teacher logits.

    RECIPE is a name from `kdscale recipes`, or a TOML file.
    """
    _start_logging()


def main() -> None:
    """Entry point of `kdscale` and of `python -m kdscale`."""
    cli(prog_name="kdscale")


class _Messages(logging.StreamHandler[Any]):
    """Messages on standard error that do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")
        if bars is None or not sys.stderr.isatty():  # a log file has no bar, and gets none
            super().emit(record)
        else:
            bars.tqdm.write(self.format(record), file=sys.stderr)


def _start_logging() -> None:
    handler = _Messages()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("kdscale")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if _is_main_process() else logging.ERROR)
    logger.propagate = False


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print(text: str) -> None:
    if _is_main_process():
        click.echo(text)


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2))


# --------------------------------------------------------------------------- shared options


_overrides = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE",
    help="Override a field; may be repeated.",
)  # fmt: skip
_data = click.option("--data", type=_EXISTING, help="A local copy of the data set.")


def _recipe_options(command: Command) -> Command:
    """RECIPE and what changes it."""
    for decorator in (_data, _overrides, click.argument("recipe")):
        command = decorator(command)
    return command


_cache_root = click.option(
    "--cache-root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("cache"),
    envvar="KDSCALE_CACHE_ROOT",
    show_default=True,
    help="Where caches and decoded images lie.",
)
_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="The cache's folder, NAME.zarr; found by content when not named.",
)
_run = click.option(
    "--run", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME]"
)
_out = click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="The picture to write: .png, .jpg or .webp.",
)  # fmt: skip
_samples = click.option(
    "--samples", type=click.IntRange(1), metavar="N",
    help="Rows, spread over the classes.  [default: 10]",
)  # fmt: skip
_views = click.option(
    "--views", type=click.IntRange(1), metavar="N", help="Columns.  [default: 6, if there are]"
)
_choice = click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), default=0,
                       show_default=True, help="Another one shows other samples.")  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _load(recipe: str, overrides: tuple[str, ...], data: str | None) -> Any:
    from kdscale.config import load_recipe

    return load_recipe(recipe, overrides, data)


def _runs(name: str) -> Path:
    return Path("runs") / name


# --------------------------------------------------------------------------- the main job


@cli.command()
@click.option("--run", type=click.Path(path_type=Path), default=Path("runs/quickstart"),
              show_default=True, help="Where the results lie.")  # fmt: skip
@_cache_root
def quickstart(run: Path, cache_root: Path) -> None:
    """The whole idea on embedded data, on a CPU, in about a minute."""
    from kdscale.stages.quickstart import quickstart as start

    _print(start(folder=run, cache_root=cache_root))


@cli.command()
@click.argument("name", required=False)
@click.option("--reference", is_flag=True, help="Print every field of a recipe and its meaning.")
def recipes(name: str | None, reference: bool) -> None:
    """List the recipes that come with kdscale, or print one."""
    from kdscale.config import load_recipe, recipe_names, recipe_text

    if reference:
        from kdscale.stages.report import recipe_reference

        _print(recipe_reference().rstrip())
        return
    if name is not None:
        _print(recipe_text(name).rstrip())
        return
    for known in recipe_names():
        _print(f"{known:24} {load_recipe(known).description}")


@cli.command()
@_recipe_options
@_run
@_cache
@_cache_root
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True,
              help="Number of students of each kind: seeds 0, 1, ...")  # fmt: skip
@click.option("--online", is_flag=True, help="Also train students with the teacher at every step.")
def run(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    run: Path | None,
    cache: Path | None,
    cache_root: Path,
    seeds: int,
    online: bool,
) -> None:
    """Teacher, cache, student without and with distillation, table.

    What is finished in the run's folder is reused: the same command goes on where it stopped.
    """
    loaded = _load(recipe, overrides, data)
    from kdscale.stages.report import Row, results_table
    from kdscale.stages.run import run_recipe

    folder = run or _runs(loaded.name)
    result = run_recipe(
        loaded, folder=folder, cache_root=cache_root, cache=cache, seeds=range(seeds), online=online
    )
    _print(results_table([Row(**row) for row in result["rows"]]))
    _print(f"\nruns: {folder}   cache: {result['cache_path']}   table: {folder / 'report.md'}")


@cli.command()
@_recipe_options
@click.option("--model", type=click.Choice(["student", "teacher"]), default="student",
              show_default=True, help="A teacher learns from labels.")  # fmt: skip
@click.option("--targets", type=click.Choice(["none", "cache", "teacher"]), default="none",
              show_default=True, help="Labels alone, a cache, or a live teacher.")  # fmt: skip
@_run
@_cache
@_cache_root
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint.")
def train(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    model: Any,
    targets: Any,
    run: Path | None,
    cache: Path | None,
    cache_root: Path,
    seed: int,
    resume: bool,
) -> None:
    """Train one model.

    With `--targets cache` and no --cache, a fitting cache is found, or built first.
    """
    if model == "teacher" and targets != "none":
        raise click.UsageError("a teacher learns from labels: leave out --targets")
    if cache is not None and targets != "cache":
        raise click.UsageError(f"--cache goes with --targets cache, not with --targets {targets}")
    loaded = _load(recipe, overrides, data)
    from kdscale.engine.components import check_recipe
    from kdscale.engine.runs import Job, open_run
    from kdscale.stages.build import build
    from kdscale.stages.run import teacher_folder, trained_teacher
    from kdscale.stages.train import train as start

    folder = run or (
        teacher_folder(_runs(loaded.name)) if model == "teacher" else _runs(loaded.name)
    )
    job = Job(model, targets, seed)
    job.section(loaded)
    weights = None if targets == "none" else trained_teacher(loaded, _runs(loaded.name))
    if targets == "cache" and cache is None:  # what is wrong is found before hours of building
        check_recipe(loaded, cache_root)
        open_run(folder, loaded, job, resume=resume, main=False)
        cache = build(loaded, cache_root=cache_root, teacher_weights=weights)
    result = start(
        loaded, job, run=folder, cache_root=cache_root, cache=cache, teacher_weights=weights,
        resume=resume,
    )  # fmt: skip
    _print(f"top-1 {100 * result['top1_accuracy']:.2f} % after {result['epochs']} epochs, "
           f"{result['train_seconds']:.1f} s of training; see {folder}")  # fmt: skip


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=_EXISTING, help="A local copy of the data set.")
@_cache_root
@_json
def evaluate(runs: tuple[Path, ...], data: str | None, cache_root: Path, as_json: bool) -> None:
    """Evaluate finished runs on the test split."""
    from kdscale.stages.evaluate import evaluate_run
    from kdscale.stages.report import metrics_table

    found = [evaluate_run(run, cache_root=cache_root, data=data) for run in runs]
    if as_json:
        _print_json({"runs": found})
    else:
        _print(metrics_table(found))


@cli.command()
@_recipe_options
@_cache_root
@click.option("--seconds", type=click.FloatRange(1), default=120, show_default=True,
              help="Time to spend measuring, in all.")  # fmt: skip
@_json
def bench(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    cache_root: Path,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure training steps and the build, interleaved, against bare PyTorch loops."""
    loaded = _load(recipe, overrides, data)
    from kdscale.stages.bench import bench as start
    from kdscale.stages.report import bench_table
    from kdscale.stages.run import trained_teacher

    weights = trained_teacher(loaded, _runs(loaded.name))
    found = start(loaded, cache_root=cache_root, seconds=seconds, teacher_weights=weights)
    if as_json:
        _print_json(found)
    else:
        _print(bench_table(found))


@cli.command(name="views")
@_recipe_options
@_out
@_samples
@_views
@_cache_root
@_choice
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
    loaded = _load(recipe, overrides, data)
    from kdscale.stages.show import show_views

    shown = show_views(
        loaded, out=out, samples=samples, views=views, cache_root=cache_root, seed=seed
    )
    _print(str(shown))


# --------------------------------------------------------------------------- caches


@cli.group(name="cache")
def cache_group() -> None:
    """Build, list, verify and repair caches of teacher logits."""


@cache_group.command(name="build")
@_recipe_options
@_cache
@_cache_root
def cache_build(
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    cache: Path | None,
    cache_root: Path,
) -> None:
    """Ask the teacher about every view once, and keep what it said.

    A build that was stopped goes on; one that is finished is found and reused.
    """
    loaded = _load(recipe, overrides, data)
    from kdscale.stages.build import build
    from kdscale.stages.run import trained_teacher

    weights = trained_teacher(loaded, _runs(loaded.name))
    _print(str(build(loaded, cache_root=cache_root, cache=cache, teacher_weights=weights)))


@cache_group.command(name="info")
@click.argument("path", type=click.Path(path_type=Path))
@_json
def cache_info(path: Path, as_json: bool) -> None:
    """What a cache holds, from its manifest alone."""
    from kdscale.cache.manifest import describe, read_manifest

    found = describe(path, read_manifest(path))
    if as_json:
        _print_json(found)
    else:
        _print(_outline(found))


@cache_group.command(name="list")
@_cache_root
@_json
def cache_list(cache_root: Path, as_json: bool) -> None:
    """The caches below the cache root."""
    from kdscale.cache.manifest import Manifest, describe
    from kdscale.cache.search import list_caches

    found = []
    for path, manifest in list_caches(cache_root):
        if isinstance(manifest, Manifest):
            found.append({"path": str(path), **describe(path, manifest)})
        else:
            click.echo(f"{path}: {manifest}", err=True)
    if as_json:
        _print_json(found)
    elif not found:
        click.echo(f"no caches in {cache_root}: build one with `kdscale cache build`", err=True)
    for cache in [] if as_json else found:
        state = "complete" if cache["complete"] else "unfinished"
        _print(f"{cache['path']}  {cache['id']}  {state}  {cache['num_views']} views x "
               f"{cache['num_samples']} samples, {cache['encoding']}, "
               f"{cache['bytes'] / 1e6:.1f} MB, teacher {cache['teacher']['model']}")  # fmt: skip


@cache_group.command(name="verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--teacher", "num_pairs", type=click.IntRange(1), metavar="N",
              help="Also ask the teacher again about N random views of samples.")  # fmt: skip
@click.option("--recipe", help="What the cache was built with; for --teacher.")
@_overrides
@_data
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="X",
    help="How far logits may differ, as a share of a sample's largest logit (at least 1)."
    "  [default: 1e-4 in float32, 5e-2 in bfloat16, and the rounding of what is stored]",
)
@click.option("--seed", type=click.IntRange(0), help="Chooses the views.  [default: at random]")
@_cache_root
@_json
def cache_verify(
    path: Path,
    num_pairs: int | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    data: str | None,
    tolerance: float | None,
    seed: int | None,
    cache_root: Path,
    as_json: bool,
) -> None:
    """Read every byte of a cache and compare it with its checksums; exit 1 when not sound.

    With --teacher N --recipe RECIPE, N random views of samples are made and asked about again: the
    pixels must be the same, and the logits nearly so.
    """
    from kdscale.cache.verify import verify

    if (num_pairs is None) != (recipe is None):
        raise click.UsageError("--teacher N and --recipe RECIPE go together")
    verdict = verify(path)
    told, text, ok = {"path": str(path), **verdict.to_json()}, verdict.describe(path), verdict.ok
    if verdict.ok and num_pairs is not None and recipe is not None:
        loaded = _load(recipe, overrides, data)
        from kdscale.stages.run import trained_teacher
        from kdscale.stages.verify import ask_again

        opinion = ask_again(
            path, loaded, num_pairs=num_pairs, tolerance=tolerance, cache_root=cache_root,
            seed=int.from_bytes(os.urandom(4)) if seed is None else seed,
            teacher_weights=trained_teacher(loaded, _runs(loaded.name)),
        )  # fmt: skip
        told |= {"ok": opinion.ok, "teacher": opinion.to_json()}
        text, ok = f"{text}\n{opinion.describe()}", opinion.ok
    if as_json:
        _print_json(told)
    else:
        _print(text)
    if not ok:
        sys.exit(1)


@cache_group.command(name="repair")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help="What the cache was built with.")
@_overrides
@_data
@_cache_root
@_json
def cache_repair(
    path: Path,
    recipe: str,
    overrides: tuple[str, ...],
    data: str | None,
    cache_root: Path,
    as_json: bool,
) -> None:
    """Build what `verify` finds missing or corrupt anew, and nothing else."""
    loaded = _load(recipe, overrides, data)
    from kdscale.stages.repair import repair
    from kdscale.stages.run import trained_teacher

    weights = trained_teacher(loaded, _runs(loaded.name))
    done = repair(loaded, path, cache_root=cache_root, teacher_weights=weights)
    if as_json:
        _print_json(done)
    else:
        for name in done["rebuilt"]:
            _print(f"rebuilt: {name}")
        _print(f"{path}: ok")


@cache_group.command(name="show")
@click.argument("path", metavar="CACHE", type=click.Path(path_type=Path))
@_out
@_samples
@_views
@click.option("--data", type=_EXISTING, help="A local copy of the data set.")
@_cache_root
@_choice
def cache_show(
    path: Path,
    out: Path,
    samples: int | None,
    views: int | None,
    data: str | None,
    cache_root: Path,
    seed: int,
) -> None:
    """Draw views of some images, with what the teacher said of each."""
    from kdscale.stages.show import show_cache

    shown = show_cache(
        path, out=out, samples=samples, views=views, data=data, cache_root=cache_root, seed=seed
    )
    _print(str(shown))


def _outline(value: Any, indent: str = "") -> str:
    """A JSON object as indented lines."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", _outline(item, indent + "  ")]
        else:
            text = item if isinstance(item, str) else json.dumps(item)
            lines.append(f"{indent}{key}: {text if len(text) <= 200 else text[:197] + '…'}")
    return "\n".join(lines)
