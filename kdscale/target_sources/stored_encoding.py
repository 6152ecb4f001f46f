"""How a recipe's targets are stored, and whether its student can use what a cache stores."""

import logging
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from kdscale import config
from kdscale.cache.manifest import Manifest
from kdscale.cache.reader import CacheReader
from kdscale.data.views.pipeline import Pipeline
from kdscale.errors import ConfigError
from kdscale.targets import Encoding, Head, tail_weights
from kdscale.teacher.frozen_teacher import FrozenTeacher

log = logging.getLogger(__name__)

_AUTO = ("float16", "int8", "int4", "topk")
"""By the least cosine between exact and stored gradients at temperatures 1, 2 and 4: a student's
temperature may be any, and at a high one most of the probability is outside what topk keeps.

Not `embedding`: whether it fits is the teacher's to say, and a recipe must mean the same before its
teacher is trained, with another teacher, and to a student that has none at hand. The build says
where it would do better."""
_LARGE_TAIL = 0.1  # of the teacher's probability: the loss says nothing of the classes within


def choose_encoding(settings: config.CacheSection, num_classes: int) -> tuple[Encoding, str]:
    """The encoding that a recipe asks for, `auto` resolved, and why.

    Args:
        settings: the recipe's section.
        num_classes: of the data set.

    Raises:
        ConfigError: it keeps all classes or more, or nothing fits the budget.
    """
    if settings.encoding != "auto":
        return _encoding(settings, settings.encoding, num_classes), "the recipe names it"
    sizes, budget = [], settings.budget_bytes
    for name in _AUTO:
        if name == "topk" and settings.top_k >= num_classes:
            continue
        encoding = _encoding(settings, name, num_classes)
        sizes.append(f"{name} takes {encoding.bytes_per_target}")
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
    recipe: config.Recipe, asked: Manifest, teacher: FrozenTeacher, pixels: Tensor
) -> None:
    """What `auto` came to and why, and where an embedding would be smaller or lose less."""
    _, reason = choose_encoding(recipe.cache, asked.num_classes)
    log.info("cache.encoding = 'auto' is %s: %s", asked.encoding, reason)
    with suppress(ConfigError):  # the teacher's last layer is not linear
        size = 2 * teacher.find_head(pixels)[1].inputs
        if size <= recipe.cache.budget_bytes and (
            asked.encoding != "float16" or size < asked.bytes_per_target
        ):
            log.info(
                "cache.encoding = 'embedding' would take %d bytes and keep all classes about as "
                "exactly as float16: auto does not choose what depends on the teacher", size,
            )  # fmt: skip


def _encoding(settings: config.CacheSection, name: str, num_classes: int) -> Encoding:
    if name != "topk":  # the size of an embedding is the teacher's to say
        return Encoding(name, num_classes)
    if settings.top_k >= num_classes:
        raise ConfigError(
            f"cache.top_k is {settings.top_k}, the data set has {num_classes} classes, so nothing "
            "would be left out: set a smaller cache.top_k, or cache.encoding = 'float16'"
        )
    return Encoding(name, num_classes, settings.top_k, tuple(settings.temperatures))


def encoding_of(manifest: Manifest, head: Head | None = None) -> Encoding:
    """How a cache's targets are stored; with the teacher's head what is an embedding is decoded."""
    return Encoding(
        manifest.encoding,
        manifest.num_classes,
        manifest.top_k,
        tuple(manifest.temperatures),
        manifest.embedding_size,
        head,
    )


def stored_encoding(reader: CacheReader, device: torch.device | None = None) -> Encoding:
    """How a cache's targets are stored, with all it takes to decode them on a device."""
    head = reader.head()
    return encoding_of(reader.manifest, Head.parse(head).to(device or _CPU) if head else None)


_CPU = torch.device("cpu")


def check_mixing(encoding: Encoding, shown: Pipeline) -> None:
    """In fixed mode the answers to two clean images are mixed, which takes all classes.

    Raises:
        ConfigError: they are not stored.
    """
    if encoding.name == "topk" and "pairing" in shown.describe():
        raise ConfigError(
            "views.mode is 'fixed' and the views mix images, so the answers to both are mixed, "
            "which needs all classes: set cache.encoding = 'float16', 'int8' or 'int4'"
        )


def check_temperature(encoding: Encoding, loss: config.LossSection) -> None:
    """Whether a student's soft loss can be computed from what is stored.

    Raises:
        ConfigError: its temperature is beyond those whose tails are kept.
    """
    if encoding.name == "topk" and loss.soft_weight:
        tail_weights(loss.temperature, encoding.temperatures)


def mention_large_tail(manifest: Manifest, loss: config.LossSection) -> None:
    """Say so where much of what the teacher said is in the tail, which the student is not told."""
    mass = manifest.fidelity.get("tail_mass")
    if mass is None or not loss.soft_weight:
        return
    # Ascending in 1/T, as np.interp wants it.
    inverse = [1 / one for one in reversed(manifest.temperatures)]
    tail = float(np.interp(1 / loss.temperature, inverse, mass[::-1]))
    if tail > _LARGE_TAIL:
        log.warning(
            "at temperature %g, %.0f %% of the teacher's probability lie outside the %d classes "
            "that the cache keeps, and the student is not told to which of the others they belong: "
            "a lower loss.temperature, a larger cache.top_k or another cache.encoding tells it "
            "more", loss.temperature, 100 * tail, manifest.top_k,
        )  # fmt: skip
