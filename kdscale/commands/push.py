"""Push a student to a repository of the Hugging Face Hub, with its model card."""

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch

from kdscale.atomic_write import temporary_folder
from kdscale.commands.export import describe_model
from kdscale.commands.model_card import model_card
from kdscale.errors import ConfigError, ExportError
from kdscale.experiment.trained_models import TrainedModel
from kdscale.hub import HubRepository
from kdscale.local_paths import without_paths
from kdscale.models.checksums import TENSORS
from kdscale.models.deployable import Deployable, load_student, read_statement
from kdscale.models.student_files import WEIGHTS
from kdscale.models.student_folder import write_student_folder
from kdscale.models.untrusted import without_initial_weights
from kdscale.models.weights import tensors_sha256

log = logging.getLogger(__name__)


def push(
    trained: TrainedModel, url: str, *, licence: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Upload a trained model's weights, configuration and card in one commit.

    Args:
        trained: the model of a finished run.
        url: `hf://USER/NAME`; a repository that is not there is created, private.
        licence: for the card, by the Hub's name; None = not stated.
        overwrite: replace another student, and a card, that are there.

    Returns:
        The URL, the names of the files, and the bytes of the weights.

    Raises:
        ExportError: another student is there, or an option of the model is a path.
        KdscaleError: the model cannot be created, or the Hub refuses or is not reached.
    """
    repository = HubRepository.parse(url, "model")
    if repository.revision is not None:
        raise ConfigError(f"{url} names a revision, and a push is a new one: leave out @...")
    weights = Path(str(trained.section.weights))
    student = load_student(weights, trust_code=trained.trust.code)
    about = _describe(trained, student, weights)
    noise = _noise(student, about["pixels"]["shape"])
    expected = student(noise)
    about["logits" if "logits" in about else "embedding"]["shape"] = ["batch", *expected.shape[1:]]
    with temporary_folder(Path(gettempdir()), "push") as folder:
        write_student_folder(folder / "student", student, about)
        read_back = load_student(folder / "student", trust_code=trained.trust.code)
        if not torch.equal(read_back(noise), expected):
            raise ExportError(f"the written {WEIGHTS} gives other logits than the run's weights")
        _refuse_another(repository, tensors_sha256(student.model), overwrite=overwrite)
        repository.upload(
            folder / "student",
            message=f"kdscale student of recipe {trained.recipe.name}",
            card=model_card(trained, repository.name, about, licence),
            replace_card=overwrite,
        )
        files = sorted(path.name for path in (folder / "student").iterdir())
        size = (folder / "student" / WEIGHTS).stat().st_size
    log.info("%s: uploaded, every checksum compared", url)
    return {"run": trained.name, "url": url, "files": files, "bytes": size}


def _describe(trained: TrainedModel, student: Deployable, weights: Path) -> dict[str, Any]:
    """Return the metadata of the uploaded weights, without paths of this machine."""
    stated = read_statement(weights)
    preprocess = student.preprocess
    shape = stated.pixels.get("shape") or [None, preprocess.channels, None, None]
    about = describe_model(trained, student, shape[1:], stated.num_classes)
    about["options"] = without_initial_weights(stated.model, stated.options)
    # After a colon, of timm's local-dir:PLACE; config.json has that of transformers.
    uploaded = {"model": stated.model.partition(":")[2], **about["options"]}
    paths = [key for key, value in uploaded.items() if without_paths(value) != value]
    if paths:
        raise ExportError(
            f"the student's option {paths[0]!r} has a path of this machine, which would be "
            "uploaded: train it without this option, or export the student as ONNX or pt2"
        )
    return about


def _noise(student: Deployable, shape: Sequence[Any]) -> torch.Tensor:
    """Return two images of noise, uint8 [2, C, H, W], of the size that the student takes."""
    channels, *size = shape[1:]
    height, width = size if None not in size else (student.preprocess.size or 64,) * 2
    generator = torch.Generator().manual_seed(0)
    wanted = (2, channels, height, width)
    return torch.randint(256, wanted, dtype=torch.uint8, generator=generator)


def _refuse_another(repository: HubRepository, sha256: str, *, overwrite: bool) -> None:
    """Stop where another student, or another file in its place, is in the repository."""
    there = None if overwrite else repository.safetensors_header(WEIGHTS)
    if there is not None and there.get(TENSORS) != sha256:
        raise ExportError(
            f"{repository.url} holds another {WEIGHTS}: name another repository, or add "
            "--overwrite (its history keeps what is replaced)"
        )
