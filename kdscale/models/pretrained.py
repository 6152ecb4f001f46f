"""Weights that a training begins from: all of a file but a head for other classes."""

import logging
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from kdscale.errors import DownloadError, ModelError, WeightsError
from kdscale.models.checkpoints import read_tensors
from kdscale.models.weights import (
    COUNTER,
    check_finite,
    head_classes,
    renamed,
    some_of,
    state_of,
)

log = logging.getLogger(__name__)

TORCHVISION = "torchvision:"
_HASH = re.compile(r"-([0-9a-f]{8,})\.")  # the start of a file's SHA-256, in torchvision's names


def read_pretrained(source: str, model: str) -> dict[str, Tensor]:
    """The tensors that a recipe names to begin from.

    Args:
        source: a weights file, or `torchvision:NAME` (such as IMAGENET1K_V1 or DEFAULT), which is
            found in torch's folder or downloaded to it.
        model: the model as the recipe names it, `torchvision/...` for weights of torchvision.

    Raises:
        DownloadError: they are not here and cannot be downloaded.
        ModelError: torchvision has no such weights.
        WeightsError: the file is missing, damaged or would run code.
    """
    path = Path(source)
    if source.startswith(TORCHVISION):
        path = torchvision_file(
            model.removeprefix("torchvision/"), source.removeprefix(TORCHVISION)
        )
    return read_tensors(path)[0]


def torchvision_file(model: str, weights: str) -> Path:
    """Where torchvision's weights of a model lie on this machine, downloaded if need be.

    Raises:
        DownloadError: they cannot be.
        ModelError: there are no such weights.
    """
    from torchvision import models

    choices = models.get_model_weights(model).__members__
    if weights not in choices:
        raise ModelError(
            f"torchvision/{model} has no weights {weights!r}, wanted one of {', '.join(choices)}"
        )
    url: str = choices[weights].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlsplit(url).path).name
    if not path.is_file():
        _download(url, path)
    return path


def _download(url: str, path: Path) -> None:
    """Fetch a file, whole or not at all."""
    expected = _HASH.search(path.name)
    log.info("downloading %s to %s", url, path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=expected and expected[1], progress=False
        )
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash
        raise DownloadError(
            f"{url} cannot be downloaded ({error}): put the file into {path.parent}, from a "
            "machine with a network"
        ) from error


def adopt(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    rename: Mapping[str, str] | None = None,
    what: str = "teacher",
) -> list[str]:
    """Fill a model with pretrained tensors, all of it but a head for other classes.

    A head is what differs in its number of outputs alone, or the model's last module where the
    tensors end before it. It stays as it is, freshly drawn.

    Args:
        model: filled in place; unchanged on any error.
        tensors: as of `read_pretrained`.
        source: where they are from, for messages.
        rename: prefixes in the file -> prefixes in the model.
        what: the model's part, for messages.

    Returns:
        The names of the tensors that stay as they are.

    Raises:
        WeightsError: names or shapes differ elsewhere, or a value is not finite.
    """
    theirs, own = renamed(tensors, rename or {}, source), state_of(model)
    new = [*_missing(theirs, own), *(k for k in own if _differs(theirs, own, k))]
    _check_fits(theirs, own, new, source, what)
    taken = {name: theirs[name] for name in own if name in theirs and name not in new}
    check_finite(taken, source, what)
    model.load_state_dict(taken, strict=False)
    return new


def _missing(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [name for name in own if name not in theirs and not name.endswith(COUNTER)]


def _differs(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> bool:
    return name in theirs and theirs[name].shape != own[name].shape


def _check_fits(
    theirs: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    new: Sequence[str],
    source: str,
    what: str,
) -> None:
    last = list(own)[-1].rpartition(".")[0]
    wrong = [name for name in _missing(theirs, own) if name.rpartition(".")[0] != last]
    differing = [name for name in new if name in theirs]
    shapes = [(tuple(theirs[name].shape), tuple(own[name].shape)) for name in differing]
    if shapes and head_classes(shapes) is None:
        wrong += differing
    # A set of torchvision's may hold auxiliary heads; a file with more is of another model.
    extra = [] if source.startswith(TORCHVISION) else sorted(theirs.keys() - own.keys())
    if wrong or extra:
        raise WeightsError(
            f"{source} does not fit this {what}, of which only the head may be new: missing or of "
            f"another shape {some_of(wrong)}; unexpected {some_of(extra)}: name the model that it "
            'was made from, or map the prefixes with rename (such as {"f." = "features."})'
        )
