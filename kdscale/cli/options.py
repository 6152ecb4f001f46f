"""Options and arguments that commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
EXISTING = click.Path(exists=True)

overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE",
    help="Override a field; may be repeated.",
)  # fmt: skip
data_option = click.option("--data", type=EXISTING, help="A local copy of the data set.")


def recipe_options(command: Command) -> Command:
    """RECIPE and what changes it."""
    for decorator in (data_option, overrides_option, click.argument("recipe")):
        command = decorator(command)
    return command


cache_root_option = click.option(
    "--cache-root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("cache"),
    envvar="KDSCALE_CACHE_ROOT",
    show_default=True,
    help="Where caches and decoded images lie.",
)
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="The cache's folder, NAME.zarr; found by content when not named.",
)
caches_option = click.option(
    "--cache", "caches",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The cache's folder, NAME.zarr; found by content when not named. Named again: a further "
    "cache, of another teacher (ensemble.caches).",
)  # fmt: skip
run_option = click.option(
    "--run", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME]"
)
out_option = click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="The picture to write: .png, .jpg or .webp.",
)  # fmt: skip
samples_option = click.option(
    "--samples", type=click.IntRange(1), metavar="N",
    help="Rows, spread over the classes.  [default: 10]",
)  # fmt: skip
views_option = click.option(
    "--views", type=click.IntRange(1), metavar="N", help="Columns.  [default: 6, if there are]"
)
seed_option = click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), default=0,
                       show_default=True, help="Another one shows other samples.")  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def load(recipe: str, overrides: tuple[str, ...], data: str | None) -> Any:
    """The recipe that `recipe_options` name."""
    from kdscale.config import load_recipe

    return load_recipe(recipe, overrides, data)


def with_further_caches(overrides: tuple[str, ...], caches: tuple[Path, ...]) -> tuple[str, ...]:
    """Overrides that name all caches but the first as those of the recipe's ensemble."""
    if len(caches) < 2:
        return overrides
    names = [str(one) for one in caches[1:]]
    return (*overrides, f"ensemble.caches={json.dumps(names, ensure_ascii=False)}")


def runs_folder(name: str) -> Path:
    """Where the runs of a recipe lie when no folder is named."""
    return Path("runs") / name
