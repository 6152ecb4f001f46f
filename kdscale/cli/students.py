"""The commands that use a trained student: exported, on images, on the Hugging Face Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kdscale.cli.options import (
    EXISTING,
    HUB_ADDRESS,
    MODEL,
    STORED,
    UserPath,
    cache_root_option,
    device_option,
    grouped,
    json_option,
    trust_code_option,
    weights_option,
)
from kdscale.cli.output import print_found
from kdscale.formatting import number_of


@dataclass(frozen=True, slots=True)
class TrainedModelOptions:
    """A trained model as it is named on the command line."""

    run: Path
    weights: Any
    data: str | None
    trust_code: bool


@click.command()
@click.option("--format", "format_name", required=True,
              type=click.Choice(["safetensors", "onnx", "pt2"]),
              help="Weights for kdscale, a model for ONNX, or one for PyTorch.")  # fmt: skip
@click.option("--out", type=UserPath(path_type=Path, dir_okay=False), metavar="FILE",
              help="The file.  [default: RUN/student.FORMAT; of other weights "
                   "RUN/student-best.FORMAT, RUN/student-ema.FORMAT]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--with-preprocessing", is_flag=True,
              help="Put data.clean into the graph of onnx or pt2.")  # fmt: skip
@grouped(
    "model", TrainedModelOptions, click.argument("run", type=STORED), weights_option,
    click.option("--data", type=EXISTING, help="A local copy of the data set."),
    trust_code_option,
)  # fmt: skip
@cache_root_option
@json_option
def export(
    format_name: str,
    out: Path | None,
    overwrite: bool,
    with_preprocessing: bool,
    model: TrainedModelOptions,
    cache_root: Path,
    as_json: bool,
) -> None:
    """Export a finished run's model with its preprocessing.

    The exported model takes uint8 pixels and returns logits. The file is run on test images
    first: one whose logits differ from those of the run's weights is discarded. It carries the
    names of the classes.
    """
    from kdscale.commands.export import export as start
    from kdscale.experiment.trained_models import Trust, trained_model_of

    trained = trained_model_of(
        model.run, trust=Trust(code=model.trust_code), data=model.data, weights=model.weights
    )
    done = start(
        trained, format_name, cache_root=cache_root, out=out, overwrite=overwrite,
        with_preprocessing=with_preprocessing,
    )  # fmt: skip
    text = (
        f"{done['file']}: {done['bytes']:,} bytes; on "
        f"{number_of(done['num_images'], 'test image')} logits differ by at most "
        f"{done['max_logit_difference']:.1e}, {100 * done['top1_agreement']:.2f} % of top-1 "
        f"agree\n\n{done['example']}"
    )
    print_found(done, text, as_json=as_json)


@click.command()
@device_option
@click.argument("model", metavar="RUN", type=MODEL)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True,
                type=UserPath(path_type=Path, exists=True))  # fmt: skip
@weights_option
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True,
              help="Number of classes to state for each image.")  # fmt: skip
@click.option("--csv", type=UserPath(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write a row for each image; an existing file is replaced.")  # fmt: skip
@trust_code_option
@json_option
def predict(
    model: str | Path,
    images: tuple[Path, ...],
    weights: Any,
    top_k: int,
    csv: Path | None,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Classify images of your own with a trained model.

    RUN is the folder of a finished run, a file that `kdscale export` wrote, or a student of the
    Hub: hf://USER/NAME, or the folder that it was pulled to. IMAGE is an
    image file, or a folder: then all images below it. An image that cannot be read is stated,
    the others are classified, and the exit code is 1.
    """
    from kdscale.atomic_write import write_output
    from kdscale.commands.predict import image_files, open_classifier
    from kdscale.commands.predict import predict as classify
    from kdscale.errors import DataError
    from kdscale.tables.prediction_table import prediction_table

    files = image_files(images)
    classifier = open_classifier(model, weights=weights, trust_code=trust_code)
    found = [one.to_json() for one in classify(classifier, files, top_k=top_k)]
    if csv is not None:
        write_output(csv, prediction_table(found, percent=False).csv().encode())
    print_found({"images": found}, prediction_table(found, percent=True).text(), as_json=as_json)
    if failed := [one["error"] for one in found if "error" in one]:
        raise DataError("\n".join(failed))


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
