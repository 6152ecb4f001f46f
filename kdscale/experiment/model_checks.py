"""Preprocessing and class order of a model: the recipe's against what its weights state."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache

from torch import nn

from kdscale import config
from kdscale.data.image_dataset import ImageDataset
from kdscale.errors import ConfigError, ModelError, WeightsError
from kdscale.experiment.datasets import names_text
from kdscale.models.preprocess import Preprocess
from kdscale.models.statements import differs, statement_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model with the preprocessing that belongs to it."""

    model: nn.Module
    preprocess: Preprocess


def preprocess_of(
    recipe: config.Recipe, section: config.ModelSection, stated: object, what: str
) -> Preprocess:
    """Return a section's preprocessing, else the weights', else (a student) the teacher's."""
    given = section.input
    if given is None and stated is None and what != "teacher":
        given = recipe.teacher.input
    if given is None:
        if not isinstance(stated, Mapping):
            raise ConfigError(
                f"{what}.input is not set and its weights do not carry it: give mean, std and size"
            )
        return Preprocess.parse(stated)
    preprocess = Preprocess(tuple(given.mean), tuple(given.std), given.size)
    if isinstance(stated, Mapping) and Preprocess.parse(stated) != preprocess:
        raise WeightsError(
            f"{what}.input is {json.dumps(preprocess.describe())}, but its weights were trained "
            f"with {json.dumps(dict(stated))}: remove {what}.input, or use other weights"
        )
    return preprocess


def check_classes(
    stated: object, images: ImageDataset, what: str, source: str, *, all_named: bool = True
) -> None:
    """Stop if a model was trained for other classes than the data set's, or in another order.

    Args:
        stated: names in the order of the logits, if any are known.
        images: the data set.
        what: the model's part.
        source: where the names stand.
        all_named: whether other names are another set of classes; False: perhaps only other words.

    Raises:
        ModelError: the data set has other classes, or the same in another order.
    """
    if not isinstance(stated, (list, tuple)) or not images.classes:
        return
    plain = str if all_named else _plain
    theirs, ours = [plain(name) for name in stated], [plain(name) for name in images.classes]
    if theirs == ours:
        return
    if sorted(theirs) == sorted(ours):
        first = [one == other for one, other in zip(theirs, ours, strict=True)].index(False)
        raise ModelError(
            f"{what}'s classes have another order than the data set's: number {first} is "
            f"{stated[first]!r} in {source}, and {images.classes[first]!r} in the data set: set "
            f"data.classes to the {what}'s order"
        )
    if all_named:
        raise ModelError(
            f"{what} was trained for classes {names_text([str(one) for one in stated])} ({source}),"
            f" the data set has {names_text(images.classes)}: use the data set and data.classes it "
            "was trained with"
        )


def _plain(name: object) -> str:
    """Return the form of a name that is compared: `African_elephant` is `african elephant`."""
    return " ".join(str(name).casefold().replace("_", " ").replace("-", " ").split())


def check_statement(
    section: config.ModelSection,
    classifier: Classifier,
    sizes: Collection[int | tuple[int, int]],
    images: ImageDataset,
    what: str,
) -> None:
    """Compare a recipe with what a library states about the weights that it loaded.

    Args:
        section: of the recipe.
        classifier: created from it.
        sizes: of the images that the model is given.
        images: the data set.
        what: the model's part.

    Raises:
        ModelError: its classes are the data set's in another order.
    """
    stated = statement_of(section.model, classifier.model, section.options)
    if stated is None:
        return
    check_classes(stated.classes, images, what, stated.source, all_named=False)
    ours, theirs = classifier.preprocess, stated.preprocess
    if what != "teacher" or theirs is None:
        return
    sides = {size if isinstance(size, int) else min(size) for size in sizes}
    if any(differs(replace(ours, size=side), theirs) for side in sides):
        _warn_once(
            f"teacher.input is {json.dumps(ours.describe())} (images of {min(sides)} pixels), and "
            f"{stated.source} states {json.dumps(theirs.describe())}: set teacher.input to that, "
            "unless the difference is meant"
        )


@cache
def _warn_once(message: str) -> None:
    """Warn once, although a command may create a model several times."""
    log.warning("%s", message)
