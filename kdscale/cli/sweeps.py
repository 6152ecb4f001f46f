"""The commands `kdscale sweep RECIPE`, `sweep status` and `sweep best`."""

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click

from kdscale.cli.options import (
    STORED,
    LocationOptions,
    RecipeOptions,
    cache_option,
    cache_root_option,
    copies_gib_option,
    copies_option,
    device_option,
    grouped,
    home_expanded,
    json_option,
    runs_folder,
    training_recipe_options,
)
from kdscale.cli.output import print_found, print_text

_START = " "  # neither a recipe's name nor one that a user types
STORAGE = "KDSCALE_SWEEP_STORAGE"


class _Unnamed(click.Context):
    """Context of the command without a name, which messages call by its group's name."""

    @property
    def command_path(self) -> str:
        return "" if self.parent is None else self.parent.command_path


class _Start(click.Command):
    context_class = _Unnamed


class _RecipeOrCommand(click.Group):
    """A group with a command without a name, which gets arguments that name no other command.

    A recipe with a command's name is given by its path, `./status.toml`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = [_START, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["RECIPE [OPTIONS]", "| COMMAND FOLDER"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = self.commands[_START].get_params(ctx)
        params = [one for one in found if isinstance(one, click.Option)]
        with formatter.section("Options of a sweep"):
            formatter.write_dl([row for one in params if (row := one.get_help_record(ctx))])
        self.format_commands(ctx, formatter)


_SQLITE = "sqlite:///"


def _with_home(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """Replace `~` by the home folder in the URL of a SQLite file."""
    if url is None or not url.startswith(f"{_SQLITE}~"):
        return url
    return _SQLITE + home_expanded(url.removeprefix(_SQLITE))


storage_option = click.option(
    "--storage",
    metavar="URL",
    callback=_with_home,
    envvar=STORAGE,
    help="Database of the trials, needed for workers on several machines: "
    "postgresql+psycopg://USER@HOST/DATABASE.  [default: FOLDER/sweep.db]",
)
folder_argument = click.argument("folder", type=STORED)


@click.group(name="sweep", cls=_RecipeOrCommand)
def sweep_group() -> None:
    """Train many students from one cache.

    The recipe's [sweep] lists them, and the teacher runs once. The same command, started again
    here or on another machine that shares the folder, joins the sweep; the trials of killed
    workers are resumed.
    """


@sweep_group.command(name=_START, cls=_Start, hidden=True)
@device_option
@training_recipe_options
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Number of students trained concurrently on this machine.")  # fmt: skip
@click.option("--trials", type=click.IntRange(1), metavar="N",
              help="Total number of students (sweep.trials).")  # fmt: skip
@click.option("--retry-failed", is_flag=True, help="Queue failed trials again.")
@storage_option
@grouped(
    "where", LocationOptions,
    click.option("--run", type=STORED, metavar="FOLDER",
                 help="The sweep's folder.  [default: runs/NAME-sweep]"),
    cache_option, copies_option, copies_gib_option, cache_root_option,
)  # fmt: skip
@click.option("--patience", type=click.IntRange(1), default=60, hidden=True, metavar="SECONDS",
              help="Time without a heartbeat after which a worker is dead.")  # fmt: skip
@click.option("--of", "parent", type=int, hidden=True, help="Process that started this worker.")
def sweep_start(
    chosen: RecipeOptions,
    workers: int,
    trials: int | None,
    retry_failed: bool,
    storage: str | None,
    where: LocationOptions,
    patience: int,
    parent: int | None,
) -> None:
    """Train many students from one cache, with the settings of the recipe's [sweep]."""
    if trials is not None:
        chosen = replace(chosen, overrides=(*chosen.overrides, f"sweep.trials={trials}"))
    from kdscale.config import Variants

    variants = Variants(chosen.table(), chosen.recipe)
    folder = where.run or runs_folder(f"{variants.recipe.name}-sweep")
    _check_optuna()
    from kdscale.sweep.local_workers import WorkerPool, end_with
    from kdscale.sweep.run_sweep import sweep
    from kdscale.tables.sweep_table import sweep_table

    if parent is not None:
        end_with(parent)
    command = _worker_command(chosen, replace(where, run=folder), patience)
    pool = WorkerPool(workers, command, {} if storage is None else {STORAGE: storage})
    found = sweep(
        variants, where.locations(run=folder), storage=storage, patience_seconds=patience,
        pool=pool if workers > 1 else None, retry_failed=retry_failed, page=parent is None,
    )  # fmt: skip
    print_text(sweep_table(found))
    if parent is None:
        print_text(f"\nruns: {folder}   report: {folder / 'report.html'}")


def _worker_command(chosen: RecipeOptions, where: LocationOptions, patience: int) -> list[str]:
    """Return the command that starts one worker: this command, without --workers.

    A script of Python's (-c) would find modules in the current folder first, and a user's own
    `random.py` or `datasets/` there would replace the library: -P leaves the folder out.
    """
    given = {
        "--run": where.run, "--data": chosen.data, "--cache": where.cache,
        "--copies": where.copies, "--copies-gib": where.copies_gib,
        "--cache-root": where.cache_root, "--patience": patience, "--of": os.getpid(),
    }  # fmt: skip
    options = [(name, str(value)) for name, value in given.items() if value is not None]
    options += [("--set", one) for one in chosen.overrides]
    options += [("--log-with", one) for one in chosen.log_with]
    command = [sys.executable, "-P", "-c", _WORKER, "sweep", chosen.recipe]
    return [*command, *(word for option in options for word in option)]


_ROOT = str(Path(__file__).resolve().parents[2])
_WORKER = f"import sys; sys.path.append({_ROOT!r}); from kdscale.__main__ import start; start()"
"""Program of a worker, for an installed kdscale and for one in the current folder."""


def _check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: Optuna is missing; the message names the extra to install.
    """
    from kdscale.errors import ConfigError

    if find_spec("optuna") is None:
        raise ConfigError(
            "a sweep needs Optuna, which is not installed: pip install 'kdscale[sweep]'"
        )


@sweep_group.command(name="status")
@folder_argument
@storage_option
@json_option
def sweep_status(folder: Path, storage: str | None, as_json: bool) -> None:
    """Print a sweep's trials, the best ones first, and its duration."""
    _check_optuna()
    from kdscale.sweep.status import status
    from kdscale.tables.sweep_table import sweep_table

    found = status(folder, storage)
    print_found(found, sweep_table(found), as_json=as_json, everywhere=True)


@sweep_group.command(name="best")
@folder_argument
@storage_option
@json_option
def sweep_best(folder: Path, storage: str | None, as_json: bool) -> None:
    """Print the best trial, and the command that trains it again."""
    _check_optuna()
    from kdscale.sweep.status import best
    from kdscale.tables.sweep_table import best_text

    found = best(folder, storage)
    print_found(found, best_text(found), as_json=as_json, everywhere=True)
