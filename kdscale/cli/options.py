"""Options and arguments that commands share."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click
from click.shell_completion import CompletionItem

# Generic for type checkers alone: only the newest releases of click can be subscripted.
if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

Place: TypeAlias = str | Path
"""A folder or a URL."""
Command = TypeVar("Command", bound=Callable[..., Any])
_LONGEST_NAME = 255
"""Most bytes of a file's name on all usual file systems."""


def home_expanded(text: str) -> str:
    """Replace a leading `~` by the home folder, which shells do not do in `--run=~/x`."""
    return str(Path(text).expanduser()) if text.startswith("~") else text


class UserPath(click.Path):
    """A path as it is typed: `~` is the home folder, and names must be short enough for a file."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Expand and check what was typed."""
        if isinstance(value, str):
            value = home_expanded(value)
            _check_names(self, value, param, ctx)
        return super().convert(value, param, ctx)


def _check_names(kind: _ParamType, path: str, param: Any, ctx: Any) -> None:
    if max(len(os.fsencode(part)) for part in path.split("/")) > _LONGEST_NAME:
        kind.fail(f"{path[:40]!r}... has a name of more than {_LONGEST_NAME} bytes, which no file "
                  "can have: shorten it", param, ctx)  # fmt: skip


EXISTING = UserPath(exists=True)
STORED = UserPath(path_type=Path)
"""A folder or a file that need not exist."""


class _Place(_ParamType):
    """A folder, or a URL of a store."""

    name = "folder or URL"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        from kdscale.cache.stores.store import place_of

        if re.match(r"[a-z0-9]+:/[^/]", value):
            self.fail(f"{value!r} is neither a folder nor a URL: those have two slashes, as in "
                      "s3://BUCKET/NAME.zarr", param, ctx)  # fmt: skip
        _check_names(self, home_expanded(value), param, ctx)
        return place_of(home_expanded(value))


class _Folder(UserPath):
    """A folder of this machine, never a URL."""

    def __init__(self, instead: str) -> None:
        super().__init__(path_type=Path, file_okay=False)
        self._instead = instead

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if "://" in str(value):
            self.fail(f"{value!r} is a URL, wanted a folder: {self._instead}", param, ctx)
        return super().convert(value, param, ctx)


class _HubAddress(_ParamType):
    """The address of a student on the Hub."""

    name = "address"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not str(value).startswith("hf://"):
            self.fail(f"{value!r} is no repository: hf://USER/NAME is wanted", param, ctx)
        return value


class _Model(UserPath):
    """A run, a file or a student's folder that exists, or the address of one on the Hub."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if str(value).startswith("hf://") else super().convert(value, param, ctx)


PLACE = _Place()
HUB_ADDRESS = _HubAddress()
MODEL = _Model()

overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE",
    help="Override a field; may be repeated.",
)  # fmt: skip
data_option = click.option("--data", type=EXISTING, help="A local copy of the data set.")


Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def grouped(name: str, group: type, *options: Decorator) -> Decorator:
    """Return a decorator that hands several options to a command as one object.

    Args:
        name: the command's parameter.
        group: a dataclass whose fields are named like the options' parameters; fields without an
            option keep their defaults.
        options: click's decorators.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_group(*args: Any, **given: Any) -> Any:
            names = [field.name for field in fields(group) if field.name in given]
            return command(
                *args, **{name: group(**{one: given.pop(one) for one in names})}, **given
            )

        call: Callable[..., Any] = with_group
        for option in reversed(options):
            call = option(call)
        return call

    return decorate


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """A recipe as it is named on the command line."""

    recipe: str
    """Name, or path of a TOML file."""
    overrides: tuple[str, ...] = ()
    """SECTION.FIELD=VALUE of each --set."""
    data: str | None = None
    """A local copy of the data set."""
    log_with: tuple[str, ...] = ()
    """Trackers of all trainings; empty = the recipe's."""

    def load(self, *overrides: str) -> Any:
        """Return the recipe, with further overrides."""
        from kdscale.config import load_recipe

        return load_recipe(self.recipe, (*self.overrides, *overrides), self.data, self.log_with)

    def table(self) -> dict[str, Any]:
        """Return the recipe's table as it is written, with overrides and without defaults."""
        from kdscale.config import read_table

        return read_table(self.recipe, self.overrides, self.data, self.log_with)


def _complete_recipe(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the recipes that come with kdscale, else let the shell complete files."""
    folder = Path(__file__).parents[1] / "recipes"  # kdscale.config would import pydantic
    names = sorted(path.stem for path in folder.glob("*.toml"))
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


recipe_argument = click.argument("recipe", shell_complete=_complete_recipe)
recipe_options = grouped("chosen", RecipeOptions, recipe_argument, overrides_option, data_option)
training_recipe_options = grouped(
    "chosen", RecipeOptions, recipe_argument, overrides_option, data_option,
    click.option("--log-with", multiple=True,
                 type=click.Choice(["tensorboard", "wandb", "mlflow"]),
                 help="A tracker that also gets what is written to metrics.jsonl; may be "
                 "repeated.  [default: the recipe's log_with]"),
)  # fmt: skip
built_with_options = grouped(
    "chosen",
    RecipeOptions,
    click.option("--recipe", required=True, help="The recipe that the cache was built with."),
    overrides_option,
    data_option,
)


@dataclass(frozen=True, slots=True)
class LocationOptions:
    """Locations that a command reads and writes, as given on the command line."""

    cache_root: Path
    run: Path | None = None
    cache: Place | None = None
    copies: Path | None = None
    """Folder of local copies; None = in the cache root."""
    copies_gib: float = 0
    """Limit of the copies; 0 = none are stored."""

    def locations(self, run: Path | None = None, cache: Place | None = None) -> Any:
        """Return these options as `Locations`, with defaults for run folder and cache."""
        from kdscale.cache.stores.read_through import Copies
        from kdscale.experiment.locations import Locations

        folder, limit = self.copies or self.cache_root / "copies", int(self.copies_gib * (1 << 30))
        return Locations(
            cache_root=self.cache_root,
            run=self.run or run,
            cache=self.cache or cache,
            copies=Copies(folder, limit) if self.copies_gib else None,
        )

    def experiment(self, recipe: Any) -> Any:
        """Return the experiment of a recipe here, with the teacher that was trained for it."""
        from kdscale.experiment import Experiment

        return Experiment.with_trained_teacher(recipe, self.locations())


cache_root_option = click.option(
    "--cache-root",
    type=_Folder("it is for decoded images. Name a cache elsewhere with --cache URL"),
    default=Path("cache"),
    envvar="KDSCALE_CACHE_ROOT",
    show_default=True,
    help="Folder of caches and decoded images.",
)
cache_option = click.option(
    "--cache",
    type=PLACE,
    metavar="PLACE",
    help="The cache's folder, NAME.zarr, or its URL (s3://, gs://, az://); without it, a cache "
    "with the required content is searched in CACHE_ROOT.",
)
caches_option = click.option(
    "--cache", "caches",
    type=PLACE,
    metavar="PLACE",
    multiple=True,
    help="The cache's folder, NAME.zarr, or its URL; without it, a cache with the required content "
    "is searched in CACHE_ROOT. Repeated: further caches, of other teachers (ensemble.caches).",
)  # fmt: skip
run_option = click.option(
    "--run", type=STORED,
    help="The folder of the results.  [default: runs/NAME; train: in it, such as cache-seed0]",
)  # fmt: skip
out_option = click.option(
    "--out", type=UserPath(path_type=Path, dir_okay=False), required=True,
    help="The picture to write: .png, .jpg or .webp.",
)  # fmt: skip
samples_option = click.option(
    "--samples", type=click.IntRange(1), metavar="N",
    help="Number of rows, spread over the classes.  [default: 10]",
)  # fmt: skip
views_option = click.option(
    "--views",
    type=click.IntRange(1),
    metavar="N",
    help="Number of columns.  [default: 6, or all if fewer]",
)
SEED = click.IntRange(0, (1 << 63) - 1)
"""Seeds that random generators accept."""
seed_option = click.option("--seed", type=SEED, default=0,
                       show_default=True, help="Chooses the samples.")  # fmt: skip
weights_option = click.option(
    "--weights", type=click.Choice(["last", "best", "ema"]), default="last", show_default=True,
    help="Weights of the last step, the best on the validation split (data.validation), or the "
    "moving average (ema_decay).",
)  # fmt: skip
trust_code_option = click.option(
    "--trust-code", is_flag=True,
    help="Also create models whose code the folder names (module:function): it can do anything "
    "that you can. For folders of your own, or of somebody you trust.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


copies_option = click.option(
    "--copies",
    type=_Folder("it is for local copies of a remote cache's objects"),
    envvar="KDSCALE_COPIES",
    help="Folder of local copies of a remote cache's objects, shared by all readers on this "
    "machine.  [default: CACHE_ROOT/copies]",
)
copies_gib_option = click.option(
    "--copies-gib", type=click.FloatRange(0), default=20, envvar="KDSCALE_COPIES_GIB",
    show_default=True,
    help="Limit of the local copies in GiB; the least recently used are removed. 0: no copies.",
)  # fmt: skip
cache_root_options = grouped("where", LocationOptions, cache_root_option)
cache_options = grouped("where", LocationOptions, cache_option, cache_root_option)


def _choose_device(_context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    if name is None:
        return
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise click.BadParameter(f"{name!r} is none of cpu, cuda, cuda:N, mps", param=parameter)
    from kdscale.launcher import choose_device

    choose_device(name)


device_option = click.option(
    "--device", expose_value=False, callback=_choose_device, envvar="KDSCALE_DEVICE",
    metavar="cpu|cuda|cuda:N|mps",
    help="Device that models run on.  [default: a GPU if there is one]",
)  # fmt: skip


def further_caches(caches: tuple[Place, ...]) -> list[str]:
    """Return the override that names all caches but the first as those of the ensemble."""
    if len(caches) < 2:
        return []
    names = [str(one) for one in caches[1:]]
    return [f"ensemble.caches={json.dumps(names, ensure_ascii=False)}"]


def runs_folder(name: str) -> Path:
    """Return the folder of a recipe's runs where none is named."""
    return Path("runs") / name
