"""The commands that exchange students with the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import click

from kdscale.cli.options import (
    HUB_ADDRESS,
    STORED,
    json_option,
    trust_code_option,
    weights_option,
)
from kdscale.cli.output import print_found


@click.command()
@click.argument("run", type=STORED)
@click.argument("url", type=HUB_ADDRESS)
@weights_option
@click.option("--license", "licence", metavar="NAME",
              help="Licence of the student, by the Hub's name, such as apache-2.0.")  # fmt: skip
@click.option("--overwrite", is_flag=True,
              help="Replace another student, and the card, that are there.")  # fmt: skip
@trust_code_option
@json_option
def push(
    run: Path,
    url: str,
    weights: Any,
    licence: str | None,
    overwrite: bool,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Upload a finished run's model to the Hugging Face Hub.

    URL is hf://USER/NAME; a repository that is not there is created, private. Uploads weights,
    a model card, and for models of timm and transformers the configuration by which those load
    it. Every file is compared there with its checksum.
    """
    from kdscale.commands.push import push as start
    from kdscale.experiment.trained_models import Trust, trained_model_of

    trained = trained_model_of(run, trust=Trust(code=trust_code), weights=weights)
    done = start(trained, url, licence=licence, overwrite=overwrite)
    print_found(done, f"{url}: {', '.join(done['files'])}", as_json=as_json)


@click.command()
@click.argument("url", type=HUB_ADDRESS)
@click.argument("folder", type=STORED, required=False)
@json_option
def pull(url: str, folder: Path | None, as_json: bool) -> None:
    """Download a student from the Hugging Face Hub, and check it.

    URL is hf://USER/NAME, or hf://USER/NAME@REVISION. FOLDER is NAME if not given. Nothing of
    the student is run.
    """
    from kdscale.commands.pull import pull as start
    from kdscale.hub import HubRepository

    name = HubRepository.parse(url, "model").name.rpartition("/")[2]
    done = start(url, folder or Path(name))
    print_found(done, done["folder"], as_json=as_json)
