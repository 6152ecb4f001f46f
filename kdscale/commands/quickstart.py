"""Run the quickstart recipe on embedded data, then measure its training steps."""

import json
from pathlib import Path

from kdscale import config
from kdscale.atomic_write import write_durably
from kdscale.commands.bench import bench
from kdscale.commands.report import write_page
from kdscale.commands.run import run_recipe
from kdscale.experiment import Experiment, Locations
from kdscale.experiment.saved_runs import trained_teacher
from kdscale.runs.folder import RunFolder
from kdscale.tables.results_table import ResultsRow, results_table
from kdscale.tables.timing_table import bench_table

_SEEDS = 3
_BENCH_SECONDS = 6.0


def quickstart(*, folder: Path, cache_root: Path) -> str:
    """Run the quickstart recipe into `folder`; return the text to print.

    Raises:
        KdscaleError: see `kdscale.errors`.
    """
    recipe = config.load_recipe("quickstart")
    experiment = Experiment(recipe, Locations(cache_root=cache_root, run=folder))
    result = run_recipe(experiment, seeds=range(_SEEDS))
    weights = trained_teacher(recipe, folder)
    steps = bench(experiment.at(teacher_weights=weights), seconds=_BENCH_SECONDS)
    write_durably(RunFolder(folder).bench_file, json.dumps(steps, indent=2).encode() + b"\n")
    # Again, now that it is known what online steps cost:
    write_page(folder, recipe.data.source, cache_root)
    return "\n".join(
        [
            "",
            results_table([ResultsRow(**row) for row in result["rows"]]),
            "",
            bench_table(steps),
            "",
            f"runs:   {folder}",
            f"table:  {folder / 'report.md'}",
            f"report: {folder / 'report.html'} (open it in a browser)",
            f"cache:  {result['cache_path']} (see: kdscale cache info {result['cache_path']})",
            "next:   kdscale recipes; kdscale run RECIPE --data PATH",
        ]
    )
