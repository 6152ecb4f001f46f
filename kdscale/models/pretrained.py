"""Weights that a training begins from: all of a file but a head for other classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from kdscale.errors import WeightsError
from kdscale.formatting import first_few
from kdscale.models.checkpoints import read_tensors
from kdscale.models.library_names import in_library_names
from kdscale.models.torchvision_weights import torchvision_trained
from kdscale.models.weights import check_finite, head_classes, state_of
from kdscale.models.wrappers import COUNTER, check_kinds, of_model
from kdscale.module_versions import load_state

TORCHVISION = "torchvision:"


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
    if source.startswith(TORCHVISION):
        short, weights = model.removeprefix("torchvision/"), source.removeprefix(TORCHVISION)
        return dict(torchvision_trained(short, weights, {}).state_dict())
    return read_tensors(Path(source))[0]


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
        WeightsError: names, shapes or kinds of number differ elsewhere, or a value is not finite.
    """
    own = state_of(model)
    theirs = of_model(in_library_names(model, tensors), own, rename or {}, source)
    new = [*_missing(theirs, own), *(k for k in own if _differs(theirs, own, k))]
    _check_fits(theirs, own, new, source, what)
    taken = {name: theirs[name] for name in own if name in theirs and name not in new}
    check_kinds(taken, own, source, what)
    check_finite(taken, source, what)
    load_state(model, taken, None, strict=False)
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
            f"another shape {first_few(wrong)}; unexpected {first_few(extra)}: name the model that "
            'it was made from, or map the prefixes with rename (such as {"f." = "features."})'
        )
