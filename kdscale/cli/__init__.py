"""The command line, with heavy imports inside of commands.

Exit codes: 0 done, 1 a stated failure, 2 wrong usage; 130 Ctrl-C, 75 SIGTERM, SIGUSR1 or SIGHUP,
after which the state is saved; 76 another process of the launch has ended.
Results go to standard output, everything else to standard error.
"""

import sys

import click

from kdscale.cli.caches import cache_group
from kdscale.cli.experiments import bench, env, init, quickstart, recipes, run, train, views_command
from kdscale.cli.group import Group, print_terminated, start_logging
from kdscale.cli.reports import evaluate, report
from kdscale.cli.students import export, predict, pull, push
from kdscale.cli.sweeps import sweep_group
from kdscale.signals import ending_at_once, terminated
from kdscale.version import __version__


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kdscale")
def cli() -> None:
    """Distill image classifiers from a verified cache of teacher logits.

    RECIPE is a name from `kdscale recipes`, or a TOML file.
    """
    start_logging()


for _command in (
    quickstart,
    init,
    recipes,
    run,
    train,
    sweep_group,
    evaluate,
    export,
    predict,
    push,
    pull,
    report,
    bench,
    views_command,
    cache_group,
    env,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; the entry point of `kdscale` and of `python -m kdscale`."""
    with ending_at_once():
        try:
            cli(prog_name="kdscale")
        except SystemExit as ended:
            end = terminated()
            if end is None or ended.code in (None, 0, end.exit_code):
                raise
            print_terminated(end)  # outside of a command, where click takes it for Ctrl-C
            sys.exit(end.exit_code)
