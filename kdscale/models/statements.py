"""Statements of libraries about weights that they load: order of classes, and preprocessing."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdscale.errors import ModelError
from kdscale.models.preprocess import Preprocess


@dataclass(frozen=True, slots=True)
class Statement:
    """What a library states of a model's weights; None = not stated."""

    source: str
    """Where it stands, for messages."""
    classes: tuple[str, ...] | None = None
    """Names in the order of the logits."""
    preprocess: Preprocess | None = None


def statement_of(name: str, model: nn.Module, options: Mapping[str, Any]) -> Statement | None:
    """Return what is stated of a model that was created with its library's weights.

    Args:
        name: the model as a recipe names it.
        model: as `create_model` gave it.
        options: those that it was created with.
    """
    library, _, short = name.partition("/")
    if library == "transformers":
        return _of_transformers(short, model)
    if library == "timm" and options.get("pretrained"):
        return _of_timm(model)
    if library == "torchvision" and options.get("weights") is not None:
        return _of_torchvision(short, str(options["weights"]))
    return None


def _of_transformers(place: str, model: Any) -> Statement:
    names = getattr(model.config, "id2label", None) or {}
    with suppress(TypeError, ValueError):
        names = {int(number): str(label) for number, label in names.items()}
    classes = tuple(names[number] for number in sorted(names)) or None
    return Statement(f"config.json of {place}", classes, _processor(place))


def _processor(place: str) -> Preprocess | None:
    """The image processor's settings, which run no code; None where there are none."""
    from transformers.image_processing_utils import BaseImageProcessor

    with suppress(OSError, ValueError, TypeError, KeyError, ModelError):
        settings, _ = BaseImageProcessor.get_image_processor_dict(place)
        if not settings.get("do_rescale", True):
            return None
        size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
        if isinstance(size, Mapping):
            size = size.get("height", size.get("shortest_edge"))
        channels = len(settings.get("image_mean") or (0, 0, 0))
        if not settings.get("do_normalize", True):
            return _preprocess((0.0,) * channels, (1.0,) * channels, size)
        return _preprocess(settings["image_mean"], settings["image_std"], size)
    return None


def _of_timm(model: Any) -> Statement:
    about: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = about.get("label_names")
    preprocess = None
    with suppress(ModelError, KeyError, TypeError):
        preprocess = _preprocess(about["mean"], about["std"], about["input_size"][-1])
    return Statement("timm's pretrained_cfg", tuple(names) if names else None, preprocess)


def _of_torchvision(short: str, weights: str) -> Statement:
    from torchvision import models

    member = models.get_model_weights(short)[weights]
    wanted = member.transforms()
    preprocess = _preprocess(wanted.mean, wanted.std, wanted.crop_size[0])
    return Statement(f"torchvision's {weights}", tuple(member.meta["categories"]), preprocess)


def _preprocess(mean: Sequence[float], std: Sequence[float], size: Any) -> Preprocess:
    whole = int(size) if isinstance(size, (int, float)) else None
    return Preprocess(tuple(map(float, mean)), tuple(map(float, std)), whole)


def differs(one: Preprocess, other: Preprocess) -> bool:
    """Whether two describe other pixels, beyond the digits that people round to."""
    if one.channels != other.channels:
        return True
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    return any(abs(a - b) > 2e-3 for a, b in pairs) or (
        None not in (one.size, other.size) and one.size != other.size
    )
