"""The commands `kdscale cache ...`."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from kdscale.cli.options import (
    EXISTING,
    PLACE,
    SEED,
    LocationOptions,
    Place,
    RecipeOptions,
    built_with_options,
    cache_options,
    cache_root_option,
    cache_root_options,
    data_option,
    device_option,
    grouped,
    json_option,
    out_option,
    overrides_option,
    recipe_options,
    samples_option,
    seed_option,
    views_option,
)
from kdscale.cli.output import outline, print_found, print_json, print_text
from kdscale.errors import CacheError
from kdscale.formatting import number_of


@click.group(name="cache")
def cache_group() -> None:
    """Build, extend, list, verify and repair caches of logits."""


@dataclass(frozen=True, slots=True)
class _ClusterOptions:
    """Machines that a plan is made for."""

    nodes: int | None
    gpus_per_node: int | None
    teacher_images_per_second: float | None


def _finite(
    _context: click.Context, _parameter: click.Parameter, value: float | None
) -> float | None:
    """Refuse nan and inf, which no range of click does."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value


_cluster_options = grouped(
    "machines",
    _ClusterOptions,
    click.option("--nodes", type=click.IntRange(1), metavar="N",
                 help="Also estimate what the cache takes on N machines.  [default: 1, where the "
                 "next two are given]"),
    click.option("--gpus-per-node", type=click.IntRange(1), metavar="N",
                 help="GPUs of each machine, with one process each.  [default: 1]"),
    click.option("--teacher-images-per-second", type=click.FloatRange(0, min_open=True),
                 callback=_finite, metavar="X",
                 help="Speed of the teacher on one GPU.  [default: as measured here]"),
)  # fmt: skip


@cache_group.command(name="plan")
@device_option
@recipe_options
@cache_options
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Processes that build and train, each as fast as one here.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0.1), default=10, show_default=True,
              help="Approximate time to spend on short runs.")  # fmt: skip
@_cluster_options
@json_option
def cache_plan(
    chosen: RecipeOptions,
    where: LocationOptions,
    processes: int,
    seconds: float,
    machines: _ClusterOptions,
    as_json: bool,
) -> None:
    """Estimate size, build time and break-even of a cache.

    Measures the teacher and some training steps on this machine. Writes decoded images only.
    With --nodes, --gpus-per-node or --teacher-images-per-second: also what the cache takes on a
    cluster.
    """
    recipe = chosen.load()
    from kdscale.building.cluster_estimate import Cluster
    from kdscale.commands.plan import plan
    from kdscale.tables.plan_table import plan_table

    nodes, gpus, rate = machines.nodes, machines.gpus_per_node, machines.teacher_images_per_second
    given = any(one is not None for one in (nodes, gpus, rate))
    found = plan(
        where.experiment(recipe), num_processes=processes, seconds=seconds,
        cluster=Cluster(nodes or 1, gpus or 1) if given else None, teacher_images_per_second=rate,
    )  # fmt: skip
    print_found(found, plan_table(found), as_json=as_json)


@cache_group.command(name="build")
@device_option
@recipe_options
@cache_options
@click.option("--part", metavar="I/N",
              help="Begin with part I of N, as one of N builders; then take over what the others "
              "leave.  [default: from SLURM's or Kubernetes' array index, else all]")  # fmt: skip
def cache_build(chosen: RecipeOptions, where: LocationOptions, part: str | None) -> None:
    """Run the teacher on every view once, and store its logits.

    A stopped build is resumed, a finished cache is reused. Any number of builders, on any
    machines that see the cache, share the work.
    """
    from kdscale.building.part import choose_part

    own = choose_part(part)
    recipe = chosen.load()
    from kdscale.commands.build import build

    print_text(str(build(where.experiment(recipe), part=own)))


@cache_group.command(name="extend")
@device_option
@click.argument("path", type=PLACE)
@click.option("--views", "num_views", type=click.IntRange(1), required=True, metavar="N",
              help="Total number of views.")  # fmt: skip
@built_with_options
@cache_root_options
@json_option
def cache_extend(
    path: Place, num_views: int, chosen: RecipeOptions, where: LocationOptions, as_json: bool
) -> None:
    """Run the teacher on more views, until the cache has N.

    Stored views and the cache's id stay the same, students can read it meanwhile, and a stopped
    build is resumed.
    """
    recipe = chosen.load()
    from kdscale.commands.extend import extend

    done = extend(where.experiment(recipe), path, num_views)
    print_found(done, f"{path}: {number_of(done['num_views'], 'view')}", as_json=as_json)


@cache_group.command(name="info")
@click.argument("path", type=PLACE)
@json_option
def cache_info(path: Place, as_json: bool) -> None:
    """Print a cache's manifest: teacher, data, views, encoding, state."""
    from kdscale.cache.catalog import describe
    from kdscale.cache.manifest import read_manifest

    found = describe(path, read_manifest(path))
    print_found(found, outline(found), as_json=as_json, everywhere=True)


@cache_group.command(name="list")
@cache_root_option
@json_option
def cache_list(cache_root: Path, as_json: bool) -> None:
    """List the caches below the cache root."""
    from kdscale.cache.catalog import describe, list_caches
    from kdscale.cache.manifest import Manifest

    found = []
    for path, manifest in list_caches(cache_root):
        if isinstance(manifest, Manifest):
            found.append({"path": str(path), **describe(path, manifest)})
        else:
            click.echo(f"{path}: {manifest}", err=True)
    if as_json:
        print_json(found, everywhere=True)
    elif not found:
        click.echo(f"no caches in {cache_root}: build one with `kdscale cache build`", err=True)
    for cache in [] if as_json else found:
        state = "complete" if cache["complete"] else "unfinished"
        line = (
            f"{cache['path']}  {cache['id']}  {state}  {number_of(cache['num_views'], 'view')} x "
            f"{number_of(cache['num_samples'], 'sample')}, {cache['encoding']}, "
            f"{cache['bytes'] / 1e6:.1f} MB, teacher {cache['teacher']['model']}"
        )
        print_text(line, everywhere=True)


@dataclass(frozen=True, slots=True)
class _SpotCheckOptions:
    """Options of the teacher's second run on some of a cache's views."""

    num_pairs: int | None
    tolerance: float | None
    seed: int | None


_spot_check_options = grouped(
    "spot_check",
    _SpotCheckOptions,
    click.option("--teacher", "num_pairs", type=click.IntRange(1), metavar="N",
                 help="Also run the teacher again on N random views of samples."),
    click.option(
        "--tolerance", type=click.FloatRange(0), metavar="X",
        help="Largest difference of logits, as a share of a sample's largest logit (at least 1)."
        "  [default: 1e-4 in float32, 5e-2 in bfloat16, plus the rounding of the encoding]",
    ),
    click.option("--seed", type=SEED, help="Chooses the views.  [default: at random]"),
)  # fmt: skip


@cache_group.command(name="verify")
@device_option
@click.argument("path", type=PLACE)
@_spot_check_options
@grouped(
    "chosen", RecipeOptions,
    click.option("--recipe", help="The recipe that the cache was built with, for --teacher."),
    overrides_option, data_option,
)  # fmt: skip
@cache_root_options
@json_option
def cache_verify(
    path: Place,
    spot_check: _SpotCheckOptions,
    chosen: RecipeOptions,
    where: LocationOptions,
    as_json: bool,
) -> None:
    """Compare every byte of a cache with its checksums.

    The exit code is 1 if one is wrong. With --teacher N --recipe RECIPE, also render N random
    views and run the teacher on them again: pixels must be equal, and logits within the
    tolerance.
    """
    from kdscale.cache.verify import verify

    if (spot_check.num_pairs is None) != (chosen.recipe is None):
        raise click.UsageError("--teacher N and --recipe RECIPE go together")
    report = verify(path)
    found, text, ok = {"path": str(path), **report.to_json()}, report.describe(path), report.ok
    if report.ok and spot_check.num_pairs is not None:
        recipe = chosen.load()
        from kdscale.commands.recheck import recheck

        checked = recheck(
            where.experiment(recipe), path, num_pairs=spot_check.num_pairs,
            tolerance=spot_check.tolerance, seed=spot_check.seed,
        )  # fmt: skip
        found |= {"ok": checked.ok, "teacher": checked.to_json()}
        text, ok = f"{text}\n{checked.describe()}", checked.ok
    print_found(found, text, as_json=as_json, everywhere=spot_check.num_pairs is None)
    if not ok:
        sys.exit(1)


@cache_group.command(name="repair")
@device_option
@click.argument("path", type=PLACE)
@built_with_options
@cache_root_options
@json_option
def cache_repair(path: Place, chosen: RecipeOptions, where: LocationOptions, as_json: bool) -> None:
    """Rebuild the shards that are missing or corrupt."""
    recipe = chosen.load()
    from kdscale.commands.repair_cache import repair

    done = repair(where.experiment(recipe), path)
    if as_json:
        print_json(done)
    else:
        for name in done["rebuilt"]:
            print_text(f"rebuilt: {name}")
        print_text(f"{path}: ok")


@cache_group.command(name="push")
@click.argument("path", type=PLACE)
@click.argument("url", type=PLACE)
@json_option
def cache_push(path: Place, url: Place, as_json: bool) -> None:
    """Copy a finished cache to a store, and check it there.

    URL is for example s3://BUCKET/NAME.zarr. After a stop, the same command resumes. Another
    cache at URL is never replaced.
    """
    _copy(path, url, as_json)


@cache_group.command(name="pull")
@click.argument("url", type=PLACE)
@click.argument("path", type=PLACE, required=False)
@cache_root_option
@json_option
def cache_pull(url: Place, path: Place | None, cache_root: Path, as_json: bool) -> None:
    """Copy a finished cache from a store to PATH, and check it here.

    PATH is CACHE_ROOT/NAME.zarr if not given. After a stop, the same command resumes.
    """
    from kdscale.cache.stores.store import folder_name_of

    _copy(url, path or cache_root / folder_name_of(url), as_json)


def _copy(source: Place, destination: Place, as_json: bool) -> None:
    from kdscale.commands.copy_cache import copy_cache

    done = copy_cache(source, destination)
    print_found(done, str(destination), as_json=as_json)


@cache_group.command(name="remove")
@click.argument("path", type=PLACE)
@click.option("--yes", is_flag=True, help="Remove without confirmation.")
def cache_remove(path: Place, yes: bool) -> None:
    """Remove a cache, finished or not. Refuses one that is being built, and other folders."""
    from kdscale.cache.remove import check_removable, remove_cache

    check_removable(path)
    if not yes:
        click.confirm(f"Remove {_in_words(path)}?", abort=True, err=True)
    for left in remove_cache(path):
        click.echo(f"not removed, since it is not part of the cache: {path}/{left}", err=True)
    click.echo(f"removed: {path}", err=True)


def _in_words(path: Place) -> str:
    """Return a description of a cache in one line, for the confirmation."""
    from kdscale.cache.catalog import describe
    from kdscale.cache.manifest import read_manifest

    try:
        found = describe(path, read_manifest(path))
    except CacheError:
        return f"{path}, a damaged or partly removed cache"
    state = "" if found["complete"] else "unfinished, "
    return (
        f"{path}: {state}{number_of(found['num_views'], 'view')} x "
        f"{number_of(found['num_samples'], 'sample')}, {found['encoding']}, "
        f"{found['bytes'] / 1e6:.1f} MB, teacher {found['teacher']['model']}"
    )


@cache_group.command(name="show")
@click.argument("path", metavar="CACHE", type=PLACE)
@out_option
@samples_option
@views_option
@click.option("--data", type=EXISTING, help="A local copy of the data set.")
@cache_root_option
@seed_option
def cache_show(
    path: Place,
    out: Path,
    samples: int | None,
    views: int | None,
    data: str | None,
    cache_root: Path,
    seed: int,
) -> None:
    """Draw views of some images with the teacher's predictions."""
    from kdscale.commands.preview import preview_cache

    picture = preview_cache(
        path, out=out, samples=samples, views=views, data=data, cache_root=cache_root, seed=seed
    )
    print_text(str(picture), everywhere=True)
