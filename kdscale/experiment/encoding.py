"""The encoding that a recipe names, `auto` resolved, and whether its loss can use it."""

import logging
from contextlib import suppress

import numpy as np
from torch import Tensor

from kdscale import config
from kdscale.cache.manifest import Manifest
from kdscale.encodings import Encoding, Float16, Int4, Int8, TopK, create_encoding
from kdscale.errors import ConfigError
from kdscale.targets import tail_weights
from kdscale.teacher.frozen_teacher import FrozenTeacher

log = logging.getLogger(__name__)

_AUTO = (Float16, Int8, Int4, TopK)
"""Candidates of `auto`, in descending order of the least cosine between exact and stored gradients
at temperatures 1, 2 and 4: a student may use any temperature, and at a high one most of the
probability is outside the top k.

Not `Embedding`: whether it fits depends on the teacher, and a recipe must mean the same before its
teacher is trained, with another teacher, and for a student without one. The build logs where an
embedding would be smaller or better."""
_LARGE_TAIL = (
    0.1  # share of the teacher's probability; the loss does not tell the classes in it apart
)


def choose_encoding(settings: config.CacheSection, num_classes: int) -> tuple[Encoding, str]:
    """Return the encoding that a recipe names, `auto` resolved, and the reason.

    Args:
        settings: the recipe's section.
        num_classes: of the data set.

    Raises:
        ConfigError: it stores all classes or more, or nothing fits the budget.
    """
    if settings.encoding != "auto":
        return _encoding(settings, settings.encoding, num_classes), "the recipe names it"
    sizes, budget = [], settings.budget_bytes
    for kind in _AUTO:
        if kind is TopK and settings.top_k >= num_classes:
            continue
        encoding = _encoding(settings, kind.name, num_classes)
        sizes.append(f"{encoding.name} takes {encoding.bytes_per_target}")
        if encoding.bytes_per_target <= budget:
            return encoding, (
                f"of {num_classes} classes, {', '.join(sizes)} bytes a target; "
                f"cache.budget_bytes is {budget}"
            )
    raise ConfigError(
        f"cache.budget_bytes is {budget}, but of {num_classes} classes {', '.join(sizes)} bytes a "
        "target: set a larger budget, a smaller cache.top_k or fewer cache.temperatures"
    )


def mention_encoding(
    recipe: config.Recipe, required: Manifest, teacher: FrozenTeacher, pixels: Tensor
) -> None:
    """Log what `auto` is resolved to and why, and where an embedding would be smaller or better."""
    _, reason = choose_encoding(recipe.cache, required.num_classes)
    log.info("cache.encoding = 'auto' is %s: %s", required.encoding, reason)
    with suppress(ConfigError):  # the teacher's last layer is not linear
        size = 2 * teacher.find_head(pixels)[1].inputs
        if size <= recipe.cache.budget_bytes and (
            required.encoding != Float16.name or size < required.bytes_per_target
        ):
            log.info(
                "cache.encoding = 'embedding' would take %d bytes and store all classes about as "
                "exactly as float16: auto does not choose what depends on the teacher", size,
            )  # fmt: skip


def _encoding(settings: config.CacheSection, name: str, num_classes: int) -> Encoding:
    if name == TopK.name and settings.top_k >= num_classes:
        raise ConfigError(
            f"cache.top_k is {settings.top_k}, the data set has {num_classes} classes, so nothing "
            "would be left out: set a smaller cache.top_k, or cache.encoding = 'float16'"
        )
    return create_encoding(  # the size of an embedding depends on the teacher
        name, num_classes, top_k=settings.top_k, temperatures=settings.temperatures
    )


def check_temperature(encoding: Encoding, loss: config.LossSection) -> None:
    """Stop where a student's soft loss cannot be computed from the stored targets.

    Raises:
        ConfigError: its temperature is outside those whose tails are stored.
    """
    if isinstance(encoding, TopK) and loss.soft_weight:
        tail_weights(loss.temperature, encoding.temperatures)


def mention_large_tail(manifest: Manifest, loss: config.LossSection) -> None:
    """Warn where much of the probability is in the tail, of which only the sum is stored."""
    mass = manifest.fidelity.get("tail_mass")
    if mass is None or not loss.soft_weight:
        return
    # Ascending in 1/T, as np.interp wants it.
    inverse = [1 / one for one in reversed(manifest.temperatures)]
    tail = float(np.interp(1 / loss.temperature, inverse, mass[::-1]))
    if tail > _LARGE_TAIL:
        log.warning(
            "at temperature %g, %.0f %% of the teacher's probability lie outside the %d classes "
            "that the cache stores, as one sum: set a lower loss.temperature, a larger cache.top_k "
            "or another cache.encoding", loss.temperature, 100 * tail, manifest.top_k,
        )  # fmt: skip
