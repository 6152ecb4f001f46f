"""Models that a file names, which may come from a stranger: architectures of known libraries only.

The metadata of a weights file and the recipe of a run folder are content. Creating what they name
must run no code of theirs, open no file that they point to, use no network, and take no more memory
than the weights explain. Initial weights are not needed: the caller loads the file's own next.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdscale.errors import ModelError
from kdscale.formatting import bytes_text, shortened
from kdscale.models.bounded_creation import (
    LARGEST_NUMBER,
    BoundedCreation,
    bytes_for,
    largest_number,
)
from kdscale.models.headless import requested_classes
from kdscale.models.libraries import transformers_architecture
from kdscale.models.registry import SOURCES, create_model

_INITIAL_WEIGHTS = {"torchvision/": "weights", "timm/": "pretrained"}
"""Options that would load weights which the file's own replace at once: left out."""
_OPENS = frozenset(
    ("cache_dir", "checkpoint_path", "file", "pretrained_cfg", "pretrained_cfg_overlay", "url",
     "weights", "weights_backbone")
)  # fmt: skip
"""Options of torchvision and timm that open a file or an address."""
_WORD = re.compile(r"[\w.+-]{0,64}")


def create_named_by_file(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    options: Mapping[str, object] | None = None,
    origin: Path,
    weights: Path | None,
) -> nn.Module:
    """Create the architecture that a file names, with random weights: no code, file or network.

    Args:
        name: a reference model, `torchvision/NAME`, `timm/NAME` or `transformers/PLACE`.
        num_classes: C, the classes of the data set.
        in_channels: channels of the preprocessed pixels.
        options: as the file has them.
        origin: the file.
        weights: the file of weights that the model takes next; None = it takes none.

    Raises:
        ModelError: the name or an option could run code, open a file or an address, or use up the
            memory; or as of `create_model`.
    """
    if is_code(name):
        raise ModelError(
            f"{origin} names the model {shortened(name)!r}, and creating it would run code that "
            f"the file chooses: where you trust whoever wrote it, {_TRUST}"
        )
    given = without_initial_weights(name, options or {})
    _check_name(name, origin)
    for key, value in given.items():
        if key in _OPENS or key.startswith("_") or not _is_plain(value):
            raise _refused(f"option {shortened(key)!r} = {shortened(repr(value))}", name, origin)
    check_numbers(given, name, origin)
    most_bytes = bytes_for(None if weights is None else weights.stat().st_size)
    bounded = BoundedCreation(most_bytes)
    try:
        with bounded:
            if name.startswith("transformers/"):
                classes, others = requested_classes(num_classes, given)
                return transformers_architecture(name, classes, in_channels, others)
            return create_model(
                name, num_classes=num_classes, in_channels=in_channels, options=given
            )
    except Exception as error:  # builders wrap what is raised in them
        if bounded.exceeded is None:
            raise
        raise ModelError(
            f"{origin} names the model {shortened(name)!r} with options by which it takes "
            f"{bounded.exceeded}, and of its weights at most {bytes_text(most_bytes)} are "
            f"explained: take the file that kdscale wrote, or where you trust whoever wrote it, "
            f"{_TRUST}"
        ) from error


def check_numbers(stated: object, name: str, origin: Path) -> None:
    """Raise ModelError where an option, or a field of config.json, is above a million.

    Builders make lists of so many entries, before any weights.
    """
    if (found := largest_number(stated)) > LARGEST_NUMBER:
        raise ModelError(
            f"{origin} describes the model {shortened(name)!r} with the number "
            f"{shortened(str(found), 30)}, wanted at most {LARGEST_NUMBER:,}: take the file that "
            f"kdscale wrote, or where you trust whoever wrote it, {_TRUST}"
        )


def is_code(name: str) -> bool:
    """Whether a name is `module:function`, none of a library's."""
    return ":" in name and not name.startswith(tuple(SOURCES))


def without_initial_weights(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options without the one that would load weights, for who loads others next."""
    left_out = next(
        (key for library, key in _INITIAL_WEIGHTS.items() if name.startswith(library)), None
    )
    return {key: value for key, value in options.items() if key != left_out}


_TRUST = "add --trust-code (in Python: trust_code=True)"


def _check_name(name: str, origin: Path) -> None:
    """Refuse timm's `hf-hub:` and `local-dir:`, which fetch a description of the model."""
    if name.startswith("timm/") and not _WORD.fullmatch(name.removeprefix("timm/")):
        raise _refused("a place to load a model from", name, origin)


def _is_plain(value: object) -> bool:
    """Whether an option is a number, true or false, a word, or a list or table of these."""
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, bool | int | float)


def _refused(what: str, name: str, origin: Path) -> ModelError:
    return ModelError(
        f"{origin} names the model {shortened(name)!r} with {what}, which may open a file or an "
        f"address, and a file may not choose those: where you trust whoever wrote it, {_TRUST}"
    )
