"""Versions of the modules that a state dict belongs to, which `load_state_dict` of some asks for.

torch keeps them beside a state dict's tensors (`_metadata`), where safetensors has no place for
them. Without them torchvision's `mnasnet*` refuses its own weights, and others may convert theirs.
"""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

KEY = "versions"
"""Key of a file's metadata that holds what `versions_of` gave."""
USUAL = 1
"""Version of a module that says none."""


def versions_of(model: nn.Module) -> dict[str, int]:
    """Return the version of each module that has another one than `USUAL`, by its name."""
    metadata: Mapping[str, Mapping[str, int]] = model.state_dict()._metadata  # type: ignore[attr-defined]
    stated = {name: one.get("version", USUAL) for name, one in metadata.items()}
    return {name: version for name, version in stated.items() if version != USUAL}


def load_state(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    versions: Mapping[str, int] | None,
    *,
    strict: bool = True,
) -> None:
    """Load tensors into a model, as of modules of these versions.

    Args:
        model: filled in place.
        tensors: by name.
        versions: what `versions_of` gave; None for those of the model as it is, where a file does
            not say.
        strict: refuse other names than the model's; False leaves what is not among them.
    """
    if versions is None:
        versions = versions_of(model)
    state = OrderedDict(tensors)
    names = (name for name, _ in model.named_modules())
    state._metadata = OrderedDict(  # type: ignore[attr-defined]
        (name, {"version": versions.get(name, USUAL)}) for name in names
    )
    model.load_state_dict(state, strict=strict)
