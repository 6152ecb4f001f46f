"""Whether a teacher can teach: checked on a sample of images before hours go into its outputs.

A teacher that is no function of one image (dropout that stays on, batch statistics), that gives
probabilities in the place of logits, or whose classes have another order than the data's would fill
a cache without any error, and every student of it would be worse.
"""

import logging
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from kdscale.data.image_dataset import ImageDataset
from kdscale.data.loader import DeviceImages
from kdscale.data.sample import balanced_sample
from kdscale.distributed import wait_for_device
from kdscale.errors import ModelError
from kdscale.targets import encode_features
from kdscale.teacher.frozen_teacher import FrozenTeacher, OomSafeTeacher, TeacherOutput
from kdscale.teacher.label_order import Relabelling, find_relabelling

log = logging.getLogger(__name__)

SAMPLES = 1000
"""Images of a sample; all where a split has fewer."""
_TWICE = 32  # of them are passed twice
_ALONE = 3  # of them are passed alone
_ALLOWED = {"repeated": (1e-3, 1e-2), "regrouped": (1e-3, 5e-2), "unit sum": (1e-3, 2e-2)}
"""Rounding, in float32 and in half the precision. Of a batch that is passed again, and of images in
another batch: the root mean square difference, relative to the spread of the logits. Dropout of 0.1
before a head gives 0.03 and more, batch statistics of another batch 0.1 and more."""
_CONSTANT = 1e-6
_NAMED = 3  # images in a message, of more


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a sample of clean training images shows of a teacher."""

    index: Tensor
    """int64 [B], positions in the split."""
    labels: Tensor | None
    """int64 [B]; None where there are none."""
    outputs: TeacherOutput
    """The teacher's outputs, without features."""
    seconds: float
    """Of the forward passes of the sample."""
    top1_accuracy: float | None
    """Estimate of the whole split's top-1, 0..1; None without labels."""


def inspect_teacher(
    batches: OomSafeTeacher,
    resident: DeviceImages,
    images: ImageDataset,
    *,
    with_features: FrozenTeacher | None = None,
    num_samples: int = SAMPLES,
) -> Inspection:
    """Pass a class-balanced random sample through a teacher, and check its outputs.

    Those of a teacher without a classifier must be finite, informative and functions of one image.

    Args:
        batches: the teacher, in batches of the size that a build uses.
        resident: the training split on the teacher's device.
        images: the training split.
        with_features: the same teacher with the features that will be stored; checked on few
            images.
        num_samples: images to pass.

    Raises:
        ModelError: the outputs are not finite, not logits, the same for all images, no function of
            the image alone, or belong to classes in another order.
    """
    index = balanced_sample(images.labels, min(num_samples, images.num_samples))
    pixels, labels = resident.gather(index)
    once = _check_repeats(batches, with_features or batches.teacher, pixels[:_TWICE])
    began = perf_counter()
    outputs = batches.outputs(pixels)
    wait_for_device(outputs.output.device)
    seconds = perf_counter() - began
    precision, headless = batches.teacher.precision, batches.teacher.headless
    check_finite(outputs.output, index, batches.teacher)
    _check_regrouped(batches.teacher, pixels, once, outputs.output)
    _check_informative(outputs.output, _name_of(batches.teacher))
    if not headless:
        _check_logits(outputs.logits_BC, precision)
    if headless or not images.labelled:
        return Inspection(index, None, outputs, seconds, None)
    _check_labels(outputs.logits_BC.argmax(1).cpu(), labels.cpu(), images.classes)
    accuracy = _estimated_accuracy(outputs.logits_BC.argmax(1).cpu(), labels.cpu(), images)
    log.info("teacher's top-1 on %d random training images: %.1f %%", len(index), 100 * accuracy)
    return Inspection(index, labels, outputs, seconds, accuracy)


def inspect_outputs(teacher: FrozenTeacher, pixels: Tensor) -> None:
    """Check what needs no trained weights: logits, and for each image a function of it alone.

    Args:
        teacher: with its own weights or random ones.
        pixels: a few images, uint8 [B, C, H, W].

    Raises:
        ModelError: as of `inspect_teacher`.
    """
    batches = OomSafeTeacher(teacher, len(pixels))
    once = _check_repeats(batches, teacher, pixels)
    if torch.isfinite(once).all():
        _check_regrouped(teacher, pixels, once, once)
        if not teacher.headless:
            _check_logits(once, teacher.precision)


# --------------------------------------------------------------------------- one image, one output


def _allowed(what: str, precision: str) -> float:
    full, reduced = _ALLOWED[what]
    return full if precision == "float32" else reduced


def _check_repeats(batches: OomSafeTeacher, teacher: FrozenTeacher, pixels: Tensor) -> Tensor:
    """Return the model's output for a batch, passed twice.

    Raises:
        ModelError: it gives other outputs the second time.
    """
    before, batches.teacher = batches.teacher, teacher
    try:
        first, second = (_outputs(batches, pixels) for _ in range(2))
    finally:
        batches.teacher = before
    for name, values in first.items():
        if not torch.isfinite(values).all():
            continue  # reported with the names of the images
        difference = _relative(values, second[name])
        if not difference <= _allowed("repeated", teacher.precision):
            raise ModelError(
                f"the teacher's {name} of the same images differ from one forward pass to the next "
                f"(by {_percent(difference)} of their spread): something is random in evaluation "
                "mode, such as functional dropout without training=self.training, or a module that "
                "ignores eval(): what is stored would be noise; switch it off"
            )
    return first[_name_of(teacher)]


def _name_of(teacher: FrozenTeacher) -> str:
    """Return what the model's output is called in messages."""
    return "outputs" if teacher.headless else "logits"


def _outputs(batches: OomSafeTeacher, pixels: Tensor) -> dict[str, Tensor]:
    """All that would be stored of a batch, by a name for messages."""
    outputs = batches.outputs(pixels)
    encode_features(outputs.features)  # raises where float16 cannot hold them
    found = {_name_of(batches.teacher): outputs.output}
    if outputs.embedding_BD is not None:
        found["embeddings"] = outputs.embedding_BD
    return found | {f"features of {name!r}": one for name, one in outputs.features.items()}


def _check_regrouped(
    teacher: FrozenTeacher, pixels: Tensor, once: Tensor, together: Tensor
) -> None:
    """Compare images in one batch, in another, and alone.

    Raises:
        ModelError: what a teacher gives for an image depends on the other images of its batch.
    """
    allowed = _allowed("regrouped", teacher.precision)
    alone = min(_ALONE, len(pixels))
    difference = _relative(together[: len(once)], once)
    if difference <= allowed:
        rows = [_alone(teacher, one) for one in pixels[:alone].split(1)]
        difference = _relative(together[:alone], torch.cat(rows), spread_of=together)
    if not difference <= allowed:
        raise ModelError(
            f"the teacher's {_name_of(teacher)} of an image depend on the other images of its "
            f"batch (they differ by {_percent(difference)} of their spread): batch-norm uses the "
            "batch's own "
            "statistics (track_running_stats = False, or a module that ignores eval()), or samples "
            "are mixed; take a model that uses running statistics in evaluation mode"
        )


def _alone(teacher: FrozenTeacher, pixel: Tensor) -> Tensor:
    """Return the output for a single image: the last batch of a shard may have no more."""
    try:
        output = teacher.outputs(pixel).output
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(
            f"the teacher takes no single image ({error}), so its outputs depend on the other "
            "images of a batch: take a model that uses running statistics in evaluation mode"
        ) from error
    if len(output) != 1 or (output.ndim != 2 and not teacher.headless):
        wanted = "[1, ...]" if teacher.headless else "[1, classes]"
        raise ModelError(
            f"the teacher gives shape {list(output.shape)} for a single image, wanted "
            f"{wanted}: let it keep the batch dimension (squeeze removes it)"
        )
    return output


def _relative(values: Tensor, others: Tensor, *, spread_of: Tensor | None = None) -> float:
    """Root mean square of the differences, relative to that of the values about their mean."""
    base = (values if spread_of is None else spread_of).double().flatten(1)
    scale = (base - base.mean(1, keepdim=True)).square().mean().sqrt()
    if not scale:
        scale = base.abs().max()
    difference = (values.double() - others.double()).square().mean().sqrt()
    return float(difference / scale) if scale else float(difference)


# --------------------------------------------------------------------------- logits


def check_finite(output: Tensor, index: Tensor, teacher: FrozenTeacher, where: str = "") -> None:
    """Raise ModelError where outputs [B, ...] are NaN or infinite, with their images' positions."""
    bad = index[~torch.isfinite(output).flatten(1).all(1).cpu()].tolist()
    if not bad:
        return
    precision = teacher.precision
    named = ", ".join(str(one) for one in bad[:_NAMED])
    remedy = "check its weights, its input's mean and std, and these images"
    if precision != "float32":
        remedy = f"set teacher.precision = 'float32' ({precision} may overflow), or {remedy}"
    raise ModelError(
        f"the teacher gives NaN or infinity {where}for {len(bad)} of {len(index)} training images "
        f"(positions {named}{', …' if len(bad) > _NAMED else ''}), wanted finite "
        f"{_name_of(teacher)}: {remedy}"
    )


def _check_informative(output: Tensor, name: str) -> None:
    """Raise ModelError where outputs [B, ...] are the same for all images."""
    allowed = _CONSTANT * output.abs().max()
    if len(output) > 1 and (output - output[0]).abs().max() <= allowed:
        raise ModelError(
            f"the teacher gives the same {name} for all of {len(output)} images, so they say "
            "nothing of any: check its weights and its input's mean and std"
        )


def _check_logits(logits_BC: Tensor, precision: str) -> None:
    """Raise ModelError where outputs are probabilities."""
    if not logits_BC.any():
        return  # as of a head that begins with zeros
    if logits_BC.shape[1] < 2 or logits_BC.min() < 0:
        return
    sums = logits_BC.sum(1)
    wanted = sums.mean() if len(sums) > 1 else torch.ones_like(sums[0])
    if (sums - wanted).abs().max() <= _allowed("unit sum", precision) * wanted:
        raise ModelError(
            f"the teacher gives probabilities (values from 0 that sum to {float(sums.mean()):.4g} "
            "for each image), wanted logits: remove the softmax at its end, or take the logarithm "
            "of what it gives; a softmax of probabilities is nearly uniform"
        )
    if logits_BC.max() <= 1:
        log.warning(
            "all of the teacher's outputs lie between 0 and 1, as those of a sigmoid do: logits "
            "are wanted, and if these are not, remove what follows its last layer"
        )


# --------------------------------------------------------------------------- labels


def _check_labels(predicted: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    """Compare predictions with the labels.

    Raises:
        ModelError: another order of the classes explains what the teacher predicts.
    """
    accuracy, chance = float((predicted == labels).double().mean()), 1 / max(len(classes), 1)
    found = find_relabelling(labels, predicted, len(classes))
    if found is not None:
        _report_order(found, classes, accuracy)
        return
    noise = (chance * (1 - chance) / len(labels)) ** 0.5
    if len(classes) > 1 and accuracy <= chance + 2 * noise:
        log.warning(
            "THE TEACHER IS NO BETTER THAN CHANCE: it classifies %s of %d training images "
            "correctly, as many of each class, chance is %s; are these its weights, its input "
            "(mean, std, size) and its order of classes (teacher.classes)?",
            _percent(accuracy), len(labels), _percent(chance),
        )  # fmt: skip


def _report_order(found: Relabelling, classes: tuple[str, ...], accuracy: float) -> None:
    output, label = min((p, c) for p, c in found.label_of.items() if p != c)
    message = (
        f"the teacher's classes seem to have another order than the data set's: it classifies "
        f"{_percent(accuracy)} of the training images correctly, and "
        f"{_percent(found.accuracy)} with its outputs in another order (output {output}, "
        f"{classes[output]!r} here, seems to be {classes[label]!r})"
    )
    if found.complete:
        raise ModelError(
            f"{message}: name the data set's classes in the teacher's order (data.classes)"
        )
    log.warning("%s: compare the order of its classes with data.classes", message)


def _estimated_accuracy(predicted: Tensor, labels: Tensor, images: ImageDataset) -> float:
    """Top-1 on the whole split: the mean over classes, each weighted by its size."""
    sizes_C = torch.bincount(torch.from_numpy(images.labels.copy()), minlength=images.num_classes)
    seen_C = torch.bincount(labels, minlength=images.num_classes)
    hits_C = torch.bincount(labels[predicted == labels], minlength=images.num_classes)
    weight_C = sizes_C * (seen_C > 0)
    each_C = hits_C.double() / seen_C.clamp(min=1)
    return float((each_C * weight_C).sum() / weight_C.sum())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
