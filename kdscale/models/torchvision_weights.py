"""Torchvision's models with torchvision's weights: built by the library itself.

Weights imply more than tensors: some models normalise their input again (`transform_input`), some
have one image size, and old files have other names. The library's builders do all of that.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from kdscale.errors import DownloadError, ModelError, WeightsError
from kdscale.formatting import reason_of
from kdscale.models.checkpoints import read_tensors
from kdscale.models.custom import build

log = logging.getLogger(__name__)

_HASH = re.compile(r"-([0-9a-f]{8,})\.")  # the start of a file's SHA-256, in torchvision's names
_TRANSFORMING = ("googlenet", "inception_v3")  # their weights expect TensorFlow's normalisation


def torchvision_trained(short: str, weights: str, options: Mapping[str, Any]) -> nn.Module:
    """Build one of torchvision's models with its weights, for the classes of the weights.

    Global generators are left as they are.

    Args:
        short: the model's name in torchvision.
        weights: such as DEFAULT or IMAGENET1K_V1; found in torch's folder or downloaded to it.
        options: further arguments of the model's builder.

    Raises:
        DownloadError: the weights are not here and cannot be downloaded.
        ModelError: torchvision has no such weights, or the builder refuses an option.
        WeightsError: the file is damaged or of another model.
    """
    from torchvision import models

    member, what = _member(short, weights), f"torchvision/{short}"
    path = _file_of(member)
    tensors, _ = read_tensors(path)
    if short == "googlenet":  # as without weights; in evaluation they do nothing
        options = {"aux_logits": True, **options}
    builder = models.get_model_builder(short)
    with torch.random.fork_rng(devices=[]), _instead(member, tensors), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # auxiliary heads that are not trained are mentioned
        try:
            model: nn.Module = build(what, builder, {"weights": member}, options)
        except RuntimeError as error:
            raise WeightsError(
                f"{path} does not hold {weights} of {what}: {reason_of(error)}: remove it, and it "
                "is downloaded again"
            ) from error
    return model


def num_outputs(short: str, weights: str) -> int:
    """Return the number of classes that weights were trained on."""
    return len(_member(short, weights).meta["categories"])


def implied_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the option `weights` of a model of torchvision implies of its other options.

    A model that is created again without `weights`, to be filled from a file, needs them.

    Args:
        name: the model as a recipe names it, of any library.
        options: of the recipe.
    """
    weights, short = options.get("weights"), name.removeprefix("torchvision/")
    if weights is None or short == name:
        return {}
    if short in _TRANSFORMING:
        return {"transform_input": True}
    if short.startswith("vit_"):
        return {"image_size": _member(short, weights).meta["min_size"][0]}
    return {}


def _member(short: str, weights: str) -> Any:
    """The library's own description of some weights.

    Raises:
        ModelError: there are none of this name.
    """
    from torchvision import models

    choices = models.get_model_weights(short).__members__
    if weights not in choices:
        raise ModelError(
            f"torchvision/{short} has no weights {weights!r}, wanted one of {', '.join(choices)}"
        )
    return choices[weights]


@contextmanager
def _instead(member: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a builder tensors that were read here; torch.hub would let the file run code."""
    member.get_state_dict = lambda *_, **__: tensors
    try:
        yield
    finally:
        del member.get_state_dict


def _file_of(member: Any) -> Path:
    """Where weights lie on this machine, downloaded if need be."""
    url: str = member.url
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
