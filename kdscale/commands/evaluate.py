"""Evaluate trained models: quality on the test split, agreement with the teacher, and cost."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kdscale import config
from kdscale.commands.evaluate_embeddings import EmbeddingResults, evaluate_embeddings
from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.source import SourceOptions, has_split
from kdscale.distributed import broadcast_from_main, create_accelerator, main_process_first
from kdscale.documents import DAMAGE
from kdscale.errors import ConfigError, KdscaleError, ModelError, RunError, WeightsError
from kdscale.evaluation.efficiency import (
    BATCH_SIZES,
    device_name,
    flops_of,
    forward_cost,
    weight_bytes,
)
from kdscale.evaluation.embeddings import KNN
from kdscale.evaluation.evaluator import Examined, examine, mention_unclear
from kdscale.evaluation.metrics import NO_PREDICTION, details, summarize
from kdscale.evaluation.teacher_predictions import (
    TeacherPredictions,
    predictions_of,
    store_predictions,
)
from kdscale.evaluation.test_set import (
    evaluation_file,
    first_evaluated,
    own_test_set,
    own_training_set,
)
from kdscale.experiment.cache_spec import library_versions
from kdscale.experiment.datasets import clean_shape, source_path, test_images, training_images
from kdscale.experiment.model_line import log_model
from kdscale.experiment.models import frozen_teacher, model_of
from kdscale.experiment.trained_models import TrainedModel, Trust, Weights, trained_models
from kdscale.models.checkpoints import read_metadata
from kdscale.models.deployable import check_size, size_of
from kdscale.models.registry import num_parameters
from kdscale.runs.folder import read_run_file, write_evaluation
from kdscale.teacher.frozen_teacher import FrozenTeacher, freeze

log = logging.getLogger(__name__)

THOROUGH_SECONDS = 2.0
QUICK_SECONDS = 0.05
"""Seconds of timing for each batch size at the end of `kdscale run` and in sweeps."""
_VERSION = 1  # of evaluation.json


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Settings of an evaluation, the same for all models of a command."""

    cache_root: Path
    """Folder of decoded images and stored predictions of teachers."""
    teacher: str | None = None
    """File of the teacher's weights; None to search where the recipe and the run name them."""
    seconds: float = THOROUGH_SECONDS
    """Seconds of timing for each batch size."""
    trust: Trust = field(default_factory=Trust)
    """Models named in the folders that may run code of their own."""
    embeddings: bool = False
    """Also classify by embeddings (k-NN, linear probe); always done for models without a
    classifier."""
    reuse: bool = False
    """Reuse an earlier result if model, images and teacher are the same."""
    _predictions: dict[str, TeacherPredictions] = field(default_factory=dict)
    """Predictions of the teachers that this command has used already."""

    def folders(
        self, folders: Sequence[Path], *, data: str | None = None, weights: Weights = "last"
    ) -> list[dict[str, Any]]:
        """Evaluate runs, and all finished runs in folders of whole recipes and of sweeps.

        Args:
            folders: folders as `trained_models` takes them.
            data: a local copy of the data set.
            weights: which weights of a run.

        Raises:
            RunError: a folder has no finished run; raised before anything is evaluated.
            KdscaleError: see `model`.
        """
        found = [
            trained_models(folder, data=data, weights=weights, trust=self.trust)
            for folder in folders
        ]
        models = [one for several in found for one in several]
        return [self.model(one if data is None else _on_data(one, data)) for one in models]

    def model(self, subject: TrainedModel) -> dict[str, Any]:
        """Evaluate a model and write its file.

        Results on another test split than the run's own go to another file, since the two cannot
        be compared.

        Returns:
            The content of the file, and `run`, the path of the model for users.

        Raises:
            KdscaleError: data or weights cannot be used.
        """
        accelerator = create_accelerator()
        with main_process_first(accelerator):
            test = self._test_images(subject)
        model, parameters = _load(subject, test, accelerator.device)
        log_model(
            subject.role, subject.section.model, model.model, test,
            device=accelerator.device, precision=subject.precision,
        )  # fmt: skip
        predictions, note = self._teacher_predictions(subject, test, accelerator)
        identity = {
            "version": _VERSION,
            "model": subject.section.model,
            "options": dict(subject.section.options),
            **model.describe(),
            "test_fingerprint": test.fingerprint,
            "clean": list(test.clean),
            "teacher_sha256": None if predictions is None else predictions.sha256,
        }
        own = own_test_set(subject.evaluation)
        before = own or first_evaluated(subject.evaluation)
        file = evaluation_file(subject.evaluation, before, test.fingerprint)
        if test.fingerprint == own_training_set(subject.evaluation):
            log.warning(
                "split %r of %s holds the images that %s was trained on: what is found is no "
                "accuracy on new images", test.split, test.name, subject.name,
            )  # fmt: skip
        known = _known(file, identity, embeddings=self.embeddings) if self.reuse else None
        known = broadcast_from_main(accelerator, known)
        if known is not None:
            return {"run": subject.name, **known}
        log.info("evaluating %s", subject.name)
        examined, by_embeddings = self._examine(subject, model, test, accelerator)
        if subject.role == "teacher" and not model.headless:
            store_predictions(model, test, self.cache_root, examined.predictions, accelerator)
        if file != subject.evaluation:
            log.warning(
                "%s was tested on other images (fingerprint %s) than these (%s): the results go to "
                "%s", subject.name, str(before)[:12], test.fingerprint[:12], file,
            )  # fmt: skip
        summary = summarize(examined.counts)
        mention_unclear(summary, test.num_samples)
        found = {
            **identity,
            **subject.describe(),
            **_described(test),
            "own_test_set": None if own is None else own == test.fingerprint,
            **summary,
            **self._of_average(subject, test, accelerator),
            "agreement": None if predictions is None else _agreement(examined, predictions),
            "agreement_note": note,
            **({"classifier": KNN} if model.headless else {}),
            **(by_embeddings.to_json() if by_embeddings is not None else {}),
            "num_parameters": parameters,
            "weight_bytes": weight_bytes(model.model),
            **_cost(model, test, self.seconds, accelerator),
            **details(examined.counts, examined.labels, examined.predictions),
        }
        if accelerator.is_main_process:
            write_evaluation(file, found)
        accelerator.wait_for_everyone()
        return {"run": subject.name, **found}

    def _test_images(self, subject: TrainedModel) -> ImageDataset:
        """Return the labelled images that a model is evaluated on.

        Raises:
            ConfigError: its recipe has none.
        """
        test = test_images(subject.recipe, self.cache_root)
        if test is None:
            raise ConfigError(
                f"{subject.name} was trained without labelled images (data.test_split = 'none'): "
                "give some with --data, with splits train and test; k-NN and a linear probe "
                "classify the images of test by those of train"
            )
        return test

    def _examine(
        self,
        subject: TrainedModel,
        model: FrozenTeacher,
        test: ImageDataset,
        accelerator: Accelerator,
    ) -> tuple[Examined, EmbeddingResults | None]:
        """Return what a model predicts, by k-NN without a classifier, and what embeddings give."""
        by_embeddings = None
        if self.embeddings or model.headless:
            with main_process_first(accelerator):
                train = training_images(subject.recipe, self.cache_root, labelled=False)
            by_embeddings = evaluate_embeddings(model, train, test, accelerator)
            if model.headless:
                return by_embeddings.by_neighbours, by_embeddings
        return _by_logits(model, test, accelerator), by_embeddings

    def _of_average(
        self, subject: TrainedModel, test: ImageDataset, accelerator: Accelerator
    ) -> dict[str, Any]:
        """Return metrics of the moving average of the weights as `ema_...`; empty without one."""
        if subject.average is None:
            return {}
        section = subject.section.model_copy(update={"weights": str(subject.average)})
        model, _ = _load(replace(subject, section=section), test, accelerator.device)
        examined, by_embeddings = self._examine(subject, model, test, accelerator)
        found: dict[str, Any] = dict(summarize(examined.counts))
        mention_unclear(found, test.num_samples)
        if by_embeddings is not None:
            found |= by_embeddings.accuracies()
        return {f"ema_{name}": value for name, value in found.items()}

    def _teacher_predictions(
        self, subject: TrainedModel, test: ImageDataset, accelerator: Accelerator
    ) -> tuple[TeacherPredictions | None, str | None]:
        """Return the predictions of the student's teacher, or None and the reason."""
        if subject.role == "teacher":
            return None, None
        if subject.recipe.teacher.headless or subject.section.headless:
            which = "teacher" if subject.recipe.teacher.headless else "student"
            return None, f"its {which} has no classifier"
        if subject.recipe.ensemble.caches or "+" in (subject.taught_by or ""):
            return None, "it has several teachers"
        weights = self.teacher or subject.teacher
        of_library = weights is None and subject.recipe.teacher.is_trained
        if not of_library and (weights is None or not Path(weights).is_file()):
            return None, f"no teacher at {weights or 'hand'}: name its weights with --teacher"
        try:
            predictions = self._predict(subject, weights, test, accelerator)
        except (ModelError, WeightsError) as error:
            if self.teacher is not None:
                raise
            return None, str(error)  # the student can be evaluated all the same
        if subject.taught_by not in (None, predictions.sha256):
            used = weights or subject.recipe.teacher.model
            return None, f"{used} is not the teacher that it was distilled from"
        return predictions, None

    def _predict(
        self,
        subject: TrainedModel,
        weights: str | None,
        test: ImageDataset,
        accelerator: Accelerator,
    ) -> TeacherPredictions:
        recipe = subject.recipe
        key = json.dumps([weights, recipe.teacher.model_dump(), test.fingerprint, test.clean])
        if key not in self._predictions:
            rename = recipe.teacher.rename if recipe.teacher.weights is not None else {}
            section = recipe.teacher.model_copy(update={"weights": weights, "rename": rename})
            named = recipe.model_copy(update={"teacher": section})
            teacher = frozen_teacher(
                named, test, None, accelerator.device, named_by=subject.named_by(section)
            )
            self._predictions[key] = predictions_of(teacher, test, self.cache_root, accelerator)
        return self._predictions[key]


def _on_data(subject: TrainedModel, data: str) -> TrainedModel:
    """Return a model with the settings by which it is tested on another data set than its own.

    Labels are read even if the run had none, and a test split of the other data set is taken whole
    even if the run's was cut off its training split.
    """
    own = subject.recipe.data
    if not own.is_tested:
        settings = config.DataSection(
            source=data, clean=own.clean, grey_range=own.grey_range, device_memory=own.device_memory
        )
    elif (
        own.test
        and own.test_split != own.train_split
        and has_split(source_path(data), own.test_split, SourceOptions(config=own.config))
    ):
        settings = own.model_copy(update={"test": 0.0})
    else:
        return subject
    return replace(subject, recipe=subject.recipe.model_copy(update={"data": settings}))


def _load(
    subject: TrainedModel, test: ImageDataset, device: torch.device
) -> tuple[FrozenTeacher, int]:
    """Return the model, ready for its forward pass, and the number of trainable parameters."""
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
        headless=subject.section.headless,
    )
    return model, parameters


def _by_logits(model: FrozenTeacher, test: ImageDataset, accelerator: Accelerator) -> Examined:
    resident, samples = DeviceImages(test, accelerator.device), torch.arange(test.num_samples)
    return examine(model.logits, resident, samples, test.num_classes, accelerator)


def _agreement(examined: Examined, teacher: TeacherPredictions) -> float:
    is_equal = examined.predictions == teacher.classes
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
    """Return the cost of a forward pass in the main process, and the environment of it."""
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
        "library_versions": dict(library_versions()),
    }


def _known(file: Path, identity: Mapping[str, Any], *, embeddings: bool) -> dict[str, Any] | None:
    """Return the content of a file if it is of this model, these images and this teacher.

    With `embeddings`, one without results of embeddings is None.

    Files of kdscale 0.1 may count samples without a prediction as correct: None for those.
    """
    try:
        found = read_run_file(file)
    except RunError as error:
        log.warning("%s; evaluating again", error)
        return None
    except (KdscaleError, *DAMAGE):
        return None
    same = identity.items() <= found.items() and "non_finite_samples" in found
    same = same and (not embeddings or "knn_top1_accuracy" in found)
    return found if same else None
