"""Every operation by its name in a recipe, and how a recipe's entry becomes one.

To add one: write its function of given parameters in `functional/`, the class that draws them in
this folder, name it here, specify its draws in `docs/views.md`.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from kdscale.data.views.operations.auto_augment import RandAugment, TrivialAugmentWide
from kdscale.data.views.operations.color import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    RandomAdjustSharpness,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from kdscale.data.views.operations.erasing import Cutout, RandomErasing
from kdscale.data.views.operations.geometry import (
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomVerticalFlip,
)
from kdscale.data.views.operations.mixing import Cutmix, Mixing, Mixup, MixupOrCutmix
from kdscale.data.views.operations.operation import Operation
from kdscale.data.views.operations.resizing import CenterCrop, RandomResizedCrop, Resize
from kdscale.data.views.operations.torchvision_op import PREFIX, from_torchvision
from kdscale.errors import ConfigError
from kdscale.formatting import shortened

OPERATIONS: dict[str, type[Operation]] = {
    "random_crop": RandomCrop,
    "random_horizontal_flip": RandomHorizontalFlip,
    "random_vertical_flip": RandomVerticalFlip,
    "center_crop": CenterCrop,
    "resize": Resize,
    "random_resized_crop": RandomResizedCrop,
    "random_rotation": RandomRotation,
    "random_affine": RandomAffine,
    "color_jitter": ColorJitter,
    "random_grayscale": RandomGrayscale,
    "grayscale": Grayscale,
    "gaussian_blur": GaussianBlur,
    "random_invert": RandomInvert,
    "random_posterize": RandomPosterize,
    "random_solarize": RandomSolarize,
    "random_adjust_sharpness": RandomAdjustSharpness,
    "random_autocontrast": RandomAutocontrast,
    "random_equalize": RandomEqualize,
    "rand_augment": RandAugment,
    "trivial_augment_wide": TrivialAugmentWide,
    "random_erasing": RandomErasing,
    "cutout": Cutout,
}

MIXING: dict[str, type[Mixing]] = {
    "mixup": Mixup,
    "cutmix": Cutmix,
    "mixup_or_cutmix": MixupOrCutmix,
}

_KINDS: dict[str, type[Operation] | type[Mixing]] = {**OPERATIONS, **MIXING}
NAMES = {kind: name for name, kind in _KINDS.items()}
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def parse_operation(entry: object, field: str = "views.operations") -> Operation | Mixing:
    """The operation that a recipe's `field` names: a name, or a table of `name` and arguments.

    Raises:
        ConfigError: unknown operation or argument (nearest name given), wrong type or range.
    """
    table = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(table, Mapping) or not isinstance(name := table.get("name"), str):
        raise ConfigError(
            f"{field}: {shortened(repr(entry))} has no name: write {{ name = ..., ... }}"
        )
    arguments = {key: value for key, value in table.items() if key != "name"}
    if name.startswith(PREFIX):
        return from_torchvision(name, arguments)
    if name not in _KINDS:
        raise ConfigError(_unknown(f"{field}: no operation {name!r}", name, _KINDS))
    operation = _KINDS[name]
    known = {argument.name: argument for argument in fields(operation)}
    for key, value in arguments.items():
        if key not in known:
            raise ConfigError(_unknown(f"{name}: no argument {key!r}", key, known))
        arguments[key] = _checked(name, key, value, known[key].type)
    missing = [k for k, f in known.items() if f.default is MISSING and k not in arguments]
    if missing:
        raise ConfigError(
            f"{name}: {missing[0]} is missing: write {{ name = {name!r}, {missing[0]} = ... }}"
        )
    return operation(**arguments)


def _checked(name: str, key: str, value: object, wanted: Any) -> object:
    """The value as the argument's type: a list where a tuple is wanted, an integer for a float."""
    try:
        return TypeAdapter(wanted).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError, ValueError):
        raise ConfigError(
            f"{name}: {key} is {shortened(repr(value))}, wanted {_type_name(wanted)}"
        ) from None


def _type_name(wanted: Any) -> str:
    if wanted in _TYPE_NAMES:
        return _TYPE_NAMES[wanted]
    if get_origin(wanted) is Literal:
        return " or ".join(repr(value) for value in get_args(wanted))
    if get_origin(wanted) is tuple:
        inner = [_type_name(argument) for argument in get_args(wanted)]
        return f"a list of {len(inner)} values ({', '.join(inner)})"
    kinds = [kind for kind in get_args(wanted) if kind is not type(None)]
    return " or ".join(_type_name(kind) for kind in kinds)


def _unknown(message: str, name: str, known: Mapping[str, object]) -> str:
    nearest = get_close_matches(name[:200], known, n=1)
    all_known = f"known: {', '.join(sorted(known))}" if known else "it takes none"
    hint = f"did you mean {nearest[0]!r}?" if nearest else all_known
    return f"{shortened(message)}: {hint}"
