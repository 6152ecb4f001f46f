"""Models that other libraries define: torchvision, timm, transformers.

Each library is imported where it is used: two are optional, and all take a second or more.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdscale.errors import ModelError
from kdscale.formatting import number_of, reason_of
from kdscale.models.custom import build, did_you_mean
from kdscale.models.headless import embedding_of, without_classifier
from kdscale.models.pretrained import TORCHVISION, adopt
from kdscale.models.torchvision_weights import implied_options, num_outputs, torchvision_trained

INSTALL_MODELS = 'pip install "kdscale[models]"'


def torchvision_model(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    """Build `torchvision/NAME`, with random weights unless the option `weights` names some.

    With `weights` (such as "DEFAULT" or "IMAGENET1K_V1") torchvision's own builder makes the model;
    for another number of classes, one with a new head takes all other weights from it, for none
    the head is removed. The file is downloaded or found in torch's cache.
    """
    from torchvision import models

    short = name.removeprefix("torchvision/")
    known = models.list_models(module=models)  # classifiers alone, no detectors
    if short not in known:
        raise ModelError(f"torchvision has no classifier {short!r}{did_you_mean(short, known)}")
    if in_channels != 3:
        raise ModelError(
            f"model {name} takes 3 channels, {in_channels} are wanted: give mean and std three "
            "values (grey images are then repeated), or take timm/NAME or a reference model"
        )
    builder, weights = models.get_model_builder(short), options.get("weights")
    others = {key: value for key, value in options.items() if key != "weights"}
    if weights is not None and num_classes in (0, num_outputs(short, weights)):
        model = torchvision_trained(short, weights, others)
    elif not num_classes:
        model = build(name, builder, {"weights": None}, others)
    else:
        fixed = {"weights": None, "num_classes": num_classes}
        model = build(name, builder, fixed, {**implied_options(name, options), **others})
        if weights is not None:
            trained = torchvision_trained(short, weights, others)
            adopt(model, trained.state_dict(), source=f"{TORCHVISION}{weights}", what=name)
    model.register_forward_hook(_logits_of)  # Inception in training mode returns two outputs
    return model if num_classes else without_classifier(model, name)


def timm_model(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    """Build `timm/NAME`; random weights unless the option `pretrained` is true."""
    timm, short = _library(name), name.removeprefix("timm/")
    if ":" not in short and not timm.is_model(short):  # hf-hub:... and local-dir:... are timm's
        raise ModelError(f"timm has no model {short!r}{did_you_mean(short, timm.list_models())}")
    fixed = {"model_name": short, "num_classes": num_classes, "in_chans": in_channels}
    try:
        model: nn.Module = build(name, timm.create_model, fixed, options)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"model {name} cannot be created: {reason_of(error)}") from error
    return model


def _library(name: str) -> Any:
    """Import the library that defines a model, timm or transformers."""
    library = name.partition("/")[0]
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ModelError(f"model {name} needs {library} ({error}): {INSTALL_MODELS}") from error


def transformers_model(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    """Load `transformers/HUB_ID_OR_LOCAL_PATH` with its weights; forward gives the logits tensor.

    A head of another class count is replaced by a new one only where the options have:
    `num_labels` and `ignore_mismatched_sizes = true`. For no classes, the model is that of
    `AutoModel`, of CLIP and its like the vision part; forward gives an embedding [B, D].
    """
    place = _place(name)
    fixed = {"pretrained_model_name_or_path": place, "output_loading_info": True}
    load = _auto_class(name, num_classes).from_pretrained
    try:
        model, loading = build(name, load, fixed, options)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"model {name} cannot be loaded from {place!r}: {reason_of(error)}: "
            "wanted a hub id, or a folder that save_pretrained wrote"
        ) from error
    _check_pretrained(name, model, loading, num_classes, in_channels, options)
    return _plain(model, num_classes)


def _auto_class(name: str, num_classes: int) -> Any:
    """Return the class of transformers that chooses a model by its configuration."""
    library = _library(name)
    return library.AutoModelForImageClassification if num_classes else library.AutoModel


def _plain(model: Any, num_classes: int) -> nn.Module:
    """Return a model of transformers as every other source leaves one: forward gives a tensor."""
    if not num_classes:
        model = getattr(model, "vision_model", model)  # images have no part in the rest
    model.register_forward_hook(_logits_of if num_classes else embedding_of)
    plain: nn.Module = model.float().train()
    return plain


def transformers_architecture(
    name: str, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    """Build `transformers/PLACE` from its configuration alone, with random weights.

    The configuration is a folder's, or in Hugging Face's local cache: nothing is downloaded, and
    none of its code is run. An option may set a field that the configuration has, no other.

    Raises:
        ModelError: there is no such configuration here, it needs code or a model from
            elsewhere, or an option is no field of it.
    """
    transformers = _library(name)
    given = {key: value for key, value in options.items() if key not in _OF_LOADING}
    if num_classes:
        given.setdefault("num_labels", num_classes)
    place = _place(name)
    try:
        settings = transformers.AutoConfig.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model {name} has no configuration at {place!r} that can be read without running its "
            f"code or a download ({reason_of(error)}): download it first, or add --trust-code "
            "where you trust whoever names it"
        ) from error
    unknown = sorted(key for key in given if key != "num_labels" and not hasattr(settings, key))
    if unknown:
        raise ModelError(
            f"model {name}: {unknown[0]!r} is no field of its configuration {place!r}, and a file "
            "may set no other: where you trust whoever wrote it, add --trust-code"
        )
    settings.update(given)
    stated, _ = settings.get_config_dict(place, local_files_only=True)
    _check_self_contained(name, settings, stated)
    create = _auto_class(name, num_classes).from_config
    model = create(settings, trust_remote_code=False)
    _check_heads(name, model, num_classes, in_channels)
    return _plain(model, num_classes)


_OF_LOADING = frozenset(("ignore_mismatched_sizes", "local_files_only"))
"""Options of `from_pretrained` that do not change the architecture."""
_WITHOUT_CODE = frozenset((None, "eager", "sdpa"))
"""Implementations of attention that are transformers' own; others are downloaded and run."""


def _check_self_contained(name: str, settings: Any, stated: Mapping[str, Any]) -> None:
    """Refuse a configuration by which transformers would fetch a model or run foreign kernels.

    Args:
        name: the model's name in a recipe.
        settings: the configuration as this version of transformers reads it.
        stated: the fields of its file: a version that drops one must not change the verdict.
    """
    attention = {getattr(settings, "_attn_implementation", None), stated.get("attn_implementation")}
    needs = {
        "timm's wrapper": settings.model_type == "timm_wrapper",
        "a backbone": bool(getattr(settings, "use_pretrained_backbone", False)),
        "foreign kernels": not attention <= _WITHOUT_CODE
        or getattr(settings, "use_kernels", False),
        "a quantization": getattr(settings, "quantization_config", None) is not None,
    }
    if found := [what for what, is_set in needs.items() if is_set]:
        raise ModelError(
            f"model {name} needs {found[0]} by its configuration, which may load more than a "
            "file may name: where you trust whoever wrote it, add --trust-code"
        )


def _check_pretrained(
    name: str,
    model: Any,
    loading: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    options: Mapping[str, Any],
) -> None:
    _check_heads(name, model, num_classes, in_channels)
    new = sorted(loading["missing_keys"])
    if new and not options.get("ignore_mismatched_sizes"):
        instead = "take a trained classifier"
        if not num_classes:
            instead = "leave the layer out with an option such as add_pooling_layer = false"
        raise ModelError(
            f"model {name} has no weights for {', '.join(new[:3])}, which would be random: "
            f"{instead}, or accept new weights with ignore_mismatched_sizes = true"
        )


def _check_heads(name: str, model: Any, num_classes: int, in_channels: int) -> None:
    if num_classes and model.config.num_labels != num_classes:
        raise ModelError(
            f"model {name} gives {number_of(model.config.num_labels, 'class', 'classes')}, the "
            f"data set has {num_classes}: take one that was trained on these classes, or, to train "
            f"a new head, the options num_labels = {num_classes} and ignore_mismatched_sizes = true"
        )
    channels = getattr(model.config, "num_channels", in_channels)
    if channels != in_channels:
        raise ModelError(
            f"model {name} takes {number_of(channels, 'channel')}, {in_channels} are wanted: "
            f"give mean and std {number_of(channels, 'value')}"
        )


def _logits_of(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Replace an output by its logits; as a hook, it leaves all names as they are."""
    return getattr(output, "logits", output)


def _place(name: str) -> str:
    """Return the hub id or the folder of a model of transformers; `~` is the home folder."""
    place = name.removeprefix("transformers/")
    return str(Path(place).expanduser()) if place.startswith("~") else place


def _torchvision_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


LISTS: dict[str, Callable[[], list[str]]] = {
    "torchvision/": _torchvision_names,
    "timm/": _timm_names,
}
"""Names of each library's models, by the prefix that they have here."""
