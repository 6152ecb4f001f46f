"""Evaluate trained models: quality on the test split, agreement with the teacher, and cost."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.distributed import broadcast_from_main, create_accelerator, main_process_first
from kdscale.documents import DAMAGE
from kdscale.errors import KdscaleError, ModelError, WeightsError
from kdscale.evaluation.efficiency import (
    BATCH_SIZES,
    device_name,
    flops_of,
    forward_cost,
    weight_bytes,
)
from kdscale.evaluation.evaluator import Examined, examine, mention_unclear
from kdscale.evaluation.metrics import NO_PREDICTION, details, summarize
from kdscale.evaluation.teacher_predictions import (
    TeacherPredictions,
    keep_predictions,
    predictions_of,
)
from kdscale.evaluation.test_set import evaluation_file, own_test_set, own_training_set
from kdscale.experiment.cache_spec import LIBRARIES
from kdscale.experiment.datasets import clean_shape, test_images
from kdscale.experiment.models import frozen_teacher, model_of
from kdscale.experiment.trained_models import TrainedModel, Trust, Weights, trained_models
from kdscale.models.checkpoints import read_metadata
from kdscale.models.deployable import check_size, size_of
from kdscale.models.registry import num_parameters
from kdscale.runs.folder import read_evaluation, write_evaluation
from kdscale.teacher.frozen_teacher import FrozenTeacher, freeze

log = logging.getLogger(__name__)

THOROUGH_SECONDS = 2.0
QUICK_SECONDS = 0.05
"""For the passes of one batch size: at the end of a command that has other things to do."""
_VERSION = 1  # of evaluation.json


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How models are evaluated: the same for all of a command."""

    cache_root: Path
    """Where decoded images and the teacher's first answers lie."""
    teacher: str | None = None
    """The teacher's weights, where they are not where they are looked for."""
    seconds: float = THOROUGH_SECONDS
    """To time the passes of one batch size."""
    trust: Trust = field(default_factory=Trust)
    """Which models that the folders name may run code of their own."""
    reuse: bool = False
    """Take what was found before, where model, images and teacher are still the same."""
    _asked: dict[str, TeacherPredictions] = field(default_factory=dict)
    """Of teachers that this command has asked already."""

    def folders(
        self, folders: Sequence[Path], *, data: str | None = None, weights: Weights = "last"
    ) -> list[dict[str, Any]]:
        """Evaluate runs, and all that is finished in folders of whole recipes and of sweeps.

        Args:
            folders: as of `trained_models`, like the rest.
            data: a local copy of the data set.
            weights: which ones.

        Raises:
            RunError: before anything is evaluated, of any of them.
            KdscaleError: as of `model`.
        """
        found = [
            trained_models(folder, data=data, weights=weights, trust=self.trust)
            for folder in folders
        ]
        return [self.model(one) for models in found for one in models]

    def model(self, subject: TrainedModel) -> dict[str, Any]:
        """Evaluate a model into its file.

        On another test split than the one that the run was tested on, the file is another one: the
        figures of the two must not be taken for each other.

        Returns:
            What the file holds, and the path that a user knows the model by.

        Raises:
            KdscaleError: data or weights cannot be used.
        """
        accelerator = create_accelerator()
        with main_process_first(accelerator):
            test = test_images(subject.recipe, self.cache_root)
        model, parameters = _load(subject, test, accelerator.device)
        answers, note = self._teacher_answers(subject, test, accelerator)
        identity = {
            "version": _VERSION,
            "model": subject.section.model,
            "options": dict(subject.section.options),
            **model.describe(),
            "test_fingerprint": test.fingerprint,
            "clean": list(test.clean),
            "teacher_sha256": None if answers is None else answers.sha256,
        }
        own = own_test_set(subject.evaluation)
        file = evaluation_file(subject.evaluation, own, test.fingerprint)
        if test.fingerprint == own_training_set(subject.evaluation):
            log.warning(
                "split %r of %s holds the images that %s was trained on: what is found is no "
                "accuracy on new images", test.split, test.name, subject.name,
            )  # fmt: skip
        known = _known(file, identity) if self.reuse else None
        known = broadcast_from_main(accelerator, known)
        if known is not None:
            return {"run": subject.name, **known}
        log.info("evaluating %s", subject.name)
        examined = _examine(model, test, accelerator)
        if subject.role == "teacher":
            keep_predictions(model, test, self.cache_root, examined.predictions, accelerator)
        if file != subject.evaluation:
            log.warning(
                "%s was tested on other images (fingerprint %s) than these (%s): what is found "
                "goes to %s", subject.name, str(own)[:12], test.fingerprint[:12], file,
            )  # fmt: skip
        summary = summarize(examined.counts)
        mention_unclear(summary, test.num_samples)
        found = {
            **identity,
            **subject.describe(),
            **_described(test),
            "own_test_set": None if own is None else own == test.fingerprint,
            **summary,
            "agreement": None if answers is None else _agreement(examined, answers),
            "agreement_note": note,
            "num_parameters": parameters,
            "weight_bytes": weight_bytes(model.model),
            **_cost(model, test, self.seconds, accelerator),
            **details(examined.counts, examined.labels, examined.predictions),
        }
        if accelerator.is_main_process:
            write_evaluation(file, found)
        accelerator.wait_for_everyone()
        return {"run": subject.name, **found}

    def _teacher_answers(
        self, subject: TrainedModel, test: ImageDataset, accelerator: Accelerator
    ) -> tuple[TeacherPredictions | None, str | None]:
        """What the student's teacher says; None where that is not known, and why it is not."""
        if subject.role == "teacher":
            return None, None
        if subject.recipe.ensemble.caches or "+" in (subject.taught_by or ""):
            return None, "it has several teachers"
        weights = self.teacher or subject.teacher
        of_library = weights is None and subject.recipe.teacher.is_trained
        if not of_library and (weights is None or not Path(weights).is_file()):
            return None, f"no teacher at {weights or 'hand'}: name its weights with --teacher"
        try:
            answers = self._ask(subject, weights, test, accelerator)
        except (ModelError, WeightsError) as error:
            if self.teacher is not None:
                raise
            return None, str(error)  # the student can be evaluated all the same
        if subject.taught_by not in (None, answers.sha256):
            return (
                None,
                f"{weights or subject.recipe.teacher.model} is not the teacher that taught it",
            )
        return answers, None

    def _ask(
        self,
        subject: TrainedModel,
        weights: str | None,
        test: ImageDataset,
        accelerator: Accelerator,
    ) -> TeacherPredictions:
        recipe = subject.recipe
        key = json.dumps([weights, recipe.teacher.model_dump(), test.fingerprint, test.clean])
        if key not in self._asked:
            rename = recipe.teacher.rename if recipe.teacher.weights is not None else {}
            section = recipe.teacher.model_copy(update={"weights": weights, "rename": rename})
            named = recipe.model_copy(update={"teacher": section})
            teacher = frozen_teacher(
                named, test, None, accelerator.device, named_by=subject.named_by(section)
            )
            self._asked[key] = predictions_of(teacher, test, self.cache_root, accelerator)
        return self._asked[key]


def _load(
    subject: TrainedModel, test: ImageDataset, device: torch.device
) -> tuple[FrozenTeacher, int]:
    """The model, ready to be asked, and the number of its trainable parameters."""
    trained = model_of(
        subject.recipe, subject.section, test, what=subject.role,
        named_by=subject.named_by(subject.section),
    )  # fmt: skip
    if subject.section.weights is not None:
        stated = size_of(read_metadata(subject.section.weights).get("pixels"))
        check_size(clean_shape(test), trained.preprocess, stated)
    parameters = num_parameters(trained.model)
    model = freeze(
        trained.model,
        trained.preprocess,
        precision=subject.precision,
        memory_format=subject.memory_format,
        device=device,
    )
    return model, parameters


def _examine(model: FrozenTeacher, test: ImageDataset, accelerator: Accelerator) -> Examined:
    resident, samples = DeviceImages(test, accelerator.device), torch.arange(test.num_samples)
    return examine(model.logits, resident, samples, test.num_classes, accelerator)


def _agreement(examined: Examined, answers: TeacherPredictions) -> float:
    is_equal = examined.predictions == answers.classes
    return float((is_equal & (examined.predictions != NO_PREDICTION)).double().mean())


def _described(test: ImageDataset) -> dict[str, Any]:
    return {
        "test_source": test.name,
        "test_split": test.split,
        "num_samples": test.num_samples,
        "num_classes": test.num_classes,
        "class_names": list(test.classes),
    }


def _cost(
    model: FrozenTeacher, test: ImageDataset, seconds: float, accelerator: Accelerator
) -> dict[str, Any]:
    """Of the forward pass in the main process, while the others wait; and where it was measured."""
    cost: dict[str, Any] = {}
    if accelerator.is_main_process:
        first = torch.arange(max(BATCH_SIZES)) % test.num_samples
        with torch.no_grad():
            inputs = model.inputs(DeviceImages(test, accelerator.device).gather(first)[0])
        cost = {
            "flops": flops_of(model.model, inputs, precision=model.precision),
            **forward_cost(model.model, inputs, precision=model.precision, seconds=seconds),
            "input_shape": list(inputs.shape[1:]),
        }
    return {
        **broadcast_from_main(accelerator, cost),
        "device": accelerator.device.type,
        "device_name": device_name(accelerator.device),
        "num_threads": torch.get_num_threads(),
        "library_versions": {name: version(name) for name in LIBRARIES},
    }


def _known(file: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file says, if it is of this very model, these images and this teacher.

    A file of kdscale 0.1 may count samples without a prediction as right: it is not used again.
    """
    try:
        found = read_evaluation(file)
    except (KdscaleError, *DAMAGE):
        return None
    same = identity.items() <= found.items() and "non_finite_samples" in found
    return found if same else None
