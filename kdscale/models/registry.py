"""From a model's name to the model, and whether it fits the data."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from kdscale.errors import KdscaleError, ModelError
from kdscale.formatting import number_of, shortened
from kdscale.models import cifar_resnet, custom, libraries, reference
from kdscale.models.headless import requested_classes, without_classifier

REFERENCE: dict[str, Callable[..., nn.Module]] = {
    "cifar10-deepnn": reference.cifar10_deepnn,
    "cifar10-lightnn": reference.cifar10_lightnn,
    "features-light-cnn": reference.features_light_cnn,
    "keras-student": reference.keras_student,
    "keras-teacher": reference.keras_teacher,
    "mnist-cnn": reference.mnist_cnn,
    "mnist-mlp": reference.mnist_mlp,
    "resnet20": cifar_resnet.resnet20,
    "resnet32x4": cifar_resnet.resnet32x4,
    "resnet56": cifar_resnet.resnet56,
    "resnet8x4": cifar_resnet.resnet8x4,
    "wrn-16-2": cifar_resnet.wrn_16_2,
    "wrn-40-2": cifar_resnet.wrn_40_2,
}

SOURCES: dict[str, Callable[[str, int, int, Mapping[str, Any]], nn.Module]] = {
    "torchvision/": libraries.torchvision_model,
    "timm/": libraries.timm_model,
    "transformers/": libraries.transformers_model,
}

FORMS = "torchvision/NAME, timm/NAME, transformers/HUB_ID_OR_PATH, module.path:factory"


def known_models() -> list[str]:
    """Return the names of the reference models, sorted."""
    return sorted(REFERENCE)


def create_model(
    name: str, *, num_classes: int, in_channels: int, options: Mapping[str, object] | None = None
) -> nn.Module:
    """Create a model in training mode, float32, on the CPU.

    Initial weights come from torch's global generator, except where a source loads trained ones.

    Args:
        name: a reference model (see `known_models`), `torchvision/NAME`, `timm/NAME`,
            `transformers/HUB_ID_OR_PATH` or `module.path:factory`.
        num_classes: C, the classes of the data set; 0: a model without its classifier.
        in_channels: channels of the preprocessed pixels.
        options: further arguments of the model's builder; `num_classes = 0` replaces the
            argument.

    Returns:
        A module that takes [B, in_channels, H, W] and gives logits [B, C]; without a classifier an
        embedding [B, D], or what the builder makes of its options.

    Raises:
        ModelError: the name or an option is unknown, a library is missing, or the model cannot
            have so many classes or channels.
    """
    try:
        classes, others = requested_classes(num_classes, options or {})
        return _create(name, classes, in_channels, others)
    except (KdscaleError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # a custom, or a library, may raise anything
        raise ModelError(
            f"model {name} cannot be created: {custom.described(error)}: correct its options, or "
            "its code where it is yours"
        ) from error


def _create(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, object]
) -> nn.Module:
    if name in REFERENCE:
        fixed = {"num_classes": num_classes or 1, "in_channels": in_channels}
        model: nn.Module = custom.build(name, REFERENCE[name], fixed, options)
        return model if num_classes else without_classifier(model, name)
    for prefix, create in SOURCES.items():
        if name.startswith(prefix):
            return create(name, num_classes, in_channels, options)
    if ":" in name:
        return custom.factory_model(name, num_classes, in_channels, options)
    raise ModelError(
        f"there is no model {shortened(name)!r}{_near(name)}; wanted {FORMS}, or one of "
        f"{', '.join(known_models())}"
    )


def _near(name: str) -> str:
    """Return ` (did you mean ...?)` with the same name of a library's model, else near ones."""
    library, _, short = name.replace(".", "/", 1).rpartition("/")
    wanted = _letters(short)
    for prefix, list_names in libraries.LISTS.items():
        if library in ("", prefix.rstrip("/")):
            same = [one for one in list_names() if wanted and _letters(one) == wanted]
            if same:
                return f" (did you mean {prefix}{same[0]}?)"
    return custom.did_you_mean(name, known_models())


def _letters(name: str) -> str:
    """Return a name without case and signs: ResNet-18 and resnet_18 are resnet18."""
    return re.sub(r"[\W_]", "", name.lower())


def check_model(
    model: nn.Module,
    *,
    num_classes: int | None,
    channels: int,
    size: int | tuple[int, int],
    what: str = "student",
) -> None:
    """Make sure, by one forward of two black images, that a model fits the data.

    Leaves parameters, buffers, each module's training mode and the global generators as they were.

    Args:
        model: the model, on any device.
        num_classes: C, the classes of the data set; None: the output is no logits, but an
            embedding [B, D], of a teacher also tokens or a map.
        channels: channels of the preprocessed pixels.
        size: of the preprocessed images, pixels: a side, or height and width.
        what: the model's part, for messages: "teacher" or "student".

    Raises:
        ModelError: the model does not take such images, or does not give such an output.
    """
    _check_python(model, what)
    _check_widths(model, what)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (2, channels, height, width)
    output = _evaluated(model, shape, what)
    if num_classes is None:
        _check_embedding(output, what)
        return
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim != 2:
        raise ModelError(f"{what} gives {_kind(output)}, wanted logits of shape [B, {num_classes}]")
    if output.shape[1] != num_classes:
        embedding = (
            ". An embedding has num_classes = 0 in student.options, or from Python hard_weight and "
            "soft_weight = 0"
        )
        raise ModelError(
            f"{what} gives {number_of(output.shape[1], 'class', 'classes')}, the data set has "
            f"{num_classes}: take a {what} of {number_of(num_classes, 'class', 'classes')}, or the "
            f"data set that it was made for{embedding if what == 'student' else ''}"
        )
    if output.shape[0] != 2:
        raise ModelError(
            f"{what} gives {number_of(output.shape[0], 'row')} of logits for 2 images, wanted 2"
        )


def _check_embedding(output: object, what: str) -> None:
    """Raise ModelError where the output for two images, of a model without a classifier, is none.

    A teacher may give tokens or maps, a student's embedding is what it is evaluated by.
    """
    dimensions = (2,) if what == "student" else (2, 3, 4)
    fits = isinstance(output, Tensor) and output.is_floating_point() and output.numel() > 0
    if not (isinstance(output, Tensor) and fits and output.ndim in dimensions and len(output) == 2):
        wanted = "an embedding [2, D]"
        if what != "student":
            wanted += ", tokens [2, T, D] or a map [2, C, H, W]"
        raise ModelError(
            f"{what} without a classifier gives {_kind(output)} for 2 images, wanted {wanted}: "
            "choose another pooling in its options, or a factory that returns one tensor"
        )


def has_convolutions(model: nn.Module) -> bool:
    """Return whether a model has convolutions of images, which a memory format may speed up."""
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def lay_out_channels_last(
    model: nn.Module, *, channels: int, size: int | tuple[int, int], what: str = "student"
) -> None:
    """Lay out a checked model's convolutions so that what they give is channels last, too.

    Args:
        model: the model, on any device.
        channels: channels of the preprocessed pixels.
        size: of the preprocessed images, pixels: a side, or height and width.
        what: the model's part, for messages: "teacher" or "student".

    Raises:
        ModelError: it no longer takes images, as models that call `view` on a map do not.
    """
    model.to(memory_format=torch.channels_last)
    height, width = (size, size) if isinstance(size, int) else size
    try:
        _evaluated(model, (2, channels, height, width), what)
    except ModelError as error:
        raise ModelError(
            f"{what} does not take memory_format 'channels_last' ({error.__cause__}): set its "
            "memory_format to 'contiguous', or have it call reshape or flatten, not view"
        ) from error


def _check_python(model: nn.Module, what: str) -> None:
    """Raise ModelError for a TorchScript program: it has no modes and no parameters to freeze."""
    frozen = any(not hasattr(module, "training") for module in model.modules())
    if isinstance(model, torch.jit.ScriptModule) or frozen:
        raise ModelError(
            f"{what} is or contains a TorchScript program ({type(model).__name__}), wanted a model "
            "of Python modules: let the factory return the model that it was scripted or traced "
            "from, and take its weights from torch.jit.load(FILE).state_dict()"
        )


def _check_widths(model: nn.Module, what: str) -> None:
    """Raise ModelError for a layer of no width, whose outputs depend on no image."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, UninitializedParameter):  # lazy: shaped by the first images
            continue
        if isinstance(weight, nn.Parameter) and not weight.numel():
            raise ModelError(
                f"layer {name!r} of the {what} has no weights: its shape is {list(weight.shape)}. "
                "Set the option of the model that decides its width to 1 or more"
            )


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


_OF_TORCH = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What layers raise about an input that they do not take."""


def _evaluated(model: nn.Module, shape: tuple[int, ...], what: str) -> Any:
    """Return the output for zeros, in evaluation mode, leaving the model and generators alone."""
    training = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    cuda_devices = [device] if device.type == "cuda" else []
    try:
        model.eval()
        # Not inference_mode: what a module stores in this forward must stay usable in training.
        with torch.random.fork_rng(devices=cuda_devices), torch.no_grad():
            return model(torch.zeros(shape, device=device))
    except (KdscaleError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model may be anybody's
        reason = str(error) if isinstance(error, _OF_TORCH) else custom.described(error)
        raise ModelError(
            f"{what} does not take images of {shape[1]} channels and {shape[2]} x {shape[3]} "
            f"pixels ({reason}): set its input's size, mean and std, or take another model"
        ) from error
    finally:
        for module, was_training in training:
            module.training = was_training


def _kind(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a {output.dtype} tensor of shape {list(output.shape)}"
    return f"a {type(output).__name__}"
